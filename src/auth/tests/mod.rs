//! Tokens from outside in: what passes, what is refused and why, keys that come and go.

mod fetching;
mod hostile;
mod own_keys;
mod passing;
mod sets;

use super::*;
use crate::config::{Algorithm, Auth, Config, TokenIssuer, TokenKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// When all of this happens.
const NOW: Duration = Duration::from_secs(1_790_000_000);

const SECRET: &str = "the secret of these tests, of 32 bytes or more";

/// Keys that openssl made, to be found in `tests/data/auth`.
fn file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(name);
    // A checkout lets everybody read them, which real keys are refused for.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    path
}

/// As the control thread does it.
fn reload(keychain: &mut Keychain, auth: &Auth, made_in: Option<&Path>) -> Result<(), KeychainError> {
    let new = NewKeys::read(auth, made_in, keychain.made())?;
    keychain.adopt(new);
    Ok(())
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Any header and any payload under a right HS256 signature.
fn hs256(header: &str, payload: &str) -> String {
    sign_hs256(&format!("{}.{}", b64(header), b64(payload)), SECRET.as_bytes())
}

fn sign_hs256(message: &str, secret: &[u8]) -> String {
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", b64(signature))
}

/// Claims that pass.
fn claims() -> Value {
    json!({
        "sub": "42", "email": "ada@example.com", "role": "user", "permissions": ["events:write"], "sid": "s_1",
        "jti": "j_1", "iss": "shardgate", "aud": "shardgate", "iat": NOW.as_secs(), "exp": NOW.as_secs() + 900,
        "auth_time": NOW.as_secs(),
    })
}

/// The claims with these members instead.
#[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().expect("an object") {
        if value == "-" {
            claims.as_object_mut().expect("an object").remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A key of the configuration.
fn key(kid: &str, algorithm: Algorithm, name: Option<&str>, sign: bool) -> TokenKey {
    let secret = name.is_none().then(|| SECRET.to_owned().into());
    TokenKey { kid: kid.to_owned(), algorithm, file: name.map(file), secret, sign }
}

/// The configuration of these keys.
fn config(keys: Vec<TokenKey>) -> Auth {
    Auth { keys, ..Config::default().auth }
}

/// An issuer of the configuration, as written.
fn issuer(text: &str) -> TokenIssuer {
    let text = format!("[[auth.issuers]]\nissuer = \"id\"\njwks_file = \"keys.json\"\n{text}");
    let config = crate::config::resolve(Some((Path::new("f"), &text)), &BTreeMap::new()).expect("it is right");
    config.auth.issuers.into_iter().next().expect("an issuer")
}

fn key_set(auth: &Auth) -> KeySet {
    let own = OwnKeys::load(auth, Path::new("nowhere")).expect("the keys are right");
    KeySet::new(auth, &own, &BTreeMap::new())
}

fn one_secret() -> KeySet {
    key_set(&config(vec![key("k", Algorithm::Hs256, None, true)]))
}

fn no_revocations() -> Revocations {
    let (kept, leeway) = (Duration::from_mins(15), Duration::from_secs(5));
    Revocations::new(revocation::Bounds { kept, leeway, entries_max: 1024 })
}

fn check(keys: &KeySet, token: &str) -> Result<Claims, TokenError> {
    jwt::check(keys, token.as_bytes(), NOW).map(|checked| checked.claims)
}
