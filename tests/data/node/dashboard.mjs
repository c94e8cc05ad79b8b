// The dashboard in Chromium: an operator looks at it while requests come, drains an instance, is refused with a wrong token,
// and sees that the gateway is gone. With a fifth argument it leaves pictures there.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import http from "node:http";
import { join } from "node:path";

import { Browser } from "./chromium.mjs";

const [admin, gateway, token, profile, pictures] = process.argv.slice(2);
const browser = new Browser(profile);
let step = "start";
const patience = setTimeout(() => finish(new Error("it takes too long")), pictures ? 300_000 : 150_000);

async function finish(error) {
  clearTimeout(patience);
  await browser.end();
  if (error) console.error(`${step}: ${error.stack}`);
  else console.log("done");
  process.exit(error ? 1 : 0);
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
const get = (path) =>
  new Promise((resolve, reject) => {
    http.get(`http://${gateway}${path}`, { agent }, (answer) => answer.resume().on("end", resolve)).on("error", reject);
  });

/** Requests until told to stop. */
function load() {
  let goes = true;
  const work = async (path) => {
    while (goes) {
      await get(path);
      await new Promise((resolve) => setTimeout(resolve, 5 + Math.random() * 10));
    }
  };
  const workers = ["/shop/a", "/shop/b", "/shop/c", "/orders/d", "/nowhere"].map(work);
  return async () => {
    goes = false;
    await Promise.all(workers);
  };
}

/** What is on more lines than one and would be read wrong so: a share, or an address of the usual length. */
const broken = () => {
  const lines = (part) => {
    const range = document.createRange();
    range.selectNodeContents(part);
    return new Set([...range.getClientRects()].map((line) => Math.round(line.top))).size;
  };
  const parts = [...document.querySelectorAll("#shards .bar + span, #upstreams tbody th")];
  return parts.filter((part) => part.textContent.length < 16 && lines(part) > 1).map((part) => part.textContent);
};

/** Nothing stands out of the window or is broken, and the colours are those that were asked for. */
async function look(tab, name) {
  for (const [kind, width, height, scheme] of [
    ["light", 1280, 900, "light"],
    ["dark", 1280, 900, "dark"],
    ["phone", 390, 844, "light"],
    ["phone-dark", 360, 760, "dark"],
  ]) {
    await tab.look(width, height, scheme);
    // A phone zooms out until all fits, so that its window is no measure.
    const [wide, ground] = await tab.run(() => [
      document.documentElement.scrollWidth,
      getComputedStyle(document.body).backgroundColor,
    ]);
    assert.ok(wide <= width, `${name}, ${kind}: ${wide} pixels are used`);
    assert.deepEqual(await tab.run(broken), [], `${name}, ${kind}`);
    assert.equal(ground, scheme === "dark" ? "rgb(17, 20, 26)" : "rgb(245, 246, 248)");
    if (pictures) writeFileSync(join(pictures, `${name}-${kind}.png`), await tab.picture());
  }
  await tab.look(1280, 900, "light");
}

const figure = (name) => {
  const terms = [...document.querySelectorAll("dt")];
  return terms.find((term) => term.textContent === name)?.nextElementSibling?.textContent;
};
const shows = (tab, name, part) =>
  tab.until(`(name, part) => { const said = (${figure})(name); return said !== undefined && said.includes(part) && said; }`, name, part);
const row = (tab, instance, part) =>
  tab.until(
    (instance, part) => {
      const rows = [...document.querySelectorAll("#upstreams tbody tr")];
      const found = rows.find((row) => row.cells[0].textContent.startsWith(instance) && row.textContent.includes(part));
      return found?.textContent;
    },
    instance,
    part,
  );

async function drain(tab, instance) {
  await tab.click(`#upstreams button[aria-label="Drain ${instance}"]`);
  await tab.until(() => document.querySelector("#confirm").open);
  assert.match(await tab.run(() => document.querySelector("#confirm-title").textContent), /^Drain .* of shop\?$/);
  await tab.click("#confirm-yes");
}

async function useToken(tab, value) {
  await tab.click("#unlock");
  await tab.until(() => document.querySelector("#token").open);
  await tab.fill("#token-field", value);
  await tab.click("#token-use");
  await tab.until(() => document.querySelector("#unlock").textContent === "Token…");
}

async function journey() {
  const stop = load();
  step = "the page shows what goes on";
  const tab = await browser.open(`http://${admin}/`);
  await tab.look(1280, 900, "light");
  await tab.until(() => document.querySelector("#live").dataset.state === "live");
  const orders = await row(tab, "127.0.0.1:1", "refused");
  assert.match(orders, /down/);
  await shows(tab, "p99", "s");
  if (pictures) await new Promise((resolve) => setTimeout(resolve, 75_000));
  await look(tab, "dashboard");

  step = "its numbers are those of the metrics";
  await stop();
  agent.destroy();
  const total = await tab.run(async () => {
    const text = await (await fetch("/metrics")).text();
    const lines = text.split("\n").filter((line) => line.startsWith("shardgate_shard_requests_total"));
    return lines.reduce((sum, line) => sum + Number(line.split(" ")[1]), 0);
  });
  assert.ok(total > 20, `${total}`);
  await shows(tab, "Since the start", new Intl.NumberFormat("en").format(total));
  const byRoute = await tab.run(async () => {
    const text = await (await fetch("/metrics")).text();
    const lines = text.split("\n").filter((line) => line.startsWith('shardgate_requests_total{route="shop"'));
    return lines.reduce((sum, line) => sum + Number(line.split(" ")[1]), 0);
  });
  const shop = [...(await tab.run(() => [...document.querySelectorAll("#routes tbody tr")].map((row) => [row.cells[0].textContent, row.cells[1].textContent])))];
  assert.deepEqual(shop.find(([name]) => name === "shop"), ["shop", new Intl.NumberFormat("en").format(byRoute)]);
  assert.equal(await tab.run(() => document.querySelectorAll("#shards tbody tr").length), 4);

  step = "rows that stay are the same, so that focus stays";
  await tab.run(() => (document.querySelector("#shards tbody tr").mark = true));
  await tab.run(() => new Promise((resolve) => setTimeout(resolve, 2500)));
  assert.equal(await tab.run(() => document.querySelector("#shards tbody tr").mark), true);

  step = "nothing is changed without a token";
  assert.equal(await tab.run(() => document.querySelectorAll("#upstreams td.actions button").length), 0);
  const instance = await tab.run(() => document.querySelector('#upstreams [aria-label="Instances of shop"] tbody th').textContent);
  const body = { upstream: "shop", instance };
  const bare = await tab.run(async (body) => {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("/api/drain", { method: "POST", headers, body: JSON.stringify(body) });
    return [answer.status, (await answer.json()).code];
  }, body);
  assert.deepEqual(bare, [401, "token_missing"]);
  // The browser tells of each answer that is a refusal.
  const refused = tab.errors.splice(0);
  assert.ok(refused.every((error) => /status of 401/.test(error)), refused.join("\n"));

  step = "a wrong token is refused";
  await useToken(tab, "a-wrong-token-of-somebody");
  await drain(tab, instance);
  await tab.until(() => document.querySelector("#told").textContent.startsWith("Not done: this token is none of those"));
  tab.errors.splice(0);

  step = "a right one drains an instance, on all shards, and lets it in again";
  await useToken(tab, token);
  await drain(tab, instance);
  await tab.until(() => document.querySelector("#told").textContent.includes("is drained; 4 of 4 shards act by it."));
  assert.match(await row(tab, instance, "drained"), /drained by ann, .*; otherwise up/);
  if (pictures) await look(tab, "changed");
  await tab.click(`#upstreams button[aria-label="Return ${instance}"]`);
  await tab.click("#confirm-yes");
  await tab.until(() => document.querySelector("#told").textContent.includes("is let in again"));
  const latest = await tab.until(() => {
    const first = document.querySelector("#changes tbody tr").textContent;
    return first.endsWith(" is let in again") && first;
  });
  assert.match(latest, /ann, 127\.0\.0\.1:\d+/);
  const kept = await tab.run(() => [localStorage.length, sessionStorage.length, document.cookie]);
  assert.deepEqual(kept, [0, 0, ""]);

  step = "a change that is not meant is none";
  await tab.click(`#upstreams button[aria-label="Eject ${instance}"]`);
  await tab.click("#confirm-no");
  assert.equal(await tab.run(() => document.querySelectorAll("#changes tbody tr").length), 2);

  step = "the page says when the gateway is gone";
  await tab.ask("Network.enable");
  const network = { latency: 0, downloadThroughput: -1, uploadThroughput: -1 };
  await tab.ask("Network.emulateNetworkConditions", { ...network, offline: true });
  await tab.until(() => !document.querySelector("#gone").hidden);
  const gone = await tab.run(() => document.querySelector("#gone").textContent);
  assert.match(gone, /^The gateway has not answered since .*What is shown below is from then\.$/);
  assert.equal(await tab.run(() => document.querySelector("#live").dataset.state), "gone");
  if (pictures) await look(tab, "gone");
  await tab.ask("Network.emulateNetworkConditions", { ...network, offline: false });
  await tab.until(() => document.querySelector("#live").dataset.state === "live");
  const away = tab.errors.splice(0);
  assert.ok(away.every((error) => /ERR_INTERNET_DISCONNECTED/.test(error)), away.join("\n"));

  step = "what a name says is text";
  const hostile = '<img src="x" onerror="window.ran=1"><script>window.ran=1</script>';
  await tab.ask("Page.addScriptToEvaluateOnNewDocument", {
    source: `{
      const real = window.fetch;
      const hostile = ${JSON.stringify(hostile)};
      const spoil = (value) => {
        if (typeof value === "string") return hostile + value;
        if (Array.isArray(value)) return value.map(spoil);
        if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, value]) => [key, spoil(value)]));
        return value;
      };
      window.fetch = async (...words) => {
        const answer = await real(...words);
        const state = spoil(await answer.json());
        state.configuration.refusal = { at: hostile, text: hostile };
        state.certificates = [{ names: [hostile], expiresAt: hostile }];
        if (window.circuit) for (const upstream of state.upstreams) [upstream.circuit, upstream.circuitShards] = window.circuit;
        return { ok: true, status: 200, json: async () => state };
      };
    }`,
  });
  await tab.reload();
  await tab.until((hostile) => [...document.querySelectorAll("#upstreams h3")].some((name) => name.textContent === `${hostile}shop`), hostile);
  const parts = await tab.run(() => [document.querySelectorAll("main img, main script").length, String(window.ran), document.querySelector("#refusal-text").textContent]);
  assert.deepEqual(parts, [0, "undefined", hostile]);
  await look(tab, "hostile");
  assert.deepEqual(tab.errors, []);

  step = "a circuit that opens is told each time";
  const circuit = (word, shards) => tab.run((...circuit) => (window.circuit = circuit), word, shards);
  const head = () => document.querySelector(".upstream-head").textContent;
  for (const part of ["half open circuit, on 1 shard", "open circuit, on 3 shards", "open circuit, on 3 shards"]) {
    await circuit(...(part.startsWith("half") ? ["half_open", 1] : ["open", 3]));
    await tab.until(`(part) => (${head})().includes(part)`, part);
    if (pictures) await look(tab, "circuit");
    await circuit("closed", 0);
    await tab.until(`() => !(${head})().includes("circuit")`);
  }

  step = "the page's policy holds";
  await assert.rejects(tab.run(() => eval("1")), /EvalError/);
  await tab.run(() => document.head.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" })));
  await tab.run(() => document.body.setAttribute("onclick", "window.ran = 1"));
  await tab.click("body");
  assert.equal(await tab.run(() => window.ran), undefined);
  const violations = tab.errors.filter((error) => error.includes("Content Security Policy"));
  assert.ok(violations.length >= 2, tab.errors.join("\n"));
}

await journey().then(() => finish(), finish);
