// What README.md promises, against a hub that does what it is told, with time that stands.

import assert from "node:assert/strict";
import { test } from "node:test";
import { backoff, comesBack } from "../shardgate.js";
import { event, heard, log, reconnected, start, state, welcomed } from "./support.js";

test("the token goes as a subprotocol, and welcome opens", async (t) => {
  const { client, connection } = await welcomed(t);
  assert.deepEqual(connection.protocols, ["shardgate.v1", "bearer.token-1"]);
  assert.deepEqual(client.user, { userId: "42", sessionId: "s_1" });
});

test("waits are spread over a bound that doubles, from the first one on", () => {
  const options = { backoffBaseMs: 1000, backoffMaxMs: 30_000 };
  const bound = (attempt) => backoff(attempt, { ...options, random: () => 1 });
  assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 1e9].map(bound), [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  assert.deepEqual([0, 1].map((attempt) => backoff(attempt, { ...options, random: () => 0 })), [0, 0]);
});

test("attempts that fail are further and further apart, until a connection has stood", async (t) => {
  const { hub, clock, client } = await start(t);
  for (const wait of [500, 1000, 2000, 4000]) {
    const waiting = state(client, "waiting");
    (await hub.connection()).cut();
    assert.equal((await waiting).retryInMs, wait);
    clock.advance(wait);
  }
  // A welcome alone does not make a good connection.
  for (const [stoodMs, wait] of [[9_999, 8000], [10_000, 500]]) {
    const connection = await hub.connection();
    const open = state(client, "open");
    connection.welcome();
    await open;
    clock.advance(stoodMs);
    const waiting = state(client, "waiting");
    connection.cut();
    assert.equal((await waiting).retryInMs, wait);
    clock.advance(wait);
  }
});

test("a hub that accepts and says nothing is given up", async (t) => {
  const { hub, clock, client } = await start(t);
  const connection = await hub.connection();
  const waiting = state(client, "waiting");
  clock.advance(15_000);
  assert.equal((await waiting).code, 1006);
  await connection.closed;
});

test("close codes say whether to come back", async (t) => {
  const codes = [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 1015];
  assert.deepEqual(codes.filter(comesBack), [1001, 1005, 1006, 1011, 1012, 1013, 1015]);
  assert.deepEqual([3000, 4000, 4001, 4002, 4099, 4100, 4101, 4104, 4199, 4200].map(comesBack), [
    true, true, true, true, true, false, false, false, false, true,
  ]);
  for (const code of [1012, 1013, 4000, 4099]) {
    await t.test(`${code} comes back`, async (t) => {
      const { hub, clock, client, connection } = await welcomed(t);
      const waiting = state(client, "waiting");
      connection.close(code);
      assert.equal((await waiting).code, code);
      clock.advance(500);
      await hub.connection();
    });
  }
  for (const code of [1000, 1009, 4100, 4102, 4103, 4104, 4199]) {
    await t.test(`${code} does not`, async (t) => {
      const { hub, clock, client, connection } = await welcomed(t);
      const closed = event(client, "closed");
      connection.close(code, "why");
      const { error, ...told } = await closed;
      assert.deepEqual(told, { code, reason: "why" });
      assert.equal(error.closeCode, code);
      assert.deepEqual(clock.waits(), []);
      assert.equal(hub.connectionCount, 1);
    });
  }
});

test("4101 is worth one attempt with a fresh token", async (t) => {
  const { hub, clock, client, connection, asked } = await welcomed(t);
  let waiting = state(client, "waiting");
  connection.close(4101);
  await waiting;
  clock.advance(500);
  const second = await hub.connection();
  assert.equal(second.token, "token-2");
  assert.deepEqual(asked, ["connect", "expired"]);
  const closed = event(client, "closed");
  second.close(4101);
  assert.equal((await closed).code, 4101);
});

test("4101 after a good connection is worth one again", async (t) => {
  const { hub, clock, client, connection } = await welcomed(t);
  let current = connection;
  for (let round = 0; round < 3; round += 1) {
    clock.advance(10_000);
    const waiting = state(client, "waiting");
    current.close(4101);
    await waiting;
    clock.advance(500);
    current = await hub.connection();
    const open = state(client, "open");
    current.welcome();
    await open;
  }
});

test("the token that was refused is not shown again, and none at all ends it", async (t) => {
  for (const second of ["same", null]) {
    const tokens = ["same", second];
    const { hub, clock, client, connection } = await welcomed(t, { getToken: () => tokens.shift() });
    const waiting = state(client, "waiting");
    connection.close(4101);
    await waiting;
    const closed = event(client, "closed");
    clock.advance(500);
    assert.equal((await closed).code, 4101);
    assert.equal(hub.connectionCount, 1);
  }
});

test("a fresh token that cannot be fetched now is asked for again", async (t) => {
  const asked = [];
  const getToken = ({ reason }) => {
    asked.push(reason);
    if (asked.length === 2) throw new Error("the network is away");
    return `token-${asked.length}`;
  };
  const { hub, clock, client, connection } = await welcomed(t, { getToken });
  let waiting = state(client, "waiting");
  connection.close(4101);
  await waiting;
  waiting = state(client, "waiting");
  const failed = event(client, "error");
  clock.advance(500);
  assert.equal((await failed).cause.message, "the network is away");
  clock.advance((await waiting).retryInMs);
  assert.equal((await hub.connection()).token, "token-3");
  assert.deepEqual(asked, ["connect", "expired", "expired"]);
});

test("it comes back when the hub said, counted from the close", async (t) => {
  const { hub, clock, client, connection } = await welcomed(t);
  const told = event(client, "reconnect");
  connection.send({ type: "reconnect", payload: { afterMs: 4200 } });
  await told;
  clock.advance(3000);
  assert.equal(client.state, "open", "until the hub closes, it serves");
  const waiting = state(client, "waiting");
  connection.close(1012);
  assert.equal((await waiting).retryInMs, 4200);
  clock.advance(4199);
  assert.equal(client.state, "waiting");
  clock.advance(1);
  // That was for one time.
  const again = state(client, "waiting");
  (await hub.connection()).cut();
  assert.equal((await again).retryInMs, 500);
});

test("every room is joined again from where it was", async (t) => {
  const all = await welcomed(t);
  const { client, connection } = all;
  const [first, quiet] = [client.join("public.a"), client.join("public.b")];
  assert.equal(client.join("public.a"), first, "a room is joined once");
  assert.deepEqual((await connection.joined({ seq: 17 })).payload, {}, "there is nothing to recover yet");
  await connection.joined({ seq: 5, epoch: "q" });
  await Promise.all([first.joined, quiet.joined]);
  const seen = log(first, "message", "joined", "continuity", "gap");
  connection.message("public.a", 18, "one");
  await heard(client, connection);

  const second = await reconnected(all, connection);
  second.welcome();
  const missed = [19, 20].map((seq) => ({ type: "room_message", room: "public.a", seq, epoch: "k1", payload: `${seq}` }));
  const again = await second.joined({ seq: 20, recovered: true, messages: missed });
  assert.deepEqual(again.payload, { recover: { epoch: "k1", seq: 18 } });
  assert.deepEqual((await second.joined({ seq: 5, epoch: "q", recovered: true })).payload, { recover: { epoch: "q", seq: 5 } });
  second.message("public.a", 21, "live");
  await heard(client, second);
  assert.deepEqual(
    seen.map(([name, value]) => [name, value.payload ?? value.recovered]),
    [["message", "one"], ["message", "19"], ["message", "20"], ["joined", true], ["message", "live"]],
  );
  assert.deepEqual(first.position, { epoch: "k1", seq: 21 });
});

test("a position that was kept is recovered by a new client", async (t) => {
  const { client, connection } = await welcomed(t);
  const room = client.join("public.a", { recover: { epoch: "k1", seq: 3 } });
  const seen = log(room, "message", "continuity");
  assert.deepEqual((await connection.joined({ seq: 9, recovered: false })).payload, { recover: { epoch: "k1", seq: 3 } });
  await room.joined;
  assert.deepEqual(seen, [["continuity", { continuity: false, epoch: "k1", seq: 9 }]]);
});

test("what could not be recovered is told once, and the new position holds", async (t) => {
  const all = await welcomed(t);
  const { client, connection } = all;
  const room = client.join("public.a");
  await connection.joined({ seq: 17 });
  await room.joined;
  const second = await reconnected(all, connection);
  second.welcome();
  const seen = log(room, "continuity", "message", "gap");
  await second.joined({ seq: 4, epoch: "k2", recovered: false });
  second.message("public.a", 5, "after", "k2");
  await heard(client, second);
  assert.deepEqual(seen[0], ["continuity", { continuity: false, epoch: "k2", seq: 4 }]);
  assert.deepEqual(seen.slice(1).map(([name, value]) => [name, value.payload]), [["message", "after"]]);
});

test("no message is delivered twice, and no hole goes untold", async (t) => {
  const { client, connection } = await welcomed(t);
  const room = client.join("public.a");
  await connection.joined({ seq: 17 });
  await room.joined;
  const seen = log(room, "message", "gap", "continuity");
  for (const seq of [17, 18, 18, 16, 19]) connection.message("public.a", seq, seq);
  connection.send({ type: "gap", room: "public.a", epoch: "k1", payload: { from: 20, to: 24 } });
  // Of what a gap covers some may still come: the latest of each key.
  for (const seq of [22, 25, 28]) connection.message("public.a", seq, seq);
  connection.send({ type: "continuity", room: "public.a", epoch: "k2", seq: 40, payload: { continuity: false } });
  for (const seq of [40, 41]) connection.message("public.a", seq, seq, "k2");
  connection.message("public.a", 3, 3, "k3");
  await heard(client, connection);
  assert.deepEqual(
    seen.map(([name, value]) => [name, name === "message" ? value.seq : value]),
    [
      ["message", 18],
      ["message", 19],
      ["gap", { epoch: "k1", from: 20, to: 24 }],
      ["message", 22],
      ["message", 25],
      ["gap", { epoch: "k1", from: 26, to: 27 }],
      ["message", 28],
      ["continuity", { continuity: false, epoch: "k2", seq: 40 }],
      ["message", 41],
      ["continuity", { continuity: false, epoch: "k3", seq: 2 }],
      ["message", 3],
    ],
  );
});

test("services' messages, presence and mistakes reach whoever listens", async (t) => {
  const { client, connection } = await welcomed(t);
  const room = client.join("public.a");
  await connection.joined({ seq: 1 });
  await room.joined;
  const [ofRoom, ofClient] = [log(room, "message", "presence", "error"), log(client, "message", "error")];
  connection.send({ type: "price", room: "public.a", seq: 2, epoch: "k1", payload: 9 });
  connection.send({ type: "note", room: "public.a", payload: "unnumbered" });
  connection.send({ type: "presence_event", room: "public.a", payload: { event: "join", userId: "7" } });
  connection.send({ type: "mail", payload: "for the user" });
  connection.send({ type: "price", room: "public.other", seq: 1, epoch: "k1", payload: "not joined" });
  connection.send("no JSON");
  connection.send({ type: "error", payload: { code: "unknown_type", message: "m" } });
  await heard(client, connection);
  assert.deepEqual(ofRoom.map(([name, { type, event }]) => [name, type ?? event]), [
    ["message", "price"], ["message", "note"], ["presence", "join"],
  ]);
  assert.deepEqual(ofClient.map(([name, { type, code }]) => [name, type ?? code]), [
    ["message", "mail"], ["error", "bad_frame"], ["error", "unknown_type"],
  ]);
});

test("a message resolves to its ack, and a refusal rejects with what the hub said", async (t) => {
  const { client, connection } = await welcomed(t);
  const room = client.join("public.a");
  await connection.joined();
  await room.joined;
  const sent = room.send({ text: "hello" });
  const { id, ...frame } = await connection.next();
  assert.deepEqual(frame, { type: "room_message", room: "public.a", payload: { text: "hello" } });
  connection.send({ type: "ack", id, room: "public.a", seq: 1, epoch: "k1", payload: {} });
  assert.deepEqual(await sent, { epoch: "k1", seq: 1 });

  const prediction = client.send("prediction_request", { items: [] }, { id: "mine" });
  assert.equal((await connection.next()).id, "mine");
  const refused = { code: "upstream_refused", retryable: false, id: "mine" };
  connection.error("mine", "upstream_refused");
  await assert.rejects(prediction, { name: "HubError", ...refused });

  const who = room.presence();
  connection.send({ type: "presence", id: (await connection.next()).id, room: "public.a", payload: { users: [], total: 0 } });
  assert.deepEqual(await who, { users: [], total: 0 });
});

test("a client that is ended by whoever hears of something stays ended", async (t) => {
  const when = [
    ["state", ({ state }) => state === "open"],
    ["welcome", () => true],
    ["state", ({ state }) => state === "waiting"],
    ["state", ({ state }) => state === "connecting"],
    ["error", ({ code }) => code === "no_token"],
  ];
  for (const [name, isTime] of when) {
    // Welcomed, sent away, and then without a token for a moment.
    const tokens = ["token"];
    const getToken = () => tokens.pop() ?? assert.fail("away");
    const { hub, clock, client } = await start(t, { getToken });
    const ends = log(client, "closed");
    client.on("state", ({ state }) => state === "waiting" && setImmediate(() => clock.advance(500)));
    client.on(name, (value) => isTime(value) && client.close());
    const closed = event(client, "closed");
    const connection = await hub.connection();
    connection.welcome();
    connection.close(1012);
    assert.equal((await closed).error, undefined);
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual([client.state, ends.length, clock.waits()], ["closed", 1, []], `${name}: ${isTime}`);
  }
});

test("who leaves on hearing a message hears no further one, and its position is that message's", async (t) => {
  const all = await welcomed(t);
  const { client, connection } = all;
  const room = client.join("public.a");
  await connection.joined({ seq: 17 });
  await room.joined;
  const seen = log(room, "message", "joined", "gap");
  const off = room.on("message", ({ seq }) => seq === 19 && room.leave());
  const second = await reconnected(all, connection);
  second.welcome();
  const missed = [18, 19, 20].map((seq) => ({ type: "room_message", room: "public.a", seq, epoch: "k1", payload: seq }));
  await second.joined({ seq: 20, recovered: true, messages: missed });
  assert.equal((await second.next()).type, "leave_room");
  assert.deepEqual(seen.map(([name, { seq }]) => [name, seq]), [["message", 18], ["message", 19]]);
  assert.deepEqual(room.position, { epoch: "k1", seq: 19 });
  off();
});
