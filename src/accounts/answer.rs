//! What clients are told, as JSON.

use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::json;
use zeroize::Zeroizing;

use super::operation::Outcome;
use crate::auth::{Claims, Issued};
use crate::sessions::{Listed, RefreshToken};

/// `JWTPayload`: what a token says, under the names that the token has. What it does not say is left out.
#[derive(Debug)]
pub struct Payload<'a>(pub &'a Claims);

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Claims { sub, email, roles, permissions, sid, jti, iss, aud, iat, exp, .. } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("sub", sub)?;
        if let Some(email) = email {
            map.serialize_entry("email", email)?;
        }
        // One role is what our own tokens say; only another issuer's may say more.
        if let Some(role) = roles.names().next() {
            map.serialize_entry("role", role)?;
        }
        if roles.names().nth(1).is_some() {
            map.serialize_entry("roles", &roles.names().collect::<Vec<_>>())?;
        }
        map.serialize_entry("permissions", permissions)?;
        for (name, text) in [("sid", sid), ("jti", jti)] {
            if let Some(text) = text {
                map.serialize_entry(name, text)?;
            }
        }
        map.serialize_entry("iss", iss)?;
        // RFC 7519 §4.1.3: a single one may stand without a list, and ours does.
        match &aud[..] {
            [] => {}
            [one] => map.serialize_entry("aud", one)?,
            several => map.serialize_entry("aud", several)?,
        }
        if let Some(iat) = iat {
            map.serialize_entry("iat", iat)?;
        }
        map.serialize_entry("exp", exp)?;
        map.end()
    }
}

/// The answer to a log-in and to a renewal.
pub(super) fn tokens(issued: &Issued, refresh_token: &RefreshToken) -> Outcome {
    struct Tokens<'a>(&'a Issued, &'a RefreshToken);
    impl Serialize for Tokens<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(4))?;
            map.serialize_entry("accessToken", self.0.token.as_str())?;
            map.serialize_entry("refreshToken", self.1.reveal())?;
            map.serialize_entry("user", &Payload(&self.0.claims))?;
            map.serialize_entry("expiresIn", &self.0.expires_in.as_secs())?;
            map.end()
        }
    }
    // Room for all of it: a buffer that grows leaves copies of the tokens behind.
    let room = 2 * issued.token.len() + refresh_token.reveal().len() + 4096;
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *body, &Tokens(issued, refresh_token)).expect("texts and numbers are JSON");
    Outcome::Done { status: 200, body }
}

/// The answer to the question for one's sessions.
pub(super) fn sessions(listed: &[Listed], current: Option<&str>) -> Outcome {
    let time = |ms: u64| Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0)).unwrap_or_default().to_string();
    let entry = |session: &Listed| {
        json!({
            "sid": session.sid,
            "createdAt": time(session.created_ms),
            "lastSeen": time(session.last_seen_ms),
            "userAgent": session.user_agent,
            "address": session.address,
            "current": current == Some(session.sid.as_str()),
        })
    };
    let body = json!({ "sessions": listed.iter().map(entry).collect::<Vec<_>>() });
    Outcome::Done { status: 200, body: Zeroizing::new(body.to_string().into_bytes()) }
}

/// Done, and there is nothing to say.
pub(super) fn nothing() -> Outcome {
    Outcome::Done { status: 204, body: Zeroizing::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{CallerRoles, Origin};

    #[test]
    fn a_payload_has_the_names_of_the_token() {
        let claims = Claims {
            sub: "42".into(),
            email: Some("a@b".into()),
            roles: CallerRoles::new(&["user"]),
            permissions: ["x".into()].into(),
            sid: Some("s_1".into()),
            jti: Some("j".into()),
            iss: "shardgate".into(),
            aud: ["shop".into()].into(),
            iat: Some(1),
            exp: 2,
            session_began_ms: None,
            origin: Origin::Own,
        };
        let text = |claims: &Claims| serde_json::to_string(&Payload(claims)).expect("JSON");
        assert_eq!(
            text(&claims),
            r#"{"sub":"42","email":"a@b","role":"user","permissions":["x"],"sid":"s_1","jti":"j","iss":"shardgate","aud":"shop","iat":1,"exp":2}"#
        );
        let several = Claims { roles: CallerRoles::new(&["user", "editor"]), ..claims.clone() };
        assert!(text(&several).contains(r#","role":"user","roles":["user","editor"],"#), "{}", text(&several));
        let roles = CallerRoles::default();
        let bare = Claims { email: None, roles, sid: None, jti: None, iat: None, aud: Box::default(), ..claims };
        assert_eq!(text(&bare), r#"{"sub":"42","permissions":["x"],"iss":"shardgate","exp":2}"#);
    }

    #[test]
    fn sessions_say_which_one_asks() {
        let session = |sid: &str| Listed {
            sid: sid.to_owned(),
            created_ms: 1_700_000_000_000,
            last_seen_ms: 1_700_000_000_123,
            user_agent: "curl/8 \"x\"".to_owned(),
            address: "127.0.0.1".to_owned(),
        };
        let Outcome::Done { status: 200, body } = sessions(&[session("s_1"), session("s_2")], Some("s_2")) else {
            panic!("done")
        };
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            body["sessions"][1],
            json!({
                "sid": "s_2",
                "createdAt": "2023-11-14T22:13:20Z",
                "lastSeen": "2023-11-14T22:13:20.123Z",
                "userAgent": "curl/8 \"x\"",
                "address": "127.0.0.1",
                "current": true,
            })
        );
        assert_eq!(body["sessions"][0]["current"], false);
    }
}
