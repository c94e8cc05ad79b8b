"""What the scripts of this folder share."""
import os, pathlib, shutil, socket, sys

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
