//! The dashboard in Chromium: its figures, its changes, its policy, and how it looks.

use std::{path::Path, process::Command};

use tempfile::TempDir;

use super::has_tool;
use crate::{backend::Backend, harness::Gateway};

const TOKEN: &str = "an-operators-token-of-the-tests";

#[test]
fn an_operator_uses_the_dashboard_in_a_browser() {
    if !has_tool("chromium") || !has_tool("node") {
        return;
    }
    let [one, backends @ ..] = [(); 4].map(|()| Backend::ok());
    let instances = backends.iter().map(|back| format!("\"{}\"", back.address())).collect::<Vec<_>>().join(", ");
    let upstream = |name: &str, instances: &str| {
        format!(
            "[upstreams.{name}]\ninstances = [{instances}]\n[upstreams.{name}.health]\npath = \"/healthz\"\n\
             interval = \"500ms\"\ntimeout = \"400ms\"\n"
        )
    };
    let route = |path: &str, upstream: &str| {
        format!(
            "[[routes]]\nname = \"{upstream}\"\naccess = \"public\"\npath = \"{path}\"\nupstream = \"{upstream}\"\n"
        )
    };
    let gateway = Gateway::start(
        &[
            upstream("shop", &instances),
            upstream("orders", &format!("\"{}\", \"127.0.0.1:1\"", one.address())),
            route("/shop/*", "shop"),
            route("/orders/*", "orders"),
            format!("[[admin.tokens]]\nname = \"ann\"\nsecret = \"{TOKEN}\"\n"),
        ]
        .concat(),
    );
    let profile = TempDir::new().expect("a temporary directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/node/dashboard.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(gateway.admin().to_string()).arg(gateway.address().to_string());
    command.arg(TOKEN).arg(profile.path());
    // Pictures of the page, for whoever wants to look at it.
    command.args(std::env::var_os("SHARDGATE_TEST_PICTURES"));
    let output = command.output().expect("it runs");
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success() && said == "done\n", "{said}\n{errors}");
}
