//! Checking one token against the keys, purely: what RFC 7515, 7519 and 8725 ask for, and nothing that could be read in two
//! ways. Remembering tokens that passed is for `cache`; what has been revoked, for `revocation`.
//!
//! In this order: size and form, header, issuer, key, signature, and only then what the token says. Whatever is wrong
//! before the signature is wrong whoever asks, and nothing is told of a token whose signature does not fit.

use super::json::Json;
use super::keys::{ClaimMap, Fingerprint, Issuer, Key, KeySet, Word};
use super::{CallerRoles, Claim, Claims, Flaw, KID_BYTES_MAX, Origin, TokenError, rbac};
use crate::config::is_role;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::time::Duration;

/// The last second of the year 9999.
const TIME_MAX: f64 = 253_402_300_799.0;

const ID_BYTES_MAX: usize = 255;
const EMAIL_BYTES_MAX: usize = 320;
const PERMISSIONS_MAX: usize = 256;

/// Roles of one caller: they are to fit into a header field.
const ROLES_MAX: usize = 64;

/// Claims whose text is a list with spaces between the names by definition (RFC 8693 §4.2, and as Microsoft calls it).
const SPACED_CLAIMS: [&str; 2] = ["scope", "scp"];

/// A token that passed, and what it passed with.
pub(super) struct Checked {
    pub(super) claims: Claims,
    pub(super) key: Fingerprint,
}

/// Checks a token at this Unix time.
pub(super) fn check(keys: &KeySet, token: &[u8], now: Duration) -> Result<Checked, TokenError> {
    let parts = TokenParts::split(token, keys.token_bytes_max)?;
    let header = decode(parts.header)?;
    let header = Header::read(&header)?;
    let payload = decode(parts.payload)?;
    let payload = Json::parse(&payload, Flaw::ClaimsJson)?;
    let (issuer, key) = find_key(keys, &header, &payload)?;
    let signature = decode(parts.signature)?;
    if !key.verifier.fits(parts.signed, &signature) {
        return Err(Flaw::Signature.into());
    }
    let claims = read_claims(&payload, issuer)?;
    check_times(&payload, &claims, issuer, keys.leeway, now)?;
    Ok(Checked { claims, key: key.fingerprint })
}

/// The issuer whose keys are away, or lack the one that this token names; for whoever can fetch them. Nothing that it says
/// is proven.
pub(super) fn issuer_to_ask<'k>(keys: &'k KeySet, token: &[u8]) -> Option<&'k Issuer> {
    let parts = TokenParts::split(token, keys.token_bytes_max).ok()?;
    let payload = decode(parts.payload).ok()?;
    let payload = Json::parse(&payload, Flaw::ClaimsJson).ok()?;
    keys.issuer(payload.member("iss")?.text()?).filter(|issuer| issuer.can_fetch)
}

/// RFC 7515 §7.1.
struct TokenParts<'t> {
    header: &'t [u8],
    payload: &'t [u8],
    signature: &'t [u8],
    signed: &'t [u8],
}

impl<'t> TokenParts<'t> {
    fn split(token: &'t [u8], bytes_max: usize) -> Result<Self, Flaw> {
        if token.len() > bytes_max {
            return Err(Flaw::TooLong);
        }
        let mut dots = memchr::memchr_iter(b'.', token);
        let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
            return Err(Flaw::Parts);
        };
        let (signed, signature) = (&token[..second], &token[second + 1..]);
        Ok(Self { header: &token[..first], payload: &token[first + 1..second], signature, signed })
    }
}

/// The engine refuses padding, other alphabets, white space, and bits behind the last byte.
fn decode(part: &[u8]) -> Result<Vec<u8>, Flaw> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Base64)
}

struct Header<'t> {
    json: Json<'t>,
}

impl<'t> Header<'t> {
    fn read(bytes: &'t [u8]) -> Result<Self, Flaw> {
        let json = Json::parse(bytes, Flaw::HeaderJson)?;
        let members = json.members().ok_or(Flaw::HeaderJson)?;
        for (name, value) in members {
            match &**name {
                "alg" if value.text().is_none_or(str::is_empty) => return Err(Flaw::AlgorithmMissing),
                "alg" if value.text().is_some_and(|name| name.eq_ignore_ascii_case("none")) => {
                    return Err(Flaw::AlgorithmNone);
                }
                "jwk" | "jku" | "x5u" | "x5c" => return Err(Flaw::EmbeddedKey),
                "crit" => return Err(Flaw::Critical),
                // Of encrypted, compressed, nested and detached tokens (RFC 7516, RFC 7797).
                "enc" | "zip" | "cty" | "b64" | "epk" | "apu" | "apv" | "p2s" | "p2c" => {
                    return Err(Flaw::HeaderParameter);
                }
                "kid" if value.text().is_none_or(|kid| !(1..=KID_BYTES_MAX).contains(&kid.len())) => {
                    return Err(Flaw::KeyId);
                }
                "typ" if value.text().is_none() => return Err(Flaw::Type),
                _ => {}
            }
        }
        if json.member("alg").is_none() {
            return Err(Flaw::AlgorithmMissing);
        }
        Ok(Self { json })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.json.member(name)?.text()
    }
}

/// By `iss` the issuer, and among its keys only, by `kid`, the key: what another issuer calls by the same kid does not
/// matter (RFC 8725 §3.8).
fn find_key<'k>(
    keys: &'k KeySet,
    header: &Header<'_>,
    payload: &Json<'_>,
) -> Result<(&'k Issuer, &'k Key), TokenError> {
    if payload.members().is_none() {
        return Err(Flaw::ClaimsJson.into());
    }
    let iss = payload.member("iss").ok_or(Flaw::Missing(Claim::Iss))?;
    let name = iss.text().ok_or(Flaw::ClaimType(Claim::Iss))?;
    let issuer = keys.issuer(name).ok_or(Flaw::Issuer)?;
    let typ = header.text("typ").unwrap_or_default();
    // RFC 7515 §4.1.9: a media type, of which `application/` may be left out.
    let typ = typ
        .split_at_checked(12)
        .filter(|(start, _)| start.eq_ignore_ascii_case("application/"))
        .map_or(typ, |(_, rest)| rest);
    if !issuer.types.iter().any(|accepted| accepted.eq_ignore_ascii_case(typ)) {
        return Err(Flaw::Type.into());
    }
    if issuer.keys.is_none() {
        return Err(TokenError::KeysAway);
    }
    let key = issuer.key(header.text("kid"), header.text("alg").unwrap_or_default())?;
    Ok((issuer, key))
}

fn read_claims(payload: &Json<'_>, issuer: &Issuer) -> Result<Claims, Flaw> {
    let ClaimMap { role, permissions, email, sid } = &issuer.claims;
    let aud = read_audience(payload, issuer)?;
    let mut claims = Claims {
        sub: text(payload, "sub", Claim::Sub)?.ok_or(Flaw::Missing(Claim::Sub))?,
        email: text(payload, email, Claim::Email)?,
        roles: read_roles(payload, role, issuer.word.as_ref())?,
        permissions: read_permissions(payload, permissions, issuer.word.as_ref())?,
        sid: text(payload, sid, Claim::Sid)?,
        jti: text(payload, "jti", Claim::Jti)?,
        iss: (*issuer.name).into(),
        aud,
        iat: time(payload, Claim::Iat)?.map(whole),
        exp: time(payload, Claim::Exp)?.map(whole).ok_or(Flaw::Missing(Claim::Exp))?,
        session_began_ms: time(payload, Claim::AuthTime)?.map(|time| whole((time * 1000.0).round())),
        origin: issuer.origin,
    };
    if let Some(claim) = unsound(&claims) {
        return Err(Flaw::ClaimType(claim));
    }
    if let Some(Word { prefix, .. }) = issuer.word.as_ref().filter(|word| !word.prefix.is_empty()) {
        for id in std::iter::once(&mut claims.sub).chain(&mut claims.sid) {
            *id = [prefix, &**id].concat().into_boxed_str();
        }
    }
    Ok(claims)
}

/// The first text that does not fit where it is to go: ids into header fields, all of it into logs and JSON.
pub(super) fn unsound(claims: &Claims) -> Option<Claim> {
    let is_id = |id: &str| {
        (1..=ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            && !id.starts_with(' ')
            && !id.ends_with(' ')
    };
    let is_id_or_none = |id: &Option<Box<str>>| id.as_deref().is_none_or(is_id);
    let is_email = |email: &str| email.len() <= EMAIL_BYTES_MAX && !email.contains(char::is_control);
    let permissions = &claims.permissions;
    let sound = [
        (Claim::Sub, is_id(&claims.sub)),
        (Claim::Sid, is_id_or_none(&claims.sid)),
        (Claim::Jti, is_id_or_none(&claims.jti)),
        (Claim::Email, claims.email.as_deref().is_none_or(is_email)),
        (Claim::Permissions, permissions.len() <= PERMISSIONS_MAX && permissions.iter().all(|name| is_id(name))),
    ];
    sound.into_iter().find(|(_, is_sound)| !is_sound).map(|(claim, _)| claim)
}

/// A text at a place of the claims. An empty one, like `null`, says nothing.
fn text(payload: &Json<'_>, place: &str, claim: Claim) -> Result<Option<Box<str>>, Flaw> {
    match payload.at(place) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Text(text)) if text.is_empty() => Ok(None),
        Some(Json::Text(text)) => Ok(Some((**text).into())),
        Some(_) => Err(Flaw::ClaimType(claim)),
    }
}

/// All roles that the issuer may give, in the order in which the configuration names them. What else the claim says is as if
/// it were not said, for providers list roles of their own there. Our own tokens have one role.
fn read_roles(payload: &Json<'_>, place: &str, word: Option<&Word>) -> Result<CallerRoles, Flaw> {
    let Some(word) = word else {
        let role = match payload.at(place) {
            Some(Json::List(list)) if list.len() > 1 => return Err(Flaw::Roles),
            Some(Json::List(list)) => {
                list.first().map(|role| role.text().ok_or(Flaw::ClaimType(Claim::Role))).transpose()?
            }
            None | Some(Json::Null) => None,
            Some(role) => Some(role.text().ok_or(Flaw::ClaimType(Claim::Role))?).filter(|role| !role.is_empty()),
        };
        return role.map_or(Ok(CallerRoles::default()), |role| {
            // A comma would make two of it where the services read it.
            if is_role(role) { Ok(CallerRoles::new(&[role])) } else { Err(Flaw::ClaimType(Claim::Role)) }
        });
    };
    if word.roles.is_empty() {
        // Then it may be anything: it is not for us.
        return Ok(word.role.clone());
    }
    let said: Vec<&str> = match payload.at(place) {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Text(names)) if SPACED_CLAIMS.contains(&place) => names.split(' ').collect(),
        // A name may have spaces: of `sales admin` nobody should become `admin`.
        Some(Json::Text(name)) => vec![name],
        Some(Json::List(list)) => list.iter().filter_map(Json::text).collect(),
        Some(_) => return Err(Flaw::ClaimType(Claim::Role)),
    };
    let mut given: Vec<&str> = Vec::new();
    for role in &word.roles {
        let is_meant =
            |name: &&str| if role == "*" { !word.roles.iter().any(|role| role == name) } else { role == name };
        for name in said.iter().copied().filter(is_meant).filter(|name| is_role(name)) {
            if given.contains(&name) {
                continue;
            }
            if given.len() == ROLES_MAX {
                return Err(Flaw::Roles);
            }
            given.push(name);
        }
    }
    Ok(if given.is_empty() { word.role.clone() } else { CallerRoles::new(&given) })
}

/// A list of texts, or one text with spaces (RFC 8693 §4.2); of those, the ones that count.
fn read_permissions(payload: &Json<'_>, place: &str, word: Option<&Word>) -> Result<Box<[Box<str>]>, Flaw> {
    if word.is_some_and(|word| word.permissions.is_empty()) {
        return Ok(Box::default());
    }
    let said = texts(payload.at(place), |text| text.split(' ').filter(|name| !name.is_empty()))?;
    let covered = |said: &&str| word.is_none_or(|word| word.permissions.iter().any(|by| rbac::grants(by, said)));
    Ok(said.into_iter().filter(covered).map(Into::into).collect())
}

/// The texts of a list, or those that one text comes apart into.
fn texts<'p, P>(place: Option<&'p Json<'_>>, parts: impl FnOnce(&'p str) -> P) -> Result<Vec<&'p str>, Flaw>
where
    P: Iterator<Item = &'p str>,
{
    match place {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Text(text)) => Ok(parts(text).collect()),
        Some(Json::List(list)) => {
            list.iter().map(|text| text.text().ok_or(Flaw::ClaimType(Claim::Permissions))).collect()
        }
        Some(_) => Err(Flaw::ClaimType(Claim::Permissions)),
    }
}

fn read_audience(payload: &Json<'_>, issuer: &Issuer) -> Result<Box<[Box<str>]>, Flaw> {
    let aud: Box<[Box<str>]> = match payload.member("aud") {
        None if issuer.audiences.is_empty() => Box::default(),
        None => return Err(Flaw::Audience),
        Some(Json::Text(text)) => [Box::from(&**text)].into(),
        Some(Json::List(list)) => list
            .iter()
            .map(|name| Ok(name.text().ok_or(Flaw::ClaimType(Claim::Aud))?.into()))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(Flaw::ClaimType(Claim::Aud)),
    };
    let names_us = aud.iter().any(|name| issuer.audiences.iter().any(|accepted| **accepted == **name));
    if issuer.audiences.is_empty() || names_us { Ok(aud) } else { Err(Flaw::Audience) }
}

/// A time, in Unix seconds; not always a whole number of them (RFC 7519 §2).
fn time(payload: &Json<'_>, claim: Claim) -> Result<Option<f64>, Flaw> {
    match payload.member(claim.name()) {
        None => Ok(None),
        Some(Json::Number(number)) if (0.0..=TIME_MAX).contains(number) => Ok(Some(*number)),
        Some(Json::Number(_)) => Err(Flaw::Time(claim)),
        Some(_) => Err(Flaw::ClaimType(claim)),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is in range, and the rest of it is cut off"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

fn check_times(
    payload: &Json<'_>,
    claims: &Claims,
    issuer: &Issuer,
    leeway: Duration,
    now: Duration,
) -> Result<(), TokenError> {
    if has_expired(claims, leeway, now) {
        return Err(TokenError::Expired);
    }
    let latest = (now + leeway).as_secs_f64();
    if time(payload, Claim::Nbf)?.is_some_and(|nbf| nbf > latest) {
        return Err(Flaw::NotYet.into());
    }
    if time(payload, Claim::Iat)?.is_some_and(|iat| iat > latest) {
        return Err(Flaw::FromTheFuture.into());
    }
    // Ours may have begun later than now: behind an end of all sessions that was written by a clock that is ahead.
    let is_early = |began_ms: u64| issuer.origin == Origin::Foreign && Duration::from_millis(began_ms) > now + leeway;
    if claims.session_began_ms.is_some_and(is_early) {
        return Err(Flaw::FromTheFuture.into());
    }
    // Revocations are kept as long as a token may live, so none may live longer, neither from now on nor since it was
    // issued: it may come here late in its life, when its session's end is forgotten.
    let since = Duration::from_secs(claims.iat.unwrap_or(u64::MAX)).min(now);
    if Duration::from_secs(claims.exp) > since + issuer.lifetime_max + leeway {
        return Err(Flaw::Lifetime.into());
    }
    Ok(())
}

/// Whether the token has expired, leeway included.
pub(super) fn has_expired(claims: &Claims, leeway: Duration, now: Duration) -> bool {
    now >= Duration::from_secs(claims.exp) + leeway
}
