"""A member of a room by `websockets`: logs in, joins, speaks, loses its connection, and gets what it missed."""

import json
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

url, token, deflate = sys.argv[1:4]
ROOM = "public.python"
# Long enough to be worth compressing.
LONG = "what is said again and again " * 100


def ask(socket, **message):
    socket.send(json.dumps(message))


def hear(socket, kind):
    while True:
        heard = json.loads(socket.recv(timeout=10))
        if heard["type"] == kind:
            return heard
        assert heard["type"] != "error", heard


def by_field():
    return connect(url, additional_headers={"Authorization": f"Bearer {token}"})


# The token as a field, as a subprotocol, and as the first message.
with connect(url, subprotocols=["shardgate.v1", f"bearer.{token}"]) as socket:
    assert socket.subprotocol == "shardgate.v1"
    assert hear(socket, "welcome")["userId"] == "py"
with connect(url) as socket:
    ask(socket, type="auth", id="1", payload={"token": token})
    assert hear(socket, "auth_ok")["userId"] == "py"
    hear(socket, "welcome")

with by_field() as speaker:
    hear(speaker, "welcome")
    ask(speaker, type="join_room", id="1", room=ROOM, payload={})
    hear(speaker, "joined")
    member = by_field()
    hear(member, "welcome")
    # It offers compression by itself.
    agreed = [extension.name for extension in member.protocol.extensions]
    assert agreed == (["permessage-deflate"] if deflate == "true" else []), agreed
    ask(member, type="join_room", id="1", room=ROOM, payload={})
    epoch = hear(member, "joined")["epoch"]
    for n in (1, 2):
        ask(speaker, type="room_message", id=f"m{n}", room=ROOM, payload={"n": n, "text": "héllo", "long": LONG})
        assert hear(member, "room_message")["payload"] == {"n": n, "text": "héllo", "long": LONG}
    # It is gone without a word, and comes back.
    member.socket.close()
    for n in (3, 4):
        ask(speaker, type="room_message", id=f"m{n}", room=ROOM, payload={"n": n, "long": LONG})
        assert hear(speaker, "ack")["id"] in ("m1", "m2", "m3", "m4")
    while True:
        ask(speaker, type="heartbeat", id="end")
        if hear(speaker, "heartbeat")["id"] == "end":
            break
    with by_field() as member:
        hear(member, "welcome")
        recover = {"recover": {"epoch": epoch, "seq": 2}}
        ask(member, type="join_room", id="2", room=ROOM, payload=recover)
        joined = hear(member, "joined")
        assert joined["payload"]["recovered"] is True, joined
        assert [message["seq"] for message in joined["payload"]["messages"]] == [3, 4], joined
        assert member.ping().wait(10), "pongs come"

with by_field() as socket:
    hear(socket, "welcome")
    socket.send(b"bytes")
    try:
        while True:
            socket.recv(timeout=10)
    except ConnectionClosed as closed:
        assert closed.rcvd.code == 1003, closed
print("done")
