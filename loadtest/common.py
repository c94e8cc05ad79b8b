"""What the scripts of this folder share."""
import os, pathlib, shutil, signal, socket, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def binary(variable, name):
    """The binary that this variable names, or the dist build of this checkout."""
    target = os.environ.get("CARGO_TARGET_DIR") or ROOT / "target"
    path = os.environ.get(variable) or str(pathlib.Path(target, "dist", name))
    if not os.access(path, os.X_OK):
        sys.exit(f"{path} is not there; build it with --profile dist, or set {variable}")
    return path


def tool(name, variable=None):
    """A program of another house, from PATH or where the variable says."""
    path = variable and os.environ.get(variable) or shutil.which(name)
    if not path:
        sys.exit(f"{name} is not in PATH; install it" + (f", or set {variable}" if variable else ""))
    return path


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment():
    """Without variables that the gateway would take for its own: it refuses those that it does not know."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SHARDGATE_", "OTEL_"))}


def page(port, path="/metrics"):
    """A page of the operator's listener; nothing while it does not answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: stream.recv(1 << 20), b"")).decode()
    except OSError:
        return ""


def until(is_so, otherwise, seconds=10):
    """Waits until it is so; else ends the script with these words, or those that the function finds then."""
    due = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > due:
            sys.exit(f"{os.path.basename(sys.argv[0])}: {otherwise() if callable(otherwise) else otherwise}")
        time.sleep(0.05)


class Processes:
    """Processes that end with the script, each with a log in the folder of the run."""

    def __init__(self, run):
        self.run, self.all = pathlib.Path(run), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.all):
            self.stop(process)

    def start(self, name, words, **more):
        with open(self.run / f"{name}.log", "ab") as log:
            self.all.append(subprocess.Popen([str(word) for word in words], stdout=log, stderr=log, **more))
        return self.all[-1]

    def log(self, name):
        return (self.run / f"{name}.log").read_text(errors="replace")[-2000:]

    def stop(self, process):
        """At once; children that it leaves behind end too where it leads a group of its own."""
        try:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.kill()
        process.wait()
