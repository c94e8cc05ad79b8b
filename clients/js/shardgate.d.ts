// Types of shardgate.js. README.md says what it does; docs/websocket.md has the frames.

/** A place in a room's order of messages. */
export interface Position {
  epoch: string;
  seq: number;
}

/** A frame as it came. Services' frames have types, and perhaps members, of their own. */
export interface Frame {
  type: string;
  payload: unknown;
  room?: string;
  seq?: number;
  epoch?: string;
  userId?: string;
  sessionId?: string;
  timestamp?: string;
  [member: string]: unknown;
}

/** Why a token is asked for: `expired` and `renew` want a new one, not what was given last. */
export type TokenReason = "connect" | "expired" | "renew";

export type State = "connecting" | "open" | "waiting" | "closed";

/** What is used of a WebSocket: browsers' own, that of node 22 and later, or that of `ws`. */
export interface SocketLike {
  readonly readyState: number;
  readonly bufferedAmount: number;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export interface Clock {
  /** Milliseconds since 1970. */
  now(): number;
  setTimeout(callback: () => void, ms: number): any;
  clearTimeout(timer: any): void;
}

export interface Options {
  /** Where the hub is: `wss://api.example.com/ws`. */
  url: string | URL;
  /** An access token. Nothing (or, for `expired`, the same one again) ends the client; to throw means: try again later. */
  getToken(asked: { reason: TokenReason }): string | null | undefined | Promise<string | null | undefined>;
  /** The kind of socket, where there is no global one (node before 22). */
  WebSocket?: new (url: string | URL, protocols: string[]) => SocketLike;
  /** Up to so long before the first attempt to reconnect; twice as long each time. 1 s. */
  backoffBaseMs?: number;
  /** Never longer than this. 30 s. */
  backoffMaxMs?: number;
  /** A connection that stood for so long was a good one: back-off begins anew after it. 10 s. */
  stableMs?: number;
  /** For token, connection and welcome together. 15 s. */
  connectTimeoutMs?: number;
  /** For the answer to the client's own heartbeat. 10 s. */
  answerTimeoutMs?: number;
  /** Messages that wait, to be sent or to be answered. 256. */
  queueMax?: number;
  /** Messages a second, and so many at once after a pause; not more than `hub.messages_per_s` of the hub. 50. */
  messagesPerS?: number;
  /** How often a message that the hub refuses for now (`retryable`) is sent again with its id before its promise rejects.
   * Those that the hub refuses for the rate are sent again until they are taken. 4. */
  resendsMax?: number;
  /** Bytes that the socket may hold before messages wait here (and volatile ones are dropped). 1 MiB. */
  bufferedBytesMax?: number;
  /** The longest message that the hub takes (`hub.message_bytes_max`). 64 KiB. */
  messageBytesMax?: number;
  /** For tests: from 0 to below 1. */
  random?(): number;
  /** For tests. */
  clock?: Clock;
}

export interface AskOptions {
  /** The message's id. One's own makes it safe to send the same message again; `[!-~]{1,64}`, different in each session. */
  id?: string;
  /** How long to wait for the answer, the time in the queue included. No limit. */
  timeoutMs?: number;
  /** As `resendsMax` of the client, for this message. 0 for a service that does not look at `Idempotency-Key`. */
  resendsMax?: number;
}

export interface SendOptions extends AskOptions {
  /** Send it now or never, and ask for no ack. */
  volatile?: boolean;
}

/** Codes of the client's own; all others are the hub's. */
export type OwnCode =
  | "unacked"
  | "queue_full"
  | "too_big"
  | "id_in_use"
  | "timeout"
  | "closed"
  | "left"
  | "no_token"
  | "bad_url"
  | "connect_failed"
  | "bad_frame";

/** Something was refused, or it is not known whether it arrived. */
export class HubError extends Error {
  readonly code: OwnCode | (string & {});
  /** Whether the same message, with the same id, may be sent again. */
  readonly retryable: boolean;
  readonly retryAfterMs?: number;
  readonly id?: string;
  readonly room?: string;
  /** The hub's close code, where a close was the reason. */
  readonly closeCode?: number;
  /** Of `connect_failed`: the HTTP status, where the socket tells it (that of `ws` does, browsers do not). */
  readonly status?: number;
  constructor(code: string, message: string, more?: Partial<HubError>);
}

export interface ClientEvents {
  /** Each change. With `waiting`: why the connection went, and when the next attempt comes. */
  state: { state: State; code?: number; reason?: string; retryInMs?: number };
  welcome: { connectionId: string; heartbeatMs: number; serverTime: string; node: string; userId: string; sessionId?: string };
  /** A frame of a service to the user, in no room. */
  message: Frame;
  /** The hub restarts and will close; the client comes back by itself, so long after the close. */
  reconnect: { afterMs: number };
  /** The token was renewed in place. */
  renewed: { expiresAt: string };
  /** It has ended for good. Without `error` because `close` was called. */
  closed: { code: number; reason: string; error?: HubError };
  error: HubError;
}

export interface Joined extends Position {
  members: number;
  /** Whether all that was missed has been delivered; nothing when there was nothing to recover. */
  recovered?: boolean;
}

export interface RoomEvents {
  /** Each message once, in order. */
  message: Frame;
  joined: Joined;
  /** These messages were lost. */
  gap: { epoch: string; from: number; to: number };
  /** An unknown number of messages was lost: load the room's state anew. Messages go on behind this position. */
  continuity: Position & { continuity: false };
  /** Somebody came or went (rooms configured so). */
  presence: { event: "join" | "leave"; userId: string };
  /** It is over. With `error` unless `leave` or `close` was called. */
  left: { error?: HubError };
  error: HubError;
}

declare class Emitter<Events> {
  /** Calls `listener` for each event of this name. Returns a function that ends it. */
  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): () => void;
}

/** A room that one has joined. It is made by `Client.join`. */
export class Room extends Emitter<RoomEvents> {
  private constructor();
  readonly name: string;
  readonly state: "joining" | "joined" | "left";
  /** The first time that the room was joined; rejected if that was refused for good. */
  readonly joined: Promise<Joined>;
  /** The last message that was delivered. */
  readonly position: Position | undefined;
  /** Sends a message to all members; resolves when the hub has given it its number. */
  send(payload: unknown, options?: AskOptions & { volatile?: false }): Promise<Position>;
  /** Sends it now or never; resolves to whether it went out. */
  send(payload: unknown, options: { volatile: true }): Promise<boolean>;
  /** Either, as the options say. */
  send(payload: unknown, options?: SendOptions): Promise<Position | boolean>;
  presence(options?: AskOptions): Promise<{ users: { userId: string; connections: number }[]; total: number }>;
  /** Leaves. No message is delivered from here on; resolves when the hub knows. */
  leave(): Promise<void>;
}

/** A connection to the hub that is kept up. */
export class Client extends Emitter<ClientEvents> {
  constructor(options: Options);
  readonly state: State;
  readonly user: { userId: string; sessionId?: string } | null;
  /** Joins a room and stays in it over all connections, until `leave`. `recover` is a position that was kept. */
  join(name: string, options?: { recover?: Position }): Room;
  /** Sends a message to a service; resolves to the payload of its answer, or of the ack (`{status}`). */
  send(type: string, payload: unknown, options?: AskOptions): Promise<any>;
  /** Ends it for good. What waits is rejected. */
  close(code?: number, reason?: string): void;
}

/** Opens a connection and keeps it up. */
export function connect(options: Options): Client;

/** Whether a client should come back as it is after this close code. */
export function comesBack(code: number): boolean;

/** How long to wait before the `attempt`th try to reconnect, counted from 0. */
export function backoff(
  attempt: number,
  options?: { backoffBaseMs: number; backoffMaxMs: number; random(): number },
): number;
