//! What is JavaScript's: the client for browsers and node, by its own tests against a hub that does what it is told, and by
//! its types as TypeScript reads them; and the hub's `AsyncAPI` document, as its own parser reads that.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    harness::{Client, Gateway},
    servers::npm,
};

/// As `devDependencies` of the client's `package.json` has them.
const PACKAGES: [&str; 2] = ["typescript@5.9.3", "ws@8.23.0"];

/// A copy of the client beside the packages, so that nothing is written into the tree.
#[track_caller]
fn client() -> Option<PathBuf> {
    let packages = npm::packages(&PACKAGES)?;
    let copy = packages.join(format!("client-{}", std::process::id()));
    for folder in ["", "test"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/js").join(folder);
        fs::create_dir_all(copy.join(folder)).expect("a folder");
        for entry in fs::read_dir(from).expect("the client").map(|entry| entry.expect("an entry")) {
            if entry.path().is_file() {
                fs::copy(entry.path(), copy.join(folder).join(entry.file_name())).expect("copied");
            }
        }
    }
    Some(copy)
}

#[test]
fn the_client_keeps_what_it_promises_and_its_types_are_right() {
    let Some(client) = client() else { return };
    let wanted = fs::read_to_string(client.join("package.json")).expect("the client's package");
    for package in PACKAGES {
        let (name, version) = package.split_once('@').expect("name and version");
        assert!(wanted.contains(&format!("\"{name}\": \"{version}\"")), "package.json has another {name}");
    }
    let output = Command::new("npm").arg("test").current_dir(&client).output().expect("npm runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let passed = text.lines().find_map(|line| line.split_once("pass ")).map(|(_, count)| count.parse::<u32>());
    assert!(passed.is_some_and(|count| count.is_ok_and(|count| count > 50)), "its tests ran: {text}");
    fs::remove_dir_all(client).expect("it is ours");
}

/// Prints what is wrong with a document and its examples, a line each, and what is there.
const VALIDATE: &str = r#"
const text = require("fs").readFileSync(0, "utf8");
const { Parser } = require("@asyncapi/parser");
new Parser().parse(text).then(({ document, diagnostics }) => {
  for (const { severity, message, path } of diagnostics) {
    if (severity < 2) console.log(`wrong: ${path.join("/")}: ${message}`);
  }
  if (document) console.log(`operations: ${document.operations().all().length}`);
});
// The parser looks at no examples.
const { components = {} } = JSON.parse(text);
const Ajv = require("ajv");
const ajv = new Ajv({ strict: false, validateFormats: false }).addSchema({ $id: "document", components });
for (const [name, { examples }] of Object.entries(components.messages ?? {})) {
  const validate = ajv.compile({ $ref: `document#/components/messages/${name}/payload` });
  for (const { payload } of examples) {
    if (!validate(payload)) console.log(`wrong: example of ${name}: ${ajv.errorsText(validate.errors)}`);
  }
}
"#;

#[test]
fn the_asyncapi_document_is_valid_as_its_own_parser_says() {
    let Some(packages) = npm::packages(&["@asyncapi/parser@3.6.3", "ajv@8.20.0"]) else { return };
    let config = "[upstreams.a]\ninstances = [\"127.0.0.1:1\"]\n[[routes]]\npath = \"/a\"\nupstream = \"a\"\n";
    let hub = "[hub]\ntoken_query = \"token\"\n[[hub.rooms]]\npattern = \"*\"\npresence_events = true\n\
               [[hub.services]]\ntype_name = \"order\"\nupstream = \"a\"\npath = \"/orders\"\n\
               [[hub.services]]\ntype_name = \"quote\"\nupstream = \"a\"\npath = \"/quotes\"\nanswer = \"quoted\"\n";
    let mut documents = Vec::new();
    for (hub, operations) in [(hub, 15), ("", 12), ("[hub]\nenabled = false\n", 0)] {
        let gateway = Gateway::start(&format!("{config}{hub}"));
        let document = document(&gateway);
        let said = validate(&packages, &document);
        assert_eq!(said, format!("operations: {operations}\n"), "{document}");
        documents.push(document);
    }
    // What is wrong is found: a reference to nothing, and an example that is none.
    for (part, other) in
        [("messages/client.order\"", "messages/client.no\""), ("\"expiresAt\":\"2026", "\"expires\":\"2026")]
    {
        assert!(documents[0].contains(part), "{part}: {}", documents[0]);
        assert!(validate(&packages, &documents[0].replace(part, other)).contains("wrong: "), "{part}");
    }
}

#[track_caller]
fn document(gateway: &Gateway) -> String {
    let mut operator = Client::connect(gateway.admin());
    operator.send("GET /asyncapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let response = operator.read_response();
    assert_eq!((response.status, response.field("content-type")), (200, Some("application/json")));
    response.text()
}

fn validate(packages: &Path, document: &str) -> String {
    let mut command = Command::new("node");
    command.args(["-e", VALIDATE]).current_dir(packages).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("node runs");
    child.stdin.take().expect("it is piped").write_all(document.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it is ours");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}
