// What README.md promises of pace, and of messages that are refused for now.

import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { connect } from "../shardgate.js";
import { event, heard, log, start, state, welcomed } from "./support.js";

/** For tests that let minutes pass: the hub may be silent. */
const QUIET = { heartbeatMs: 1e9 };

/** What a hub counts of a client, as docs/websocket.md says: so many a second, and twice as many at once. */
class Counted {
  #paidUntil = -Infinity;
  refused = 0;

  constructor(clock, perS) {
    Object.assign(this, { clock, perS, burst: 2 * perS });
  }

  /** How much too early the message is; 0 if it is taken. */
  lateMs() {
    const [now, each] = [this.clock.now(), 1000 / this.perS];
    const late = Math.ceil(this.#paidUntil - now - (this.burst - 1) * each);
    if (late > 0) {
      this.refused += 1;
      return late;
    }
    this.#paidUntil = Math.max(this.#paidUntil, now) + each;
    return 0;
  }
}

/** Answers whatever comes, time going on by `stepMs` each turn, until `count` messages have got their ack. */
async function answer({ connection, clock, client }, counted, count, stepMs = 20) {
  const taken = [];
  while (taken.length < count) {
    assert.equal(client.state, "open");
    clock.advance(stepMs);
    // A turn of the real sockets.
    await new Promise((resolve) => setImmediate(resolve));
    while (connection.inbox.length > 0) {
      const { id, type, room, payload } = await connection.next();
      const late = counted.lateMs();
      if (late > 0) connection.error(id, "rate_limited", { retryable: true, retryAfterMs: late });
      else if (type === "join_room") connection.send({ type: "joined", id, room, seq: 0, epoch: "k1", payload: { members: 1 } });
      else if (id !== undefined) {
        taken.push(payload);
        connection.send({ type: "ack", id, room, seq: taken.length, epoch: "k1", payload: {} });
      }
    }
  }
  return taken;
}

test("what waited while there was no connection goes at the hub's pace, and nothing of it is refused", async (t) => {
  const { hub, clock, client } = await start(t);
  const room = client.join("public.a");
  const sent = Array.from({ length: 240 }, (_, index) => room.send(index));
  const connection = await hub.connection();
  const open = state(client, "open");
  connection.welcome(QUIET);
  await open;
  const counted = new Counted(clock, 50);
  const taken = await answer({ connection, clock, client }, counted, 240);
  await Promise.all(sent);
  assert.equal(counted.refused, 0);
  assert.deepEqual(taken, [...Array(240).keys()]);
});

test("a hub that takes less slows the client down, and gets each message without too many mistakes", async (t) => {
  const all = await welcomed(t, {}, QUIET);
  const room = all.client.join("public.a");
  const sent = Array.from({ length: 120 }, (_, index) => room.send(index));
  const counted = new Counted(all.clock, 5);
  const taken = await answer(all, counted, 120);
  await Promise.all(sent);
  assert.deepEqual(taken.toSorted((one, other) => one - other), [...Array(120).keys()]);
  assert.ok(counted.refused > 0 && counted.refused < 20, `20 in 10 s close: ${counted.refused}`);
});

test("after a refusal for the rate all wait, and what was refused goes first, with its id", async (t) => {
  const { clock, client, connection } = await welcomed(t, {}, QUIET);
  const sent = [1, 2].map((index) => client.send("cart_event", index));
  const [first, second] = [await connection.next(), await connection.next()];
  connection.error(first.id, "rate_limited", { retryable: true, retryAfterMs: 700 });
  connection.send({ type: "ack", id: second.id, payload: {} });
  await sent[1];
  const third = client.send("cart_event", 3);
  const other = client.send("prediction_request", 4);
  clock.advance(699);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(connection.inbox.length, 0);
  clock.advance(1);
  assert.deepEqual(await connection.next(), first);
  assert.equal(connection.inbox.length, 0, "one, and then at half the pace");
  for (const [promise, payload] of [[third, 3], [other, 4]]) {
    clock.advance(40);
    const frame = await connection.next();
    assert.equal(frame.payload, payload);
    connection.send({ type: "ack", id: frame.id, payload: {} });
    await promise;
  }
  connection.send({ type: "ack", id: first.id, payload: {} });
  await sent[0];
});

test("the pace comes back when nothing was refused for a while", async (t) => {
  const { clock, client, connection } = await welcomed(t, { messagesPerS: 4 }, QUIET);
  const acked = async (frame) => connection.send({ type: "ack", id: (await frame).id, payload: {} });
  const first = client.send("cart_event", 0);
  connection.error((await connection.next()).id, "rate_limited", { retryable: true, retryAfterMs: 100 });
  connection.send({ type: "mail", payload: 1 });
  await event(client, "message");
  clock.advance(100);
  await acked(connection.next());
  await first;
  for (const [quietMs, eachMs] of [[0, 500], [30_000, 250]]) {
    clock.advance(quietMs);
    const sent = Array.from({ length: 6 }, (_, index) => client.send("cart_event", index));
    const takenAt = [];
    for (const promise of sent) {
      while (connection.inbox.length === 0) {
        await new Promise((resolve) => setImmediate(resolve));
        if (connection.inbox.length === 0) clock.advance(10);
      }
      takenAt.push(clock.now());
      await acked(connection.next());
      await promise;
    }
    const last = takenAt[5] - takenAt[4];
    assert.ok(last >= eachMs - 20 && last <= eachMs + 250, `${last} ms between two, at ${eachMs}`);
  }
});

test("a volatile message that would be too much is dropped", async (t) => {
  const { clock, client, connection } = await welcomed(t, { messagesPerS: 3 }, QUIET);
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  const went = () => Promise.all([1, 2, 3].map((payload) => room.send(payload, { volatile: true })));
  assert.deepEqual(await went(), [true, true, false], "the join counted too");
  clock.advance(1000);
  assert.deepEqual(await went(), [true, true, true]);
});

test("what is refused for now is sent again with its id, before what is behind it", async (t) => {
  const { clock, client, connection } = await welcomed(t, {}, QUIET);
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  const sent = room.send("first");
  const frame = await connection.next();
  connection.error(frame.id, "overloaded", { retryable: true, retryAfterMs: 300 });
  await heard(client, connection);
  const behind = room.send("second");
  clock.advance(299);
  await heard(client, connection);
  clock.advance(1);
  assert.deepEqual(await connection.next(), frame);
  const { id, payload } = await connection.next();
  assert.equal(payload, "second");
  for (const [seq, one] of [[1, frame.id], [2, id]]) {
    connection.send({ type: "ack", id: one, room: "public.a", seq, epoch: "k1", payload: {} });
  }
  assert.deepEqual([await sent, await behind], [{ epoch: "k1", seq: 1 }, { epoch: "k1", seq: 2 }]);
});

test("a service that takes no more for now holds up nothing else", async (t) => {
  const { clock, client, connection } = await welcomed(t, { resendsMax: 1 }, QUIET);
  for (const more of [{ retryAfterMs: 2000 }, {}]) {
    const sent = client.send("cart_event", 1);
    const frame = await connection.next();
    connection.error(frame.id, "rate_limited", { retryable: true, ...more });
    await heard(client, connection);
    clock.advance(more.retryAfterMs ?? 500);
    assert.deepEqual(await connection.next(), frame, "once more");
    connection.error(frame.id, "rate_limited", { retryable: true, ...more });
    await assert.rejects(sent, { code: "rate_limited", retryAfterMs: more.retryAfterMs });
  }
});

test("sending again ends, and one may ask for none", async (t) => {
  const { clock, client, connection } = await welcomed(t, { resendsMax: 2 }, QUIET);
  const sent = client.send("cart_event", 1);
  for (const wait of [500, 1000, 0]) {
    const { id } = await connection.next();
    connection.error(id, "circuit_open", { retryable: true });
    if (wait > 0) await heard(client, connection);
    clock.advance(wait);
  }
  await assert.rejects(sent, { code: "circuit_open", retryable: true });
  const once = client.send("cart_event", 2, { resendsMax: 0 });
  connection.error((await connection.next()).id, "upstream_timeout", { retryable: true, retryAfterMs: 500 });
  await assert.rejects(once, { code: "upstream_timeout", retryAfterMs: 500 });
});

test("what a hub that drains refuses goes over the next connection", async (t) => {
  const { hub, clock, client, connection } = await welcomed(t, {}, QUIET);
  const sent = client.send("cart_event", 1);
  const { id } = await connection.next();
  connection.error(id, "draining", { retryable: true });
  const waiting = state(client, "waiting");
  connection.close(1012);
  await waiting;
  clock.advance(500);
  const second = await hub.connection();
  second.welcome(QUIET);
  assert.equal((await second.next()).id, id);
  second.send({ type: "ack", id, payload: { status: 202 } });
  assert.deepEqual(await sent, { status: 202 });
});

test("a room is left although the hub took no message just then, and joined anew behind that", async (t) => {
  const { clock, client, connection } = await welcomed(t, {}, QUIET);
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  const left = room.leave();
  const frame = await connection.next();
  client.join("public.a");
  connection.error(frame.id, "rate_limited", { retryable: true, retryAfterMs: 200 });
  const seen = log(client, "error");
  connection.send({ type: "mail", payload: 1 });
  await event(client, "message");
  clock.advance(200);
  assert.deepEqual(await connection.next(), frame);
  connection.send({ type: "left", id: frame.id, room: "public.a", payload: {} });
  await left;
  clock.advance(40);
  assert.equal((await connection.next()).type, "join_room");
  assert.deepEqual(seen, []);
});

test("an answer that is no switch of protocols is told, with its status", async (t) => {
  const { createServer } = await import("node:http");
  const server = createServer((_, response) => response.writeHead(404).end());
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const url = `ws://127.0.0.1:${server.address().port}/wsx`;
  const client = connect({ url, getToken: () => "t", WebSocket });
  t.after(() => client.close());
  const [failed, waiting] = [event(client, "error"), state(client, "waiting")];
  const error = await failed;
  assert.deepEqual([error.code, error.status, error.retryable], ["connect_failed", 404, true]);
  const { code, reason, retryInMs } = await waiting;
  assert.deepEqual([code, reason], [1006, "Unexpected server response: 404"]);
  assert.ok(Number.isInteger(retryInMs), `whole milliseconds: ${retryInMs}`);
});
