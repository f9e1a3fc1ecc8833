// The head of the page: name, rehearsal badge, connection, pause, search, theme, help.
import { post } from "./api.js";
import { button, h, put, setText } from "./dom.js";
import { fleet, on, slowSoon } from "./live.js";
import { go } from "./place.js";
import { showHelp } from "./keys.js";
import { act, confirm } from "./toast.js";
import { isDark, toggleTheme } from "./theme.js";

export function headerView() {
  const badge = h("span", { class: "f-rehearsal", title: "The model is the scripted one on this machine: no account, no cost, no network. Start with `fleet up` for real work." }, "rehearsal");
  const link = h("span", { class: "f-conn", role: "status" });
  const pause = button("Pause fleet", () => togglePause(pause), { kind: "small", title: "Nothing new starts while the fleet is paused" });
  const search = h("input", { type: "search", class: "f-input small", id: "fleet-search", placeholder: "Search tasks  ( / )", "aria-label": "Search tasks" });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") go({ tab: "tasks", task: null, run: null, q: search.value.trim() || null });
  });
  const theme = button("", () => {
    toggleTheme();
    draw();
  }, { kind: "small icon", aria: "Switch between dark and light" });
  const help = button("?", showHelp, { kind: "small icon f-keyhelp", aria: "Keyboard help" });
  const banner = h("div", { class: "f-banner", role: "alert" });
  banner.hidden = true;
  const node = h("header", { class: "f-view f-header" },
    h("div", { class: "f-head" },
      h("a", { class: "f-brand", href: "?", data: { go: "tab=&task=&agent=&run=&q=" } }, mark(), "fleet"), badge, link,
      h("span", { class: "f-grow" }), search, pause, theme, help),
    banner);
  document.addEventListener("fleet:unauthorized", () => say("bad", "Your login has ended. Open the address that `fleet up` printed (or `fleet status --url`) to log in again."));

  function say(kind, text) {
    banner.hidden = !text;
    banner.dataset.kind = kind;
    put(banner, text);
  }

  function draw() {
    badge.hidden = !fleet.rehearsal;
    setText(link, fleet.connected ? (fleet.fresh ? "live" : "store away") : fleet.ever ? "reconnecting…" : "connecting…");
    link.dataset.state = fleet.connected && fleet.fresh ? "ok" : "away";
    setText(pause, fleet.status.paused ? "Resume fleet" : "Pause fleet");
    pause.classList.toggle("warn", !!fleet.status.paused);
    setText(theme, isDark() ? "☀" : "☾");
    if (!fleet.connected && fleet.ever) {
      say("warn", "The server does not answer. What you see may be old; the page reconnects by itself.");
    } else if (!fleet.fresh) say("warn", "The store does not answer now; it is restarted by itself. What you see may be a few seconds old.");
    else if (fleet.status.error) say("warn", `The router does not answer now: ${fleet.status.message ?? ""}`);
    else if (fleet.status.paused) say("info", "The fleet is paused: running tasks go on, nothing new starts.");
    else {
      say("", "");
    }
  }
  on("connection status", draw);
  draw();
  return { node, placed: () => {} };
}

function mark() {
  const dot = (x, y) => h("i", { style: { left: x + "px", top: y + "px" } });
  return h("span", { class: "f-mark", "aria-hidden": "true" }, dot(3, 3), dot(13, 3), dot(8, 8), dot(3, 13), dot(13, 13));
}

async function togglePause(control) {
  const paused = !fleet.status.paused;
  if (paused && !(await confirm("Pause the whole fleet?", "Running tasks go on to their end. Nothing new starts until the fleet is resumed.", "Pause fleet", "primary"))) return;
  await act(control, () => post(paused ? "/fleet/pause" : "/fleet/resume"), paused ? "The fleet is paused." : "The fleet goes on.");
  slowSoon();
}
