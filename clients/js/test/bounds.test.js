// What README.md promises of queues, liveness, tokens and rooms that are refused.

import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { connect } from "../shardgate.js";
import { tokenUntil } from "./mock-hub.js";
import { event, heard, log, reconnected, start, state, welcomed } from "./support.js";

/** For tests of what has another time: the hub may be silent. */
const QUIET = { heartbeatMs: 1e9 };

test("what was sent and never acked is told when the connection goes", async (t) => {
  const { hub, clock, client, connection } = await welcomed(t);
  const sent = client.send("cart_event", { n: 1 });
  const { id } = await connection.next();
  connection.cut();
  await assert.rejects(sent, { name: "HubError", code: "unacked", retryable: true, id });
  // The same id again: the hub and the service know it.
  const again = client.send("cart_event", { n: 1 }, { id });
  clock.advance(500);
  const second = await hub.connection();
  second.welcome();
  assert.equal((await second.next()).id, id);
  second.send({ type: "ack", id, payload: { status: 202 } });
  assert.deepEqual(await again, { status: 202 });
});

test("what was not sent yet waits for the next connection, in order, behind the joins", async (t) => {
  const { hub, clock, client, connection } = await welcomed(t);
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  const waiting = state(client, "waiting");
  connection.cut();
  await waiting;
  const sent = [room.send(1), client.send("cart_event", 2), room.send(3)];
  clock.advance(500);
  const second = await hub.connection();
  second.welcome();
  const join = await second.next();
  assert.equal(join.type, "join_room");
  assert.equal((await second.next()).type, "cart_event", "it waits for no room");
  second.send({ type: "joined", id: join.id, room: "public.a", seq: 0, epoch: "k1", payload: { members: 1, recovered: true } });
  assert.deepEqual([(await second.next()).payload, (await second.next()).payload], [1, 3]);
  client.close();
  for (const promise of sent) await assert.rejects(promise, { code: "unacked" });
});

test("the queue is bounded, and so is a message", async (t) => {
  const { client } = await start(t, { queueMax: 2, messageBytesMax: 200 });
  await assert.rejects(client.send("cart_event", "ü".repeat(100)), { code: "too_big", retryable: false });
  const queued = [client.send("cart_event", 1), client.send("cart_event", 2, { id: "b" })];
  await assert.rejects(client.send("cart_event", 3), { code: "queue_full", retryable: true });
  client.close();
  for (const promise of queued) await assert.rejects(promise, { code: "closed", retryable: false });
  await assert.rejects(client.send("cart_event", 4), { code: "closed" });
});

test("an id is in use until its answer", async (t) => {
  const { client, connection } = await welcomed(t);
  const first = client.send("cart_event", 1, { id: "a" });
  await assert.rejects(client.send("cart_event", 2, { id: "a" }), { code: "id_in_use" });
  await connection.next();
  connection.send({ type: "ack", id: "a", payload: {} });
  await first;
  client.send("cart_event", 3, { id: "a" }).catch(() => {});
  assert.equal((await connection.next()).payload, 3);
});

test("a volatile message goes now or never", async (t) => {
  const { hub, clock, client, connection } = await welcomed(t);
  const room = client.join("public.a");
  assert.equal(await room.send("early", { volatile: true }), false, "not joined yet");
  await connection.joined();
  await room.joined;
  assert.equal(await room.send("now", { volatile: true }), true);
  assert.deepEqual(await connection.next(), { type: "room_message", room: "public.a", payload: "now" });
  const waiting = state(client, "waiting");
  connection.cut();
  await waiting;
  assert.equal(await room.send("lost", { volatile: true }), false);
  clock.advance(500);
  const second = await hub.connection();
  second.welcome();
  await second.joined({ recovered: true });
  await heard(client, second);
  assert.equal(second.inbox.length, 0, "nothing was kept");
});

test("a socket that is full gets no more until it has room", async (t) => {
  const { clock, client, connection } = await welcomed(t, { bufferedBytesMax: 1 });
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  // What a socket says that does not get rid of what it has.
  let buffered = 2;
  const own = Object.getOwnPropertyDescriptor(WebSocket.prototype, "bufferedAmount");
  Object.defineProperty(WebSocket.prototype, "bufferedAmount", { ...own, get: () => buffered });
  t.after(() => Object.defineProperty(WebSocket.prototype, "bufferedAmount", own));
  assert.equal(await room.send("volatile", { volatile: true }), false);
  const sent = room.send("kept");
  clock.advance(50);
  clock.advance(50);
  assert.equal(connection.inbox.length, 0);
  buffered = 0;
  clock.advance(50);
  const { id, payload } = await connection.next();
  assert.equal(payload, "kept");
  connection.send({ type: "ack", id, room: "public.a", seq: 1, epoch: "k1", payload: {} });
  await sent;
});

test("answers set the pace: a lot at once neither floods the hub nor changes order", async (t) => {
  const { client, connection } = await welcomed(t);
  const sent = Array.from({ length: 40 }, (_, index) => client.send("cart_event", index));
  const other = client.send("prediction_request", "not behind them");
  const first = [];
  for (let index = 0; index < 6; index += 1) first.push(await connection.next());
  assert.deepEqual(first.map(({ payload }) => payload), [...Array(6).keys()]);
  const prediction = await connection.next();
  assert.equal(prediction.payload, "not behind them");
  connection.send({ type: "prediction_response", id: prediction.id, payload: "p" });
  assert.equal(await other, "p");
  assert.equal(connection.inbox.length, 0);
  for (const { id } of first) connection.send({ type: "ack", id, payload: {} });
  for (let index = 6; index < 40; index += 1) {
    const { id, payload } = await connection.next();
    assert.equal(payload, index);
    connection.send({ type: "ack", id, payload: {} });
  }
  await Promise.all(sent);
});

test("all that is unanswered at once is less than the mistakes for which the hub closes", async (t) => {
  const { client, connection } = await welcomed(t);
  for (const type of ["cart_event", "prediction_request", "view_event", "search_event"]) {
    for (let index = 0; index < 10; index += 1) client.send(type, index).catch(() => {});
  }
  const sent = [];
  for (let index = 0; index < 18; index += 1) sent.push(await connection.next());
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(connection.inbox.length, 0);
  assert.equal(new Set(sent.map(({ type }) => type)).size, 3, "each kind has six of them");
  connection.send({ type: "ack", id: sent[0].id, payload: {} });
  assert.equal((await connection.next()).type, "cart_event");
});

test("joins and leaves count among what is unanswered", async (t) => {
  const { client, connection } = await welcomed(t);
  const rooms = ["public.a", "public.b"].map((name) => client.join(name));
  for (const room of rooms) {
    await connection.joined();
    await room.joined;
  }
  for (const type of ["cart_event", "prediction_request", "view_event"]) {
    for (let index = 0; index < 6; index += 1) client.send(type, index).catch(() => {});
  }
  const sent = [];
  for (let index = 0; index < 18; index += 1) sent.push(await connection.next());
  const left = rooms[0].leave();
  client.join("public.c");
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(connection.inbox.length, 0);
  connection.send({ type: "ack", id: sent[0].id, payload: {} });
  const { id, type } = await connection.next();
  assert.equal(type, "leave_room", "before whoever comes");
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(connection.inbox.length, 0);
  connection.send({ type: "left", id, room: "public.a", payload: {} });
  await left;
  assert.equal((await connection.next()).type, "join_room");
});

test("rooms that are refused for now hold up no others", async (t) => {
  const { clock, client, connection } = await welcomed(t, {}, QUIET);
  const rooms = Array.from({ length: 8 }, (_, index) => client.join(`public.${index}`));
  for (let index = 0; index < 6; index += 1) {
    connection.error((await connection.next()).id, "overloaded", { retryable: true, retryAfterMs: 60_000 });
  }
  for (const room of rooms.slice(6)) {
    await connection.joined();
    await room.joined;
  }
  clock.advance(60_000);
  assert.equal((await connection.next()).room, "public.0");
});

test("a message whose room was left before it was taken is told so", async (t) => {
  const { client, connection } = await welcomed(t);
  for (const code of ["overloaded", "rate_limited"]) {
    const room = client.join("public.a");
    await connection.joined();
    await room.joined;
    const sent = room.send("hello");
    const { id } = await connection.next();
    const left = room.leave();
    const leave = await connection.next();
    connection.error(id, code, { retryable: true, retryAfterMs: 0 });
    connection.send({ type: "left", id: leave.id, room: "public.a", payload: {} });
    await assert.rejects(sent, { code, retryable: true });
    await left;
  }
});

test("joins are paced, and a refusal for the rate stops them all for as long as it says", async (t) => {
  const { clock, client, connection } = await welcomed(t);
  const rooms = Array.from({ length: 20 }, (_, index) => client.join(`public.${index}`));
  const asked = [];
  for (let index = 0; index < 6; index += 1) asked.push(await connection.next());
  assert.equal(connection.inbox.length, 0);
  const refused = event(rooms[0], "error");
  connection.error(asked[0].id, "rate_limited", { retryable: true, retryAfterMs: 700 });
  assert.equal((await refused).retryAfterMs, 700);
  const joined = rooms[1].joined;
  connection.send({ type: "joined", id: asked[1].id, room: "public.1", seq: 0, epoch: "k1", payload: { members: 1 } });
  await joined;
  assert.equal(await rooms[1].send("now or never", { volatile: true }), false, "it may not go now");
  clock.advance(699);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(connection.inbox.length, 0, "no further join meanwhile");
  for (const { id, room } of asked.slice(2)) {
    connection.send({ type: "joined", id, room, seq: 0, epoch: "k1", payload: { members: 1 } });
  }
  await rooms[5].joined;
  clock.advance(1);
  for (let index = 0; index < 15; index += 1) {
    await connection.joined();
    clock.advance(40);
  }
  await Promise.all(rooms.map((room) => room.joined));
});

test("a message that nobody answers in its time is given up", async (t) => {
  const { clock, client, connection } = await welcomed(t);
  const sent = client.send("prediction_request", {}, { timeoutMs: 3000 });
  const { id } = await connection.next();
  clock.advance(3000);
  await assert.rejects(sent, { code: "timeout", retryable: true, id });
  // The answer comes late, and hurts nobody.
  const seen = log(client, "message", "error");
  connection.error(id, "upstream_timeout");
  connection.send({ type: "prediction_response", id, payload: {} });
  await heard(client, connection);
  assert.deepEqual(seen.map(([name, { code }]) => [name, code]), [["error", "upstream_timeout"]]);
  // What is behind those that are given up has its turn.
  for (let index = 0; index < 6; index += 1) client.send("cart_event", index, { timeoutMs: 1000 }).catch(() => {});
  const behind = client.send("cart_event", "behind");
  for (let index = 0; index < 6; index += 1) await connection.next();
  clock.advance(1000);
  const frame = await connection.next();
  assert.equal(frame.payload, "behind");
  connection.send({ type: "ack", id: frame.id, payload: {} });
  await behind;
});

test("a hub that is silent is asked, and any frame shows that it is there", async (t) => {
  const { clock, client, connection } = await welcomed(t, {}, { heartbeatMs: 8000 });
  // Seven eighths of the time, by the middle of the spread.
  clock.advance(6000);
  connection.send({ type: "mail", payload: 1 });
  await event(client, "message");
  clock.advance(6999);
  assert.equal(connection.inbox.length, 0);
  clock.advance(1);
  assert.deepEqual(await connection.next(), { type: "heartbeat", payload: {} });
  connection.send({ type: "heartbeat", payload: {} });
  await heard(client, connection);
  clock.advance(10_000);
  assert.equal(client.state, "open");
  // That was heard; the next silence has no answer.
  clock.advance(7000);
  assert.equal((await connection.next()).type, "heartbeat");
  const waiting = state(client, "waiting");
  clock.advance(10_000);
  assert.equal((await waiting).reason, "no heartbeat");
  await connection.closed;
});

test("the token is renewed in place before it ends", async (t) => {
  const reasons = [];
  let clock;
  const getToken = ({ reason }) => {
    reasons.push(reason);
    return tokenUntil((clock?.now() ?? 1_000_000) + 900_000, `t${reasons.length}`);
  };
  const all = await welcomed(t, { getToken }, QUIET);
  const { client, connection } = all;
  ({ clock } = all);
  // A minute and a half before the end, by the middle of the spread.
  clock.advance(809_999);
  assert.deepEqual(reasons, ["connect"]);
  clock.advance(1);
  const { id, type, payload } = await connection.next();
  assert.deepEqual([type, reasons], ["auth", ["connect", "renew"]]);
  const renewed = event(client, "renewed");
  const expiresAt = new Date(clock.now() + 400_000).toISOString();
  connection.send({ type: "auth_ok", id, payload: { expiresAt }, userId: "42", sessionId: "s_2" });
  await renewed;
  assert.deepEqual(client.user, { userId: "42", sessionId: "s_2" });
  assert.match(payload.token, /^ey/);
  // What the hub says of the end counts.
  clock.advance(309_999);
  assert.equal(reasons.length, 2);
  clock.advance(1);
  assert.equal((await connection.next()).type, "auth");
});

test("the hub's clock counts, not the client's", async (t) => {
  const now = 1_000_000;
  const getToken = () => tokenUntil(now + 3_600_000 + 400_000);
  const serverTime = new Date(now + 3_600_000).toISOString();
  const { clock, connection } = await welcomed(t, { getToken }, { ...QUIET, serverTime });
  clock.advance(310_000);
  assert.equal((await connection.next()).type, "auth");
});

test("a renewal that fails is tried again while the token lives", async (t) => {
  let calls = 0;
  const getToken = () => {
    calls += 1;
    if (calls === 2) throw new Error("away");
    return tokenUntil(1_000_000 + 400_000);
  };
  const { clock, client, connection } = await welcomed(t, { getToken }, QUIET);
  const failed = event(client, "error");
  clock.advance(310_000);
  assert.equal((await failed).code, "no_token");
  await heard(client, connection);
  clock.advance(45_000);
  const { id } = await connection.next();
  const refused = event(client, "error");
  connection.error(id, "dependency_unavailable", { retryable: true });
  assert.equal((await refused).code, "dependency_unavailable");
  clock.advance(22_500);
  assert.equal((await connection.next()).type, "auth");
});

test("a join that is refused for good ends the room, and what waits for it", async (t) => {
  const { client, connection } = await welcomed(t);
  const room = client.join("secret.a");
  const seen = log(room, "error", "left");
  const sent = room.send("hello");
  const { id } = await connection.next();
  connection.error(id, "forbidden");
  await assert.rejects(room.joined, { code: "forbidden", room: "secret.a" });
  await assert.rejects(sent, { code: "forbidden" });
  await assert.rejects(room.send("more"), { code: "left" });
  assert.deepEqual(seen.map(([name]) => name), ["error", "left"]);
  assert.equal(room.state, "left");
  assert.notEqual(client.join("secret.a"), room, "one may try again");
});

test("a join that is refused for now is tried again", async (t) => {
  const { clock, client, connection } = await welcomed(t);
  const room = client.join("public.a");
  const refused = event(room, "error");
  connection.error((await connection.next()).id, "overloaded", { retryable: true, retryAfterMs: 800 });
  assert.equal((await refused).code, "overloaded");
  clock.advance(800);
  await connection.joined();
  await room.joined;
});

test("a room that the hub ends is not joined again", async (t) => {
  const all = await welcomed(t);
  const { client, connection } = all;
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  const left = event(room, "left");
  connection.send({ type: "left", room: "public.a", payload: {} });
  assert.equal((await left).error.code, "forbidden");
  const second = await reconnected(all, connection);
  const open = state(client, "open");
  second.welcome();
  await open;
  await heard(client, second);
  assert.equal(second.inbox.length, 0);
});

test("after leave nothing is delivered, and the room can be joined anew", async (t) => {
  const { client, connection } = await welcomed(t);
  const room = client.join("public.a");
  await connection.joined({ seq: 4 });
  await room.joined;
  const seen = log(room, "message");
  const left = room.leave();
  const { id, type } = await connection.next();
  assert.equal(type, "leave_room");
  const again = client.join("public.a");
  const early = log(again, "message", "continuity", "gap");
  connection.message("public.a", 5, "too late");
  connection.send({ type: "left", id, room: "public.a", payload: {} });
  await left;
  await connection.joined({ seq: 5 });
  await again.joined;
  assert.deepEqual([seen, early], [[], []]);
  assert.deepEqual(again.position, { epoch: "k1", seq: 5 });
  await room.leave();
});

test("a room that was not asked for yet is left without a word", async (t) => {
  const { client, connection } = await welcomed(t);
  const rooms = Array.from({ length: 9 }, (_, index) => client.join(`public.${index}`));
  await rooms[8].leave();
  for (let index = 0; index < 8; index += 1) await connection.joined();
  await heard(client, connection);
});

test("a listener that throws keeps nobody else from hearing", async (t) => {
  const thrown = [];
  t.mock.method(console, "error", (error) => thrown.push(error.message));
  const { client, connection } = await welcomed(t);
  client.on("message", () => {
    throw new Error("mine");
  });
  const other = event(client, "message");
  connection.send({ type: "mail", payload: 1 });
  await other;
  assert.deepEqual(thrown, ["mine"]);
});

test("what is no socket's URL ends it at once, with the reason", async () => {
  const client = connect({ url: "nonsense", getToken: () => "t", WebSocket });
  const [failed, closed] = [event(client, "error"), event(client, "closed")];
  assert.equal((await failed).code, "bad_url");
  await closed;
});

test("it says what it needs", () => {
  assert.throws(() => connect({ url: "ws://127.0.0.1/ws", WebSocket }), /getToken/);
  assert.throws(() => connect({ url: "ws://127.0.0.1/ws", getToken: () => "t", WebSocket: undefined }), /WebSocket/);
});
