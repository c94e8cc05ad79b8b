//! Clients that nobody here wrote: curl, wrk, Python's http.client, Node's fetch.

use std::{
    fs,
    process::{Command, Output},
};

use super::has_tool;
use crate::{
    harness::Gateway,
    service::{Service, pattern},
};

const LARGE: usize = 20 * 1024 * 1024 + 12_345;

/// Runs a program in the gateway's directory; it has to succeed.
fn run(gateway: &Gateway, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(gateway.directory()).output().expect("it runs");
    let Output { status, stdout, stderr } = output;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{program} {arguments:?}: {status}\n{stdout}\n{}", String::from_utf8_lossy(&stderr));
    stdout
}

fn start() -> (Gateway, Service) {
    let service = Service::start();
    (Gateway::start(&service.config("")), service)
}

/// What a download of this size consists of.
fn expected_bytes(size: usize) -> Vec<u8> {
    pattern().into_iter().cycle().take(size).collect()
}

#[test]
fn curl_gets_posts_and_downloads() {
    if !has_tool("curl") {
        return;
    }
    let (gateway, _service) = start();
    let url = format!("http://{}", gateway.address());
    let curl = |arguments: &[&str]| {
        let always = ["--silent", "--show-error", "--max-time", "60"];
        run(&gateway, "curl", &[&always, arguments].concat())
    };
    assert_eq!(curl(&[&url]), "hello\n");
    let twice = curl(&[&url, &url, "--write-out", "%{num_connects}\n"]);
    assert_eq!(twice, "hello\n1\nhello\n0\n", "the second request goes over the first connection");
    let head = curl(&["--head", &url]);
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 6"), "{head}");
    assert_eq!(curl(&["--data-binary", "ab", &format!("{url}/echo")]), "ab");

    fs::write(gateway.directory().join("large"), expected_bytes(LARGE)).expect("the file is written");
    // More than a MiB makes curl ask with Expect: 100-continue.
    let sent = curl(&["--data-binary", "@large", &format!("{url}/upload")]);
    assert_eq!(sent, LARGE.to_string());
    let sent = curl(&["--upload-file", "large", "--header", "transfer-encoding: chunked", &format!("{url}/upload")]);
    assert_eq!(sent, LARGE.to_string());
    curl(&["--output", "got", &format!("{url}/download/{LARGE}")]);
    assert!(fs::read(gateway.directory().join("got")).expect("it was saved") == expected_bytes(LARGE), "bytes differ");
    let missing = curl(&[
        "--path-as-is",
        &format!("{url}/%00"),
        "--write-out",
        "%{http_code} %{content_type}",
        "--output",
        "/dev/null",
    ]);
    assert_eq!(missing, "400 application/problem+json");
}

#[test]
fn wrk_finds_no_fault() {
    if !has_tool("wrk") {
        return;
    }
    let (gateway, _service) = start();
    let url = format!("http://{}/", gateway.address());
    let report = run(&gateway, "wrk", &["--threads", "2", "--connections", "32", "--duration", "2s", &url]);
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    let requests: i64 = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .unwrap_or_else(|| panic!("no count of requests in {report}"));
    assert!(requests > 100, "{report}");
    // wrk leaves in the middle of its last requests; it may have had no answer to 32 of those that were counted.
    let counted = gateway.metrics().value("shardgate_requests_total{route=\"/*\",status=\"2xx\"}");
    assert!(counted >= requests, "{counted} of {requests}");
}

const PYTHON: &str = r#"
import hashlib, http.client, json, sys
host, size = sys.argv[1], int(sys.argv[2])
connection = http.client.HTTPConnection(host, timeout=60)

def ask(method, path, body=None, headers={}, **more):
    connection.request(method, path, body, headers, **more)
    answer = connection.getresponse()
    return answer, answer.read()

answer, body = ask("GET", "/")
assert (answer.status, body) == (200, b"hello\n"), (answer.status, body)
socket = connection.sock
assert socket is not None, "the connection is kept"

answer, body = ask("HEAD", f"/download/{size}")
assert answer.getheader("Content-Length") == str(size) and body == b"", answer.getheaders()

parts = [b"a" * 1000, b"b", b"c" * 100_000]
answer, body = ask("POST", "/echo", iter(parts), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
assert (answer.status, body) == (200, b"".join(parts)), answer.status

answer, body = ask("POST", "/echo", b"")
assert (answer.status, body) == (200, b""), answer.status

answer, body = ask("GET", "/only/post")
problem = json.loads(body)
assert (answer.status, problem["code"]) == (404, "not_found"), (answer.status, problem)
assert answer.getheader("Content-Type") == "application/problem+json"
assert problem["requestId"] == answer.getheader("X-Request-Id"), problem

answer, body = ask("GET", f"/download/{size}")
assert connection.sock is socket, "still the same connection"
print(hashlib.sha256(body).hexdigest(), len(body))
"#;

#[test]
fn python_keeps_its_connection() {
    if !has_tool("python3") {
        return;
    }
    let service = Service::start();
    let config = service.config("").replace("path = \"/*\"", "path = \"/{what}\"")
        + "[[routes]]\naccess = \"public\"\npath = \"/\"\nupstream = \"sample\"\n"
        + "[[routes]]\naccess = \"public\"\npath = \"/download/*\"\nupstream = \"sample\"\n";
    let gateway = Gateway::start(&config);
    fs::write(gateway.directory().join("client.py"), PYTHON).expect("the script is written");
    let said = run(&gateway, "python3", &["client.py", &gateway.address().to_string(), &LARGE.to_string()]);
    fs::write(gateway.directory().join("expected"), expected_bytes(LARGE)).expect("the file is written");
    let expected = run(&gateway, "sha256sum", &["expected"]);
    let digest = expected.split(' ').next().expect("sha256sum tells a digest");
    assert_eq!(said.trim(), format!("{digest} {LARGE}"));
    assert_eq!(gateway.metrics().sum("shardgate_connections_accepted_total"), 1);
}

const NODE: &str = r#"
const [url, tries] = [process.argv[2], Number(process.argv[3])];
const told = {};
for (let n = 0; n < tries; n++) {
  let what;
  try {
    const answer = await fetch(url, { method: "POST", body: Buffer.alloc(5_000_000, 97) });
    what = `${answer.status} ${(await answer.json()).code}`;
  } catch (error) {
    what = String(error.cause?.code ?? error);
  }
  told[what] = (told[what] ?? 0) + 1;
}
console.log(JSON.stringify(told));
"#;

#[test]
fn node_reads_why_its_upload_is_refused() {
    if !has_tool("node") {
        return;
    }
    let service = Service::start();
    let gateway = Gateway::start(&service.config("").replace("2GiB", "1MiB"));
    fs::write(gateway.directory().join("client.mjs"), NODE).expect("the script is written");
    for path in ["upload", "auth/login"] {
        let url = format!("http://{}/{path}", gateway.address());
        let told = run(&gateway, "node", &["client.mjs", &url, "12"]);
        assert_eq!(told.trim(), r#"{"413 body_too_large":12}"#, "{path}");
    }
}
