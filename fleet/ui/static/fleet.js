// Roles and nodes: how many agents, who waits for what, pause and resume, drain.
import { post } from "./api.js";
import { button, empty, h, keyed, setAttr, setText } from "./dom.js";
import { money, since, size, span } from "./format.js";
import { fleet, on, slowSoon } from "./live.js";
import { act, confirm } from "./toast.js";

export function fleetView() {
  const roles = h("div", { class: "f-roles" });
  const nodes = h("div", { class: "f-nodes" });
  const node = h("div", { class: "f-view f-page" },
    h("section", { "aria-label": "Roles" }, h("h2", {}, "Roles"), roles),
    h("section", { "aria-label": "Nodes" }, h("h2", {}, "Nodes"), nodes));

  function draw() {
    if (!fleet.roles.length) keyed(roles, [{ id: "none" }], (one) => one.id, () => empty("Roles are being read.", "If this stays, the router does not answer: `fleet doctor` says why."));
    else keyed(roles, fleet.roles, (one) => one.role.name, makeRole, updateRole);
    if (!fleet.nodes.length) keyed(nodes, [{ id: "none" }], (one) => one.id, () => empty("No nodes seen yet.", "A node appears once Ray has it; `fleet up` starts the first."));
    else keyed(nodes, fleet.nodes, (one) => one.id, makeNode, updateNode);
  }
  on("roles nodes agents", () => node.offsetParent && draw());
  draw();
  return { node, shown: draw };
}

function makeRole({ role }) {
  const parts = {};
  const change = async (by) => {
    const entry = fleet.roles.find((one) => one.role.name === role.name);
    const wanted = Math.max(0, Number(parts.wanted.value) + by);
    if (wanted < entry.agents_wanted && !(await confirm(`Fewer agents of ${role.name}?`, `${entry.agents_wanted} → ${wanted}: surplus agents end their run first, then stop.`, `Have ${wanted}`, "primary"))) {
      parts.wanted.value = entry.agents_wanted;
      return;
    }
    await act(null, () => post(`/roles/${encodeURIComponent(role.name)}/scale`, { agents: wanted }), `${role.name}: ${wanted} agent${wanted === 1 ? "" : "s"} wanted.`);
    slowSoon();
  };
  parts.wanted = h("input", { type: "number", class: "f-input tiny", min: 0, max: 1000, "aria-label": `Agents of ${role.name}` });
  parts.wanted.addEventListener("change", () => change(0));
  parts.pause = button("Pause", async () => {
    const entry = fleet.roles.find((one) => one.role.name === role.name);
    await act(parts.pause, () => post(`/roles/${encodeURIComponent(role.name)}/${entry.paused ? "resume" : "pause"}`), entry.paused ? `${role.name} goes on.` : `${role.name} is paused.`);
    slowSoon();
  }, { kind: "small" });
  parts.figures = h("div", { class: "f-row wrap f-num" });
  parts.why = h("p", { class: "f-dim" });
  parts.limits = h("dl", { class: "f-facts" });
  parts.paused = h("span", { class: "f-pill", data: { state: "waiting" } }, "paused");
  const node = h("article", { class: "f-panel f-role", "aria-label": `Role ${role.name}` },
    h("div", { class: "f-row wrap" }, h("h3", { text: role.name }), parts.paused, h("span", { class: "f-grow" }), parts.pause,
      h("span", { class: "f-stepper" }, button("−", () => change(-1), { kind: "small icon", aria: `One agent of ${role.name} less` }), parts.wanted, button("+", () => change(1), { kind: "small icon", aria: `One agent of ${role.name} more` }))),
    parts.figures, parts.why, h("p", { class: "f-wrap", text: role.prompt }), h("details", {}, h("summary", {}, "Limits and rules"), parts.limits));
  node.parts = parts;
  return node;
}

function updateRole(node, entry) {
  const { parts } = node;
  const { role } = entry;
  if (document.activeElement !== parts.wanted) parts.wanted.value = entry.agents_wanted;
  setText(parts.pause, entry.paused ? "Resume" : "Pause");
  parts.paused.hidden = !entry.paused;
  setText(parts.figures, `${entry.agents} of ${entry.agents_wanted} agents · ${entry.idle} idle · ${entry.queued} queued` + (entry.oldest_queued_at ? ` · oldest waits ${span(since(entry.oldest_queued_at))}` : ""));
  setText(parts.why, entry.why ?? "");
  const facts = [["Tools", role.tools?.join(", ") || "none"], ["Denied", role.tools_denied?.join(", ")], ["Outside the rules", role.approvals === "ask" ? `a person is asked; after ${span(role.approval_timeout_s)}: ${role.approval_default}` : "refused"],
    ["Model", role.model ?? "Claude Code's default"], ["Most turns", role.max_turns], ["Most cost", role.max_cost_usd ? money(role.max_cost_usd) : "no limit"], ["Time limit", span(role.time_limit_s)], ["Retries", role.retries],
    ["CPUs", role.cpus], ["Memory", size(role.memory_mb)], ["Scales", role.min_agents !== null && role.max_agents !== null ? `${role.min_agents} to ${role.max_agents}` : "by hand"]].filter(([, value]) => value !== undefined && value !== null && value !== "");
  keyed(parts.limits, facts, ([name]) => name, ([name]) => h("div", {}, h("dt", { text: name }), h("dd")), (one, [, value]) => setText(one.lastChild, value));
}

function makeNode(info) {
  const parts = { name: h("h3"), state: h("span", { class: "f-pill" }), cpu: bar("CPUs"), memory: bar("Memory"), facts: h("p", { class: "f-dim f-wrap" }) };
  parts.drain = button("Drain…", async () => {
    const now = fleet.nodes.find((one) => one.id === info.id);
    if (!now.draining && !(await confirm(`Drain ${now.name}?`, `Its ${now.agents} agent(s) end their runs and move to other nodes. It takes nothing new.`, "Drain the node", "primary"))) return;
    await act(parts.drain, () => post(`/nodes/${encodeURIComponent(info.id)}/drain`, { undo: now.draining }), now.draining ? "The node is used again." : "The node drains.");
    slowSoon();
  }, { kind: "small" });
  const node = h("article", { class: "f-panel f-node", "aria-label": `Node ${info.name}` }, h("div", { class: "f-row wrap" }, parts.name, parts.state, h("span", { class: "f-grow" }), parts.drain), parts.cpu.node, parts.memory.node, parts.facts);
  node.parts = parts;
  return node;
}

function updateNode(node, info) {
  const { parts } = node;
  setText(parts.name, info.name + (info.head ? " (head)" : ""));
  const state = !info.alive ? "failed" : info.draining ? "draining" : "idle";
  setText(parts.state, !info.alive ? "gone" : info.draining ? "draining" : "alive");
  setAttr(parts.state, "data-state", state === "idle" ? "succeeded" : state);
  parts.cpu.set(info.cpus - info.cpus_free, info.cpus, `${(info.cpus - info.cpus_free).toFixed(2)} of ${info.cpus} reserved`);
  parts.memory.set(info.memory_mb - info.memory_free_mb, info.memory_mb, `${size(info.memory_mb - info.memory_free_mb)} of ${size(info.memory_mb)} used`);
  const labels = Object.entries(info.labels ?? {}).filter(([key]) => !key.startsWith("ray.io/")).map(([key, value]) => `${key}=${value}`).join(", ");
  setText(parts.facts, [`${info.agents} agent${info.agents === 1 ? "" : "s"}`, info.address, labels, info.refuses ? `takes no agent: ${info.refuses}` : ""].filter(Boolean).join(" · "));
  setText(parts.drain, info.draining ? "Use again" : "Drain…");
  parts.drain.hidden = !info.alive;
}

function bar(label) {
  const fill = h("div", { class: "f-context-fill" });
  const text = h("span", { class: "f-dim f-num" });
  const meter = h("div", { class: "f-context thick", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  return {
    node: h("div", { class: "f-bar-line" }, h("span", {}, label), meter, text),
    set(value, total, words) {
      const percent = total > 0 ? Math.min(100, (100 * value) / total) : 0;
      fill.style.width = percent.toFixed(0) + "%";
      setAttr(fill, "data-level", percent > 90 ? "high" : percent > 70 ? "mid" : null);
      setAttr(meter, "aria-valuenow", percent.toFixed(0));
      setText(text, words);
    },
  };
}
