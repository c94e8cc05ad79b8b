// A hub that says what a test tells it to, over real sockets.

import { once } from "node:events";
import { WebSocketServer } from "ws";

/** What came and what somebody waits for, in order. */
class Inbox {
  #items = [];
  #waiting = [];

  push(item) {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(item);
    else this.#items.push(item);
  }

  next() {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  get length() {
    return this.#items.length;
  }
}

/** One client's socket, as the hub sees it. */
class Connection {
  #socket;
  inbox = new Inbox();
  closed;

  constructor(socket, protocols) {
    this.#socket = socket;
    this.protocols = protocols;
    this.closed = once(socket, "close").then(([code]) => code);
    socket.on("message", (text) => this.inbox.push(JSON.parse(text)));
  }

  get token() {
    return this.protocols.find((protocol) => protocol.startsWith("bearer."))?.slice("bearer.".length);
  }

  /** The next frame of the client. */
  next() {
    return this.inbox.next();
  }

  send(frame) {
    this.#socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  welcome(payload = {}) {
    const whole = { connectionId: "c_1", heartbeatMs: 25_000, serverTime: "x", node: "n1", ...payload };
    this.send({ type: "welcome", payload: whole, userId: "42", sessionId: "s_1" });
  }

  /** Answers the next frame, which has to be a join, and returns it. */
  async joined({ seq = 0, epoch = "k1", ...payload } = {}) {
    const frame = await this.next();
    if (frame.type !== "join_room") throw new Error(`this is no join: ${JSON.stringify(frame)}`);
    this.send({ type: "joined", id: frame.id, room: frame.room, epoch, seq, payload: { members: 1, ...payload } });
    return frame;
  }

  message(room, seq, payload, epoch = "k1") {
    this.send({ type: "room_message", room, seq, epoch, userId: "7", payload, timestamp: "…" });
  }

  error(id, code, more = {}) {
    this.send({ type: "error", id, payload: { code, message: "a sentence", retryable: false, ...more } });
  }

  close(code, reason) {
    this.#socket.close(code, reason);
  }

  /** As if a cable was pulled. */
  cut() {
    this.#socket.terminate();
  }
}

export class MockHub {
  #server;
  #connections = new Inbox();
  connectionCount = 0;

  static async start() {
    const hub = new MockHub();
    hub.#server = new WebSocketServer({
      host: "127.0.0.1",
      port: 0,
      handleProtocols: (protocols) => (protocols.has("shardgate.v1") ? "shardgate.v1" : false),
    });
    await once(hub.#server, "listening");
    hub.#server.on("connection", (socket, request) => {
      hub.connectionCount += 1;
      const protocols = request.headers["sec-websocket-protocol"].split(",").map((name) => name.trim());
      hub.#connections.push(new Connection(socket, protocols));
    });
    return hub;
  }

  get url() {
    return `ws://127.0.0.1:${this.#server.address().port}/ws`;
  }

  /** The next client that connects. */
  connection() {
    return this.#connections.next();
  }

  async stop() {
    for (const socket of this.#server.clients) socket.terminate();
    this.#server.close();
    await once(this.#server, "close");
  }
}

/** A token that says when it ends, and nothing that would pass a check. */
export function tokenUntil(ms, name = "t") {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "none" })}.${part({ sub: "42", jti: name, exp: ms / 1000 })}.c2ln`;
}
