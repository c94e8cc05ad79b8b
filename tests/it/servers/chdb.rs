//! Today's engine of ClickHouse, in a process of Python's: it has no HTTP, and carries out the statements that the server of
//! Debian's day does too. Installed once below `target/`, and large, so for the long suites only.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::python::run;

const PACKAGES: [&str; 2] = ["chdb==4.4.0", "chdb-core==26.9.0"];

/// Carries out the statements of standard input, a list of JSON, and prints what each gives, as such a list.
const SCRIPT: &str = "
import json, sys
from chdb import session
server = session.Session(sys.argv[1])
print(json.dumps([str(server.query(statement)) for statement in json.load(sys.stdin)]))
";

/// What each of the statements gives, on a server of its own.
#[track_caller]
pub(crate) fn query(statements: &[String]) -> Vec<String> {
    let python = install().unwrap_or_else(|error| panic!("{error}"));
    // It takes a config.xml of the directory that it is started in for its own.
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(directory.path().join("data")).current_dir(directory.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
    let input = serde_json::to_vec(statements).expect("text");
    child.stdin.take().expect("it is piped").write_all(&input).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "a statement failed");
    serde_json::from_slice(&output.stdout).expect("a list")
}

/// Makes an environment with the packages, unless it is there; returns its Python.
fn install() -> Result<PathBuf, String> {
    let name = PACKAGES.join("-").replace("==", "-");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (python, done) = (directory.join("bin/python"), directory.join("done"));
    if !done.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory))?;
        // What they need besides is for tables of data in Python.
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps"]).args(PACKAGES))?;
        std::fs::write(done, "").map_err(|error| error.to_string())?;
    }
    Ok(python)
}
