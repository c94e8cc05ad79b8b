// The client of clients/js behind a hub that takes 50 messages a second: what waited without a connection goes at that
// pace; a client that is told four times as much is refused now and then, and goes on all the same.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [url, token, packages, module] = process.argv.slice(2);
const WebSocket = createRequire(join(packages, "package.json"))("ws");
const { connect } = await import(pathToFileURL(module));

/** Sends so many messages before there is a connection, and says how many were refused on the way. */
async function sendAll(room, count, messagesPerS) {
  let [refused, connected] = [0, null];
  class Counting extends WebSocket {
    constructor(...of) {
      super(...of);
      this.on("message", (text) => (refused += JSON.parse(text).type === "error"));
    }
  }
  const first = new Promise((resolve) => (connected = resolve));
  const client = connect({ url, WebSocket: Counting, messagesPerS, getToken: () => first.then(() => token) });
  client.on("closed", ({ code, error }) => assert.equal(code, 1000, error?.message));
  const joined = client.join(room);
  const heard = [];
  joined.on("message", ({ payload }) => heard.push(payload));
  const sent = Array.from({ length: count }, (_, index) => joined.send(index));
  connected();
  const seqs = (await Promise.all(sent)).map(({ seq }) => seq);
  assert.deepEqual(seqs.toSorted((one, other) => one - other), seqs.map((_, index) => index + 1), "each once");
  while (heard.length < count) await new Promise((resolve) => joined.on("message", resolve));
  client.close();
  return [refused, heard];
}

const [refused, heard] = await sendAll("public.paced", 150, 45);
assert.equal(refused, 0);
assert.deepEqual(heard, heard.map((_, index) => index), "in order");

const [refusedOfMany] = await sendAll("public.hasty", 250, 200);
assert.ok(refusedOfMany > 0 && refusedOfMany < 20, `refused: ${refusedOfMany}`);

console.log("done");
