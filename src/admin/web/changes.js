// Changes by an operator: the token that they type in, which stays in this module's memory, and what is asked before and
// told after a change.

const find = (selector) => document.querySelector(selector);
let token = null;
const listeners = new Set();

/** Is told whenever a token has come or gone. */
export function onToken(listener) {
  listeners.add(listener);
}

export const hasToken = () => token !== null;

/** Fields of a request to this listener. */
export const authorised = () => (token === null ? {} : { Authorization: `Bearer ${token}` });

function setToken(value) {
  token = value;
  for (const listener of listeners) listener();
}

/** Shows a dialog, and tells with what it was closed. */
function ask(dialog, field) {
  return new Promise((resolve) => {
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
    field?.focus();
  });
}

/** Asks for a token. */
export async function unlock(why) {
  const field = find("#token-field");
  if (why) find("#token-why").textContent = why;
  field.value = "";
  find("#token-forget").hidden = token === null;
  const chosen = await ask(find("#token"), field);
  const typed = field.value.trim();
  field.value = "";
  if (chosen === "forget") setToken(null);
  if (chosen === "use" && typed) setToken(typed);
}

let hiding = null;

/** Says in one line what came of a change. */
function tell(text, isBad) {
  const told = find("#told");
  told.className = isBad ? "notice bad" : "notice";
  told.textContent = text;
  told.hidden = false;
  clearTimeout(hiding);
  if (!isBad) hiding = setTimeout(() => (told.hidden = true), 15_000);
}

/** Asks whether a change is meant, and for a value of it if it has a field; makes it and tells what came of it. */
export async function change({ path, body, title, text, verb, field }) {
  const value = find("#confirm-field");
  value.hidden = !field;
  value.value = "";
  find("#confirm-title").textContent = title;
  find("#confirm-text").textContent = text;
  find("#confirm-yes").textContent = verb;
  if ((await ask(find("#confirm"), field && value)) !== "do") return false;
  const meant = field ? { ...body, [field.name]: field.read(value.value.trim()) } : body;
  try {
    const answer = await fetch(path, {
      method: "POST",
      cache: "no-store",
      headers: { "Content-Type": "application/json", ...authorised() },
      body: JSON.stringify(meant),
      signal: AbortSignal.timeout(15_000),
    });
    const said = await answer.json();
    if (!answer.ok) {
      tell(`Not done: ${said.detail ?? answer.status}`, true);
      if (answer.status === 401) setToken(null);
      return false;
    }
    const shards = said.shards ? `; ${said.shards.applied} of ${said.shards.total} shards act by it` : "";
    tell(`Done: ${said.detail}${shards}.`, said.shards && said.shards.applied < said.shards.total);
    return true;
  } catch (error) {
    tell(`Not known whether it is done: ${error.message}`, true);
    return false;
  }
}
