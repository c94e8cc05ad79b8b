//! A browser that nobody here wrote, Chromium, without a screen: what scripts of a page of another origin get to see, and
//! what its browser keeps from them. It takes seconds and a large package, so it is among the long tests.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::has_tool;
use crate::{
    backend::{Backend, Received},
    harness::{Gateway, is_long, shardgate, until},
};

const PAGE: &str = include_str!("browser.html");
/// A cold start of the browser on a busy machine, and a page's journeys.
const PATIENCE: Duration = Duration::from_mins(2);

/// A browser that shows one page, and ends with its processes.
struct Browser {
    child: Child,
    _profile: TempDir,
}

impl Browser {
    fn open(url: &str) -> Self {
        let profile = TempDir::new().expect("a temporary directory");
        let mut command = Command::new("chromium");
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        // Nothing leaves this machine.
        command.arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1");
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        command.env("HOME", profile.path()).process_group(0);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        Self { child, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It leads the group of all that it started.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// An origin that shows the page and is told what came of it.
fn site(gateway: impl Fn() -> String + Send + Sync + 'static) -> Backend {
    Backend::answering(move |request: &Received| {
        if request.head.first_line.starts_with("GET /page ") {
            let page = PAGE.replace("GATEWAY", &gateway());
            let length = page.len();
            return format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{page}");
        }
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
    })
}

/// What a page of this origin was told.
fn told(site: &mut Backend) -> Value {
    let _browser = Browser::open(&format!("http://{}/page", site.address()));
    until(PATIENCE, "the page tells what it saw", || {
        let requests = site.requests();
        let told = requests.iter().find(|request| request.head.first_line.starts_with("POST /told "))?;
        Some(serde_json::from_slice(&told.body).expect("JSON"))
    })
}

#[test]
fn pages_of_other_origins_see_what_they_may() {
    if !is_long() || !has_tool("chromium") {
        return;
    }
    // A service that would let everybody read everything.
    let mut service = Backend::answering(|request| {
        let fields = "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: *\r\nX-Hidden: 1\r\n";
        if request.head.first_line.contains("/events") {
            let event = "data: first\n\n";
            return format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{fields}Transfer-Encoding: chunked\r\n\r\n\
                 {:x}\r\n{event}\r\n0\r\n\r\n",
                event.len()
            );
        }
        format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok")
    });
    let address = std::sync::Arc::new(std::sync::OnceLock::new());
    let sites = [(); 2].map(|()| {
        let address = std::sync::Arc::clone(&address);
        site(move || format!("http://{}", address.wait()))
    });
    let [mut shop, mut stranger] = sites;
    let (allowed, back) = (shop.address(), service.address());
    let gateway = Gateway::start(&format!(
        "[cors]\norigins = [\"http://{allowed}\"]\n[accounts]\npassword_memory = \"64KiB\"\npassword_passes = 1\n\
         [limits.one]\nquota = 1\nwindow = \"1d\"\napplies = \"named\"\n[upstreams.back]\ninstances = [\"{back}\"]\n\
         [[routes]]\npath = \"/*\"\nupstream = \"back\"\naccess = \"public\"\n\
         [[routes]]\npath = \"/guarded\"\nmethods = [\"GET\"]\nupstream = \"back\"\n\
         [[routes]]\npath = \"/limited\"\nupstream = \"back\"\naccess = \"public\"\nlimits = [\"one\"]\n\
         [[routes]]\npath = \"/pictures\"\nupstream = \"back\"\naccess = \"public\"\n[routes.cors]\norigins = [\"*\"]\n\
         [[routes]]\npath = \"/partners\"\nupstream = \"back\"\naccess = \"public\"\n[routes.cors]\n\
         origins = [\"http://{allowed}\"]\ncredentials = true\n"
    ));
    address.set(gateway.address()).expect("once");
    let directory = TempDir::new().expect("a temporary directory");
    let mut command = shardgate(directory.path());
    command.current_dir(gateway.directory()).args(["user", "add", "ann@example.com", "--role", "user", "--config"]);
    let mut child = command.arg(gateway.config_path()).stdin(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("it is piped").write_all(b"correct horse battery").expect("it reads");
    assert!(child.wait().expect("it is ours").success());

    let seen = told(&mut shop);
    assert_eq!(
        seen,
        json!({
            "simple": "200 ok an id null",
            "preflighted": "200",
            "other_method": "TypeError",
            "other_field": "TypeError",
            "with_cookies": "TypeError",
            "partner_with_cookies": "200",
            "everybody": "200",
            "refused": "401 token_missing",
            "not_found": "405 method_not_allowed",
            "limited": "429 rate_limited true,true,true",
            "log_in": "ann@example.com 200 204 401 token_revoked",
            "events": "first",
        })
    );
    let reached: Vec<String> = service.requests().into_iter().map(|request| request.head.first_line).collect();
    for (path, count) in [("/preflighted", 1), ("/other-method", 0), ("/other-field", 0), ("/with-cookies", 1)] {
        let found = reached.iter().filter(|line| line.contains(path)).count();
        assert_eq!(found, count, "{path}: {reached:?}");
    }

    let seen = told(&mut stranger);
    let kept: Vec<_> = seen.as_object().expect("an object").iter().filter(|(_, told)| *told != "TypeError").collect();
    assert_eq!(kept, [(&"events".to_owned(), &json!("no events")), (&"everybody".to_owned(), &json!("200"))]);
    // What it sends without asking first arrives all the same; what it has to ask for does not.
    let reached: Vec<String> = service.requests().into_iter().map(|request| request.head.first_line).collect();
    assert!(reached.iter().any(|line| line.starts_with("GET /x ")), "{reached:?}");
    assert!(!reached.iter().any(|line| line.starts_with("PUT ")), "{reached:?}");
}
