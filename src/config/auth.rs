//! Tokens: the gateway's own keys, the issuers whose tokens it takes as well, and what holds for all. Reading key files
//! and fetching key sets is for `auth`.

use super::raw::{Node, Place, Value, quoted};
use super::read::{Fields, FromText, Report, one_of};
use super::roles::{is_permission, is_role, report_permission};
use super::{HIDDEN, Secret, units};
use hyper::Uri;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Shorter secrets can be guessed from a token (RFC 7518 §3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// As many as a token's key is looked for among.
const KEYS_MAX: usize = 32;
const ISSUERS_MAX: usize = 64;

/// A `sub` of 255 bytes still fits behind it wherever ids go.
const SUB_PREFIX_BYTES_MAX: usize = 127;

/// Tokens. All of it follows a reload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Auth {
    /// `iss` of the gateway's own tokens. Default `shardgate`.
    pub issuer: String,
    /// `aud` of the gateway's own tokens. Default `shardgate`.
    pub audience: String,
    /// How long an access token lives. Default 15 min, never more than `lifetime_max`.
    #[serde(serialize_with = "units::duration")]
    pub access_lifetime: Duration,
    /// Own tokens that would live longer from now are refused. Default 1 h.
    #[serde(serialize_with = "units::duration")]
    pub lifetime_max: Duration,
    /// How far clocks may be apart. Default 5 s.
    #[serde(serialize_with = "units::duration")]
    pub leeway: Duration,
    /// Bytes of a token. Default 8 KiB.
    #[serde(serialize_with = "units::size_in_memory")]
    pub token_bytes_max: usize,
    /// Checked tokens that a shard remembers. Default 16384. Shard.
    pub cache_entries: usize,
    /// Revocations that a shard holds. Default 100,000. Shard.
    pub revocations_max: usize,
    /// Own keys; kids are unique, one at most signs. None: one is made and kept in the data directory.
    pub keys: Vec<TokenKey>,
    /// Other issuers whose tokens are taken; names are unique and none is `issuer`.
    pub issuers: Vec<TokenIssuer>,
}

impl Auth {
    /// How long a revocation matters: until the last token that was issued before it has expired.
    pub fn revocations_kept(&self) -> Duration {
        let longest = self.issuers.iter().map(|issuer| issuer.lifetime_max).fold(self.lifetime_max, Duration::max);
        // Clocks may be apart on both ends.
        longest + 2 * self.leeway
    }
}

/// One of the gateway's own keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenKey {
    /// What tokens call it.
    pub kid: String,
    /// The one algorithm that it is used with.
    pub algorithm: Algorithm,
    /// The file that holds it; exactly one of `file` and `secret` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// What the file would hold: the secret with HS256, 32 bytes or more; else the key as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// Whether new tokens are signed with it. Default true for the first key.
    pub sign: bool,
}

/// An issuer other than the gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenIssuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// Its tokens name one of these in `aud`; empty: `aud` is not looked at.
    pub audiences: Vec<String>,
    /// Where its key set is fetched; exactly one of `jwks_url` and `jwks_file` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// The file that holds its key set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// Certificates (PEM) that its server's is checked with, instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Algorithms that its keys may be used with; never HS256. Default all others.
    pub algorithms: Vec<Algorithm>,
    /// `typ` of its tokens; an empty text stands for none. Default `JWT`, `at+jwt` and none.
    pub types: Vec<String>,
    /// What stands before its `sub` and `sid`. None: its name and a `|`; see [`TokenIssuer::sub_prefix`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_prefix: Option<String>,
    /// Roles that it may give, in the order in which the services are told them; `*` stands for any other. Default none.
    pub roles: Vec<String>,
    /// Permissions that it may give, `events:*` and `*` among them. Default none.
    pub permissions: Vec<String>,
    /// The role of its callers whose token gives none of these. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The claim that is the roles. Default `role`.
    pub claim_role: String,
    /// The claim that is the permissions. Default `permissions`.
    pub claim_permissions: String,
    /// The claim that is the e-mail address. Default `email`.
    pub claim_email: String,
    /// The claim that is the session. Default `sid`.
    pub claim_sid: String,
    /// Its tokens that would live longer from now are refused. Default 1 d.
    #[serde(serialize_with = "units::duration")]
    pub lifetime_max: Duration,
    /// How often its key set is fetched. Default 10 min.
    #[serde(serialize_with = "units::duration")]
    pub refresh_interval: Duration,
    /// How long after one fetch a key that the set lacks may cause the next. Default 30 s.
    #[serde(serialize_with = "units::duration")]
    pub unknown_key_cooldown: Duration,
}

impl TokenIssuer {
    /// What stands before its `sub` and `sid`, so that no two issuers can mean one user by chance.
    pub fn sub_prefix(&self) -> String {
        self.sub_prefix.clone().unwrap_or_else(|| format!("{}|", self.issuer))
    }
}

/// What a key is used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA, PKCS#1 v1.5, with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSA-PSS with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// All that there are.
    pub const ALL: [Self; 5] = [Self::Hs256, Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    /// As `alg` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl FromText for Algorithm {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| one_of(&Self::ALL.map(Self::name)))
    }
}

/// Reads `[auth]` and the sections inside it.
pub(super) fn read_auth(node: Option<&Node>, report: &mut Report) -> Auth {
    let fields = Fields::of("auth", "auth".to_owned(), node, report);
    let auth = Auth {
        issuer: fields.take("issuer", report),
        audience: fields.take("audience", report),
        access_lifetime: fields.take("access_lifetime", report),
        lifetime_max: fields.take("lifetime_max", report),
        leeway: fields.take("leeway", report),
        token_bytes_max: fields.take("token_bytes_max", report),
        cache_entries: fields.take("cache_entries", report),
        revocations_max: fields.take("revocations_max", report),
        keys: read_keys(&fields, report),
        issuers: read_issuers(&fields, report),
    };
    for (key, text) in [("issuer", &auth.issuer), ("audience", &auth.audience)] {
        check_name(text, key, &fields, report);
    }
    if auth.access_lifetime > auth.lifetime_max
        && ["access_lifetime", "lifetime_max"].iter().all(|key| fields.is_sound(key, report))
    {
        let [life, max] = [auth.access_lifetime, auth.lifetime_max].map(units::written_duration);
        let place = if fields.node("access_lifetime").is_some() { "access_lifetime" } else { "lifetime_max" };
        let right = format!("it is not more than auth.lifetime_max, which is \"{max}\"");
        report.push(fields.place_of(place), format!("auth.access_lifetime is \"{life}\""), &right);
    }
    check_issuers(&auth, &fields, report);
    auth
}

/// The entries of a list of tables inside `[auth]`.
fn entries<'a>(fields: &Fields<'a>, name: &str, max: usize, report: &mut Report) -> Vec<(Fields<'a>, Place)> {
    let Some(node) = fields.node(name) else { return Vec::new() };
    let list = match &node.value {
        Value::List(list) if list.len() <= max => list,
        Value::List(list) => {
            report.push(
                node.place.clone(),
                format!("there are {} auth.{name}", list.len()),
                &format!("there are at most {max}"),
            );
            return Vec::new();
        }
        _ => {
            report.wrong(node, &format!("auth.{name}"), &format!("it is a list: [[auth.{name}]]"));
            return Vec::new();
        }
    };
    let read = |(index, node): (usize, &'a Node)| {
        let path = format!("auth.{name}[{index}]");
        (Fields::of(&format!("auth.{name}"), path, Some(node), report), node.place.clone())
    };
    list.iter().enumerate().map(read).collect()
}

fn read_keys(auth: &Fields<'_>, report: &mut Report) -> Vec<TokenKey> {
    let mut keys: Vec<TokenKey> = Vec::new();
    let entries = entries(auth, "keys", KEYS_MAX, report);
    let is_said = entries.iter().any(|(fields, _)| fields.node("sign").is_some());
    for (index, (fields, place)) in entries.iter().enumerate() {
        let Some(kid) = fields.take_written::<String>("kid", report) else { continue };
        let key = TokenKey {
            kid,
            algorithm: fields.take_written("algorithm", report).unwrap_or(Algorithm::Es256),
            file: fields.take_written("file", report),
            secret: fields.take_written("secret", report),
            sign: fields.take_written("sign", report).unwrap_or(!is_said && index == 0),
        };
        check_key(&key, fields, place, report);
        if keys.iter().any(|other| other.kid == key.kid) {
            let what = format!("{}.kid is {}, as that of another key", fields.path, quoted(&key.kid));
            report.push(fields.place_of("kid"), what, "give each key an id of its own");
        }
        if key.sign && keys.iter().any(|other| other.sign) {
            let what = format!("{}.sign is true, as that of another key", fields.path);
            report.push(fields.place_of("sign"), what, "one key signs; the others only verify");
        }
        keys.push(key);
    }
    keys
}

fn check_key(key: &TokenKey, fields: &Fields<'_>, place: &Place, report: &mut Report) {
    let path = &fields.path;
    check_name(&key.kid, "kid", fields, report);
    let [file, secret] = ["file", "secret"].map(|key| fields.node(key).is_some());
    if file == secret {
        let what = if file { "has both file and secret" } else { "has neither file nor secret" };
        report.push(
            place.clone(),
            format!("{path} {what}"),
            "give the file that holds the key, or the key itself as secret",
        );
    }
    if let Some(text) = &key.secret {
        if key.algorithm != Algorithm::Hs256 {
            if fields.is_sound("algorithm", report) && !text.reveal().starts_with("-----BEGIN ") {
                let what = format!("{path}.secret is no PEM, and {path}.algorithm is \"{}\"", key.algorithm.name());
                let right = "only HS256 has a secret; name the file of the key, or write secret = \"${VARIABLE}\" where the \
                             variable holds the key as PEM";
                report.push(fields.place_of("secret"), what, right);
            }
        } else if text.reveal().len() < SECRET_BYTES_MIN {
            let what = format!("{path}.secret has {} bytes", text.reveal().len());
            let right = format!("it has {SECRET_BYTES_MIN} or more, by chance: `openssl rand -base64 32` makes one");
            report.push(fields.place_of("secret"), what, &right);
        }
    }
}

fn read_issuers(auth: &Fields<'_>, report: &mut Report) -> Vec<TokenIssuer> {
    let mut issuers = Vec::new();
    for (fields, place) in entries(auth, "issuers", ISSUERS_MAX, report) {
        let issuer = TokenIssuer {
            issuer: fields.take_written("issuer", report).unwrap_or_default(),
            audiences: fields.take("audiences", report),
            jwks_url: fields.take_written("jwks_url", report),
            jwks_file: fields.take_written("jwks_file", report),
            ca_file: fields.take_written("ca_file", report),
            algorithms: fields.take("algorithms", report),
            types: fields.take("types", report),
            sub_prefix: fields.take_written("sub_prefix", report),
            roles: fields.take("roles", report),
            permissions: fields.take("permissions", report),
            role: fields.take_written("role", report),
            claim_role: fields.take("claim_role", report),
            claim_permissions: fields.take("claim_permissions", report),
            claim_email: fields.take("claim_email", report),
            claim_sid: fields.take("claim_sid", report),
            lifetime_max: fields.take("lifetime_max", report),
            refresh_interval: fields.take("refresh_interval", report),
            unknown_key_cooldown: fields.take("unknown_key_cooldown", report),
        };
        check_issuer(&issuer, &fields, &place, report);
        issuers.push(issuer);
    }
    issuers
}

fn check_issuer(issuer: &TokenIssuer, fields: &Fields<'_>, place: &Place, report: &mut Report) {
    let path = &fields.path;
    if fields.node("issuer").is_some() {
        check_name(&issuer.issuer, "issuer", fields, report);
    }
    let [url, file] = ["jwks_url", "jwks_file"].map(|key| fields.node(key).is_some());
    if url == file {
        let what = if url { "has both jwks_url and jwks_file" } else { "has neither jwks_url nor jwks_file" };
        report.push(place.clone(), format!("{path} {what}"), "say where its keys are: jwks_url or jwks_file");
    }
    if let Some(url) = &issuer.jwks_url {
        // A password in it is shown to nobody.
        let shown = if url.contains('@') { HIDDEN.to_owned() } else { quoted(url) };
        let (place, what) = (fields.place_of("jwks_url"), format!("{path}.jwks_url is {shown}"));
        match check_url(url) {
            Ok(Some(warning)) => report.warn(&place, &format!("{what}; {warning}")),
            Ok(None) => {}
            Err(right) => report.push(place, what, right),
        }
    }
    if issuer.ca_file.is_some() && !issuer.jwks_url.as_ref().is_some_and(|url| url.starts_with("https:")) {
        let what = format!("{path}.ca_file is given, and {path}.jwks_url is no https URL");
        report.push(fields.place_of("ca_file"), what, "only https servers show certificates");
    }
    if issuer.algorithms.is_empty() {
        report.push(fields.place_of("algorithms"), format!("{path}.algorithms is empty"), "name one or more");
    }
    if issuer.algorithms.contains(&Algorithm::Hs256) {
        let what = format!("{path}.algorithms has \"HS256\"");
        let right = "a key set has public keys only; for a shared secret write [[auth.keys]]";
        report.push(fields.place_of("algorithms"), what, right);
    }
    if issuer.types.is_empty() {
        report.push(
            fields.place_of("types"),
            format!("{path}.types is empty"),
            "name one or more; \"\" is for tokens without",
        );
    }
    for key in ["audiences", "types"] {
        let list = if key == "types" { &issuer.types } else { &issuer.audiences };
        for text in list.iter().filter(|text| key == "audiences" || !text.is_empty()) {
            check_name(text, key, fields, report);
        }
    }
    if issuer.audiences.is_empty() && fields.is_sound("audiences", report) {
        let warning = "has no audiences, so tokens that it issued for anybody else are taken too";
        report.warn(place, &format!("{path} {warning}"));
    }
    check_given(issuer, fields, report);
    let claims = [&issuer.claim_role, &issuer.claim_permissions, &issuer.claim_email, &issuer.claim_sid];
    for (key, claim) in ["claim_role", "claim_permissions", "claim_email", "claim_sid"].into_iter().zip(claims) {
        if !claim.is_empty() {
            check_name(claim, key, fields, report);
        }
    }
}

/// What it may give: roles, permissions, and a name space for its ids.
fn check_given(issuer: &TokenIssuer, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    let roles = issuer.roles.iter().map(|role| ("roles", role));
    for (key, role) in roles.chain(issuer.role.iter().map(|role| ("role", role))).filter(|(_, role)| !is_role(role)) {
        let right = "it is 1 to 255 printable ASCII characters without a comma, and begins and ends with no space";
        report.push(fields.place_of(key), format!("{path}.{key} is {}", quoted(role)), right);
    }
    for permission in issuer.permissions.iter().filter(|permission| !is_permission(permission)) {
        report_permission(permission, fields, report);
    }
    for (key, list, is_lost) in [
        ("claim_role", "roles", issuer.roles.is_empty() && issuer.claim_role != "role"),
        (
            "claim_permissions",
            "permissions",
            issuer.permissions.is_empty() && issuer.claim_permissions != "permissions",
        ),
    ] {
        if is_lost {
            let warning = format!("{path}.{key} is given, and {path}.{list} is empty, so that none of them counts");
            report.warn(&fields.place_of(key), &warning);
        }
    }
    let prefix = issuer.sub_prefix();
    let is_plain = prefix.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && !prefix.starts_with(' ');
    if is_plain && prefix.len() <= SUB_PREFIX_BYTES_MAX {
        return;
    }
    let right = "it is up to 127 printable ASCII characters and begins with no space";
    if fields.node("sub_prefix").is_some() {
        report.push(fields.place_of("sub_prefix"), format!("{path}.sub_prefix is {}", quoted(&prefix)), right);
    } else if fields.is_sound("issuer", report) {
        let what = format!("{path}.sub_prefix would be the issuer and a |, {} bytes", prefix.len());
        report.push(fields.place_of("issuer"), what, "write a shorter one: sub_prefix = \"partner:\"");
    }
}

/// Whether a key set may be fetched there; what makes one wonder is a warning.
fn check_url(url: &str) -> Result<Option<&'static str>, &'static str> {
    const RIGHT: &str = "it is an http or https URL without a user, like \"https://id.example.com/jwks.json\"";
    let uri: Uri = url.parse().map_err(|_| RIGHT)?;
    let authority = uri.authority().ok_or(RIGHT)?;
    if authority.as_str().contains('@') || url.contains('#') {
        return Err(RIGHT);
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(None),
        Some("http") if is_here => Ok(None),
        Some("http") => Ok(Some("whoever is on the way can put keys of their own there; use https")),
        _ => Err(RIGHT),
    }
}

/// Names that stand in tokens: kids, issuers, audiences, claims.
fn check_name(name: &str, key: &str, fields: &Fields<'_>, report: &mut Report) {
    if !(1..=255).contains(&name.len()) || !name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let what = format!("{}.{key} is {}", fields.path, quoted(name));
        report.push(fields.place_of(key), what, "it is 1 to 255 printable ASCII characters");
    }
}

fn check_issuers(auth: &Auth, fields: &Fields<'_>, report: &mut Report) {
    for (index, issuer) in auth.issuers.iter().enumerate().filter(|(_, issuer)| !issuer.issuer.is_empty()) {
        let name = quoted(&issuer.issuer);
        if issuer.issuer == auth.issuer {
            let what = format!("auth.issuers[{index}].issuer is {name}, and so is auth.issuer");
            report.push(fields.place_of("issuers"), what, "the gateway's own keys stand in [[auth.keys]]");
        }
        if auth.issuers[..index].iter().any(|other| other.issuer == issuer.issuer) {
            let what = format!("auth.issuers[{index}].issuer is {name}, as that of another");
            report.push(fields.place_of("issuers"), what, "write each issuer once");
        }
        // Where one goes on as another may, ids of the two could meet.
        let prefix = issuer.sub_prefix();
        let goes_on = |other: &TokenIssuer| {
            let other = other.sub_prefix();
            !other.is_empty() && prefix.len() > other.len() && prefix.starts_with(&other)
        };
        if let Some(other) = auth.issuers.iter().position(goes_on) {
            let what = format!(
                "auth.issuers[{index}].sub_prefix is {}, which begins with that of auth.issuers[{other}]",
                quoted(&prefix)
            );
            report.push(
                fields.place_of("issuers"),
                what,
                "neither may begin with the other, or ids of the two could meet",
            );
        }
    }
}
