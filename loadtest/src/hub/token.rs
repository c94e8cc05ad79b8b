//! Tokens of the load test's own: each socket is a user and a session by itself. Signed with the secret that the gateway
//! checks them with, made when they are needed, so that any number of them costs no memory.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use rustix::time::{ClockId, clock_gettime};

use crate::hub::options::TokenOptions;

/// Shorter than the hour that a gateway grants a token by default.
const LIFETIME_S: i64 = 3300;

/// Where tokens come from.
pub(crate) enum Tokens {
    Made(Box<Maker>),
    /// Given, used in turn.
    Given(Vec<String>),
    /// The hub asks for none.
    None,
}

/// Makes tokens.
pub(crate) struct Maker {
    key: hmac::Key,
    /// The first part of all tokens.
    head: String,
    issuer: String,
    audience: String,
    issued_at_s: i64,
}

impl Tokens {
    pub(crate) fn new(options: &TokenOptions) -> anyhow::Result<Self> {
        if let Some(file) = &options.tokens {
            return Ok(Self::Given(crate::target::read_tokens(file)?));
        }
        let Some(file) = &options.secret else { return Ok(Self::None) };
        let secret = std::fs::read(file).with_context(|| format!("--secret {}", file.display()))?;
        let secret = secret.trim_ascii();
        ensure!(secret.len() >= 32, "--secret {} has {} bytes; HS256 takes 32 or more", file.display(), secret.len());
        let printable = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        for (name, value) in [("kid", &options.kid), ("issuer", &options.issuer), ("audience", &options.audience)] {
            ensure!(printable(value), "--{name} {value:?} should be printable ASCII without spaces");
        }
        Ok(Self::Made(Box::new(Maker {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            head: encode(&serde_json::json!({"alg": "HS256", "typ": "JWT", "kid": options.kid})),
            issuer: options.issuer.clone(),
            audience: options.audience.clone(),
            issued_at_s: clock_gettime(ClockId::Realtime).tv_sec,
        })))
    }

    /// The token of one user; the same each time. Empty if there are none.
    pub(crate) fn of(&self, user: usize) -> String {
        match self {
            Self::Made(maker) => {
                let Maker { key, head, issuer, audience, issued_at_s } = &**maker;
                let claims = serde_json::json!({
                    "iss": issuer, "aud": audience, "sub": format!("load-{user}"), "sid": format!("s_load_{user}"),
                    "jti": format!("j_load_{user}"), "role": "user", "iat": issued_at_s, "exp": issued_at_s + LIFETIME_S,
                });
                let signed = format!("{head}.{}", encode(&claims));
                let signature = hmac::sign(key, signed.as_bytes());
                format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
            }
            Self::Given(tokens) => tokens[user % tokens.len()].clone(),
            Self::None => String::new(),
        }
    }
}

fn encode(part: &serde_json::Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// What a token says, if it was signed with this key.
#[cfg(test)]
pub(crate) fn claims(key: &hmac::Key, token: &str) -> Option<serde_json::Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    hmac::verify(key, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split_once('.')?.1).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str, content: &str) -> TokenOptions {
        let file = std::env::temp_dir().join(format!("shardgate-loadtest-{name}-{}", std::process::id()));
        std::fs::write(&file, content).expect("written");
        TokenOptions {
            secret: Some(file),
            kid: "k1".to_owned(),
            issuer: "shardgate".to_owned(),
            audience: "shardgate".to_owned(),
            tokens: None,
        }
    }

    #[test]
    fn each_user_has_a_token_that_the_secret_verifies() {
        let secret = "0123456789abcdef0123456789abcdef";
        let options = options("secret", &format!("{secret}\n"));
        let tokens = Tokens::new(&options).expect("a secret");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let (one, other) =
            (claims(&key, &tokens.of(1)).expect("verified"), claims(&key, &tokens.of(2)).expect("verified"));
        assert_eq!((&one["aud"], &one["iss"]), (&"shardgate".into(), &"shardgate".into()));
        assert!(one["sub"] != other["sub"] && one["sid"] != other["sid"], "{one} {other}");
        assert_eq!(one["exp"].as_i64().zip(one["iat"].as_i64()).map(|(exp, iat)| exp - iat), Some(LIFETIME_S));
        assert_eq!(tokens.of(1), tokens.of(1));
        assert_eq!(claims(&hmac::Key::new(hmac::HMAC_SHA256, b"another"), &tokens.of(1)), None);
        std::fs::remove_file(options.secret.expect("given")).expect("removed");
    }

    #[test]
    fn a_short_secret_and_a_kid_with_spaces_are_refused() {
        let refusal =
            |options: &TokenOptions| Tokens::new(options).err().map(|error| error.to_string()).unwrap_or_default();
        let short = options("short", "short");
        assert!(refusal(&short).contains("32 or more"));
        let mut spaced = options("spaced", "0123456789abcdef0123456789abcdef");
        spaced.kid = "a b".to_owned();
        assert!(refusal(&spaced).contains("--kid"));
        for options in [short, spaced] {
            std::fs::remove_file(options.secret.expect("given")).expect("removed");
        }
    }
}
