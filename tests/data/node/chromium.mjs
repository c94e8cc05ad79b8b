// Chromium without a screen, driven by its own protocol over a pipe: it ends with whoever holds the other end.
import { spawn } from "node:child_process";

const FLAGS = [
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // A tab that is not in front goes on as if it were.
  "--disable-background-timer-throttling",
  "--disable-backgrounding-occluded-windows",
  "--disable-renderer-backgrounding",
  // Nothing leaves this machine.
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
  // Nobody has signed the certificates of tests.
  "--ignore-certificate-errors",
  "--remote-debugging-pipe",
];

export class Browser {
  #child;
  #unread = "";
  #answers = new Map();
  #tabs = new Map();
  #lastId = 0;

  constructor(profile) {
    this.#child = spawn("chromium", [...FLAGS, `--user-data-dir=${profile}`], {
      // A group of its own, so that its end is the end of all that it started.
      detached: true,
      env: { ...process.env, HOME: profile },
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    });
    // One that cannot be started has ended too.
    this.ended = new Promise((resolve) => this.#child.once("exit", resolve).once("error", resolve));
    this.#child.once("error", (error) => this.#fail(error));
    this.#child.once("exit", (code) => this.#fail(new Error(`chromium ended with ${code}`)));
    this.#child.stdio[3].on("error", (error) => this.#fail(error));
    this.#child.stdio[4].setEncoding("utf8").on("data", (text) => this.#read(text));
  }

  #fail(error) {
    for (const { reject } of this.#answers.values()) reject(error);
    this.#answers.clear();
  }

  #read(text) {
    const messages = (this.#unread + text).split("\0");
    this.#unread = messages.pop();
    for (const { id, sessionId, method, params, result, error } of messages.map((message) => JSON.parse(message))) {
      if (id === undefined) {
        this.#tabs.get(sessionId)?.hear(method, params);
        continue;
      }
      const { resolve, reject } = this.#answers.get(id) ?? {};
      this.#answers.delete(id);
      if (error) reject?.(new Error(`${error.message} ${error.data ?? ""}`));
      else resolve?.(result);
    }
  }

  ask(method, params = {}, sessionId = undefined) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#answers.set(id, { resolve, reject });
      this.#child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  async open(url) {
    const { targetId } = await this.ask("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.ask("Target.attachToTarget", { targetId, flatten: true });
    const tab = new Tab(this, sessionId);
    this.#tabs.set(sessionId, tab);
    for (const domain of ["Page", "Runtime", "Log"]) await tab.ask(`${domain}.enable`);
    await tab.go(() => tab.ask("Page.navigate", { url }));
    return tab;
  }

  /** Kills what is left of it; its id is its own until its end is known. */
  async end() {
    if (this.#child.exitCode === null && this.#child.signalCode === null && this.#child.pid) {
      process.kill(-this.#child.pid, "SIGKILL");
    }
    await this.ended;
  }
}

class Tab {
  /** What the console was told of as an error, by the page or by the browser. */
  errors = [];
  #browser;
  #session;
  #loaded = null;

  constructor(browser, session) {
    this.#browser = browser;
    this.#session = session;
  }

  ask(method, params) {
    return this.#browser.ask(method, params, this.#session);
  }

  hear(method, params) {
    if (method === "Page.loadEventFired") this.#loaded?.();
    if (method === "Runtime.exceptionThrown") {
      const { text, exception } = params.exceptionDetails;
      this.errors.push(`${text} ${exception?.description ?? ""}`);
    }
    if (method === "Runtime.consoleAPICalled" && ["error", "assert", "warning"].includes(params.type)) {
      this.errors.push(params.args.map(({ value, description }) => value ?? description).join(" "));
    }
    if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) {
      this.errors.push(`${params.entry.text} ${params.entry.url ?? ""}`);
    }
  }

  /** Does what loads a page, and waits for its end. */
  async go(begin) {
    const loaded = new Promise((resolve) => (this.#loaded = resolve));
    const { errorText } = await begin();
    if (errorText) throw new Error(errorText);
    await loaded;
  }

  reload() {
    return this.go(() => this.ask("Page.reload"));
  }

  /** What a function says in the page, with these values of JSON; a promise is waited for. */
  async run(asked, ...values) {
    const { result, exceptionDetails } = await this.ask("Runtime.evaluate", {
      expression: `(${asked})(...${JSON.stringify(values)})`,
      awaitPromise: true,
      returnByValue: true,
      allowUnsafeEvalBlockedByCSP: false,
    });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until the page says something true; it is asked at the beginning and after each change of the document. */
  until(asked, ...values) {
    return this.run(
      `(...values) => new Promise((resolve) => {
        const look = () => {
          const said = (${asked})(...values);
          if (said) {
            watcher.disconnect();
            resolve(said);
          }
        };
        const watcher = new MutationObserver(look);
        watcher.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
        look();
      })`,
      ...values,
    );
  }

  click(selector) {
    return this.run((selector) => document.querySelector(selector).click(), selector);
  }

  fill(selector, value) {
    const set = (selector, value) => {
      const field = document.querySelector(selector);
      field.value = value;
      field.dispatchEvent(new Event("change", { bubbles: true }));
    };
    return this.run(set, selector, value);
  }

  /** The window's size in pixels of CSS, and which colours its user prefers. */
  async look(width, height, scheme) {
    await this.ask("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 600 });
    await this.ask("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  }

  async picture() {
    // A tab behind another is not painted.
    await this.ask("Page.bringToFront");
    const { data } = await this.ask("Page.captureScreenshot", { captureBeyondViewport: true });
    return Buffer.from(data, "base64");
  }
}
