//! The demo's page, by which a person tries the hub in a browser: four files, served by a service of their own behind a
//! public route. What the page does is in `page.js`; the client that it uses is everybody's.

use http_body_util::{BodyExt as _, Full};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::service::Answer;
use crate::{accounts::cli::DEMO_USERS, admin};

/// Where it is served.
pub(super) const PATH: &str = "/demo";

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");
const CLIENT: &str = include_str!("../../clients/js/shardgate.js");

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The file at this path.
pub(super) fn answer(path: &str, tls: Option<u16>) -> Answer {
    let (content_type, text) = match path {
        "/demo" => ("text/html; charset=utf-8", page(tls)),
        "/demo/page.js" => (JAVASCRIPT, SCRIPT.to_owned()),
        "/demo/page.css" => ("text/css; charset=utf-8", STYLE.to_owned()),
        "/demo/shardgate.js" => (JAVASCRIPT, CLIENT.to_owned()),
        _ => {
            let text = "here are /demo, /demo/page.js, /demo/page.css and /demo/shardgate.js\n";
            return file(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", text.to_owned());
        }
    };
    file(StatusCode::OK, content_type, text)
}

fn file(status: StatusCode, content_type: &'static str, text: String) -> Answer {
    let mut response = Answer::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in admin::pages::FIELDS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The page with the users to choose from, and the port where it is over TLS. Names and passwords need no escapes.
fn page(tls: Option<u16>) -> String {
    let option = |(email, role, password): (&str, &str, &str)| {
        format!("<option value=\"{email}\" data-password=\"{password}\">{email} ({role})</option>")
    };
    let port = tls.map_or_else(String::new, |port| port.to_string());
    PAGE.replace("<!-- users -->", &DEMO_USERS.map(option).concat()).replace("<!-- port -->", &port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        let page = page(Some(3443));
        assert!(page.contains("data-port=\"3443\""), "{page}");
        assert_eq!(page.matches("<option ").count(), DEMO_USERS.len());
        for forbidden in ["<style", "style=", "javascript:", "http:", "https:", " onclick", "<script>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        for text in DEMO_USERS.iter().flat_map(|(email, role, password)| [email, role, password]) {
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"@.-".contains(&byte)), "{text}");
        }
    }

    #[test]
    fn nothing_from_outside_becomes_markup() {
        for way in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function"] {
            assert!(!SCRIPT.contains(way) && !CLIENT.contains(way), "{way}");
        }
    }
}
