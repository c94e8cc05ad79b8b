//! Services under servers of `PyPI`: installed once below `target/`, each started in a process of its own and ended with its
//! test.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

/// What is installed; another list is another folder.
const PACKAGES: [&str; 7] = [
    "h11==0.16.0",
    "prometheus_client==0.26.0",
    "redis==8.1.0",
    "uvicorn==0.54.0",
    "waitress==3.0.2",
    "websockets==17.4",
    "wsproto==1.3.2",
];

/// Python with these packages. Without it the test is passed over, or fails if `SHARDGATE_TEST_TOOLS=required`.
#[track_caller]
pub(crate) fn python() -> Option<&'static Path> {
    static INSTALLED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match INSTALLED.get_or_init(install) {
        Ok(python) => Some(python),
        Err(error) => {
            let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
            assert!(!is_required, "{error}; SHARDGATE_TEST_TOOLS says that it has to be");
            eprintln!("passed over: {error}");
            None
        }
    }
}

/// A running service.
#[derive(Debug)]
pub(crate) struct PythonService {
    child: Child,
    address: SocketAddr,
}

impl PythonService {
    /// Starts the service of `tests/data/python` under this server. Without Python or its packages the test is passed over,
    /// or fails if `SHARDGATE_TEST_TOOLS=required`.
    #[track_caller]
    pub(crate) fn start(server: &str) -> Option<Self> {
        let python = python()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/python/services.py");
        let mut command = Command::new(python);
        command.arg(script).arg(server).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("Python runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{server} does not start: {line:?}"));
        Some(Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PythonService {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an environment with the packages, unless it is there; returns its Python.
fn install() -> Result<PathBuf, String> {
    let name = PACKAGES.join("-").replace("==", "-");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{name}"));
    let (python, done) = (directory.join("bin/python"), directory.join("done"));
    if done.exists() {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    std::fs::write(done, "").map_err(|error| error.to_string())?;
    Ok(python)
}

/// Runs a program to its end. An error says what it wrote.
pub(super) fn run(command: &mut Command) -> Result<(), String> {
    let error = match command.output() {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(format!("{command:?}: {error}"))
}
