// The overview: figures, and every agent as a card, what is wrong first.
import { post } from "./api.js";
import { button, empty, h, keyed, pill, put, setAttr, setText } from "./dom.js";
import { ago, count, firstLine, fullTime, money, plural, since, size, span, tokens } from "./format.js";
import { fleet, nodeName, on, slowSoon } from "./live.js";
import { go, openAgent } from "./place.js";
import { act } from "./toast.js";

export const SILENT_S = 120;
const CONTEXT_TOKENS = 200_000;
const GROUP_LIMIT = 400;
const NO_NODE = "no node yet";

/** What is wrong with an agent: `{level, word}`; the lower the level the more it wants a person. */
export function trouble(agent, now = Date.now()) {
  if (waitingFor(agent.id)) return { level: 0, word: "needs approval", state: "waiting" };
  if (agent.state === "failed") return { level: 1, word: "failed", state: "failed" };
  const quiet = agent.state === "busy" && agent.activity?.last_event_at ? (now - Date.parse(agent.activity.last_event_at)) / 1000 : 0;
  if (quiet > SILENT_S) return { level: 2, word: `silent ${span(quiet)}`, state: "late" };
  const beat = agent.activity?.at ? (now - Date.parse(agent.activity.at)) / 1000 : 0;
  if (agent.state === "busy" && beat > 30) return { level: 2, word: "not heard of", state: "late" };
  if (agent.state === "starting" && since(agent.updated_at) > 60) return { level: 3, word: "late start", state: "late" };
  const order = { busy: 5, draining: 6, starting: 7, idle: 8, stopped: 9 };
  return { level: order[agent.state] ?? 8, word: agent.state, state: agent.state };
}

function waitingFor(agentId) {
  for (const one of fleet.approvals.values()) if (one.agent_id === agentId) return one;
  return null;
}

export function overviewView() {
  const figures = {};
  const figure = (key, label, to) => {
    const value = h("div", { class: "f-fig-value" }, "–");
    const note = h("div", { class: "f-fig-note" });
    figures[key] = { value, note };
    const inner = [h("div", { class: "f-fig-label" }, label), value, note];
    return to ? h("a", { class: "f-fig", href: "?" + to, data: { go: to, figure: key } }, inner) : h("div", { class: "f-fig", data: { figure: key } }, inner);
  };
  const strip = h("section", { class: "f-strip", "aria-label": "Figures" },
    figure("running", "Running", "tab=tasks&state=running"),
    figure("waiting", "For you", "tab=approvals"),
    figure("queued", "Queue", "tab=tasks&state=queued"),
    figure("done", "Done today", "tab=tasks&state=succeeded"),
    figure("cost", "Cost today", "tab=charts"),
    figure("oldest", "Oldest waiting", "tab=tasks&state=queued"));

  const text = h("input", { type: "search", class: "f-input small", placeholder: "Filter agents", "aria-label": "Filter agents by any word" });
  const state = select("State", [["", "All states"], ["trouble", "Needs a look"], ["busy", "Busy"], ["idle", "Idle"], ["starting", "Starting"], ["draining", "Draining"], ["failed", "Failed"]]);
  const sort = select("Sort", [["trouble", "Trouble first"], ["name", "Name"], ["cost", "Cost"], ["context", "Context"], ["memory", "Memory"], ["quiet", "Longest quiet"]]);
  const group = select("Group", [["", "No groups"], ["role", "By role"], ["node", "By node"]]);
  const shown = h("span", { class: "f-dim", role: "status" });
  const role = select("Role to start", []);
  const spawn = button("Start agent", () => act(spawn, () => post("/agents", { role: role.value, count: 1 }), "An agent starts.").then(slowSoon), { kind: "primary small" });
  const bar = h("div", { class: "f-bar" }, text, state, sort, group, shown, h("span", { class: "f-grow" }), role, spawn);
  const grid = h("section", { class: "f-groups", "aria-label": "Agents", "data-arrows": true });
  const recent = h("div", { class: "f-recent" });
  const node = h("div", { class: "f-view f-overview" }, strip, bar, grid,
    h("section", { class: "f-panel", "aria-label": "Latest tasks" }, h("h2", {}, "Latest tasks"), recent));

  for (const one of [state, sort, group]) one.addEventListener("change", draw);
  text.addEventListener("input", draw);

  function drawFigures() {
    const counts = fleet.counts;
    const states = counts.states ?? {};
    const busy = [...fleet.agents.values()].filter((agent) => agent.state === "busy").length;
    set("running", count(states.running ?? 0), `${busy} of ${fleet.agents.size} agents busy`);
    set("waiting", count(fleet.approvals.size), fleet.approvals.size ? "approvals wait for you" : "nothing waits for you");
    figures.waiting.value.parentNode.dataset.tone = fleet.approvals.size ? "warn" : "";
    const byPriority = Object.entries(counts.queued_by_priority ?? {}).filter(([, n]) => n).sort((a, b) => b[0] - a[0]);
    const held = (states.blocked ?? 0) + (states.scheduled ?? 0);
    set("queued", count(states.queued ?? 0), byPriority.length ? byPriority.slice(0, 4).map(([priority, n]) => `P${priority} ${n}`).join(" · ") : held ? `${held} wait for a task or a time` : "nothing waits");
    const done = counts.done_today ?? 0;
    const failed = counts.failed_today ?? 0;
    set("done", count(done), done + failed ? `${((100 * done) / (done + failed)).toFixed(1)} % succeeded` + (failed ? `, ${failed} failed` : "") : "none yet");
    set("cost", money(counts.cost_today ?? 0), fleet.rehearsal ? "rehearsal: not real money" : "since midnight");
    drawOldest();
  }

  function drawOldest() {
    const oldest = fleet.counts.oldest_queued_at;
    const seconds = oldest ? since(oldest) : null;
    set("oldest", oldest ? span(seconds) : "–", oldest ? (seconds > 300 ? "late" : "in the queue") : "the queue is empty");
    figures.oldest.value.parentNode.dataset.tone = seconds > 300 ? "warn" : "";
  }

  function set(key, value, note) {
    setText(figures[key].value, value);
    setText(figures[key].note, note);
  }

  function drawRoles() {
    const names = fleet.roles.map((one) => one.role?.name ?? one.name ?? one.role);
    if (names.join() === [...role.options].map((option) => option.value).join()) return;
    const before = role.value;
    put(role, names.map((name) => h("option", { value: name, text: name })));
    if (names.includes(before)) role.value = before;
  }

  function draw() {
    const now = Date.now();
    const words = text.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let list = [...fleet.agents.values()].map((agent) => ({ agent, trouble: trouble(agent, now) }));
    const total = list.length;
    if (state.value === "trouble") list = list.filter((one) => one.trouble.level < 5);
    else if (state.value) list = list.filter((one) => one.agent.state === state.value);
    if (words.length) {
      list = list.filter(({ agent }) => {
        const all = `${agent.id} ${agent.role} ${agent.node ?? ""} ${nodeName(agent.node)} ${agent.state} ${agent.task_title ?? ""} ${agent.activity?.tool ?? ""} ${agent.task_id ?? ""}`.toLowerCase();
        return words.every((word) => all.includes(word));
      });
    }
    const by = {
      trouble: (a, b) => a.trouble.level - b.trouble.level,
      name: () => 0,
      cost: (a, b) => b.agent.cost_usd - a.agent.cost_usd,
      context: (a, b) => (b.agent.activity?.context_tokens ?? 0) - (a.agent.activity?.context_tokens ?? 0),
      memory: (a, b) => (b.agent.activity?.rss_mb ?? 0) - (a.agent.activity?.rss_mb ?? 0),
      quiet: (a, b) => Date.parse(a.agent.activity?.last_event_at ?? "9999") - Date.parse(b.agent.activity?.last_event_at ?? "9999"),
    }[sort.value];
    list.sort((a, b) => by(a, b) || compareIds(a.agent.id, b.agent.id));
    setText(shown, list.length === total ? `${total} agent${total === 1 ? "" : "s"}` : `${list.length} of ${total} agents`);
    if (!total) return void keyed(grid, [{ key: "none" }], (one) => one.key, () => empty("No agents yet.", "Choose a role above and start one, or set how many each role has under Roles & nodes."));
    if (!list.length) return void keyed(grid, [{ key: "nomatch" }], (one) => one.key, () => empty("No agent matches.", "Clear the filter to see all of them."));
    const groups = new Map();
    for (const one of list) {
      const key = group.value ? one.agent[group.value] ?? NO_NODE : "all";
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(one);
    }
    const sorted = [...groups].sort((a, b) => (group.value ? String(a[0]).localeCompare(String(b[0])) : 0));
    keyed(grid, sorted, ([key]) => "group:" + key, ([key]) => {
      const title = h("h3", { class: "f-group-title" });
      const cards = h("div", { class: "f-grid" });
      const section = h("div", { class: "f-group" }, group.value ? title : null, cards);
      section.parts = { title, cards, key };
      return section;
    }, (section, [key, members]) => {
      section.parts.title.hidden = !group.value;
      if (group.value && !section.parts.title.parentNode) section.prepend(section.parts.title);
      setText(section.parts.title, `${group.value === "node" && key !== NO_NODE ? nodeName(key) : key} · ${members.length}`);
      setAttr(section.parts.title, "title", group.value === "node" && key !== NO_NODE ? `Ray's id: ${key}` : null);
      keyed(section.parts.cards, members.slice(0, GROUP_LIMIT), (one) => one.agent.id, makeCard, updateCard);
    });
  }

  function drawRecent() {
    const list = [...fleet.tasks.values()].slice(-8).reverse();
    if (!list.length) return void keyed(recent, [{ key: "none" }], (one) => one.key, () => empty("No tasks yet.", "Give the fleet something to do.", button("New task", () => go({ tab: "new" }), { kind: "primary small" })));
    keyed(recent, list, (task) => task.id, (task) => {
      const row = h("a", { class: "f-recent-row", href: `?tab=tasks&task=${task.id}`, data: { go: `tab=tasks&task=${task.id}` } },
        pill(task.state), h("span", { class: "f-recent-title" }), h("span", { class: "f-dim" }), h("span", { class: "f-num" }), h("time", { class: "f-num f-dim" }));
      return row;
    }, (row, task) => {
      const [state, title, role, cost, time] = row.children;
      setText(state, task.state);
      setAttr(state, "data-state", task.state);
      setText(title, task.title ?? firstLine(task.prompt));
      setText(role, task.role);
      setText(cost, money(task.cost_usd));
      setText(time, ago(task.updated_at));
      setAttr(time, "title", fullTime(task.updated_at));
    });
  }

  on("counts approvals agents", drawFigures);
  on("agents approvals nodes", draw);
  on("roles", drawRoles);
  on("tasks resync", drawRecent);
  let tick = 0;
  on("clock", () => {
    if (!node.offsetParent) return;
    drawOldest();
    drawRecent();
    if ((tick += 1) % 2 === 0) draw();
  });
  drawFigures();
  draw();
  drawRoles();
  drawRecent();
  return { node, shown: draw };
}

export function select(label, options) {
  return h("select", { class: "f-input small", "aria-label": label }, options.map(([value, text]) => h("option", { value, text })));
}

export function compareIds(a, b) {
  return a.localeCompare(b, undefined, { numeric: true });
}

function makeCard({ agent }) {
  const parts = {
    dot: h("span", { class: "f-dot" }),
    name: h("span", { class: "f-card-name", text: agent.id }),
    pill: h("span", { class: "f-pill" }),
    task: h("div", { class: "f-card-task" }),
    tool: h("code", { class: "f-card-tool" }),
    fill: h("div", { class: "f-context-fill" }),
    turns: h("span"), tokens: h("span"), cost: h("span"), memory: h("span"), last: h("span"), node: h("span", { class: "f-card-node" }),
  };
  parts.context = h("div", { class: "f-context", role: "meter", "aria-label": "Context use", "aria-valuemin": "0", "aria-valuemax": "100" }, parts.fill);
  const card = h("button", { type: "button", class: "f-card", "data-stop": true, on: { click: () => openAgent(agent.id) } },
    h("div", { class: "f-card-head" }, parts.dot, parts.name, parts.node, parts.pill), parts.task, parts.tool, parts.context,
    h("div", { class: "f-card-foot" }, parts.turns, parts.tokens, parts.cost, parts.memory, parts.last));
  card.parts = parts;
  return card;
}

function updateCard(card, { agent, trouble: wrong }) {
  const { parts } = card;
  const activity = agent.activity ?? {};
  setAttr(card, "data-state", wrong.state);
  setAttr(card, "data-trouble", wrong.level < 5 ? "yes" : null);
  setAttr(parts.dot, "data-state", wrong.state);
  setText(parts.pill, wrong.word);
  setAttr(parts.pill, "data-state", wrong.state);
  setText(parts.task, agent.task_id ? agent.task_title || agent.task_id : agent.state === "idle" ? `idle on ${nodeName(agent.node)}` : agent.why || "no task");
  setText(parts.node, fleet.nodes.length > 1 ? nodeName(agent.node) : "");
  setAttr(card, "title", agent.node ? `On ${nodeName(agent.node)} (Ray's id: ${agent.node})` : null);
  setText(parts.tool, agent.task_id ? activity.tool || firstLine(activity.text, 90) || "thinking…" : "");
  const percent = Math.min(100, (100 * (activity.context_tokens ?? 0)) / CONTEXT_TOKENS);
  setAttr(parts.context, "aria-valuenow", percent.toFixed(0));
  setAttr(parts.context, "title", `Context ${percent.toFixed(0)} % full (${count(activity.context_tokens ?? 0)} tokens)`);
  parts.fill.style.width = percent.toFixed(1) + "%";
  setAttr(parts.fill, "data-level", percent > 85 ? "high" : percent > 60 ? "mid" : null);
  setText(parts.turns, agent.task_id ? plural(activity.turns ?? 0, "turn") : plural(agent.runs, "run"));
  setText(parts.tokens, agent.task_id ? `${count(tokens(activity.usage))} tok` : agent.failures ? `${agent.failures} failed` : "");
  setText(parts.cost, money(agent.task_id ? Math.max(activity.cost_usd ?? 0, 0) : agent.cost_usd));
  setText(parts.memory, activity.rss_mb ? size(activity.rss_mb) : "");
  setText(parts.last, ago(agent.task_id ? activity.last_event_at ?? agent.updated_at : agent.updated_at));
  setAttr(card, "aria-label", `${agent.id}, ${agent.role}, ${wrong.word}${agent.task_title ? ", " + firstLine(agent.task_title, 80) : ""}`);
}
