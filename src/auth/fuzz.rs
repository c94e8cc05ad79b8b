//! Drives the check over any bytes and looks whether what must hold of all tokens does; for tests and fuzzing only.
#![expect(clippy::expect_used, reason = "a broken promise must stop the run")]

use super::revocation::Bounds;
use super::{Checker, Claims, JwkSet, KeySet, OwnKeys, Revocations, TokenError, jwt};
use crate::config::{Algorithm, Auth, Config, TokenKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const NOW: Duration = Duration::from_secs(1_790_000_000);
const SECRET: &str = "a secret that the fuzzer may know, of 32 bytes";

/// The first byte says what the rest is: a token (`t`), a header and a payload with a newline between them, which get a
/// right signature (`s`), or a key set (`k`).
pub fn fuzz_one(data: &[u8]) {
    match data.split_first() {
        Some((b't', token)) => check(token),
        Some((b's', rest)) => {
            let (header, payload) = rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
            check(sign(header, payload.get(1..).unwrap_or_default()).as_bytes());
        }
        Some((b'k', set)) => read_set(set),
        _ => {}
    }
}

fn sign(header: &[u8], payload: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn keys() -> KeySet {
    let key = TokenKey {
        kid: "k".to_owned(),
        algorithm: Algorithm::Hs256,
        file: None,
        secret: Some(SECRET.to_owned().into()),
        sign: true,
    };
    let auth = Auth { keys: vec![key], ..Config::default().auth };
    let own = OwnKeys::load(&auth, Path::new("")).expect("the key is right");
    KeySet::new(&auth, &own, &BTreeMap::new())
}

fn check(token: &[u8]) {
    thread_local! {
        static KEYS: KeySet = keys();
    }
    KEYS.with(|keys| {
        let (kept, leeway) = (Duration::from_mins(15), Duration::from_secs(5));
        let revocations = Revocations::new(Bounds { kept, leeway, entries_max: 1024 });
        let mut checker = Checker::new(4);
        let cold = checker.check(keys, &revocations, token, NOW);
        let warm = checker.check(keys, &revocations, token, NOW);
        assert_eq!(cold, warm, "the cache says what the check says");
        if let Ok(claims) = cold {
            must_hold(&claims);
            let later = NOW + Duration::from_hours(2);
            assert_eq!(checker.check(keys, &revocations, token, later), Err(TokenError::Expired), "every token ends");
        }
    });
}

fn must_hold(claims: &Claims) {
    assert_eq!(jwt::unsound(claims), None, "what goes into headers is fit for them");
    assert!(claims.exp + 5 > NOW.as_secs() && claims.exp <= NOW.as_secs() + 3_605, "it is alive, and not for ever");
    assert_eq!(&*claims.iss, "shardgate");
    assert!(claims.aud.iter().any(|name| &**name == "shardgate"));
}

fn read_set(bytes: &[u8]) {
    if let Ok(set) = JwkSet::parse(bytes, &Algorithm::ALL) {
        assert!((1..=64).contains(&set.len()));
        assert!(set.keys.iter().all(|key| key.algorithm != Algorithm::Hs256), "no secret comes out of a set");
    }
}
