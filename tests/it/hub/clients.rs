//! Clients: `websockets` of Python and `ws` of node, that nobody here wrote, and the one of clients/js.

use std::{path::Path, process::Command};

use super::{expect_sockets, start, user};
use crate::{
    certificate::Made,
    servers::{npm, python},
};

/// Runs a program to its end; it says that all went well.
#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success() && said.ends_with("done\n"), "{said}\n{errors}");
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn pythons_websockets_speaks_with_the_hub() {
    let Some(python) = python::python() else { return };
    for deflate in [false, true] {
        let gateway = start(&format!("[hub]\ndeflate = {deflate}\n"));
        run(Command::new(python)
            .arg(script("python/hub.py"))
            .arg(format!("ws://{}/ws", gateway.address()))
            .args([user("py"), deflate.to_string()]));
        expect_sockets(&gateway, 0);
    }
}

#[test]
fn pythons_websockets_speaks_with_the_hub_over_tls() {
    let Some(python) = python::python() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let made = Made::rsa(place.path(), "hub", "localhost");
    for deflate in [false, true] {
        let gateway = start(&format!("[listener]\nkind = \"tls\"\n[hub]\ndeflate = {deflate}\n{}", made.config()));
        run(Command::new(python)
            .arg(script("python/hub.py"))
            .arg(format!("wss://localhost:{}/ws", gateway.address().port()))
            .args([user("py"), deflate.to_string()])
            .env("SSL_CERT_FILE", &made.cert));
        expect_sockets(&gateway, 0);
    }
}

#[test]
fn nodes_ws_speaks_with_the_hub() {
    let Some(packages) = npm::packages(&["ws@8.23.0"]) else { return };
    for deflate in [false, true] {
        let gateway = start(&format!("[hub]\ndeflate = {deflate}\n"));
        let url = format!("ws://{}/ws", gateway.address());
        let mut command = Command::new("node");
        run(command.arg(script("node/hub.mjs")).args([url, user("node"), deflate.to_string()]).arg(&packages));
        expect_sockets(&gateway, 0);
    }
}

#[test]
fn the_client_of_the_repository_keeps_the_pace_that_the_hub_takes() {
    let Some(packages) = npm::packages(&["ws@8.23.0"]) else { return };
    let gateway = start("[hub]\nmessages_per_s = 50\n");
    let url = format!("ws://{}/ws", gateway.address());
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/js/shardgate.js");
    run(Command::new("node").arg(script("node/pace.mjs")).args([url, user("pace")]).arg(packages).arg(client));
    expect_sockets(&gateway, 0);
}
