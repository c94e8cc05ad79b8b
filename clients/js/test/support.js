// What the tests share.

import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { connect } from "../shardgate.js";
import { Clock } from "./clock.js";
import { MockHub } from "./mock-hub.js";

/** A hub, a client of it, and what the client has said. */
export async function start(t, options = {}) {
  const hub = await MockHub.start();
  const clock = new Clock();
  const asked = [];
  const getToken = ({ reason }) => {
    asked.push(reason);
    return `token-${asked.length}`;
  };
  const client = connect({ url: hub.url, getToken, WebSocket, clock, random: () => 0.5, ...options });
  t.after(async () => {
    client.close();
    assert.deepEqual(clock.waits(), [], "a client that has ended leaves no timer behind");
    await hub.stop();
  });
  return { hub, clock, client, asked };
}

/** The same, welcomed. */
export async function welcomed(t, options, welcome) {
  const all = await start(t, options);
  const connection = await all.hub.connection();
  const open = state(all.client, "open");
  connection.welcome(welcome);
  await open;
  return { ...all, connection };
}

/** The next event of this name. */
export const event = (emitter, name) =>
  new Promise((resolve) => {
    const off = emitter.on(name, (value) => {
      off();
      resolve(value);
    });
  });

export const state = (client, name) =>
  new Promise((resolve) => {
    const off = client.on("state", (value) => {
      if (value.state !== name) return;
      off();
      resolve(value);
    });
  });

/** Cuts the connection, and returns the client's next one. */
export async function reconnected({ hub, clock, client }, connection) {
  const waiting = state(client, "waiting");
  connection.cut();
  await waiting;
  clock.advance(500);
  return hub.connection();
}

/** Notes all events of these names as they come. */
export function log(emitter, ...names) {
  const seen = [];
  for (const name of names) emitter.on(name, (value) => seen.push([name, value]));
  return seen;
}

/** Waits until everything that the hub has sent is heard: it answers a question of the client last. */
export async function heard(client, connection) {
  const answer = client.send("ping", {});
  const { id } = await connection.next();
  connection.send({ type: "ack", id, payload: {} });
  await answer;
}
