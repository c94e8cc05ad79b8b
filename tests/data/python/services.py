"""Services under servers of PyPI, for tests: `services.py uvicorn|waitress` prints its port, then serves until its standard
input ends.

Whatever is asked, the answer to a GET is the request's path. The content of /forged looks like an answer by itself.
"""

import os
import socket
import sys
import threading


def content(path: str) -> bytes:
    if path == "/forged":
        return b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    return path.encode()


async def asgi(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
    elif scope["type"] == "http":
        body = content(scope["path"])
        fields = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    body = content(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=end_with_input, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    if sys.argv[1] == "uvicorn":
        import uvicorn

        config = uvicorn.Config(asgi, ws="wsproto", http="h11", log_level="critical", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])
    else:
        import waitress

        waitress.serve(wsgi, sockets=[listener], _quiet=True, threads=8)


main()
