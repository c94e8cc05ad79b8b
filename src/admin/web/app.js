// The dashboard: asks /api/state each second while somebody looks, and shows what it says. All text from outside becomes
// text, never markup; rows that stay are kept, so that focus and selection stay where they are.
import { authorised, change, hasToken, onToken, unlock } from "./changes.js";
import { Chart } from "./charts.js";

const INTERVAL_MS = 1000;
const PATIENCE_MS = 5000;
const find = (selector) => document.querySelector(selector);

// ---- words and numbers ----

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const known = (value) => typeof value === "number";
const count = (value) => (known(value) ? (value < 100_000 ? whole.format(value) : short.format(value)) : "–");
const rate = (value) => (known(value) ? (value >= 1000 ? short.format(value) : String(+value.toFixed(value < 10 ? 1 : 0))) : "–");
const shards = (value) => (value === 1 ? "1 shard" : `${count(value)} shards`);
const cores = (value) => (known(value) ? value.toFixed(2) : "–");

function time(ms) {
  if (!known(ms)) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 1000) return `${+ms.toFixed(ms < 10 ? 1 : 0)} ms`;
  return lasting(ms / 1000);
}

function lasting(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 60) return `${+seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min`;
}

function bytes(value) {
  if (!known(value)) return "–";
  const at = Math.min(Math.floor(Math.log2(Math.max(value, 1)) / 10), 4);
  const amount = value / 1024 ** at;
  return `${+amount.toFixed(amount < 10 && at ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][at]}`;
}

function clock(text) {
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? "–" : at.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

const TONES = {
  healthy: "good", up: "good", closed: "good", good: "good",
  degraded: "wait", untested: "wait", failing: "wait", drained: "wait", half_open: "wait", gone: "wait",
  unhealthy: "bad", down: "bad", ejected: "bad", open: "bad", refused: "bad",
};
const tone = (word) => TONES[word] ?? "quiet";

// ---- parts of the page ----

/** Sets a text where it is another one. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function badge(word) {
  const made = element("span", "badge", word.replaceAll("_", " "));
  made.dataset.tone = tone(word);
  return made;
}

/** Puts what a cell says into it: a text, `{ text, tone, title }`, or `{ key, build }`, which is built anew for another key. */
function fill(cell, said) {
  const part = said !== null && typeof said === "object" ? said : { text: String(said ?? "–") };
  if (part.build) {
    if (cell.dataset.key !== part.key) {
      cell.dataset.key = part.key;
      cell.replaceChildren(...part.build());
    }
    part.refresh?.(cell);
    return;
  }
  delete cell.dataset.key;
  write(cell, part.text);
  if (part.tone) cell.dataset.tone = part.tone;
  else delete cell.dataset.tone;
}

/** Rows by key: `rows` are `[key, cells]`; a cell of the head says of which class its column is. */
function table(root, rows) {
  const classes = [...root.tHead.rows[0].cells].map((cell) => cell.className);
  const body = root.tBodies[0];
  root.kept ??= new Map();
  const next = new Map();
  let place = body.firstElementChild;
  for (const [key, cells] of rows) {
    let row = root.kept.get(key);
    if (!row) {
      row = document.createElement("tr");
      cells.forEach((_, index) => {
        const cell = document.createElement(index === 0 ? "th" : "td");
        if (index === 0) cell.scope = "row";
        if (classes[index]) cell.className = classes[index];
        row.append(cell);
      });
    }
    root.kept.delete(key);
    next.set(key, row);
    if (row !== place) body.insertBefore(row, place);
    else place = place.nextElementSibling;
    cells.forEach((said, index) => fill(row.cells[index], said));
  }
  // What is left stands behind those that are shown: also a row whose key another one had, too.
  while (place) {
    const row = place;
    place = place.nextElementSibling;
    row.remove();
  }
  root.kept = next;
}

/** Pairs of a word and what is said of it. */
function list(root, pairs, wrap) {
  root.kept ??= new Map();
  for (const [name, said] of pairs) {
    let value = root.kept.get(name);
    if (!value) {
      value = document.createElement("dd");
      const parts = [element("dt", "", name), value];
      if (wrap) {
        const group = document.createElement("div");
        group.append(...parts);
        root.append(group);
      } else {
        root.append(...parts);
      }
      root.kept.set(name, value);
    }
    fill(value, said);
  }
}

const status = (word, more = "") => ({
  key: `${word} ${more}`,
  build: () => (more ? [badge(word), document.createTextNode(" "), element("span", "quiet", more)] : [badge(word)]),
});

// ---- what the document says ----

const charts = {
  requests: new Chart("Requests/s", ["all", "failed"], rate),
  latency: new Chart("Time to answer", ["p50", "p99"], time),
  connections: new Chart("Connections", ["all", "sockets"], count),
  messages: new Chart("Messages of the hub/s", ["queued"], rate),
  cores: new Chart("Cores in use", ["cores"], cores),
};
find("#charts").append(...Object.values(charts).map((chart) => chart.element));

function showHead(state) {
  const { process, configuration } = state;
  write(find("#version"), process.version);
  const health = find("#health");
  write(health, process.draining ? "draining" : process.status);
  health.dataset.tone = process.draining ? "wait" : tone(process.status);
  write(find("#since"), `up ${lasting(process.uptimeSeconds)}, configuration ${configuration.generation}${configuration.refusal ? " (a newer one is refused)" : ""}`);
  document.title = process.status === "healthy" ? "Shardgate" : `${process.status} · Shardgate`;
}

function showRequests(state) {
  const { requests, history } = state;
  const failed = history.errors[history.errors.length - 1];
  const connections = state.shards.reduce((sum, shard) => sum + shard.connections, 0);
  list(find("#figures"), [
    ["Requests/s", rate(requests.perSecond)],
    ["Failed/s", { text: rate(failed), tone: failed > 0 ? "bad" : undefined }],
    ["p50", time(requests.p50Ms)],
    ["p99", time(requests.p99Ms)],
    ["p99.9", time(requests.p999Ms)],
    ["Gateway p99", time(requests.gatewayP99Ms)],
    ["Under way", count(requests.inFlight)],
    ["Connections", count(connections)],
    ["Since the start", count(requests.total)],
  ], true);
  charts.requests.show([history.requests, history.errors], 300);
  charts.latency.show([history.p50Ms, history.p99Ms], 300);
  charts.connections.show([history.connections, history.sockets], 300);
  charts.messages.show([history.messages], 300);
  charts.cores.show([history.cpuCores], 300);
  charts.messages.element.hidden = !state.hub.enabled;
}

const bar = (share) => ({
  key: "bar",
  build: () => {
    const [track, part] = [element("span", "bar"), document.createElement("i")];
    track.append(part);
    return [track, element("span")];
  },
  refresh: (cell) => {
    const percent = known(share) ? Math.min(Math.round(share * 100), 100) : 0;
    // The policy lets scripts set properties of a style, and no attributes.
    cell.querySelector("i").style.width = `${percent}%`;
    write(cell.lastElementChild, known(share) ? `${percent} %` : "–");
  },
});

function showShards(state) {
  table(find("#shards"), state.shards.map((shard) => [
    String(shard.shard),
    [
      { text: shard.answers ? String(shard.shard) : `${shard.shard} (silent)`, tone: shard.answers ? undefined : "bad" },
      bar(shard.busy),
      { text: time(shard.lagMs), tone: shard.lagMs > 100 ? "bad" : shard.lagMs > 20 ? "wait" : undefined },
      rate(shard.requestsPerSecond),
      count(shard.inFlight),
      count(shard.connections),
      count(shard.sockets),
    ],
  ]));
}

function showRoutes(state) {
  table(find("#routes"), state.routes.map((route) => [
    route.name,
    [
      route.name, count(route.total), rate(route.perSecond),
      { text: count(route.errors), tone: route.errorsPerSecond > 0 ? "bad" : undefined },
      time(route.p50Ms), time(route.p99Ms), time(route.p999Ms),
    ],
  ]));
  leftOut(find("#routes-left"), state.routesLeftOut, "routes");
  const { statuses, refusals } = state.requests;
  table(find("#codes"), [
    ...statuses.filter(({ total }) => total).map(({ name, total, perSecond }) => [`status ${name}`, [name === "none" ? "no answer" : name, count(total), rate(perSecond)]]),
    ...refusals.map(({ name, total, perSecond }) => [`refusal ${name}`, [`refused: ${name}`, count(total), rate(perSecond)]]),
  ]);
}

function leftOut(element, number, what) {
  element.hidden = !number;
  write(element, `${whole.format(number)} more ${what} are not shown; /metrics has them.`);
}

const upstreams = new Map();
const INSTANCE_HEADS = [["Instance"], ["Status"], ["Weight", "number"], ["Under way", "number"], ["Latency", "number"], ["Last probe"], ["", "actions"]];

function makeUpstream(name) {
  const [root, head, title] = [element("div"), element("div", "upstream-head"), element("h3", "", name)];
  const [health, circuit, figures, probe] = [element("span"), element("span"), element("span", "quiet"), element("button", "push", "Probe now")];
  probe.type = "button";
  probe.addEventListener("click", () => change({
    path: "/api/probe", body: { upstream: name }, verb: "Probe",
    title: `Probe ${name} now?`, text: "Each of its instances is asked at once, and then as usual.",
  }));
  head.append(title, health, circuit, figures, probe);
  const [scroll, instances] = [element("div", "scroll"), element("table")];
  const heads = instances.createTHead().insertRow();
  for (const [text, className = ""] of INSTANCE_HEADS) {
    const cell = element("th", className, text);
    cell.scope = "col";
    if (!text) cell.append(element("span", "skip", "Changes"));
    heads.append(cell);
  }
  instances.createTBody();
  instances.setAttribute("aria-label", `Instances of ${name}`);
  scroll.append(instances);
  const left = element("p", "quiet");
  root.append(head, scroll, left);
  return { root, health, circuit, figures, probe, instances, left };
}

function instanceStatus(instance) {
  const { status: word, why, held, ejectedByShards, ejectedForSeconds } = instance;
  const parts = [];
  if (why) parts.push(why.replaceAll("_", " "));
  if (ejectedByShards) parts.push(`on ${shards(ejectedByShards)} for ${lasting(Math.ceil(ejectedForSeconds))} more`);
  const more = parts.join(", ");
  if (!held) return status(word, more);
  const by = `by ${held.by}, ${clock(held.at)}`;
  return {
    key: `${held.state} ${by} ${word} ${more}`,
    build: () => [badge(held.state), ` ${by}; otherwise `, badge(word), ` ${more}`],
  };
}

const VERBS = {
  eject: ["Eject", "No request goes to it on any shard from then on, whatever its health, until it is returned. What is under way is finished."],
  drain: ["Drain", "It gets no new requests, but for those that keep to it by their key. What is under way is finished."],
  return: ["Return", "It is used again as its health says."],
};

function actions(upstream, instance) {
  const possible = instance.held ? ["return", instance.held.state === "drained" ? "eject" : "drain"] : ["drain", "eject"];
  if (!hasToken()) return { key: "none", build: () => [] };
  const { instance: authority, address } = instance;
  return {
    key: possible.join(),
    build: () => possible.flatMap((path) => {
      const [verb, text] = VERBS[path];
      const button = element("button", "", verb);
      button.type = "button";
      button.setAttribute("aria-label", `${verb} ${authority}`);
      button.addEventListener("click", () => change({
        path: `/api/${path}`, body: { upstream, instance: address }, verb, text,
        title: `${verb} ${authority === address ? authority : `${authority} (${address})`} of ${upstream}?`,
      }).then((isDone) => isDone && ask()));
      return [button, " "];
    }).concat(weightButton(upstream, instance)),
  };
}

function weightButton(upstream, { instance, address }) {
  const button = element("button", "", "Weight…");
  button.type = "button";
  button.setAttribute("aria-label", `Weight of ${instance}`);
  button.addEventListener("click", () => change({
    path: "/api/weight", body: { upstream, instance: address }, verb: "Set", title: `Weight of ${instance} of ${upstream}`,
    text: "Its share beside the others of its priority, from 0 to 65535; empty: as configured.",
    field: { name: "weight", read: (text) => (text === "" ? null : /^\d+$/.test(text) ? Number(text) : text) },
  }).then((isDone) => isDone && ask()));
  return button;
}

function weight({ weight, configuredWeight, priority, zone }) {
  if (!known(weight)) return "–";
  const changed = weight === configuredWeight ? "" : ` (configured: ${configuredWeight})`;
  return `${weight}${changed}${priority ? `, priority ${priority}` : ""}${zone ? `, ${zone}` : ""}`;
}

function showUpstreams(state) {
  const root = find("#upstreams");
  const names = new Set(state.upstreams.map((upstream) => upstream.name));
  for (const [name, parts] of upstreams) {
    if (!names.has(name)) {
      parts.root.remove();
      upstreams.delete(name);
    }
  }
  for (const upstream of state.upstreams) {
    const parts = upstreams.get(upstream.name) ?? makeUpstream(upstream.name);
    if (!upstreams.has(upstream.name)) {
      upstreams.set(upstream.name, parts);
      root.append(parts.root);
    }
    fill(parts.health, status(upstream.status, upstream.error ?? ""));
    fill(parts.circuit, upstream.circuit === "closed" ? "" : status(upstream.circuit, `circuit, on ${shards(upstream.circuitShards)}`));
    const failing = upstream.failuresPerSecond > 0 ? `, ${rate(upstream.failuresPerSecond)} failing` : "";
    write(parts.figures, `${rate(upstream.perSecond)} requests/s${failing} · p50 ${time(upstream.p50Ms)} · p99 ${time(upstream.p99Ms)} · ${count(upstream.inFlight)} under way · ${count(upstream.connectionsIdle)} idle connections`);
    parts.probe.hidden = !(upstream.probed && hasToken());
    table(parts.instances, upstream.instances.map((instance) => [
      `${instance.instance} ${instance.address}`,
      [
        instance.instance === instance.address ? instance.instance : `${instance.instance} (${instance.address})`,
        instanceStatus(instance),
        weight(instance),
        count(instance.inFlight),
        time(instance.latencyMs),
        instance.probe ? `${instance.probe.result.replaceAll("_", " ")} in ${time(instance.probe.tookMs)}, ${lasting(Math.round(instance.probe.ageSeconds))} ago` : "not probed",
        actions(upstream.name, instance),
      ],
    ]));
    parts.left.hidden = !upstream.instancesLeftOut;
    write(parts.left, `${whole.format(upstream.instancesLeftOut)} more instances are not shown.`);
  }
  leftOut(find("#upstreams-left"), state.upstreamsLeftOut, "upstreams");
}

// Why something is not taken, where it is not.
function showRefusal(id, refusal, what) {
  find(id).hidden = !refusal;
  if (refusal) {
    write(find(`${id}-title`), `Refused at ${clock(refusal.at)}; ${what}`);
    write(find(`${id}-text`), refusal.text);
  }
}

function showRest(state) {
  const { hub, process, configuration, log, changes } = state;
  list(find("#hub"), hub.enabled ? [
    ["Sockets", count(hub.sockets)], ["Rooms", count(hub.rooms)], ["Users", count(hub.users)],
    ["Messages a second", rate(hub.messagesPerSecond)], ["Dropped by full outboxes", count(hub.dropped)],
    ["Waiting to be written", bytes(hub.outboxBytes)],
    ["Rooms across instances", hub.bus === "none" ? "no" : status(hub.bus)],
  ] : [["Hub", "off (hub.enabled)"]]);
  table(find("#databases"), state.databases.map((store) => [
    store.name, [store.name, status(store.status), time(store.latencyMs), store.error?.replaceAll("_", " ") ?? ""],
  ]));
  find("#databases").hidden = !state.databases.length;
  find("#databases-none").hidden = state.databases.length > 0;
  list(find("#process"), [
    ["Version", process.version], ["Process", String(process.pid)], ["Started", clock(process.startedAt)],
    ["Memory", bytes(process.rssBytes)], ["Cores in use", cores(process.cpuCores)],
    ["Descriptors", known(process.descriptorsOpen) ? `${count(process.descriptorsOpen)} of ${count(process.descriptorsMax)}` : "–"],
  ]);
  list(find("#configuration"), [
    ["File", configuration.path ?? "none: defaults and environment"],
    ["Generation", `${configuration.generation}${configuration.applied ? "" : ", not on every shard yet"}`],
    ["Taken", clock(configuration.loadedAt)],
    ["Reloads", `${count(configuration.reloadsApplied)} taken, ${count(configuration.reloadsRefused)} refused`],
    ["Wait for a restart", configuration.restartNeeded.join(", ") || "nothing"],
    ["Log", log.level === log.configured ? log.level : `${log.level} (configured: ${log.configured})`],
  ]);
  showRefusal("#refusal", configuration.refusal, "the one before stays");
  showRefusal("#certificates-refusal", state.certificatesRefusal, "the certificates before stay");
  table(find("#certificates"), state.certificates.map((certificate) => [certificate.names.join(), [certificate.names.join(", "), clock(certificate.expiresAt)]]));
  find("#certificates").hidden = !state.certificates.length;
  find("#certificates-none").hidden = state.certificates.length > 0;
  table(find("#changes"), changes.latest.map((one) => [`${one.at} ${one.what}`, [clock(one.at), `${one.by}, ${one.from}`, one.what]]));
  find("#changes").hidden = !changes.latest.length;
  find("#changes-none").hidden = changes.latest.length > 0;
  write(find("#changes-none"), changes.possible ? "None since the start." : "No token is configured, so nothing can be changed here: [[admin.tokens]] in the configuration names who may.");
  find("#unlock").hidden = !changes.possible;
  find("#level").hidden = !hasToken();
}

// ---- the pace ----

let last = null;
let since = null;
let timer = null;
let asking = false;
// A token is asked for, and none was given: nothing is asked until one is.
let isLocked = false;

function show(state) {
  last = state;
  for (const part of [showHead, showRequests, showUpstreams, showShards, showRoutes, showRest]) part(state);
}

function live(word, text) {
  find("#live").dataset.state = word;
  write(find("#live").firstElementChild, text);
}

function answered() {
  since = null;
  document.body.classList.remove("gone");
  find("#gone").hidden = true;
  live("live", "live");
}

function silent(why) {
  since ??= new Date();
  document.body.classList.add("gone");
  const gone = find("#gone");
  // It is read out once, and not each second.
  write(gone, `The gateway has not answered since ${since.toLocaleTimeString()} (${why}). What is shown below is from then.`);
  gone.hidden = false;
  live("gone", `gone for ${lasting(Math.round((Date.now() - since) / 1000))}`);
}

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch("/api/state", { cache: "no-store", headers: authorised(), signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.status === 401) {
      live("gone", "a token is needed");
      isLocked = true;
      await unlock("This listener can be reached by others, so it asks for a token to be read. It is kept in this tab's memory only.");
    } else if (!answer.ok) {
      silent(`it says ${answer.status}`);
    } else {
      show(await answer.json());
      answered();
    }
  } catch (error) {
    silent(error.name === "TimeoutError" ? "it does not answer" : "it cannot be reached");
  } finally {
    asking = false;
    if (!document.hidden && !isLocked) timer = setTimeout(ask, INTERVAL_MS);
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    live("paused", "paused while hidden");
  } else {
    ask();
  }
});
onToken(() => {
  write(find("#unlock"), hasToken() ? "Token…" : "Make changes…");
  if (last) show(last);
  if (isLocked && hasToken()) {
    isLocked = false;
    clearTimeout(timer);
    timer = setTimeout(ask, 0);
  }
});
find("#unlock").addEventListener("click", () => unlock());
find("#level").addEventListener("submit", (event) => {
  event.preventDefault();
  const level = find("#level-field").value.trim();
  if (!level) return;
  change({
    path: "/api/log-level", body: { level }, verb: "Set",
    title: `Set the log's level to ${level}?`, text: "It holds until it is set back or the process ends; a reload with another log.level takes its place.",
  }).then((isDone) => isDone && ask());
});
find("#level-back").addEventListener("click", () =>
  change({
    path: "/api/log-level", body: { level: null }, verb: "Set back",
    title: "Set the log's level back?", text: `It is ${last.log.configured} by the configuration.`,
  }).then((isDone) => isDone && ask()),
);
ask();
