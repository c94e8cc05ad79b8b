// A client of the Shardgate WebSocket hub, for browsers and node. See README.md; docs/websocket.md has the frames.
//
// One `Client` keeps one connection up. A `Room` outlives connections: after each it joins again from where it was, so
// that its listeners see every message once and in order, or are told that something is missing.

/** Close codes below 4000 after which the same client would only be closed again. */
const FINAL_CODES = new Set([1000, 1002, 1003, 1007, 1009, 1010]);
/** The connection went without a close frame. */
const LOST = 1006;
const TOKEN_EXPIRED = 4101;
/** A longer wait overflows the timers of browsers. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** Sockets do not tell when they have room again, so one that is full is looked at so often. */
const FULL_MS = 50;
/** What is unanswered at once, joins and messages of all kinds: if all of it is refused for the rate, the hub still has counted
 * fewer than the 20 mistakes that it closes for. */
const UNANSWERED_MAX = 18;
/** How much of that joins may be, and messages of one kind, so that a slow service holds up nothing else. */
const JOINS_AT_ONCE = 6;
const MESSAGES_AT_ONCE = 6;
/** After a refusal for the rate the pace is half of what it was, and after so long without one twice as much again. */
const SLOWED_MS = 30_000;
/** However often it was halved. */
const MESSAGES_PER_S_MIN = 1;
/** A hub that takes a message a second at least names no longer time: a refusal that does, or names none, is a service's own. */
const RATE_WAIT_MAX_MS = 1000;
/** What `reconnect` may ask for at most. */
const AFTER_MAX_MS = 10 * 60_000;
/** Lanes besides those of services, which are called like their messages. */
const OWN = Symbol("own");
const ROOMS = Symbol("rooms");

const DEFAULTS = {
  backoffBaseMs: 1000,
  backoffMaxMs: 30_000,
  // A connection that stood for so long was a good one: the next attempt after it begins with the shortest wait.
  stableMs: 10_000,
  connectTimeoutMs: 15_000,
  answerTimeoutMs: 10_000,
  queueMax: 256,
  // As `hub.messages_per_s` by default. So many may also go at once after a pause: half of what the hub takes, for on
  // the way messages may come closer together.
  messagesPerS: 50,
  resendsMax: 4,
  bufferedBytesMax: 1 << 20,
  messageBytesMax: 64 << 10,
  random: Math.random,
  clock: {
    now: () => Date.now(),
    setTimeout: (callback, ms) => setTimeout(callback, ms),
    clearTimeout: (timer) => clearTimeout(timer),
  },
};

/** Whether a client should come back as it is after this close code. */
export function comesBack(code) {
  return !FINAL_CODES.has(code) && !(code >= 4100 && code <= 4199);
}

/** How long to wait before the `attempt`th try to reconnect, counted from 0: anything up to a bound that doubles. */
export function backoff(attempt, { backoffBaseMs, backoffMaxMs, random } = DEFAULTS) {
  return random() * Math.min(backoffMaxMs, backoffBaseMs * 2 ** Math.min(attempt, 30));
}

/** Something was refused, or it is not known whether it arrived. */
export class HubError extends Error {
  constructor(code, message, { retryable = false, retryAfterMs, id, room, closeCode, status, cause } = {}) {
    super(message, { cause });
    Object.assign(this, { name: "HubError", code, retryable, retryAfterMs, id, room, closeCode, status });
  }
}

/** Names and their listeners. One that throws keeps nobody else from hearing. */
class Emitter {
  #listeners = new Map();

  /** Calls `listener` for each event of this name. Returns a function that ends it. */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  _emit(name, value) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(value);
      } catch (error) {
        (globalThis.reportError ?? console.error)(error);
      }
    }
  }
}

/** A room that one has joined. It is made by `Client.join`. */
export class Room extends Emitter {
  #client;
  #epoch;
  #seq;
  // Up to here losses have been told.
  #toldTo = 0;
  #first;

  constructor(client, name, recover) {
    super();
    this.#client = client;
    this.name = name;
    [this.state, this._isAsked, this._isPutOff] = ["joining", false, false];
    [this.#epoch, this.#seq] = [recover?.epoch, recover?.seq];
    this.joined = new Promise((resolve, reject) => (this.#first = { resolve, reject }));
    // Whoever does not wait for it hears of a refusal by the event.
    this.joined.catch(() => {});
  }

  /** Where the next message is expected: what one gives to `join` to go on from here, on another page for example. */
  get position() {
    return this.#epoch === undefined ? undefined : { epoch: this.#epoch, seq: this.#seq };
  }

  /** Sends a message to all members. Resolves to its `{epoch, seq}`, or for a volatile one to whether it went out. */
  send(payload, options = {}) {
    const frame = { type: "room_message", room: this.name, payload };
    if (options.volatile) return Promise.resolve(this.#client._sendVolatile(frame, this));
    return this.#client._ask(frame, { ...options, room: this }).then(({ epoch, seq }) => ({ epoch, seq }));
  }

  /** Who is here: `{users, total}`. */
  presence(options = {}) {
    const frame = { type: "presence", room: this.name, payload: {} };
    return this.#client._ask(frame, { ...options, room: this }).then((answer) => answer.payload);
  }

  /** Leaves. No message is delivered from here on; resolves when the hub knows. */
  leave() {
    return this.#client._leave(this);
  }

  /** What to say when joining on a new connection. */
  _joinPayload() {
    return this.#epoch === undefined ? {} : { recover: this.position };
  }

  _joined(frame) {
    const { epoch, seq, payload } = frame;
    const { members, recovered, messages = [] } = payload;
    const isFirst = this.#epoch === undefined;
    this.state = "joined";
    if (recovered) for (const message of messages) this._numbered(message);
    else this.#base(epoch, seq);
    const joined = { members, recovered, epoch, seq };
    this.#tell("joined", joined);
    if (!isFirst && !recovered) this.#tell("continuity", { continuity: false, epoch, seq });
    this.#first.resolve(joined);
  }

  /** It is over: refused, left, or the client has ended. */
  _end(error) {
    this.state = "left";
    if (error) this._emit("error", error);
    this._emit("left", { error });
    this.#first.reject(error ?? new HubError("left", "the room was left", { room: this.name }));
  }

  /** Tells whoever listens, unless one of them has left meanwhile. */
  #tell(name, value) {
    if (this.state === "joined") this._emit(name, value);
  }

  /** A message with a number. Delivers each once and in order. */
  _numbered(frame) {
    const { epoch, seq } = frame;
    if (epoch !== this.#epoch) {
      // The numbers began anew and nobody said so.
      this.#base(epoch, seq - 1);
      this.#tell("continuity", { continuity: false, epoch, seq: seq - 1 });
    }
    if (seq <= this.#seq) return;
    const from = Math.max(this.#seq, this.#toldTo) + 1;
    if (seq > from) {
      this.#seq = seq - 1;
      this.#tell("gap", { epoch, from, to: seq - 1 });
    }
    // Who has left meanwhile may come back by its position, and gets this message then.
    if (this.state !== "joined") return;
    this.#seq = seq;
    this._emit("message", frame);
  }

  /** Any other frame of this room. */
  _told(frame) {
    const { type, epoch, seq, payload } = frame;
    if (type === "gap") {
      if (epoch === this.#epoch) this.#toldTo = Math.max(this.#toldTo, payload.to);
      this._emit("gap", { epoch, from: payload.from, to: payload.to });
    } else if (type === "continuity") {
      this.#base(epoch, seq);
      this._emit("continuity", { continuity: false, epoch, seq });
    } else if (type === "presence_event") this._emit("presence", payload);
    else this._emit("message", frame);
  }

  #base(epoch, seq) {
    this.#epoch = epoch;
    this.#seq = seq;
    this.#toldTo = 0;
  }
}

/** A connection to the hub that is kept up. */
export class Client extends Emitter {
  #options;
  #clock;
  #socket = null;
  // Callbacks of connections that are over carry an older number.
  #round = 0;
  #attempt = 0;
  #timers = new Map();
  #rooms = new Map();
  // Names of rooms whose leaving is not answered yet.
  #leaving = new Set();
  // Every question without an answer, by its id, in the order in which they were asked.
  #asked = new Map();
  #nextId = 0;
  #idPrefix;
  #token = null;
  #triedFresh = false;
  #isExpired = false;
  #reconnectAfterMs = null;
  #welcomedAt = null;
  #heartbeatMs = 25_000;
  #clockSkewMs = 0;
  #heardAt = 0;
  #isPaused = false;
  // What was sent is paid for until then, at the pace.
  #paidUntil = 0;
  #messagesPerS;
  #slowedAt = 0;
  // What the socket says of an attempt that fails, where it does.
  #whyFailed = "";

  constructor(options) {
    super();
    this.#options = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...options };
    if (!this.#options.WebSocket) throw new TypeError("there is no global WebSocket here: pass one in as `WebSocket`");
    if (typeof this.#options.getToken !== "function") throw new TypeError("`getToken` is a function");
    this.#clock = this.#options.clock;
    this.#messagesPerS = this.#options.messagesPerS;
    this.#idPrefix = randomText(this.#options.random);
    this.state = "connecting";
    this.user = null;
    this.#connect();
  }

  /** Joins a room and stays in it over all connections, until `leave`. `recover` is a position that was kept. */
  join(name, { recover } = {}) {
    const existing = this.#rooms.get(name);
    if (existing) return existing;
    const room = new Room(this, name, recover);
    if (this.state === "closed") {
      room._end(new HubError("closed", "the client has ended", { room: name }));
      return room;
    }
    this.#rooms.set(name, room);
    this.#flush();
    return room;
  }

  /** Sends a message to a service and resolves to the payload of its answer, or of the ack. */
  send(type, payload, options = {}) {
    return this._ask({ type, payload }, options).then((answer) => answer.payload);
  }

  /** Ends it for good. What waits is rejected. */
  close(code = 1000, reason = "") {
    this.#finish(code, reason, true);
  }

  // ---- questions and answers ----

  /** Sends a frame with an id, when it can be sent, and resolves to its answer. */
  _ask(frame, { id = this.#newId(), room, timeoutMs, resendsMax = this.#options.resendsMax } = {}) {
    const refuse = (code, message, retryable) =>
      Promise.reject(new HubError(code, message, { retryable, id, room: room?.name }));
    if (this.state === "closed") return refuse("closed", "the client has ended", false);
    if (room?.state === "left") return refuse("left", "the room was left", false);
    if (this.#asked.size >= this.#options.queueMax) return refuse("queue_full", "too much waits already", true);
    if (this.#asked.has(id)) return refuse("id_in_use", "a message with this id waits for its answer", false);
    const text = JSON.stringify({ ...frame, id });
    if (!this.#fits(text)) return refuse("too_big", "the message is longer than the hub takes", false);
    return new Promise((resolve, reject) => {
      this.#asked.set(id, {
        text,
        room,
        lane: room ? ROOMS : frame.type,
        isSent: false,
        isHeld: false,
        resends: 0,
        resendsMax,
        timer: timeoutMs === undefined ? null : this.#clock.setTimeout(() => this.#giveUp(id), timeoutMs),
        answer: resolve,
        fail: (code, message, more) => reject(new HubError(code, message, { id, room: room?.name, ...more })),
      });
      this.#flush();
    });
  }

  /** Sends a frame without an id if that can be done at once; says whether it was. */
  _sendVolatile(frame, room) {
    if (!this.#canSend() || this.#isPaused || this.#tooEarlyMs() > 0 || room.state !== "joined") return false;
    const text = JSON.stringify(frame);
    if (!this.#fits(text)) return false;
    this.#put(text);
    return true;
  }

  _leave(room) {
    if (this.#rooms.get(room.name) !== room) return Promise.resolve();
    this.#rooms.delete(room.name);
    const isKnown = this.state === "open" && room._isAsked;
    this.#failWhere((entry) => entry.room === room && !entry.isSent, "left", "the room was left", false);
    room._end();
    if (!isKnown) return Promise.resolve();
    // A lost connection leaves the room too, and so does a refusal: one is not in it.
    const frame = { type: "leave_room", room: room.name, payload: {} };
    this.#leaving.add(room.name);
    return new Promise((resolve) => {
      const left = () => {
        this.#leaving.delete(room.name);
        resolve();
      };
      this.#askOwn(frame, left, left);
      this.#flush();
    });
  }

  /** Asks before all that waits, over this connection only. */
  #askOwn(frame, answer, fail) {
    const id = this.#newId();
    const isJoin = frame.type === "join_room";
    const entry = { text: JSON.stringify({ ...frame, id }), lane: OWN, isSent: false, isJoin, timer: null, answer, fail };
    this.#asked.set(id, entry);
    return entry;
  }

  #sendEntry(entry) {
    entry.isSent = true;
    this.#put(entry.text);
  }

  /** Hands a frame to the socket; all that it takes counts for the pace, as it does with the hub. */
  #put(text) {
    const now = this.#clock.now();
    if (this.#messagesPerS < this.#options.messagesPerS && now - this.#slowedAt >= SLOWED_MS) {
      this.#slowedAt = now;
      this.#messagesPerS = Math.min(this.#messagesPerS * 2, this.#options.messagesPerS);
    }
    this.#paidUntil = Math.max(this.#paidUntil, now) + 1000 / this.#messagesPerS;
    this.#socket.send(text);
  }

  /** How long until the pace lets a further message go. */
  #tooEarlyMs() {
    // As many at once as otherwise in a second.
    const ahead = 1000 - 1000 / this.#options.messagesPerS;
    // Thirds do not add up to a whole.
    return Math.max(0, Math.ceil(this.#paidUntil - this.#clock.now() - ahead - 0.001));
  }

  #sendJoin(room) {
    room._isAsked = true;
    const frame = { type: "join_room", room: room.name, payload: room._joinPayload() };
    const isCurrent = () => this.#rooms.get(room.name) === room;
    const fail = (code, message, more) => {
      // A lost connection is followed by another one.
      if (!isCurrent() || code === "unacked") return;
      const error = new HubError(code, message, { ...more, room: room.name });
      if (!error.retryable) return this.#endRoom(room, error);
      // Others have their turn meanwhile.
      room._isPutOff = true;
      room._emit("error", error);
      const again = () => {
        [room._isAsked, room._isPutOff] = [false, false];
        this.#flush();
      };
      this.#arm(`join ${room.name}`, error.retryAfterMs ?? backoff(0, this.#options), again);
    };
    this.#sendEntry(this.#askOwn(frame, (answer) => isCurrent() && room._joined(answer), fail));
  }

  #endRoom(room, error) {
    this.#rooms.delete(room.name);
    this.#failWhere((entry) => entry.room === room, error.code, error.message, false);
    room._end(error);
  }

  #canSend() {
    return this.state === "open" && this.#socket.bufferedAmount < this.#options.bufferedBytesMax;
  }

  #fits(text) {
    const max = this.#options.messageBytesMax;
    return text.length * 3 <= max || new TextEncoder().encode(text).length <= max;
  }

  /** Hands what waits to the socket, as far as it may go: joins first, then messages of rooms that are joined and of services. */
  #flush() {
    if (this.state !== "open" || this.#isPaused) return undefined;
    const later = (ms) => this.#arm("flush", ms, () => this.#flush());
    let all = [...this.#asked.values()].filter((entry) => entry.isSent).length;
    const mayGo = () => {
      // An answer makes room.
      if (all >= UNANSWERED_MAX) return false;
      const tooEarlyMs = this.#tooEarlyMs();
      if (tooEarlyMs > 0) later(tooEarlyMs);
      else all += 1;
      return tooEarlyMs === 0;
    };
    for (const entry of [...this.#asked.values()].filter(({ lane, isSent }) => lane === OWN && !isSent)) {
      if (!mayGo()) return undefined;
      this.#sendEntry(entry);
    }
    let joins = 0;
    for (const room of this.#rooms.values()) {
      if (room.state !== "joining" || room._isPutOff || this.#leaving.has(room.name)) continue;
      joins += 1;
      if (joins > JOINS_AT_ONCE) break;
      if (room._isAsked) continue;
      if (!mayGo()) return undefined;
      this.#sendJoin(room);
    }
    const [unanswered, held] = [new Map(), new Set()];
    for (const entry of this.#asked.values()) {
      const [count, line] = [unanswered.get(entry.lane) ?? 0, entry.room ?? entry.lane];
      // What waits to be sent again is not overtaken by what is behind it.
      if (entry.isHeld) held.add(line);
      const isFree = count < MESSAGES_AT_ONCE && !held.has(line) && (!entry.room || entry.room.state === "joined");
      if (!entry.isSent && isFree) {
        if (!this.#canSend()) return later(FULL_MS);
        if (!mayGo()) return undefined;
        this.#sendEntry(entry);
      }
      if (entry.isSent) unanswered.set(entry.lane, count + 1);
    }
    return undefined;
  }

  /** The hub takes no more for a while: all wait, then one goes, and further ones at half the pace. */
  #pause(ms) {
    const now = this.#clock.now();
    // Refusals of what was on its way meanwhile are the same one.
    if (!this.#isPaused) this.#messagesPerS = Math.max(this.#messagesPerS / 2, MESSAGES_PER_S_MIN);
    this.#slowedAt = now;
    this.#paidUntil = Math.max(this.#paidUntil, now + ms + 1000 - 1000 / this.#options.messagesPerS);
    this.#isPaused = true;
    this.#arm("pause", ms, () => {
      this.#isPaused = false;
      this.#flush();
    });
  }

  /** Puts what was refused for now back into its place in the queue, if it is to be sent again. */
  #isAgain(id, entry, { code, retryable, retryAfterMs, isForAll }) {
    // To a room that was left nothing goes any more.
    if (!entry || entry.isJoin || !retryable || entry.room?.state === "left") return false;
    if (isForAll) {
      // It waits with all others.
      entry.isSent = false;
      return true;
    }
    if (!(entry.resends < entry.resendsMax)) return false;
    [entry.isSent, entry.isHeld] = [false, true];
    const wait = retryAfterMs ?? backoff(entry.resends, this.#options);
    entry.resends += 1;
    const release = () => {
      entry.isHeld = false;
      this.#flush();
    };
    // One that drains takes no more: it goes over the next connection.
    if (code !== "draining") this.#arm(`again ${id}`, wait, release);
    return true;
  }

  #giveUp(id) {
    const entry = this.#asked.get(id);
    const retry = entry.isSent ? "it may have arrived: try again with the same id" : "it was not sent";
    this.#settle(id).fail("timeout", `no answer in time; ${retry}`, { retryable: true });
    // What is behind it has its turn.
    this.#flush();
  }

  /** Takes a question off the list. */
  #settle(id) {
    const entry = this.#asked.get(id);
    if (!entry) return undefined;
    this.#asked.delete(id);
    this.#disarm(`again ${id}`);
    if (entry.timer !== null) this.#clock.clearTimeout(entry.timer);
    return entry;
  }

  #failWhere(applies, code, message, retryable) {
    for (const [id, entry] of [...this.#asked]) {
      if (applies(entry)) this.#settle(id).fail(code, message, { retryable });
    }
  }

  #newId() {
    this.#nextId += 1;
    return `${this.#idPrefix}-${this.#nextId}`;
  }

  // ---- connections ----

  async #connect() {
    const round = ++this.#round;
    const reason = this.#isExpired ? "expired" : "connect";
    const isCurrent = () => round === this.#round;
    this.#setState("connecting");
    if (!isCurrent()) return;
    this.#arm("connect", this.#options.connectTimeoutMs, () => this.#lost(LOST, "no welcome in time"));
    let token;
    try {
      token = await this.#options.getToken({ reason });
    } catch (cause) {
      if (!isCurrent()) return;
      this._emit("error", new HubError("no_token", "getToken failed", { retryable: true, cause }));
      return this.#lost(LOST, "getToken failed");
    }
    if (!isCurrent()) return;
    // The hub said no to this one already, or there is none: whoever uses the client has to log in.
    const isRefused = reason === "expired" && token === this.#token;
    if (typeof token !== "string" || isRefused) return this.#finish(TOKEN_EXPIRED, "no token is still good");
    this.#token = token;
    let socket;
    try {
      socket = new this.#options.WebSocket(this.#options.url, ["shardgate.v1", `bearer.${token}`]);
    } catch (cause) {
      // A URL or a token that no socket takes: trying again would change nothing.
      this._emit("error", new HubError("bad_url", "no socket can be opened", { cause }));
      return this.#finish(LOST, "no socket can be opened");
    }
    this.#socket = socket;
    this.#whyFailed = "";
    socket.onmessage = ({ data }) => isCurrent() && this.#hear(data);
    socket.onclose = ({ code, reason: why }) => isCurrent() && this.#lost(code, why);
    // A close event follows. Only `ws` says what was wrong; browsers keep it from scripts.
    socket.onerror = (event) => isCurrent() && (this.#whyFailed = event?.message ?? "");
  }

  /** The connection is over: decides what comes next. */
  #lost(code, why) {
    // Whoever heard why may have ended the client.
    if (this.state === "closed") return undefined;
    const reason = why || (this.state === "connecting" ? this.#whyFailed : "");
    if (!why && reason) {
      const status = Number(/response: (\d{3})$/.exec(reason)?.[1]) || undefined;
      this._emit("error", new HubError("connect_failed", reason, { retryable: true, status, closeCode: code }));
      if (this.state === "closed") return undefined;
    }
    const [after, welcomedAt] = [this.#reconnectAfterMs, this.#welcomedAt];
    const wasStable = welcomedAt !== null && this.#clock.now() - welcomedAt >= this.#options.stableMs;
    if (wasStable) [this.#attempt, this.#triedFresh] = [0, false];
    // A fresh token is worth one attempt.
    const isToRenew = code === TOKEN_EXPIRED && !this.#triedFresh;
    if (!comesBack(code) && !isToRenew) return this.#finish(code, reason);
    this.#drop("the connection was lost; try again with the same id");
    this.#triedFresh ||= isToRenew;
    this.#isExpired ||= isToRenew;
    // The hub spreads those whom it sends away, and names each its time.
    const isTold = after !== null && !isToRenew;
    const wait = Math.ceil(isTold ? after : backoff(this.#attempt, this.#options));
    if (!isTold) this.#attempt += 1;
    this.#setState("waiting", { code, reason, retryInMs: wait });
    return this.#arm("reconnect", wait, () => this.#connect());
  }

  /** Forgets the connection. What was sent and not answered is told; what was not sent waits for the next one. */
  #drop(why, code, reason) {
    const socket = this.#socket;
    this.#round += 1;
    for (const timer of this.#timers.values()) this.#clock.clearTimeout(timer);
    this.#timers.clear();
    [this.#socket, this.#reconnectAfterMs, this.#welcomedAt, this.#isPaused] = [null, null, null, false];
    // The hub counts each connection's messages for themselves.
    [this.#paidUntil, this.#messagesPerS, this.#whyFailed] = [0, this.#options.messagesPerS, ""];
    for (const room of this.#rooms.values()) [room.state, room._isAsked, room._isPutOff] = ["joining", false, false];
    this.#failWhere((entry) => entry.isSent || entry.lane === OWN, "unacked", why, true);
    for (const entry of this.#asked.values()) entry.isHeld = false;
    // One that does not answer any more would take long to close: nobody waits for it.
    if (socket && socket.readyState < 2) socket.close(code, reason);
  }

  /** Nothing comes after this. */
  #finish(code, reason, isOwn = false) {
    if (this.state === "closed") return;
    this.#setState("closed", { code, reason });
    this.#drop("the client has ended, and no answer came before", ...(isOwn ? [code, reason] : []));
    this.#failWhere(() => true, "closed", "the client has ended; this was not sent", false);
    const why = reason || `closed by the hub: ${code}`;
    const error = isOwn ? undefined : new HubError("closed", why, { closeCode: code });
    const rooms = [...this.#rooms.values()];
    this.#rooms.clear();
    for (const room of rooms) room._end(error);
    this._emit("closed", { code, reason, error });
  }

  #setState(state, more = {}) {
    this.state = state;
    this._emit("state", { state, ...more });
  }

  /** Sets the timer of this name; there is one of each, and none outlives its connection or the client. */
  #arm(name, ms, callback) {
    if (this.state === "closed") return;
    this.#disarm(name);
    const timer = this.#clock.setTimeout(() => {
      this.#timers.delete(name);
      callback();
    }, Math.min(ms, TIMER_MAX_MS));
    this.#timers.set(name, timer);
  }

  #disarm(name) {
    this.#clock.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  // ---- what the hub says ----

  #hear(text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return this._emit("error", new HubError("bad_frame", "the hub sent what is not JSON"));
    }
    this.#heardAt = this.#clock.now();
    if (frame.type === "error") this.#refused(frame);
    else if (this.#asked.has(frame.id)) this.#settle(frame.id).answer(frame);
    // What has an id is an answer, even if nobody waits for it any more.
    else if (frame.id === undefined) return this.#unasked(frame);
    return this.#flush();
  }

  #unasked(frame) {
    if (frame.type === "welcome") return this.#welcomed(frame);
    if (frame.type === "reconnect") return this.#told(frame.payload?.afterMs);
    return frame.type === "heartbeat" ? undefined : this.#routed(frame);
  }

  #refused({ id, room, payload }) {
    const { code, message, retryable = false, retryAfterMs } = payload ?? {};
    const isService = typeof this.#asked.get(id)?.lane === "string";
    const isForAll = code === "rate_limited" && (!isService || retryAfterMs <= RATE_WAIT_MAX_MS);
    if (isForAll) this.#pause(retryAfterMs ?? backoff(0, this.#options));
    if (this.#isAgain(id, this.#asked.get(id), { code, retryable, retryAfterMs, isForAll })) return undefined;
    const entry = this.#settle(id);
    if (entry) return entry.fail(code, message, { retryable, retryAfterMs });
    const error = new HubError(code, message, { retryable, retryAfterMs, room });
    return (this.#rooms.get(room) ?? this)._emit("error", error);
  }

  #routed(frame) {
    if (frame.room === undefined) return this._emit("message", frame);
    const room = this.#rooms.get(frame.room);
    // Before `joined` and after `leave` nothing is this membership's.
    if (room?.state !== "joined") return undefined;
    if (frame.type === "left") {
      const message = "the hub ended the membership: the token does not allow it any more";
      return this.#endRoom(room, new HubError("forbidden", message, { room: frame.room }));
    }
    const isNumbered = Number.isInteger(frame.seq) && frame.epoch !== undefined && frame.type !== "continuity";
    return isNumbered ? room._numbered(frame) : room._told(frame);
  }

  #welcomed({ payload, userId, sessionId }) {
    this.#disarm("connect");
    [this.#welcomedAt, this.#isExpired] = [this.#clock.now(), false];
    if (payload.heartbeatMs > 0) this.#heartbeatMs = payload.heartbeatMs;
    const serverTime = Date.parse(payload.serverTime);
    this.#clockSkewMs = Number.isNaN(serverTime) ? 0 : serverTime - this.#clock.now();
    this.user = { userId, sessionId };
    this.#setState("open");
    this.#listen();
    this.#planRenewal(expiryOf(this.#token));
    if (this.state !== "open") return;
    this._emit("welcome", { ...payload, userId, sessionId });
    this.#flush();
  }

  /** The hub asks to come back later, and will close. */
  #told(afterMs) {
    if (!(afterMs >= 0)) return;
    this.#reconnectAfterMs = Math.min(afterMs, AFTER_MAX_MS);
    this._emit("reconnect", { afterMs: this.#reconnectAfterMs });
  }

  /** Whatever the hub says shows that it is there. When it is silent for long it is asked; then it has to answer. */
  #listen() {
    const silence = this.#heartbeatMs * (0.75 + 0.25 * this.#options.random());
    const wait = this.#heardAt + silence - this.#clock.now();
    if (wait > 0) return this.#arm("listen", wait, () => this.#listen());
    const askedAt = this.#clock.now();
    this.#put(JSON.stringify({ type: "heartbeat", payload: {} }));
    return this.#arm("listen", this.#options.answerTimeoutMs, () => {
      if (this.#heardAt < askedAt) this.#lost(LOST, "no heartbeat");
      else this.#listen();
    });
  }

  // ---- the token ----

  /** Renews in the last part of the token's life, spread so that not all clients do so at once. */
  #planRenewal(expiresAt) {
    if (!(expiresAt > 0)) return;
    const left = expiresAt - (this.#clock.now() + this.#clockSkewMs);
    const lead = Math.min(60_000, left / 4);
    this.#planAt(left - lead * (1 + this.#options.random()), expiresAt);
  }

  #planAt(wait, expiresAt) {
    if (wait > TIMER_MAX_MS) return this.#arm("renew", TIMER_MAX_MS, () => this.#planRenewal(expiresAt));
    return this.#arm("renew", Math.max(0, wait), () => this.#renew(expiresAt));
  }

  async #renew(expiresAt) {
    const round = this.#round;
    let token = null;
    try {
      token = await this.#options.getToken({ reason: "renew" });
    } catch (cause) {
      this._emit("error", new HubError("no_token", "getToken failed", { retryable: true, cause }));
    }
    if (round !== this.#round || this.state !== "open") return;
    if (typeof token !== "string") return this.#renewLater(expiresAt);
    this.#askOwn(
      { type: "auth", payload: { token } },
      ({ payload, sessionId }) => {
        this.#token = token;
        this.user = { ...this.user, sessionId: sessionId ?? this.user.sessionId };
        this.#planRenewal(Date.parse(payload.expiresAt) || expiryOf(token));
        this._emit("renewed", { expiresAt: payload.expiresAt });
      },
      (code, message, more) => {
        if (code === "unacked") return;
        this._emit("error", new HubError(code, message, more));
        this.#renewLater(expiresAt);
      },
    );
    this.#flush();
  }

  /** Tries again while the token still lives; after that the hub closes with 4101. */
  #renewLater(expiresAt) {
    const left = expiresAt - (this.#clock.now() + this.#clockSkewMs);
    if (left > 2000) this.#planAt(left / 2, expiresAt);
  }
}

/** Opens a connection and keeps it up. */
export function connect(options) {
  return new Client(options);
}

/** When a token says that it ends, in milliseconds; 0 if it does not. Nothing is checked: that is for the hub. */
function expiryOf(token) {
  try {
    const [, claims] = token.split(".");
    return (JSON.parse(atob(claims.replace(/-/g, "+").replace(/_/g, "/"))).exp ?? 0) * 1000;
  } catch {
    return 0;
  }
}

/** Tells the ids of one client from those of another one in the same session: the hub knows messages by them. */
function randomText(random) {
  const bytes = new Uint8Array(6);
  if (globalThis.crypto?.getRandomValues) globalThis.crypto.getRandomValues(bytes);
  else bytes.forEach((_, index) => (bytes[index] = random() * 256));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
