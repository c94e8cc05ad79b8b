// The declarations, used as a program would use them; `tsc` looks at it, and it never runs.

import { Client, HubError, Room, comesBack, connect } from "../shardgate.js";
import type { Frame, Position } from "../shardgate.js";

declare class WsLike {
  readonly readyState: 0 | 1 | 2 | 3;
  readonly bufferedAmount: number;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: unknown) => void) | null;
  constructor(url: string | URL, protocols?: string | string[]);
  send(data: string | Uint8Array): void;
  close(code?: number, reason?: string): void;
}

const client: Client = connect({
  url: "wss://api.example.com/ws",
  getToken: async ({ reason }) => (reason === "connect" ? "kept" : null),
  WebSocket: WsLike,
  messagesPerS: 10,
  resendsMax: 2,
});
client.on("error", ({ code, status }) => console.log(code === "connect_failed" && status === 404));
const browser = connect({ url: new URL("wss://a/ws"), getToken: () => "t", WebSocket });

const room: Room = client.join("public.sale", { recover: { epoch: "k1", seq: 3 } });
const off: () => void = room.on("message", (frame: Frame) => console.log(frame.seq, frame.payload));
room.on("gap", ({ from, to }) => console.log(to - from));
room.on("continuity", ({ epoch, continuity }) => console.log(epoch, continuity satisfies false));
client.on("closed", ({ code, error }) => console.log(comesBack(code), error?.retryable));

const position: Position = await room.send({ any: "json" }, { id: "4", timeoutMs: 1000, resendsMax: 0 });
const wentOut: boolean = await room.send("cursor", { volatile: true });
const { total } = await room.presence();
try {
  await client.send("cart_event", {});
} catch (error) {
  if (error instanceof HubError && error.code === "unacked") console.log(error.id);
}
off();
client.close();
browser.close();

// @ts-expect-error: there is no such event
room.on("messages", () => {});
// @ts-expect-error: rooms are made by `join`
new Room();
// @ts-expect-error: a volatile message has no position
const none: Position = await room.send("cursor", { volatile: true });
// @ts-expect-error: a token has to come from somewhere
connect({ url: "wss://a/ws" });
export { none, position, total, wentOut };
