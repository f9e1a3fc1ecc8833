// The tasks: a table with filters in the address, bulk actions, and the page of one task.
import { get, listOf, post, query } from "./api.js";
import { button, empty, h, keyed, pill, put, setAttr, setText } from "./dom.js";
import { ago, fullTime, money, since, span } from "./format.js";
import { changedTasks, fleet, on } from "./live.js";
import { select } from "./overview.js";
import { go, here } from "./place.js";
import { TaskPage } from "./task.js";
import { act, confirm, dialog, toast } from "./toast.js";

export const STATES = ["blocked", "scheduled", "queued", "running", "succeeded", "failed", "cancelled", "dead"];
const FINAL = new Set(["succeeded", "failed", "cancelled", "dead"]);
const PAGE = 100;
export const canCancel = (task) => !FINAL.has(task.state);
export const canRetry = (task) => ["failed", "cancelled", "dead"].includes(task.state);
export const canPrioritize = (task) => ["queued", "blocked", "scheduled"].includes(task.state);

export function tasksView() {
  const rows = new Map();
  const picked = new Set();
  let next = null;
  let page = null;
  let asked = "";
  let loading = 0;
  let failed = "";

  const text = h("input", { type: "search", class: "f-input small", placeholder: "Words in the prompt", "aria-label": "Words in the prompt" });
  const states = h("div", { class: "f-chips", role: "group", "aria-label": "States" }, STATES.map((state) => {
    const chip = h("button", { type: "button", class: "f-chip", data: { state }, "aria-pressed": "false" }, state);
    chip.addEventListener("click", () => {
      const now = stateList();
      go({ state: (now.includes(state) ? now.filter((one) => one !== state) : [...now, state]).join(",") || null });
    });
    return chip;
  }));
  const role = select("Role", [["", "All roles"]]);
  const when = select("Made in", [["", "Any time"], ["3600", "Last hour"], ["86400", "Last day"], ["604800", "Last week"]]);
  const priority = select("Priority", [["", "Any priority"], ...Array.from({ length: 10 }, (_, n) => [String(9 - n), `Priority ${9 - n}`])]);
  const clear = button("Clear filters", () => go({ state: null, role: null, q: null, since: null, priority: null, label: null, by: null }), { kind: "link" });
  const status = h("span", { class: "f-dim", role: "status" });
  let typing = null;
  text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ q: text.value.trim() || null }, { replace: true }), 250);
  });
  role.addEventListener("change", () => go({ role: role.value || null }));
  when.addEventListener("change", () => go({ since: when.value || null }));
  priority.addEventListener("change", () => go({ priority: priority.value || null }));

  const all = h("input", { type: "checkbox", "aria-label": "Select all tasks shown" });
  all.addEventListener("change", () => {
    picked.clear();
    if (all.checked) for (const id of rows.keys()) picked.add(id);
    draw();
  });
  const body = h("tbody");
  const table = h("table", { class: "f-table f-tasks", "data-arrows": true }, h("caption", { class: "sr-only" }, "Tasks"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, all), ["State", "Task", "Role", "Pri", "Agent", "Runs", "Cost", "Waited", "Took", "Changed"].map((name) => h("th", { scope: "col", text: name })))), body);
  const more = button("Load older tasks", () => load(true), { kind: "small" });
  const none = h("div");
  const bulkText = h("span", { class: "f-strong", role: "status" });
  const cancel = button("", () => bulk("cancel"), { kind: "small danger" });
  const retry = button("", () => bulk("retry"), { kind: "small" });
  const prio = button("", () => bulk("priority"), { kind: "small" });
  const bar = h("div", { class: "f-bulk" }, bulkText, cancel, retry, prio, button("Clear selection", () => {
    picked.clear();
    draw();
  }, { kind: "link" }));
  const list = h("div", { class: "f-page" }, h("div", { class: "f-bar" }, text, role, priority, when, clear, h("span", { class: "f-grow" }), status), states, bar,
    h("div", { class: "f-scroll" }, table), none, more);
  const single = h("div", { class: "f-page" });
  const node = h("div", { class: "f-view" }, list, single);

  const stateList = () => (here().get("state") ?? "").split(",").filter((one) => STATES.includes(one));

  function wanted() {
    const now = here();
    return { state: stateList(), role: now.get("role"), text: now.get("q"), since: now.get("since"), priority: now.get("priority"), label: now.get("label"), agent: now.get("by") };
  }

  function placed() {
    const id = here().get("task");
    list.hidden = !!id;
    single.hidden = !id;
    if (id) {
      if (page?.id !== id) {
        page?.close();
        page = new TaskPage(id);
        put(single, page.node);
      } else page.placed();
      return;
    }
    page?.close();
    page = null;
    put(single);
    const want = wanted();
    const key = JSON.stringify(want);
    for (const chip of states.children) chip.setAttribute("aria-pressed", String(want.state.includes(chip.dataset.state)));
    if (document.activeElement !== text) text.value = want.text ?? "";
    drawRoles();
    when.value = want.since ?? "";
    priority.value = want.priority ?? "";
    clear.hidden = key === JSON.stringify({ state: [], role: null, text: null, since: null, priority: null, label: null, agent: null });
    if (key !== asked) {
      asked = key;
      picked.clear();
      load();
    }
  }

  function drawRoles() {
    const want = here().get("role") ?? "";
    const names = fleet.roles.map((one) => one.role?.name).filter(Boolean);
    if (want && !names.includes(want)) names.push(want);
    put(role, h("option", { value: "", text: "All roles" }), names.map((name) => h("option", { value: name, text: name })));
    role.value = want;
  }

  async function load(older = false) {
    const turn = (loading += 1);
    setText(status, "loading…");
    try {
      const answer = await get("/tasks" + query({ ...wanted(), before: older ? next : null, limit: PAGE }));
      if (turn !== loading) return;
      if (!older) rows.clear();
      for (const task of listOf(answer)) rows.set(task.id, task);
      next = answer.next ?? null;
      failed = "";
    } catch (error) {
      if (turn !== loading) return;
      failed = error.message;
    }
    draw();
  }

  /** Whether a task belongs into the list as it is filtered now (words are only searched by the server). */
  function fits(task) {
    const want = wanted();
    if (want.state.length && !want.state.includes(task.state)) return false;
    if (want.role && task.role !== want.role) return false;
    if (want.priority !== null && String(task.priority) !== want.priority) return false;
    if (want.agent && task.agent_id !== want.agent) return false;
    if (want.label) return false;
    return !want.text || (task.title ?? "").toLowerCase().includes(want.text.toLowerCase());
  }

  function takeChanges() {
    if (!changedTasks.size) return;
    for (const id of changedTasks) {
      const task = fleet.tasks.get(id);
      if (!task) continue;
      if (rows.has(id)) {
        if (fits(task) || picked.has(id)) rows.set(id, { ...rows.get(id), ...task });
        else rows.delete(id);
      } else if (fits(task)) rows.set(id, task);
    }
    changedTasks.clear();
    if (node.offsetParent && !list.hidden) draw();
  }

  function draw() {
    const tasks = [...rows.values()].sort((a, b) => (a.created_at < b.created_at ? 1 : a.created_at > b.created_at ? -1 : a.id < b.id ? 1 : -1));
    for (const id of picked) if (!rows.has(id)) picked.delete(id);
    keyed(body, tasks, (task) => task.id, makeRow, updateRow);
    table.hidden = !tasks.length;
    more.hidden = !next;
    setText(status, failed || `${tasks.length}${next ? "+" : ""} task${tasks.length === 1 ? "" : "s"}`);
    if (tasks.length || failed) put(none);
    else if (!none.firstChild) put(none, clear.hidden ? empty("No tasks yet.", "Submit the first one here, from the command line with `fleet submit`, or from Python.", button("New task", () => go({ tab: "new" }), { kind: "primary" })) : empty("No task matches these filters.", "Change or clear them."));
    all.checked = !!tasks.length && picked.size === tasks.length;
    all.indeterminate = picked.size > 0 && picked.size < tasks.length;
    drawBar();
  }

  const chosen = (able) => [...picked].map((id) => rows.get(id)).filter((task) => task && able(task));

  function drawBar() {
    bar.hidden = !picked.size;
    setText(bulkText, `${picked.size} selected`);
    for (const [control, able, word] of [[cancel, canCancel, "Cancel"], [retry, canRetry, "Retry"], [prio, canPrioritize, "Change priority of"]]) {
      const n = chosen(able).length;
      setText(control, `${word} ${n}`);
      control.disabled = !n;
    }
  }

  async function bulk(what) {
    const able = { cancel: canCancel, retry: canRetry, priority: canPrioritize }[what];
    const ids = chosen(able).map((task) => task.id);
    const n = `${ids.length} task${ids.length === 1 ? "" : "s"}`;
    const skipped = picked.size - ids.length;
    const rest = skipped ? ` The other ${skipped} selected cannot be changed this way and stay as they are.` : "";
    let body = { ids };
    if (what === "priority") {
      const value = await askPriority(n, rest);
      if (value === null) return;
      body = { ids, priority: value };
    } else {
      const words = what === "cancel" ? ["Cancel " + n + "?", "Those that run are interrupted." + rest, "Cancel " + n, "danger"] : ["Retry " + n + "?", "They are queued again with their retries renewed." + rest, "Retry " + n, "primary"];
      if (!(await confirm(...words))) return;
    }
    const control = { cancel, retry, priority: prio }[what];
    const answer = await act(control, () => post(`/tasks:${what}`, body));
    if (!answer) return;
    for (const task of listOf(answer)) if (rows.has(task.id)) rows.set(task.id, { ...rows.get(task.id), ...task });
    toast(`${{ cancel: "Cancelled", retry: "Queued again", priority: "Changed" }[what]}: ${n}.`, "good");
    picked.clear();
    draw();
  }

  function makeRow(task) {
    const box = h("input", { type: "checkbox", "aria-label": `Select task ${task.id}` });
    box.addEventListener("change", () => {
      if (box.checked) picked.add(task.id);
      else picked.delete(task.id);
      draw();
    });
    const link = h("a", { class: "f-task-link", href: `?tab=tasks&task=${task.id}`, data: { go: `tab=tasks&task=${task.id}` }, "data-stop": true });
    const cell = (cls = "") => h("td", { class: cls });
    const row = h("tr", { "data-row": true }, h("td", {}, box), h("td", {}, h("span", { class: "f-pill" })), h("td", { class: "f-task-cell" }, link, h("div", { class: "f-dim f-clip" })),
      cell(), cell("f-num"), cell(), cell("f-num"), cell("f-num"), cell("f-num"), cell("f-num"), h("td", {}, h("time", { class: "f-dim f-num" })));
    return row;
  }

  function updateRow(row, task) {
    const cells = row.children;
    cells[0].firstChild.checked = picked.has(task.id);
    setAttr(row, "aria-selected", picked.has(task.id) ? "true" : null);
    const state = cells[1].firstChild;
    setText(state, task.state);
    setAttr(state, "data-state", task.state);
    const [link, note] = cells[2].children;
    setText(link, task.title || task.id);
    setText(note, FINAL.has(task.state) ? (task.reason ? `${task.reason.replaceAll("_", " ")}${task.detail ? ": " + task.detail : ""}` : "") : task.why);
    setText(cells[3], task.role);
    setText(cells[4], task.priority);
    setText(cells[5], task.agent_id ?? "");
    setText(cells[6], task.number_of_runs || "");
    setText(cells[7], task.cost_usd ? money(task.cost_usd) : "");
    setText(cells[8], waited(task));
    setText(cells[9], task.started_at ? span(((task.finished_at ? Date.parse(task.finished_at) : task.state === "running" ? Date.now() : Date.parse(task.updated_at)) - Date.parse(task.started_at)) / 1000) : "");
    const time = cells[10].firstChild;
    setText(time, ago(task.updated_at));
    setAttr(time, "title", fullTime(task.updated_at));
  }

  on("tasks", takeChanges);
  on("resync", () => {
    if (!here().get("task")) load();
  });
  on("roles", drawRoles);
  on("clock", () => node.offsetParent && !list.hidden && rows.size < 300 && draw());
  placed();
  return { node, placed, shown: placed };
}

function waited(task) {
  if (!task.queued_at) return "";
  const until = task.started_at && task.started_at >= task.queued_at ? Date.parse(task.started_at) : FINAL.has(task.state) ? null : Date.now();
  return until === null ? "" : task.state === "queued" ? span(since(task.queued_at)) : span((until - Date.parse(task.queued_at)) / 1000);
}

export function askPriority(n, rest = "") {
  return dialog(`Change the priority of ${n}`, (close) => {
    const field = h("input", { type: "number", class: "f-input", min: 0, max: 9, value: 5, "aria-label": "Priority" });
    setTimeout(() => field.select());
    const done = () => field.checkValidity() && field.value !== "" && close(Number(field.value));
    field.addEventListener("keydown", (event) => event.key === "Enter" && done());
    return [h("p", { text: "0 to 9; higher goes first." + rest }), field, h("div", { class: "f-row end" }, button("Back", () => close()), button(`Change ${n}`, done, { kind: "primary" }))];
  });
}
