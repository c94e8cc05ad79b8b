// The demo's page: the hub through the client that clients/js has. Whatever came from outside becomes text, never markup.

import { connect } from "/demo/shardgate.js";

const CUT_MS = 5000;
const LINES_MAX = 200;

const by = (id) => document.getElementById(id);
/** Reloading the tab keeps it logged in; another tab is another session. */
const kept = {
  load: () => JSON.parse(sessionStorage.getItem("session") ?? "null"),
  save: (session) => sessionStorage.setItem("session", JSON.stringify(session)),
  forget: () => sessionStorage.removeItem("session"),
};

let session = kept.load();
let hub = null;
let room = null;
let socket = null;
let cutUntil = 0;
/** What users have called themselves. */
const names = new Map();

// ---- what is shown ----

function line(list, { className = "", parts }) {
  const wasAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = document.createElement("li");
  item.className = className;
  for (const [partClass, text] of parts) {
    const part = document.createElement("span");
    part.className = partClass;
    part.textContent = text;
    item.append(part);
  }
  list.append(item);
  while (list.childElementCount > LINES_MAX) list.firstElementChild.remove();
  if (wasAtEnd) list.scrollTop = list.scrollHeight;
}

/** Ids are long; a few signs tell users apart who have not spoken yet. */
const nameOf = (userId) => names.get(userId) ?? (userId.length > 12 ? `${userId.slice(0, 8)}…` : userId);

const note = (text, className = "") => line(by("messages"), { className: `note ${className}`, parts: [["", text]] });

function status(state, text) {
  by("status").dataset.state = state;
  by("status").textContent = text;
}

function show(isIn) {
  by("login").hidden = isIn;
  by("hub").hidden = !isIn;
}

function showPosition() {
  const position = room?.position;
  by("position").textContent = position ? `epoch ${position.epoch}, seq ${position.seq}` : "";
}

// ---- logging in and out ----

async function post(path, body, token) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
  const answer = response.status === 204 ? null : await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.detail ?? answer.code), { status: response.status });
  return answer;
}

function fillPassword() {
  by("password").value = by("user").selectedOptions[0]?.dataset.password ?? "";
}

by("user").addEventListener("change", fillPassword);

by("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  by("refusal").textContent = "";
  try {
    session = await post("/auth/login", { email: by("user").value, password: by("password").value });
    kept.save(session);
    start();
  } catch (error) {
    by("refusal").textContent = error.message;
  }
});

async function logOut(path) {
  try {
    // The hub closes the socket; what follows is in the listener of `closed`.
    await post(path, undefined, session.accessToken);
  } catch (error) {
    note(`log-out: ${error.message}`, "lost");
  }
}

by("logout").addEventListener("click", () => logOut("/auth/logout"));
by("logout-all").addEventListener("click", () => logOut("/auth/logout-all"));

// ---- the hub ----

/** A socket that shows its frames, and that the page can cut. */
class WatchedSocket extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols);
    socket = this;
    this.addEventListener("message", ({ data }) => frame("in", data));
  }

  send(text) {
    frame("out", text.replace(/("token":")[^"]*/, "$1…"));
    super.send(text);
  }

  /** As if a cable was pulled: the client hears of it, and no close frame says why. */
  cut() {
    this.onclose?.({ code: 1006, reason: "cut by this page" });
  }
}

function frame(direction, text) {
  const arrow = direction === "in" ? "← " : "→ ";
  line(by("frames"), { className: direction, parts: [["", arrow + text]] });
}

async function getToken({ reason }) {
  const wait = cutUntil - Date.now();
  if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
  if (reason === "connect") return session.accessToken;
  try {
    session = await post("/auth/refresh", { refreshToken: session.refreshToken });
  } catch (error) {
    // The session has ended: there is no token any more. All else may pass.
    if (error.status === 401) return null;
    throw error;
  }
  kept.save(session);
  return session.accessToken;
}

function start() {
  show(true);
  by("messages").replaceChildren();
  const { email, role } = session.user;
  const url = new URL("/ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  hub = connect({ url, getToken, WebSocket: WatchedSocket });
  status("connecting", `${email}: connecting`);
  hub.on("welcome", ({ node, userId }) => {
    names.set(userId, email);
    status("open", `${email} (${role}), connected to ${node}`);
  });
  hub.on("state", ({ state, code, reason, retryInMs }) => {
    if (state === "connecting") status(state, `${email}: connecting`);
    if (state !== "waiting") return;
    const why = [code, reason].filter(Boolean).join(" ");
    status(state, `${email}: next attempt in ${(retryInMs / 1000).toFixed(1)} s (closed: ${why})`);
  });
  hub.on("reconnect", ({ afterMs }) => note(`the gateway restarts: back ${(afterMs / 1000).toFixed(1)} s after the close`));
  hub.on("renewed", ({ expiresAt }) => note(`token renewed in place, until ${expiresAt}`));
  hub.on("message", ({ type, payload }) => note(`${type}: ${JSON.stringify(payload)}`));
  hub.on("error", ({ code, message }) => note(`${code}: ${message}`, "lost"));
  hub.on("closed", ({ code, reason }) => {
    kept.forget();
    show(false);
    status("closed", `closed by the hub: ${code} ${reason}`);
  });
  join(by("room").value);
}

function join(name) {
  const joined = (room = hub.join(name));
  const isShown = () => joined === room;
  joined.on("joined", ({ members, recovered, seq }) => {
    if (!isShown()) return;
    const came = { true: "recovered: nothing was missed", undefined: `joined ${name} at seq ${seq}` }[recovered];
    if (came) note(came);
    by("members").textContent = `${members} ${members === 1 ? "member" : "members"} when joined`;
    showPosition();
  });
  joined.on("message", ({ seq, userId, type, payload, timestamp }) => {
    if (!isShown()) return;
    const isMine = userId === hub.user?.userId;
    // What a sender calls itself; the hub vouches for `userId` alone.
    const who = typeof payload?.from === "string" ? payload.from : (userId ?? type);
    if (names.size < 1000) names.set(userId, who);
    const text = typeof payload?.text === "string" ? payload.text : JSON.stringify(payload);
    const parts = [["seq", seq ?? ""], ["", ""]];
    line(by("messages"), { className: isMine ? "mine" : "", parts });
    const body = by("messages").lastElementChild.lastElementChild;
    const name = Object.assign(document.createElement("span"), { className: "who", textContent: who });
    body.append(name, text);
    body.title = `${userId ?? type} ${timestamp ?? ""}`;
    by("messages").scrollTop = by("messages").scrollHeight;
    showPosition();
  });
  joined.on("gap", ({ from, to }) => isShown() && note(`${from} to ${to} were lost: this tab reads too slowly`, "lost"));
  joined.on("continuity", ({ epoch, seq }) => {
    if (!isShown()) return;
    note(`the room goes on in epoch ${epoch} after ${seq}; what was missed cannot be recovered`, "lost");
    showPosition();
  });
  joined.on("presence", ({ event, userId }) => isShown() && note(`${nameOf(userId)} ${event === "join" ? "came" : "left"}`));
  joined.on("error", ({ code, message }) => isShown() && note(`${code}: ${message}`, "lost"));
  joined.on("left", () => isShown() && (by("members").textContent = "not joined"));
}

by("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = by("room").value.trim();
  if (room?.name === name && room.state !== "left") return;
  room?.leave();
  by("messages").replaceChildren();
  join(name);
});

by("chat").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = by("text").value;
  by("text").value = "";
  try {
    await room.send({ text, from: session.user.email });
  } catch ({ code, message }) {
    note(`not sent: ${code}: ${message}`, "lost");
  }
});

by("cut").addEventListener("click", () => {
  cutUntil = Date.now() + CUT_MS;
  note("cut off");
  socket?.cut();
});

by("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const type = event.submitter.value;
  const items = Array.from({ length: Number(by("items").value) }, (_, index) => index + 1);
  const began = performance.now();
  const answer = (text, className) => line(by("answers"), { className, parts: [["", text]] });
  try {
    const payload = await hub.send(type, { type: "cart_abandoned", items });
    answer(`${type}: ${JSON.stringify(payload)} after ${(performance.now() - began).toFixed(1)} ms`);
  } catch ({ code, message }) {
    answer(`${type}: ${code}: ${message}`, "problem");
  }
});

fillPassword();
if (session) start();

// ---- TLS ----

const over = by("tls");
if (location.protocol === "https:") {
  over.textContent = "This page came over TLS, and its socket is wss.";
  over.hidden = false;
} else if (Number(over.dataset.port) > 0) {
  const link = document.createElement("a");
  link.href = `https://${location.hostname}:${over.dataset.port}/demo`;
  link.textContent = link.href;
  over.append("Over TLS, with a socket that is wss: ", link, ". The browser warns: nobody but this demo has signed the certificate.");
  over.hidden = false;
}
