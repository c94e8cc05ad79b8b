//! Tokens: the gateway's own keys, the issuers whose tokens it takes as well, and what holds for all. Reading key files
//! and fetching key sets is for `auth`.

use super::address::{has_sound_port, is_this_machine};
use super::keys::section::FromFields as _;
use super::names::{is_printable, is_role};
use super::raw::quoted;
use super::read::Fields;
use super::report::Report;
use super::roles::check_granted;
use super::{Algorithm, Auth, HIDDEN, TokenIssuer, TokenKey, written_duration};
use hyper::Uri;
use std::time::Duration;

/// Shorter secrets can be guessed from a token (RFC 7518 §3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// As many as a token's key is looked for among.
const KEYS_MAX: usize = 32;
const ISSUERS_MAX: usize = 64;

/// A `sub` of 255 bytes still fits behind it wherever ids go.
const SUB_PREFIX_BYTES_MAX: usize = 127;

impl Auth {
    /// How long a revocation matters: until the last token that was issued before it has expired.
    pub fn revocations_kept(&self) -> Duration {
        let longest = self.issuers.iter().map(|issuer| issuer.lifetime_max).fold(self.lifetime_max, Duration::max);
        // Clocks may be apart on both ends.
        longest + 2 * self.leeway
    }
}

impl TokenIssuer {
    /// What stands before its `sub` and `sid`, so that no two issuers can mean one user by chance.
    pub fn sub_prefix(&self) -> String {
        self.sub_prefix.clone().unwrap_or_else(|| format!("{}|", self.issuer))
    }
}

/// Reads the sections inside `[auth]`, and checks all of it.
pub(super) fn read_auth(auth: &mut Auth, fields: &Fields<'_>, report: &mut Report) {
    auth.keys = read_keys(fields, report);
    auth.issuers = read_issuers(fields, report);
    check_names([&auth.issuer], "issuer", fields, report);
    check_names([&auth.audience], "audience", fields, report);
    if auth.access_lifetime > auth.lifetime_max {
        let [life, max] = [auth.access_lifetime, auth.lifetime_max].map(written_duration);
        let right = format!("it is not more than auth.lifetime_max, which is \"{max}\"");
        fields.wrong_pair(report, ["access_lifetime", "lifetime_max"], format_args!("is \"{life}\""), &right);
    }
    check_issuers(auth, fields, report);
}

fn read_keys(auth: &Fields<'_>, report: &mut Report) -> Vec<TokenKey> {
    let mut keys: Vec<TokenKey> = Vec::new();
    let entries = Fields::listed(TokenKey::SECTION, auth.node("keys"), KEYS_MAX, report);
    let is_said = entries.iter().any(|fields| fields.node("sign").is_some());
    for (index, fields) in entries.iter().enumerate() {
        let mut key = TokenKey::from_fields(fields, report);
        if !fields.is_text("kid") {
            continue;
        }
        key.sign |= !is_said && index == 0;
        check_key(&key, fields, report);
        if keys.iter().any(|other| other.kid == key.kid) {
            let what = format_args!("is {}, as that of another key", quoted(&key.kid));
            fields.wrong(report, "kid", what, "give each key an id of its own");
        }
        if key.sign && keys.iter().any(|other| other.sign) {
            fields.wrong(report, "sign", "is true, as that of another key", "one key signs; the others only verify");
        }
        keys.push(key);
    }
    keys
}

fn check_key(key: &TokenKey, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    check_names([&key.kid], "kid", fields, report);
    let [file, secret] = ["file", "secret"].map(|key| fields.node(key).is_some());
    if file == secret {
        let what = if file { "has both file and secret" } else { "has neither file nor secret" };
        let right = "give the file that holds the key, or the key itself as secret";
        report.push(fields.place(), format!("{path} {what}"), right);
    }
    if let Some(text) = &key.secret {
        if key.algorithm != Algorithm::Hs256 {
            if fields.is_sound("algorithm", report) && !text.reveal().starts_with("-----BEGIN ") {
                let what = format_args!("is no PEM, and {path}.algorithm is \"{}\"", key.algorithm.name());
                let right = "only HS256 has a secret; name the file of the key, or write secret = \"${VARIABLE}\" where the \
                             variable holds the key as PEM";
                fields.wrong(report, "secret", what, right);
            }
        } else if text.reveal().len() < SECRET_BYTES_MIN {
            let right = format!("it has {SECRET_BYTES_MIN} or more, by chance: `openssl rand -base64 32` makes one");
            fields.wrong(report, "secret", format_args!("has {} bytes", text.reveal().len()), &right);
        }
    }
}

fn read_issuers(auth: &Fields<'_>, report: &mut Report) -> Vec<TokenIssuer> {
    let mut issuers = Vec::new();
    for fields in Fields::listed(TokenIssuer::SECTION, auth.node("issuers"), ISSUERS_MAX, report) {
        let issuer = TokenIssuer::from_fields(&fields, report);
        check_issuer(&issuer, &fields, report);
        issuers.push(issuer);
    }
    issuers
}

fn check_issuer(issuer: &TokenIssuer, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    if fields.node("issuer").is_some() {
        check_names([&issuer.issuer], "issuer", fields, report);
    }
    let [url, file] = ["jwks_url", "jwks_file"].map(|key| fields.node(key).is_some());
    if url == file {
        let what = if url { "has both jwks_url and jwks_file" } else { "has neither jwks_url nor jwks_file" };
        let right = "say where its keys are: jwks_url or jwks_file";
        report.push(fields.place(), format!("{path} {what}"), right);
    }
    if let Some(url) = &issuer.jwks_url {
        // A password in it is shown to nobody: before the host, or a token behind a `?`.
        let shown = if url.contains(['@', '?']) { HIDDEN.to_owned() } else { quoted(url) };
        match check_url(url) {
            Ok(None) => {}
            Ok(Some(warning)) => {
                report.warn(&fields.place_of("jwks_url"), &format!("{path}.jwks_url is {shown}; {warning}"));
            }
            Err(right) => fields.wrong(report, "jwks_url", format_args!("is {shown}"), right),
        }
    }
    if issuer.ca_file.is_some() && !issuer.jwks_url.as_ref().is_some_and(|url| url.starts_with("https:")) {
        let what = format_args!("is given, and {path}.jwks_url is no https URL");
        fields.wrong(report, "ca_file", what, "only https servers show certificates");
    }
    if issuer.algorithms.is_empty() {
        fields.wrong(report, "algorithms", "is empty", "name one or more");
    }
    if issuer.algorithms.contains(&Algorithm::Hs256) {
        let right = "a key set has public keys only; for a shared secret write [[auth.keys]]";
        fields.wrong(report, "algorithms", "has \"HS256\"", right);
    }
    if issuer.types.is_empty() {
        fields.wrong(report, "types", "is empty", "name one or more; \"\" is for tokens without");
    }
    check_names(&issuer.audiences, "audiences", fields, report);
    check_names(issuer.types.iter().filter(|text| !text.is_empty()), "types", fields, report);
    if issuer.audiences.is_empty() && fields.is_sound("audiences", report) {
        let warning = "has no audiences, so tokens that it issued for anybody else are taken too";
        report.warn(&fields.place(), &format!("{path} {warning}"));
    }
    check_given(issuer, fields, report);
    for (key, claim) in [
        ("claim_role", &issuer.claim_role),
        ("claim_permissions", &issuer.claim_permissions),
        ("claim_email", &issuer.claim_email),
        ("claim_sid", &issuer.claim_sid),
    ] {
        check_names(Some(claim).filter(|claim| !claim.is_empty()), key, fields, report);
    }
}

/// What it may give: roles, permissions, and a name space for its ids.
fn check_given(issuer: &TokenIssuer, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    let roles = issuer.roles.iter().map(|role| ("roles", role));
    for (key, role) in roles.chain(issuer.role.iter().map(|role| ("role", role))).filter(|(_, role)| !is_role(role)) {
        let right = "it is 1 to 255 printable ASCII characters without a comma, and begins and ends with no space";
        fields.wrong(report, key, format_args!("is {}", quoted(role)), right);
    }
    check_granted(&issuer.permissions, fields, report);
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
    if is_printable(&prefix) && !prefix.starts_with(' ') && prefix.len() <= SUB_PREFIX_BYTES_MAX {
        return;
    }
    let right = "it is up to 127 printable ASCII characters and begins with no space";
    if fields.node("sub_prefix").is_some() {
        fields.wrong(report, "sub_prefix", format_args!("is {}", quoted(&prefix)), right);
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
    if authority.as_str().contains('@') || url.contains('#') || !has_sound_port(authority) {
        return Err(RIGHT);
    }
    match uri.scheme_str() {
        Some("https") => Ok(None),
        Some("http") if is_this_machine(authority) => Ok(None),
        Some("http") => Ok(Some("whoever is on the way can put keys of their own there; use https")),
        _ => Err(RIGHT),
    }
}

/// Names that stand in tokens: kids, issuers, audiences, claims.
fn check_names<'n>(names: impl IntoIterator<Item = &'n String>, key: &str, fields: &Fields<'_>, report: &mut Report) {
    for name in names.into_iter().filter(|name| !(1..=255).contains(&name.len()) || !is_printable(name)) {
        fields.wrong(report, key, format_args!("is {}", quoted(name)), "it is 1 to 255 printable ASCII characters");
    }
}

fn check_issuers(auth: &Auth, fields: &Fields<'_>, report: &mut Report) {
    for (index, issuer) in auth.issuers.iter().enumerate().filter(|(_, issuer)| !issuer.issuer.is_empty()) {
        let name = quoted(&issuer.issuer);
        let mut wrong = |what: &str, right| {
            report.push(fields.place_of("issuers"), format!("auth.issuers[{index}].{what}"), right);
        };
        if issuer.issuer == auth.issuer {
            let right = "the gateway's own keys stand in [[auth.keys]]";
            wrong(&format!("issuer is {name}, and so is auth.issuer"), right);
        }
        if auth.issuers[..index].iter().any(|other| other.issuer == issuer.issuer) {
            wrong(&format!("issuer is {name}, as that of another"), "write each issuer once");
        }
        // Where one goes on as another may, ids of the two could meet.
        let prefix = issuer.sub_prefix();
        let goes_on = |other: &TokenIssuer| {
            let other = other.sub_prefix();
            !other.is_empty() && prefix.len() > other.len() && prefix.starts_with(&other)
        };
        if let Some(other) = auth.issuers.iter().position(goes_on) {
            let right = "neither may begin with the other, or ids of the two could meet";
            let prefix = quoted(&prefix);
            wrong(&format!("sub_prefix is {prefix}, which begins with that of auth.issuers[{other}]"), right);
        }
    }
}
