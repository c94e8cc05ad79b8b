//! Changes by operators: `POST /api/…` with a token and a few words of JSON. Carrying them out is for the control thread.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::timeout;

use super::{
    Author, Question,
    guard::{Access, is_from_elsewhere},
    server::{Answer, Client, JSON, NO_ANSWER, page, problem},
};
use crate::{
    telemetry::metrics::{AdminChange, AdminRefusal},
    upstream::Held,
};

/// A change is a few words.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long they may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An instance is held out of use, or not any more.
    Hold {
        /// Of this upstream.
        upstream: String,
        /// Its authority, or its address.
        instance: String,
        /// How; `None`: not any more.
        held: Option<Held>,
    },
    /// An instance gets another weight.
    Weigh {
        /// Of this upstream.
        upstream: String,
        /// Its authority, or its address.
        instance: String,
        /// Its weight; `None`: what it has otherwise.
        weight: Option<u16>,
    },
    /// All instances of an upstream are probed now.
    Probe {
        /// Its name.
        upstream: String,
    },
    /// The log lets other lines through.
    LogLevel {
        /// As `log.level` has it; `None`: what is configured.
        level: Option<String>,
    },
}

impl Change {
    /// As it is counted.
    pub fn kind(&self) -> AdminChange {
        match self {
            Self::Hold { held: Some(Held::Ejected), .. } => AdminChange::Eject,
            Self::Hold { held: Some(Held::Drained), .. } => AdminChange::Drain,
            Self::Hold { held: None, .. } => AdminChange::Return,
            Self::Weigh { .. } => AdminChange::Weight,
            Self::Probe { .. } => AdminChange::Probe,
            Self::LogLevel { .. } => AdminChange::LogLevel,
        }
    }
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What is so now, in a sentence.
    pub detail: String,
    /// Shards that act by it, where it is about shards, and all of them.
    pub shards: Option<(usize, usize)>,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unchanged {
    /// What is named is not there.
    NotThere(String),
    /// It cannot be so.
    Wrong(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceBody {
    upstream: String,
    instance: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightBody {
    upstream: String,
    instance: String,
    /// It must be written, be it as null.
    weight: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamBody {
    upstream: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelBody {
    level: Option<String>,
}

/// The names of changes, as paths have them.
const NAMES: &[&str] = &["eject", "drain", "return", "weight", "probe", "log-level"];

/// `POST /api/<name>`.
pub(super) async fn change(client: &Client, access: &Access, name: &str, request: Request<Incoming>) -> Answer {
    if !NAMES.contains(&name) {
        let detail = format!("there is no such change; there are /api/{}", NAMES.join(", /api/"));
        return problem(StatusCode::NOT_FOUND, "not_found", &detail);
    }
    if is_from_elsewhere(request.headers()) {
        return client.refuse_origin();
    }
    if *request.method() != Method::POST {
        let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "changes are made with POST");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    let author = match client.who(access, &request).await {
        Ok(name) => Author { name: name.to_owned(), from: client.address },
        Err(answer) => return answer,
    };
    let refuse = |status, code, detail: &str| {
        client.desk.refusals.count(AdminRefusal::Malformed);
        problem(status, code, detail)
    };
    if !is_json(request.headers()) {
        let detail = "send a change as JSON, with Content-Type: application/json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
    }
    let body = match timeout(BODY_TIMEOUT, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "a change has up to 16 KiB");
        }
        Ok(Err(_)) | Err(_) => {
            return refuse(
                StatusCode::REQUEST_TIMEOUT,
                "body_incomplete",
                "the body did not come whole within 10 seconds",
            );
        }
    };
    let change = match read(name, &body) {
        Ok(change) => change,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, "malformed_change", &error),
    };
    let Some(changed) = client.ask(|answer| Question::Change(change, author, answer)).await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "no_answer", NO_ANSWER.trim_end());
    };
    match changed {
        Ok(Done { detail, shards }) => {
            let shards = shards.map(|(applied, total)| json!({"applied": applied, "total": total}));
            page(StatusCode::OK, JSON, json!({"detail": detail, "shards": shards}).to_string().into_bytes())
        }
        Err(Unchanged::NotThere(detail)) => problem(StatusCode::NOT_FOUND, "not_found", &detail),
        Err(Unchanged::Wrong(detail)) => problem(StatusCode::UNPROCESSABLE_ENTITY, "wrong_value", &detail),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let Some(Ok(text)) = types.next().filter(|_| types.next().is_none()).map(HeaderValue::to_str) else { return false };
    text.split(';').next().is_some_and(|text| text.trim().eq_ignore_ascii_case("application/json"))
}

fn read(name: &str, body: &[u8]) -> Result<Change, String> {
    let hold = |held| parse(body).map(|InstanceBody { upstream, instance }| Change::Hold { upstream, instance, held });
    match name {
        "eject" => hold(Some(Held::Ejected)),
        "drain" => hold(Some(Held::Drained)),
        "return" => hold(None),
        "weight" => parse(body).and_then(|WeightBody { upstream, instance, weight }| {
            let weight = serde_json::from_value(weight).map_err(|_| "weight is a number from 0 to 65535, or null")?;
            Ok(Change::Weigh { upstream, instance, weight })
        }),
        "probe" => parse(body).map(|UpstreamBody { upstream }| Change::Probe { upstream }),
        _ => parse(body).map(|LevelBody { level }| Change::LogLevel { level }),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // The derived readers take arrays too, whose members have no names.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err("the change cannot be read: it is to be an object, not an array".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("the change cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_change_is_read_to_the_letter() {
        let cases = [
            ("eject", r#"{"upstream":"shop","instance":"a:1"}"#),
            ("drain", r#"{"instance":"a:1","upstream":"shop"}"#),
            ("return", r#"{"upstream":"shop","instance":"a:1"}"#),
            ("eject", r#"{"upstream":"shop"}"#),
            ("eject", r#"{"upstream":"shop","instance":1}"#),
            ("eject", r#"{"upstream":"shop","instance":"a:1","instance":"b:1"}"#),
            ("eject", r#"{"upstream":"shop","instance":"a:1","force":true}"#),
            ("eject", r#"{"upstream":"shop","instance":"a:1"} "#),
            ("eject", r#"{"upstream":"shop","instance":"a:1"}{}"#),
            ("eject", r#"["shop","a:1"]"#),
            ("eject", " [\"shop\",\"a:1\"]"),
            ("eject", ""),
            ("eject", "\u{feff}{}"),
            ("weight", r#"{"upstream":"shop","instance":"a:1","weight":5}"#),
            ("weight", r#"{"upstream":"shop","instance":"a:1","weight":null}"#),
            ("weight", r#"{"upstream":"shop","instance":"a:1","weight":65536}"#),
            ("weight", r#"{"upstream":"shop","instance":"a:1"}"#),
            ("probe", r#"{"upstream":"shop"}"#),
            ("log-level", r#"{"level":"debug"}"#),
            ("log-level", r#"{"level":null}"#),
            ("log-level", "[null]"),
            ("log-level", "[]"),
        ];
        let told = cases.map(|(name, body)| match read(name, body.as_bytes()) {
            Ok(change) => format!("{name}: {change:?}\n"),
            Err(error) => format!("{name}: {error}\n"),
        });
        expect![[r#"
            eject: Hold { upstream: "shop", instance: "a:1", held: Some(Ejected) }
            drain: Hold { upstream: "shop", instance: "a:1", held: Some(Drained) }
            return: Hold { upstream: "shop", instance: "a:1", held: None }
            eject: the change cannot be read: missing field `instance` at line 1 column 19
            eject: the change cannot be read: invalid type: integer `1`, expected a string at line 1 column 31
            eject: the change cannot be read: duplicate field `instance` at line 1 column 46
            eject: the change cannot be read: unknown field `force`, expected `upstream` or `instance` at line 1 column 43
            eject: Hold { upstream: "shop", instance: "a:1", held: Some(Ejected) }
            eject: the change cannot be read: trailing characters at line 1 column 37
            eject: the change cannot be read: it is to be an object, not an array
            eject: the change cannot be read: it is to be an object, not an array
            eject: the change cannot be read: EOF while parsing a value at line 1 column 0
            eject: the change cannot be read: expected value at line 1 column 1
            weight: Weigh { upstream: "shop", instance: "a:1", weight: Some(5) }
            weight: Weigh { upstream: "shop", instance: "a:1", weight: None }
            weight: weight is a number from 0 to 65535, or null
            weight: the change cannot be read: missing field `weight` at line 1 column 36
            probe: Probe { upstream: "shop" }
            log-level: LogLevel { level: Some("debug") }
            log-level: LogLevel { level: None }
            log-level: the change cannot be read: it is to be an object, not an array
            log-level: the change cannot be read: it is to be an object, not an array
        "#]].assert_eq(&told.concat());
    }

    #[test]
    fn only_json_is_taken() {
        for (kinds, is_taken) in [
            (&["application/json"][..], true),
            (&["Application/JSON; charset=utf-8"], true),
            (&["text/plain"], false),
            (&["application/jsonp"], false),
            (&["application/x-www-form-urlencoded"], false),
            (&["application/json", "application/json"], false),
            (&[], false),
        ] {
            let headers = kinds.iter().map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind)));
            let mut map = HeaderMap::new();
            headers.for_each(|(name, value)| _ = map.append(name, value));
            assert_eq!(is_json(&map), is_taken, "{kinds:?}");
        }
    }
}
