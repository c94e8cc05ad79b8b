//! The files of the dashboard, as they are built in, and what a browser may do with pages of ours and how long it keeps them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
        REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};
use ring::digest::{SHA256, digest};

/// Scripts, styles and answers of the same origin and nothing else (`/ws` is one too); nobody shows it in a frame. Pages have an
/// empty icon, so that browsers ask for none.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Fields of every file of a page.
pub const FIELDS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    // Another version may listen here tomorrow; what has not changed is not sent again.
    (CACHE_CONTROL, "no-cache"),
];

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Each file with its path and type.
const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("web/index.html")),
    ("/dashboard/app.js", JAVASCRIPT, include_str!("web/app.js")),
    ("/dashboard/changes.js", JAVASCRIPT, include_str!("web/changes.js")),
    ("/dashboard/charts.js", JAVASCRIPT, include_str!("web/charts.js")),
    ("/dashboard/style.css", "text/css; charset=utf-8", include_str!("web/style.css")),
];

/// The file at this path, for whoever has asked with these fields.
pub(super) fn file(path: &str, asked: &HeaderMap) -> Option<Response<Full<Bytes>>> {
    let (_, content_type, text) = FILES.iter().find(|(known, ..)| *known == path)?;
    let tag = tag_of(text);
    let is_known = asked.get_all(IF_NONE_MATCH).iter().any(|tags| {
        let tags = tags.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        // RFC 9110 §13.1.2: compared as weak ones are.
        tags.map(|known| known.strip_prefix(b"W/").unwrap_or(known))
            .any(|known| known == tag.as_bytes() || known == b"*")
    });
    let mut response =
        Response::new(Full::new(if is_known { Bytes::new() } else { Bytes::from_static(text.as_bytes()) }));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(ETAG, HeaderValue::from_str(&tag).expect("a tag is ASCII"));
    for (name, value) in FIELDS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

fn tag_of(text: &str) -> String {
    let digest = digest(&SHA256, text.as_bytes());
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..18]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tag: Option<&str>) -> HeaderMap {
        let tag = tag.map(|tag| (IF_NONE_MATCH, HeaderValue::from_str(tag).expect("a tag")));
        tag.into_iter().collect()
    }

    #[test]
    fn what_has_not_changed_is_not_sent_again() {
        let first = file("/", &asked(None)).expect("the page");
        let tag = first.headers()[ETAG].to_str().expect("ASCII");
        assert!(first.status() == 200 && tag.len() == 26, "{tag}");
        for (shown, status) in [
            (tag.to_owned(), 304),
            (format!("W/{tag}"), 304),
            (format!("\"x\", {tag}"), 304),
            ("*".to_owned(), 304),
            ("\"x\"".to_owned(), 200),
            (String::new(), 200),
        ] {
            let answer = file("/", &asked(Some(&shown))).expect("the page");
            assert_eq!(answer.status(), status, "{shown}");
            assert_eq!(answer.headers()[CONTENT_SECURITY_POLICY], POLICY);
        }
        assert!(file("/dashboard/other.js", &asked(None)).is_none());
    }

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        let page = FILES[0].2;
        for forbidden in ["<style", "style=", "javascript:", "http:", "https:", " onclick", "<script>", "//"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        for (path, ..) in &FILES[1..] {
            let is_named =
                page.contains(path) || FILES.iter().any(|(_, _, text)| text.contains(&path.replace("/dashboard", ".")));
            assert!(is_named, "{path} is used");
        }
    }

    #[test]
    fn nothing_from_outside_becomes_markup() {
        for (path, _, text) in &FILES[1..] {
            for way in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "localStorage",
                "sessionStorage",
            ] {
                assert!(!text.contains(way), "{path} has {way}");
            }
        }
    }
}
