// The demo's page in Chromium: two people in two tabs log in, speak in a room, ask the services, lose a connection, get
// what they missed, and are put out by their log-out. With a third argument it leaves pictures there. Over TLS whatever certificate
// is shown is taken.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";

import { Browser } from "./chromium.mjs";

const [origin, profile, pictures] = process.argv.slice(2);
const { protocol, host: gateway } = new URL(origin);
const browser = new Browser(profile);
let step = "start";
setTimeout(() => finish(new Error("it takes too long")), 100_000);

async function finish(error) {
  await browser.end();
  if (error) console.error(`${step}: ${error.stack}`);
  else console.log("done");
  process.exit(error ? 1 : 0);
}

/** A way to the gateway that can be cut: what is under way is reset, and whoever comes meanwhile too. */
class Cable {
  #sockets = new Set();
  isCut = false;

  constructor() {
    this.server = createServer((socket) => {
      if (this.isCut) return socket.resetAndDestroy();
      const to = new URL(`http://${gateway}`);
      const further = connect(Number(to.port), to.hostname);
      for (const [one, other] of [[socket, further], [further, socket]]) {
        this.#sockets.add(one);
        one.pipe(other);
        one.on("error", () => {});
        one.on("close", () => {
          this.#sockets.delete(one);
          other.destroy();
        });
      }
    });
  }

  async listen() {
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    return `127.0.0.1:${this.server.address().port}`;
  }

  cut() {
    this.isCut = true;
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  mend() {
    this.isCut = false;
  }
}

const text = (selector) => document.querySelector(selector).textContent;
const status = (tab, state, part) =>
  tab.until(
    (state, part) => {
      const shown = document.querySelector("#status");
      return shown.dataset.state === state && shown.textContent.includes(part) && shown.textContent;
    },
    state,
    part,
  );
const note = (tab, part) =>
  tab.until((part) => [...document.querySelectorAll("#messages .note")].some((one) => one.textContent.includes(part)), part);
const messages = () =>
  [...document.querySelectorAll("#messages li:not(.note)")].map((one) => {
    const [seq, body] = one.children;
    return `${seq.textContent} ${[...body.childNodes].map((part) => part.textContent).join(": ")}`;
  });
const heard = (tab, count) => tab.until(`(count) => { const all = (${messages})(); return all.length >= count && all; }`, count);

async function logIn(tab, email) {
  await tab.fill("#user", email);
  await tab.click("#login button");
  await status(tab, "open", `${email} (`);
  await note(tab, "joined public.sale at seq ");
}

async function say(tab, words) {
  await tab.fill("#text", words);
  await tab.click("#chat button");
}

/** Nothing stands out of the window, and the colours are those that were asked for. */
async function look(tab, name) {
  for (const [kind, width, height, scheme] of [
    ["light", 1100, 800, "light"],
    ["dark", 1100, 800, "dark"],
    ["phone", 360, 760, "light"],
    ["phone-dark", 360, 760, "dark"],
  ]) {
    await tab.look(width, height, scheme);
    const [wide, ground] = await tab.run(() => [
      document.documentElement.scrollWidth - innerWidth,
      getComputedStyle(document.body).backgroundColor,
    ]);
    assert.ok(wide <= 0, `${name}, ${kind}: ${wide} pixels stand out`);
    assert.equal(ground, scheme === "dark" ? "rgb(18, 21, 28)" : "rgb(244, 245, 247)");
    if (pictures) writeFileSync(join(pictures, `${name}-${kind}.png`), await tab.picture());
  }
}

async function journey() {
  const cable = new Cable();
  const ways = [gateway, await cable.listen()];
  step = "two people log in";
  const [ada, ben] = await Promise.all(ways.map((way) => browser.open(`${protocol}//${way}/demo`)));
  await look(ada, "log-in");
  await logIn(ada, "ada@example.com");
  await logIn(ben, "ben@example.com");
  assert.equal(await ben.run(text, "#members"), "2 members when joined");

  step = "each hears the other";
  await say(ada, "is <b>this</b> bold?");
  await heard(ben, 1);
  await say(ben, "no");
  const dialogue = ["1 ada@example.com: is <b>this</b> bold?", "2 ben@example.com: no"];
  for (const tab of [ada, ben]) {
    assert.deepEqual(await heard(tab, 2), dialogue);
    await tab.until(() => /^epoch \S+, seq 2$/.test(document.querySelector("#position").textContent));
  }
  assert.equal(await ben.run(() => document.querySelector("#messages b")), null);

  step = "services answer";
  await ada.fill("#items", "3");
  for (const [type, answer] of [
    ["cart_event", 'cart_event: {"status":202} after '],
    ["prediction_request", 'prediction_request: {"recoveryProbability":0.8,'],
  ]) {
    await ada.click(`#ask button[value=${type}]`);
    await ada.until((answer) => document.querySelector("#answers").lastChild?.textContent.startsWith(answer), answer);
  }
  await look(ada, "room");

  step = "a connection is lost, and what was missed comes with the next";
  cable.cut();
  await status(ben, "waiting", "1006");
  await note(ada, "ben@example.com left");
  for (const words of ["one", "two", "three"]) await say(ada, words);
  const all = [...dialogue, "3 ada@example.com: one", "4 ada@example.com: two", "5 ada@example.com: three"];
  assert.deepEqual(await heard(ada, 5), all);
  assert.deepEqual(await ben.run(messages), dialogue);
  if (pictures) await look(ben, "cut");
  cable.mend();
  await status(ben, "open", "ben@example.com (");
  await note(ben, "recovered: nothing was missed");
  assert.deepEqual(await heard(ben, 5), all);
  // While there was no way, the browser said so itself.
  const refused = ben.errors.splice(0);
  assert.deepEqual(refused.filter((error) => !/^WebSocket connection to 'wss?:\S+\/ws' failed/.test(error)), []);

  step = "a tab that is loaded again is still logged in";
  await ben.reload();
  await status(ben, "open", "ben@example.com (");
  await note(ben, "joined public.sale at seq 5");

  step = "a log-out closes the session's socket, and no other";
  await ben.click("#logout");
  assert.match(await status(ben, "closed", "4102"), /^closed by the hub: 4102 /);
  assert.equal(await ben.run(() => document.querySelector("#login").checkVisibility()), true);
  await note(ada, "ben@example.com left");
  await ben.reload();
  await status(ben, "out", "not logged in");

  step = "a log-out everywhere closes those of all sessions";
  await logIn(ben, "ada@example.com");
  await ada.click("#logout-all");
  for (const tab of [ada, ben]) await status(tab, "closed", "4102");
  if (pictures) await look(ben, "closed");
  for (const tab of [ada, ben]) assert.deepEqual(tab.errors, []);

  step = "the page's policy holds";
  await assert.rejects(ben.run(() => eval("1")), /EvalError/);
  await ben.run(() => document.head.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" })));
  await ben.run(() => document.body.setAttribute("onclick", "window.ran = 1"));
  await ben.click("body");
  await assert.rejects(ben.run((way) => fetch(way), `${protocol}//${gateway}/health`), /Failed to fetch/);
  assert.equal(await ben.run(() => window.ran), undefined);
  const violations = ben.errors.filter((error) => error.includes("Content Security Policy"));
  assert.ok(violations.length >= 3, ben.errors.join("\n"));
}

await journey().then(() => finish(), finish);
