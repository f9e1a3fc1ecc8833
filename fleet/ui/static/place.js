// The address says what is on the page: ?tab=, ?task=, ?agent=, and the filters of the tasks. It survives a reload.

const listeners = new Set();

export function here() {
  return new URLSearchParams(window.location.search);
}

/** Change the address; null removes a key. `replace` keeps the history as it is. */
export function go(changes, { replace = false } = {}) {
  const now = here();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") now.delete(key);
    else now.set(key, value);
  }
  const text = now.toString();
  const next = window.location.pathname + (text ? "?" + text : "");
  if (next !== window.location.pathname + window.location.search) {
    window.history[replace ? "replaceState" : "pushState"](null, "", next);
  }
  for (const listener of listeners) listener(now);
}

export function onPlace(listener) {
  listeners.add(listener);
}

window.addEventListener("popstate", () => {
  const now = here();
  for (const listener of listeners) listener(now);
});

export const openTask = (id, run = null) => go({ tab: "tasks", task: id, run });
export const openAgent = (id) => go({ agent: id });

/** A link inside the page that can also be opened in a new tab. */
export function linkTo(changes) {
  const now = new URLSearchParams();
  for (const [key, value] of Object.entries(changes)) if (value) now.set(key, value);
  return window.location.pathname + "?" + now.toString();
}
