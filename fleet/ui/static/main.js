// Starts the page: puts the views into the places that Gradio made, keeps tabs and address in step.
import { agentPanel } from "./agent.js";
import { approvalsView } from "./approvals.js";
import { chartsView } from "./charts.js";
import { fleetView } from "./fleet.js";
import { headerView } from "./header.js";
import { keys } from "./keys.js";
import { fleet, on, start } from "./live.js";
import { newTaskView } from "./newtask.js";
import { overviewView } from "./overview.js";
import { go, here, onPlace } from "./place.js";
import { searchView } from "./search.js";
import { tasksView } from "./tasks.js";
import { applyTheme } from "./theme.js";

const makers = {
  header: headerView,
  overview: overviewView,
  tasks: tasksView,
  new: newTaskView,
  approvals: approvalsView,
  fleet: fleetView,
  charts: chartsView,
  search: searchView,
};
const made = new Map();

// Gradio makes a tab's content when it is first shown and may make it again: our views are made once and moved in.
function settle() {
  for (const place of document.querySelectorAll(".fleet-view")) {
    const name = place.dataset.view;
    if (!makers[name]) continue;
    if (!made.has(name)) made.set(name, makers[name]());
    const view = made.get(name);
    if (view.node.parentNode !== place) {
      place.replaceChildren(view.node);
      view.shown?.();
    }
  }
  showTab();
  badges();
}

const tabButton = (name) => document.querySelector(`#fleet-tabs [role="tab"][data-tab-id="${name}"]`);

function showTab() {
  const wanted = tabButton(here().get("tab") || (here().get("task") ? "tasks" : "overview"));
  if (wanted && wanted.getAttribute("aria-selected") !== "true") wanted.click();
}

function badges() {
  const waiting = fleet.approvals.size;
  const tab = tabButton("approvals");
  if (!tab) return;
  if (waiting) tab.dataset.count = String(waiting);
  else delete tab.dataset.count;
  const label = waiting ? `Approvals, ${waiting} waiting` : null;
  if (label) tab.setAttribute("aria-label", label);
  else tab.removeAttribute("aria-label");
  document.title = (waiting ? `(${waiting}) ` : "") + "fleet" + (fleet.rehearsal ? " · rehearsal" : "");
}

applyTheme();
document.documentElement.lang = "en";
let due = false;
new MutationObserver((records) => {
  if (due || !records.some((record) => record.addedNodes.length && !record.target.closest?.(".f-view"))) return;
  due = true;
  queueMicrotask(() => {
    due = false;
    settle();
  });
}).observe(document.body, { childList: true, subtree: true });

document.addEventListener("click", (event) => {
  const tab = event.target.closest?.('#fleet-tabs [role="tab"]');
  if (tab && event.isTrusted) go({ tab: tab.dataset.tabId === "overview" ? null : tab.dataset.tabId, task: null, run: null });
  // Links inside the page change the address without loading it again; with a modifier they open a new tab as usual.
  const link = event.target.closest?.("a[data-go]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
    event.preventDefault();
    go(Object.fromEntries([...new URLSearchParams(link.dataset.go)].map(([key, value]) => [key, value || null])));
  }
});
onPlace(() => {
  showTab();
  for (const view of made.values()) view.placed?.();
});
on("approvals status connection", badges);
agentPanel();
keys();
settle();
start();
