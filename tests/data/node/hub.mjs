// A member of a room by `ws`: logs in, joins, speaks, loses its connection, and gets what it missed.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const [url, token, deflate, packages] = process.argv.slice(2);
const WebSocket = createRequire(join(packages, "package.json"))("ws");
const ROOM = "public.node";
// Long enough to be worth compressing.
const long = "what is said again and again ".repeat(100);

class Member {
  constructor(...options) {
    this.socket = new WebSocket(url, ...options);
    this.heard = [];
    this.waiting = null;
    this.closed = new Promise((resolve) => this.socket.on("close", resolve));
    this.socket.on("error", () => {});
    this.socket.on("message", (data, isBinary) => {
      assert.equal(isBinary, false);
      this.heard.push(JSON.parse(data.toString()));
      this.waiting?.();
    });
  }

  say(message) {
    this.socket.send(JSON.stringify(message));
  }

  async hear(type) {
    for (;;) {
      while (this.heard.length === 0) {
        await new Promise((resolve) => (this.waiting = resolve));
      }
      const heard = this.heard.shift();
      if (heard.type === type) return heard;
      assert.notEqual(heard.type, "error", JSON.stringify(heard));
    }
  }

  async join(payload = {}) {
    this.say({ type: "join_room", id: "join", room: ROOM, payload });
    return this.hear("joined");
  }
}

const byField = () => new Member([], { headers: { Authorization: `Bearer ${token}` } });

setTimeout(() => assert.fail("it takes too long"), 30_000).unref();

const browser = new Member(["shardgate.v1", `bearer.${token}`]);
assert.equal((await browser.hear("welcome")).userId, "node");
assert.equal(browser.socket.protocol, "shardgate.v1");
browser.socket.close(1000, "bye");
assert.equal(await browser.closed, 1000);

const late = new Member();
await new Promise((resolve) => late.socket.on("open", resolve));
late.say({ type: "auth", id: "1", payload: { token } });
assert.equal((await late.hear("auth_ok")).id, "1");
await late.hear("welcome");
// A close without a code is answered by one.
late.socket.close();
assert.equal(await late.closed, 1005);

const speaker = byField();
await speaker.hear("welcome");
await speaker.join();
let member = byField();
await member.hear("welcome");
// It offers compression by itself.
assert.equal(member.socket.extensions, deflate === "true" ? "permessage-deflate" : "");
const { epoch } = await member.join();
for (const n of [1, 2]) {
  speaker.say({ type: "room_message", id: `m${n}`, room: ROOM, payload: { n, long } });
  assert.deepEqual((await member.hear("room_message")).payload, { n, long });
}
member.socket.terminate();
for (const n of [3, 4]) {
  speaker.say({ type: "room_message", id: `m${n}`, room: ROOM, payload: { n, long } });
}
for (let n = 1; n <= 4; n++) {
  assert.equal((await speaker.hear("ack")).id, `m${n}`);
}
member = byField();
await member.hear("welcome");
const { payload } = await member.join({ recover: { epoch, seq: 2 } });
assert.equal(payload.recovered, true);
assert.deepEqual(payload.messages.map((message) => message.seq), [3, 4]);
member.socket.ping("there?");
const pong = await new Promise((resolve) => member.socket.once("pong", resolve));
assert.equal(pong.toString(), "there?");
member.socket.send(Buffer.from("bytes"));
assert.equal(await member.closed, 1003);
speaker.socket.close();
await speaker.closed;
console.log("done");
