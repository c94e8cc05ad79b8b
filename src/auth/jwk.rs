//! Public keys as key sets have them (RFC 7517): reading the sets of other issuers, judging each key, and writing our own.
//! Fetching sets is for `fetch`.

use super::Flaw;
use super::json::Json;
use crate::config::Algorithm;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde_json::{Value, json};
use std::fmt;

/// Bytes of a key set.
pub const SET_BYTES_MAX: usize = 512 << 10;

/// Keys of a set; those after are passed over.
const KEYS_MAX: usize = 64;

/// A public key and what its set says of it.
#[derive(Clone, Debug)]
pub(super) struct Jwk {
    pub(super) kid: Option<Box<str>>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// The keys of another issuer that can be used. Immutable.
#[derive(Clone, Debug)]
pub struct JwkSet {
    pub(super) keys: Vec<Jwk>,
    /// Keys that cannot be used, and why; for the log.
    pub skipped: Vec<String>,
}

/// Why a key set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetFault {
    /// It is no key set.
    NoSet(&'static str),
    /// None of its keys can be used; the reasons follow.
    NoKeys(Vec<String>),
}

impl fmt::Display for SetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSet(what) => f.write_str(what),
            Self::NoKeys(skipped) if skipped.is_empty() => f.write_str("the key set is empty"),
            Self::NoKeys(skipped) => write!(f, "no key of the set can be used: {}", skipped.join(", ")),
        }
    }
}

impl std::error::Error for SetFault {}

impl JwkSet {
    /// Reads a set. A key that does not say its algorithm gets the first of `algorithms` that fits it.
    pub fn parse(bytes: &[u8], algorithms: &[Algorithm]) -> Result<Self, SetFault> {
        if bytes.len() > SET_BYTES_MAX {
            return Err(SetFault::NoSet("the key set is larger than 512KiB"));
        }
        let json = Json::parse(bytes, Flaw::ClaimsJson).map_err(|flaw| match flaw {
            Flaw::Duplicate => SetFault::NoSet("a member stands twice in an object of the key set"),
            Flaw::Depth => SetFault::NoSet("the key set is too deep"),
            _ => SetFault::NoSet("the key set is no JSON"),
        })?;
        let Some(Json::List(list)) = json.member("keys") else {
            return Err(SetFault::NoSet("the key set has no list named keys"));
        };
        let (mut keys, mut skipped): (Vec<Jwk>, _) = (Vec::new(), Vec::new());
        for (index, json) in list.iter().enumerate() {
            let read = if index < KEYS_MAX { read_key(json, algorithms) } else { Err("there are more than 64") };
            let twice = |key: &Jwk| {
                key.kid.is_some() && keys.iter().any(|other| other.kid == key.kid && other.algorithm == key.algorithm)
            };
            match read {
                // Which of the two a token means would be a guess.
                Ok(key) if twice(&key) => skipped.push(format!("keys[{index}]: another has its kid")),
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(format!("keys[{index}]: {why}")),
            }
        }
        // What a stranger wrote a thousand times is not told a thousand times.
        skipped.truncate(8);
        if keys.is_empty() { Err(SetFault::NoKeys(skipped)) } else { Ok(Self { keys, skipped }) }
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none can be used; a set that was read has one at least.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

fn read_key(json: &Json<'_>, algorithms: &[Algorithm]) -> Result<Jwk, &'static str> {
    let text = |name: &str| match json.member(name) {
        None => Ok(None),
        Some(value) => value.text().map(Some).ok_or("a member is no text"),
    };
    json.members().ok_or("it is no object")?;
    // RFC 7517 §4.2, §4.3: a key for encryption verifies nothing.
    if text("use")?.is_some_and(|purpose| purpose != "sig") {
        return Err("its use is not sig");
    }
    match json.member("key_ops") {
        None => {}
        Some(Json::List(operations)) if operations.iter().any(|operation| operation.text() == Some("verify")) => {}
        Some(_) => return Err("its key_ops are without verify"),
    }
    if json.member("d").is_some() {
        return Err("it is a private key, which everybody knows now");
    }
    let kid = text("kid")?;
    if kid.is_some_and(|kid| kid.len() > super::KID_BYTES_MAX) {
        return Err("its kid is too long");
    }
    let part = |name: &str| {
        let part = text(name)?.ok_or("a part of it is missing")?;
        URL_SAFE_NO_PAD.decode(part).map_err(|_| "a part of it is no base64url")
    };
    let (fitting, key): (&[Algorithm], _) = match (text("kty")?, text("crv")?) {
        (Some("RSA"), _) => {
            let (n, e) = (part("n")?, part("e")?);
            (&[Algorithm::Rs256, Algorithm::Ps256], DecodingKey::from_rsa_raw_components(&n, &e))
        }
        (Some("EC"), Some("P-256")) => {
            let (x, y) = (part("x")?, part("y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err("its point is not of 2 times 32 bytes");
            }
            (&[Algorithm::Es256], DecodingKey::from_ec_der(&[&[4_u8][..], &x, &y].concat()))
        }
        (Some("OKP"), Some("Ed25519")) => (&[Algorithm::EdDsa], DecodingKey::from_ed_der(&part("x")?)),
        // A secret that is published is none.
        (Some("oct"), _) => return Err("it is a symmetric key"),
        _ => return Err("its kty and crv are of no algorithm that is taken"),
    };
    let algorithm = match text("alg")? {
        Some(name) => fitting.iter().find(|algorithm| algorithm.name() == name).ok_or("its alg does not fit it")?,
        None => algorithms.iter().find(|algorithm| fitting.contains(algorithm)).unwrap_or(&fitting[0]),
    };
    if !algorithms.contains(algorithm) {
        return Err("its algorithm is not among those of the issuer");
    }
    judge(&key, *algorithm)?;
    Ok(Jwk { kid: kid.map(Into::into), algorithm: *algorithm, key })
}

/// Whether a public key is one to trust signatures to.
pub(super) fn judge(key: &DecodingKey, algorithm: Algorithm) -> Result<(), &'static str> {
    match (algorithm, key.kind()) {
        (Algorithm::Rs256 | Algorithm::Ps256, DecodingKeyKind::RsaModulusExponent { n, e }) => judge_rsa(n, e),
        (Algorithm::Rs256 | Algorithm::Ps256, DecodingKeyKind::SecretOrDer(der)) => {
            let (n, e) = rsa_parts(der).ok_or("it is no RSA public key")?;
            judge_rsa(n, e)
        }
        (Algorithm::Es256, DecodingKeyKind::SecretOrDer(point)) if point.len() == 65 && point[0] == 4 => Ok(()),
        (Algorithm::Es256, _) => Err("it is no point of P-256"),
        (Algorithm::EdDsa, DecodingKeyKind::SecretOrDer(key)) if key.len() == 32 => Ok(()),
        (Algorithm::EdDsa, _) => Err("it is no Ed25519 public key"),
        (Algorithm::Hs256, DecodingKeyKind::SecretOrDer(secret)) if secret.len() >= crate::config::SECRET_BYTES_MIN => {
            Ok(())
        }
        (Algorithm::Hs256, _) => Err("it has less than 32 bytes"),
    }
}

fn judge_rsa(n: &[u8], e: &[u8]) -> Result<(), &'static str> {
    // RFC 7518 §3.3; more than 8192 would be work for whoever sends tokens.
    let bits = match n.first() {
        None | Some(0) => return Err("its modulus is not canonical"),
        Some(first) => n.len() * 8 - first.leading_zeros() as usize,
    };
    if !(2048..=8192).contains(&bits) {
        return Err("its modulus is not of 2048 to 8192 bits");
    }
    if n.last().is_some_and(|last| last % 2 == 0) {
        return Err("its modulus is even");
    }
    // 1 makes every text its own signature; past 33 bits ring refuses.
    let exponent = e.iter().take(6).fold(0_u64, |exponent, byte| exponent << 8 | u64::from(*byte));
    if e.len() > 5 || e.first() == Some(&0) || exponent < 3 || exponent % 2 == 0 || exponent >= 1 << 33 {
        return Err("its exponent is not an odd number from 3 to 2^33");
    }
    Ok(())
}

/// The modulus and exponent of `SEQUENCE { INTEGER, INTEGER }` (RFC 8017 A.1.1).
fn rsa_parts(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sequence, rest) = element(der, 0x30)?;
    let (n, sequence) = element(sequence, 2)?;
    let (e, sequence) = element(sequence, 2)?;
    let unsigned = |integer: &'_ [u8]| integer.strip_prefix(&[0]).map_or(integer.len(), <[u8]>::len);
    let (n, e) = (&n[n.len() - unsigned(n)..], &e[e.len() - unsigned(e)..]);
    (rest.is_empty() && sequence.is_empty()).then_some((n, e))
}

/// The contents of a DER element of this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (header, rest) = der.split_at_checked(2)?;
    if header[0] != tag {
        return None;
    }
    let (length, rest) = match header[1] {
        length @ 0..=0x7f => (usize::from(length), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?), rest.get(2..)?),
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// The key as a key set has it; `None` for a secret.
pub(super) fn write_key(kid: &str, algorithm: Algorithm, key: &DecodingKey) -> Option<Value> {
    let mut jwk = parts(algorithm, key)?;
    jwk["kid"] = kid.into();
    jwk["alg"] = algorithm.name().into();
    jwk["use"] = "sig".into();
    Some(jwk)
}

/// The members that a key's thumbprint is of.
fn parts(algorithm: Algorithm, key: &DecodingKey) -> Option<Value> {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match (algorithm, key.kind()) {
        (Algorithm::Rs256 | Algorithm::Ps256, DecodingKeyKind::SecretOrDer(der)) => {
            let (n, e) = rsa_parts(der)?;
            Some(json!({ "e": text(e), "kty": "RSA", "n": text(n) }))
        }
        (Algorithm::Es256, DecodingKeyKind::SecretOrDer(point)) => {
            let (x, y) = (point.get(1..33)?, point.get(33..65)?);
            Some(json!({ "crv": "P-256", "kty": "EC", "x": text(x), "y": text(y) }))
        }
        (Algorithm::EdDsa, DecodingKeyKind::SecretOrDer(key)) => {
            Some(json!({ "crv": "Ed25519", "kty": "OKP", "x": text(key) }))
        }
        _ => None,
    }
}

/// The key's thumbprint (RFC 7638): a kid that follows from the key alone.
pub(super) fn thumbprint(algorithm: Algorithm, key: &DecodingKey) -> Option<String> {
    // serde_json writes members in alphabetic order and without spaces, as §3.3 asks.
    let text = parts(algorithm, key)?.to_string();
    Some(URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes())))
}
