//! From the body of a request to an [`Operation`]: what is there, of which type, how long. Pure; which path takes which
//! of them is for `gateway`.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;
use zeroize::Zeroizing;

use super::operation::Operation;
use super::password::PASSWORD_BYTES_MAX;
use super::user::EMAIL_BYTES_MAX;
use crate::exchange::{ClientNote, Code, Reject};

/// Bytes of a body. What is longer is no login.
pub const BODY_BYTES_MAX: usize = 16 << 10;

/// Bytes of a refresh token; ours are far shorter.
const TOKEN_BYTES_MAX: usize = 1024;

/// Bytes of a session's id.
const SID_BYTES_MAX: usize = 128;

/// `POST /auth/login`: `{email, password}`.
pub fn login(content_type: Option<&[u8]>, body: &[u8], note: ClientNote) -> Result<Operation, Reject> {
    let LoginBody { email, password } = parse(content_type, body, "email and password are texts, each there once")?;
    if email.trim().len() > EMAIL_BYTES_MAX || !email.contains('@') {
        return Err(Reject::because(Code::ValidationFailed, "email is an e-mail address of at most 254 bytes"));
    }
    if !(1..=PASSWORD_BYTES_MAX).contains(&password.len()) {
        return Err(Reject::because(Code::ValidationFailed, "password is a text of 1 to 1024 bytes"));
    }
    Ok(Operation::Login { email, password, note })
}

#[derive(Deserialize)]
struct LoginBody {
    email: String,
    password: Zeroizing<String>,
}

/// `POST /auth/refresh`: `{refreshToken}`.
pub fn refresh(content_type: Option<&[u8]>, body: &[u8], note: ClientNote) -> Result<Operation, Reject> {
    let RefreshBody { token } = parse(content_type, body, "refreshToken is a text, there once")?;
    if !(1..=TOKEN_BYTES_MAX).contains(&token.len()) {
        return Err(Reject::because(Code::ValidationFailed, "refreshToken is a refresh token as it was issued"));
    }
    Ok(Operation::Refresh { token, note })
}

#[derive(Deserialize)]
struct RefreshBody {
    #[serde(rename = "refreshToken")]
    token: Zeroizing<String>,
}

/// `DELETE /auth/sessions/{sid}`: the last segment of the path.
pub fn end_session(user: &str, sid: &[u8]) -> Result<Operation, Reject> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match str::from_utf8(sid) {
        Ok(sid) if (1..=SID_BYTES_MAX).contains(&sid.len()) && sid.as_bytes().iter().all(is_plain) => {
            Ok(Operation::EndSession { user: user.to_owned(), sid: sid.to_owned() })
        }
        _ => Err(Reject::because(Code::NotFound, "the caller has no such session")),
    }
}

/// A JSON object of this form; members that it does not name are passed over.
fn parse<T: DeserializeOwned>(content_type: Option<&[u8]>, body: &[u8], wrong: &'static str) -> Result<T, Reject> {
    if !content_type.is_some_and(is_json) {
        return Err(Reject::new(Code::UnsupportedMediaType));
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(Reject::new(Code::BodyTooLarge));
    }
    // First as a whole: what is no document is told from one of another form. And serde would take a list of values.
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    if !is_json || body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Reject::new(Code::InvalidJson));
    }
    // What the parser says may hold what came in; it is not kept.
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => Reject::because(Code::ValidationFailed, wrong),
        _ => Reject::new(Code::InvalidJson),
    })
}

/// `application/json`, with or without parameters; a charset other than UTF-8 is none that JSON has (RFC 8259 §8.1).
pub fn is_json(content_type: &[u8]) -> bool {
    let mut parts = content_type.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let is_json = parts.next().is_some_and(|media| media.eq_ignore_ascii_case(b"application/json"));
    let is_utf8 = |part: &[u8]| match part.split_first_chunk::<8>() {
        Some((name, value)) if name.eq_ignore_ascii_case(b"charset=") => {
            [b"utf-8".as_slice(), b"\"utf-8\""].iter().any(|utf8| value.eq_ignore_ascii_case(utf8))
        }
        _ => true,
    };
    is_json && parts.all(is_utf8)
}

/// Any bytes give an operation or a refusal of the four kinds, and never a panic.
#[cfg(any(test, fuzzing))]
pub fn fuzz_one(bytes: &[u8]) {
    use std::net::{IpAddr, Ipv4Addr};
    let note = || ClientNote::new(bytes, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let json = Some(b"application/json".as_slice());
    for outcome in [login(json, bytes, note()), refresh(json, bytes, note()), end_session("42", bytes)] {
        match outcome {
            Ok(Operation::Login { email, password, .. }) => {
                assert!(email.contains('@') && (1..=PASSWORD_BYTES_MAX).contains(&password.len()));
            }
            Ok(_) => {}
            Err(reject) => assert!(matches!(reject.code.status(), 400 | 404 | 413 | 422), "{:?}", reject.code),
        }
    }
    let _ = login(Some(bytes), b"{}", note());
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    const JSON: Option<&[u8]> = Some(b"application/json");

    fn note() -> ClientNote {
        ClientNote::new(b"", IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn code(outcome: Result<Operation, Reject>) -> &'static str {
        outcome.map_or_else(|reject| reject.code.name(), |operation| operation.name())
    }

    #[test]
    fn a_login_is_what_it_says() {
        let body = br#" {"password":"p\u00e4ss","unknown":[{"a":1}],"email":" A@b.c "} "#;
        let Ok(Operation::Login { email, password, .. }) = login(JSON, body, note()) else { panic!("a login") };
        assert_eq!((email.as_str(), password.as_str()), (" A@b.c ", "p\u{e4}ss"));
        let long = format!(r#"{{"email":"a@b","password":"{}"}}"#, "x".repeat(1024));
        assert_eq!(code(login(JSON, long.as_bytes(), note())), "login");
    }

    #[test]
    fn what_is_wrong_has_its_code() {
        let of = |body: &str| code(login(JSON, body.as_bytes(), note()));
        for text in ["", "{", "[]", "null", "\"a\"", "[\"a@b\",\"p\"]", "{}x", "{\"email\":}", "{'a':1}", "\u{feff}{}"]
        {
            assert_eq!(of(text), "invalid_json", "{text}");
        }
        assert_eq!(code(login(JSON, b"{\"email\":\"\xff\"}", note())), "invalid_json");
        assert_eq!(of(&format!("{{\"x\":{}", "[".repeat(8_000))), "invalid_json");
        for text in [
            "{}",
            r#"{"email":"a@b"}"#,
            r#"{"email":"a@b","password":null}"#,
            r#"{"email":"a@b","password":5}"#,
            r#"{"email":["a@b"],"password":"p"}"#,
            r#"{"email":"a@b","email":"a@b","password":"p"}"#,
            r#"{"email":"nobody","password":"p"}"#,
            r#"{"email":"a@b","password":""}"#,
            r#"{"Email":"a@b","password":"p"}"#,
            &format!(r#"{{"email":"a@b","password":"{}"}}"#, "x".repeat(1025)),
            &format!(r#"{{"email":"{}@b","password":"p"}}"#, "x".repeat(400)),
        ] {
            assert_eq!(of(text), "validation_failed", "{text}");
        }
        assert_eq!(of(&format!("{{\"x\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX))), "body_too_large");
    }

    #[test]
    fn only_json_is_json() {
        let body = br#"{"refreshToken":"t"}"#;
        let of = |content_type: Option<&str>| code(refresh(content_type.map(str::as_bytes), body, note()));
        for good in ["application/json", "Application/JSON", "application/json; charset=UTF-8", "application/json;x=1"]
        {
            assert_eq!(of(Some(good)), "refresh", "{good}");
        }
        let wrong = ["", "text/plain", "application/jsonp", "application/json; charset=utf-16", "text/json"];
        for wrong in wrong.map(Some).into_iter().chain([None, Some("application/x-www-form-urlencoded")]) {
            assert_eq!(of(wrong), "unsupported_media_type", "{wrong:?}");
        }
    }

    #[test]
    fn a_refresh_token_and_a_session_are_bounded() {
        let of = |token: &str| code(refresh(JSON, format!(r#"{{"refreshToken":"{token}"}}"#).as_bytes(), note()));
        assert_eq!(of("abc"), "refresh");
        assert_eq!((of(""), of(&"x".repeat(1025))), ("validation_failed", "validation_failed"));
        assert_eq!(code(end_session("42", b"s_9f")), "end_session");
        for sid in [b"".as_slice(), b"a/b", b"\xff", b"a b", &[b'a'; 129]] {
            assert_eq!(code(end_session("42", sid)), "not_found");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let operation = login(JSON, br#"{"email":"a@b","password":"hunter2"}"#, note()).expect("a login");
        let shown = format!("{operation:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("a@b"), "{shown}");
    }

    #[test]
    fn the_corpus_is_taken_or_refused() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/accounts_request");
        let entries = std::fs::read_dir(folder).expect("the corpus is committed");
        for entry in entries {
            fuzz_one(&std::fs::read(entry.expect("an entry").path()).expect("readable"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_one(&bytes);
        }

        #[test]
        fn nearly_right_bodies_are_taken_or_refused(
            body in r#"\{"(email|password|refreshToken)": ?"?[a@\\]{0,9}"?,?"(email|password|x)":"?[a@]{0,9}"?\}?"#,
        ) {
            fuzz_one(body.as_bytes());
        }
    }
}
