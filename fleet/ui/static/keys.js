// The keyboard: what each key does, in one list that the help shows.
import { h } from "./dom.js";
import { go, here } from "./place.js";
import { dialog } from "./toast.js";

const TABS = { a: "overview", t: "tasks", n: "new", p: "approvals", r: "fleet", c: "charts", s: "search" };
const HELP = [
  ["/", "search tasks"],
  ["g a", "agents (overview)"],
  ["g t", "tasks"],
  ["g n", "new task"],
  ["g p", "approvals"],
  ["g r", "roles and nodes"],
  ["g c", "charts"],
  ["g s", "SQL and search"],
  ["← ↑ → ↓", "move between agents or rows"],
  ["Enter", "open"],
  ["x", "select the row"],
  ["Esc", "close the panel, go back"],
  ["?", "this help"],
];
let first = 0;
let open = false;

export async function showHelp() {
  if (open) return;
  open = true;
  await dialog("Keyboard", () => h("dl", { class: "f-keys" }, HELP.map(([key, words]) => [h("dt", {}, key.split(" ").map((one) => h("kbd", { text: one }))), h("dd", { text: words })])));
  open = false;
}

export function keys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    const typing = target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !/^(checkbox|button)$/.test(target.type);
    if (event.key === "Escape" && typing) return void target.blur();
    if (typing || document.querySelector("dialog[open]")) return;
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("fleet-search")?.focus();
    } else if (event.key === "?") showHelp();
    else if (event.key === "g") first = Date.now();
    else if (Date.now() - first < 1500 && TABS[event.key]) {
      first = 0;
      event.preventDefault();
      go({ tab: TABS[event.key] === "overview" ? null : TABS[event.key], task: null, run: null, agent: null });
    } else if (event.key === "Escape") {
      if (here().get("agent")) go({ agent: null });
      else if (here().get("task")) go({ task: null, run: null });
    } else if (event.key.startsWith("Arrow")) arrows(event);
    else if (event.key === "x") target.closest?.("[data-row]")?.querySelector("input[type=checkbox]")?.click();
  });
}

/** Arrow keys move between the cards of a grid or the rows of a table by where they are drawn. */
function arrows(event) {
  const group = document.activeElement?.closest?.("[data-arrows]") ?? [...document.querySelectorAll("[data-arrows]")].find((node) => node.offsetParent);
  if (!group || document.activeElement?.closest?.(".f-tr-body, [role=tablist]")) return;
  const all = [...group.querySelectorAll("[data-stop]")].filter((node) => node.offsetParent);
  if (!all.length) return;
  event.preventDefault();
  const at = all.indexOf(document.activeElement);
  if (at < 0) return void all[0].focus();
  const from = all[at].getBoundingClientRect();
  let next = null;
  if (event.key === "ArrowRight") next = all[at + 1];
  else if (event.key === "ArrowLeft") next = all[at - 1];
  else {
    const down = event.key === "ArrowDown";
    let best = Infinity;
    for (const node of all) {
      const box = node.getBoundingClientRect();
      const dy = down ? box.top - from.top : from.top - box.top;
      if (dy < 4) continue;
      const score = dy * 4 + Math.abs(box.left - from.left);
      if (score < best) {
        best = score;
        next = node;
      }
    }
  }
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}
