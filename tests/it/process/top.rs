//! `shardgate top`: as text for scripts, and in a terminal, which it gives back as it was.

use std::{fs, process::Command};

use super::has_tool;
use crate::{
    backend::Backend,
    harness::{Gateway, shardgate},
};

fn gateway(backend: &Backend) -> Gateway {
    Gateway::start(&format!(
        "[upstreams.back]\ninstances = [\"{}\"]\n\
         [[routes]]\nname = \"x\"\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n",
        backend.address()
    ))
}

#[test]
fn top_prints_the_same_once_and_wants_a_terminal_otherwise() {
    let backend = Backend::ok();
    let gateway = gateway(&backend);
    gateway.get("/x");
    let url = format!("http://{}", gateway.admin());
    let top = |arguments: &[&str]| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = shardgate(folder.path());
        command.args(["top", "--url"]).args(arguments);
        let code = command.status().expect("it runs").code();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("written");
        (code, read("stdout.log"), read("stderr.log"))
    };
    let (code, out, error) = top(&[&url, "--once"]);
    assert_eq!(code, Some(0), "{error}");
    for part in ["UPSTREAM", "  back", "SHARD", "ROUTE", &format!("  {}", backend.address())] {
        assert!(out.replace('\n', "\n  ").contains(part), "{part}: {out}");
    }
    let (code, _, error) = top(&[&url]);
    assert_eq!(code, Some(1));
    assert!(error.contains("this needs a terminal") && error.contains("--once"), "{error}");
    let (code, _, error) = top(&["http://127.0.0.1:1", "--once"]);
    assert!(code == Some(1) && error.contains("127.0.0.1:1 cannot be reached"), "{error}");
    let (code, _, error) = top(&[&format!("http://{}", gateway.address()), "--once"]);
    assert!(code == Some(1) && error.contains("no state of a gateway"), "{error}");
}

/// What a person does: looks, goes to another table, makes the window smaller, ends.
const PERSON: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios, time
pid, terminal = pty.fork()
if pid == 0:
    # Where the terminal goes, only the terminal tells.
    if sys.argv[3] == "gone":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ["TERM"] = "xterm-256color"
    os.execv(sys.argv[1], [sys.argv[1], "top", "--url", sys.argv[2]])
import atexit
def end():
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
atexit.register(end)
def size(rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.kill(pid, signal.SIGWINCH)
size(30, 100)
seen = b""
def wait(part):
    global seen
    due = time.monotonic() + 20
    while part not in seen:
        assert time.monotonic() < due, (part, seen[-3000:])
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                sys.exit(f"it ended: {seen[-3000:]}")
    seen = seen.split(part, 1)[1]
before = termios.tcgetattr(terminal)
wait(b"UPSTREAM")
wait(b"back")
os.write(terminal, b"\t")
wait(b"CONNECTIONS")
os.write(terminal, b"\x1b[B\x1b[A")
# What is pressed while a window changes its size is noticed.
size(8, 30)
os.write(terminal, b"\t")
wait(b"ROUTE")
size(30, 100)
wait(b"requests/s, up to")
how = sys.argv[3]
if how == "gone":
    os.close(terminal)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    sys.exit()
if how == "key":
    os.write(terminal, b"q")
else:
    os.kill(pid, signal.SIGTERM)
wait(b"\x1b[?1049l")
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(code)
"#;

#[test]
fn top_gives_the_terminal_back() {
    if !has_tool("python3") {
        return;
    }
    let backend = Backend::ok();
    let gateway = gateway(&backend);
    for how in ["key", "signal", "gone"] {
        let mut command = Command::new("python3");
        command.args(["-c", PERSON, env!("CARGO_BIN_EXE_shardgate"), &format!("http://{}", gateway.admin()), how]);
        let output = command.output().expect("it runs");
        let [said, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(output.status.success() && said.trim() == "0", "{how}: {said} {error}");
    }
}
