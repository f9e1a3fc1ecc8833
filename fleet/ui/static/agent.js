// The panel of one agent: what it does, its live transcript, words to it, interrupt and stop, its runs.
import { approvalCards } from "./approvals.js";
import { get, post } from "./api.js";
import { button, empty, h, keyed, pill, put, setAttr, setText } from "./dom.js";
import { ago, clock, count, firstLine, fullTime, money, size, span, tokens } from "./format.js";
import { fleet, nodeName, on } from "./live.js";
import { trouble } from "./overview.js";
import { go, here, onPlace } from "./place.js";
import { copyButton, Transcript } from "./transcript.js";
import { act, confirm, toast } from "./toast.js";

export function agentPanel() {
  let panel = null;
  const node = h("aside", { class: "f-view f-drawer", "aria-label": "Agent", tabindex: "-1" });
  node.hidden = true;
  document.body.append(node);

  function settle() {
    const id = here().get("agent");
    if ((panel?.id ?? null) === id) return;
    const before = panel;
    panel?.close();
    panel = null;
    node.hidden = !id;
    document.body.classList.toggle("f-has-drawer", !!id);
    if (id) {
      panel = new Panel(id);
      put(node, panel.node);
      if (!node.contains(document.activeElement)) node.focus({ preventScroll: true });
    } else {
      put(node);
      if (before) document.querySelector(`.f-card[data-key="${CSS.escape(before.id)}"]`)?.focus();
    }
  }
  onPlace(settle);
  on("agents approvals nodes clock", () => panel?.update());
  on("resync", () => panel?.loadRuns());
  settle();
}

class Panel {
  constructor(id) {
    this.id = id;
    this.last = fleet.agents.get(id) ?? null;
    this.state = pill("starting");
    this.facts = h("dl", { class: "f-facts" });
    this.why = h("p", { class: "f-dim" });
    this.taskLink = h("a", { class: "f-strong", href: "#" });
    this.tool = h("code", { class: "f-card-tool" });
    this.approvals = h("div");
    this.slot = h("div", { class: "f-tr-slot" });
    this.runs = h("div", { class: "f-runs" });
    const say = h("textarea", { class: "f-input", rows: 2, id: "fleet-say", "aria-label": `Message to ${id}`, placeholder: "Say something to the agent. Enter sends, Shift+Enter makes a line." });
    const send = button("Send", () => this.send(say, send), { kind: "primary" });
    say.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send(say, send);
      }
    });
    this.interrupt = button("Interrupt", () => this.doInterrupt(), { kind: "small", title: "Cancel what it runs now; the agent stays" });
    this.drain = button("Stop after this run", () => this.stop(true), { kind: "small" });
    this.now = button("Stop now", () => this.stop(false), { kind: "small danger" });
    const attach = `fleet attach ${id}`;
    this.note = h("p", { class: "f-dim" });
    this.node = h("div", { class: "f-drawer-in" },
      h("div", { class: "f-drawer-head" }, h("h2", { text: id }), this.state, h("span", { class: "f-grow" }),
        button("✕", () => go({ agent: null }), { kind: "small icon", aria: "Close the panel" })),
      h("div", { class: "f-row wrap" }, this.interrupt, this.drain, this.now, h("span", { class: "f-grow" }),
        h("code", { class: "f-cmd", text: attach }), copyButton(() => attach)),
      h("div", {}, this.taskLink), this.tool, this.why, this.facts, this.approvals, this.slot,
      h("div", { class: "f-say" }, say, send), this.note,
      h("details", { class: "f-panel" }, h("summary", {}, "Runs of this agent"), this.runs));
    this.update();
    this.load();
  }

  close() {
    this.gone = true;
    this.transcript?.close();
  }

  async load() {
    try {
      const detail = await get(`/agents/${encodeURIComponent(this.id)}`);
      if (this.gone) return;
      this.last = fleet.agents.get(this.id) ?? detail;
      this.drawRuns(detail.history ?? []);
      this.update();
      if (!this.transcript) this.show(detail.task_id ?? detail.history?.[0]?.task_id ?? null);
    } catch (error) {
      put(this.slot, empty(error.status === 404 ? `There is no agent ${this.id}.` : "The agent could not be read.", error.message));
    }
  }

  async loadRuns() {
    if (this.gone) return;
    try {
      this.drawRuns((await get(`/agents/${encodeURIComponent(this.id)}`)).history ?? []);
    } catch {
      // The next change asks again.
    }
  }

  drawRuns(runs) {
    if (!runs.length) return void put(this.runs, h("p", { class: "f-dim" }, "It has not run anything yet."));
    put(this.runs, h("table", { class: "f-table" }, h("thead", {}, h("tr", {}, ["Run", "State", "Node", "Turns", "Cost", "Took", "Started"].map((name) => h("th", { scope: "col", text: name })))),
      h("tbody", {}, runs.map((run) => h("tr", {},
        h("td", {}, h("a", { href: `?tab=tasks&task=${run.task_id}&run=${run.id}`, data: { go: `tab=tasks&task=${run.task_id}&run=${run.id}&agent=` }, text: run.id })),
        h("td", {}, pill(run.state)), h("td", { text: nodeName(run.node), title: run.node ? `Ray's id: ${run.node}` : null }), h("td", { class: "f-num", text: run.turns }), h("td", { class: "f-num", text: money(run.cost_usd) }),
        h("td", { class: "f-num", text: run.finished_at ? span((Date.parse(run.finished_at) - Date.parse(run.started_at)) / 1000) : "running" }),
        h("td", {}, h("time", { title: fullTime(run.started_at), text: clock(run.started_at) })))))));
  }

  /** Show the transcript of a task; another one when the agent goes on to it. */
  show(taskId) {
    if (this.shownTask === taskId && this.transcript) return;
    this.transcript?.close();
    this.shownTask = taskId;
    if (!taskId) {
      this.transcript = null;
      put(this.slot, empty("No transcript yet.", "Give this agent's role a task, or say something below: to an idle agent it becomes a task of its own."));
      return;
    }
    this.transcript = new Transcript(taskId).open();
    put(this.slot, this.transcript.node);
  }

  update() {
    if (this.gone) return;
    const known = fleet.agents.get(this.id);
    const agent = known ?? (this.last && fleet.connected ? { ...this.last, state: this.last.state === "failed" ? "failed" : "stopped", task_id: null } : this.last);
    if (!agent) return;
    if (known) this.last = known;
    const wrong = known ? trouble(known) : { word: agent.state, state: agent.state };
    setText(this.state, wrong.word);
    setAttr(this.state, "data-state", wrong.state);
    const activity = agent.activity ?? {};
    const busy = !!agent.task_id;
    if (busy && agent.task_id !== this.shownTask) {
      this.show(agent.task_id);
      this.loadRuns();
    }
    if (this.wasBusy && !busy) this.loadRuns();
    this.wasBusy = busy;
    const task = agent.task_id ?? this.shownTask;
    setText(this.taskLink, busy ? agent.task_title || agent.task_id : task ? "Open its last task" : "");
    setAttr(this.taskLink, "href", task ? `?tab=tasks&task=${task}` : null);
    setAttr(this.taskLink, "data-go", task ? `tab=tasks&task=${task}&agent=` : null);
    setText(this.tool, busy ? activity.tool || firstLine(activity.text, 120) : "");
    setText(this.why, agent.why || "");
    const facts = [["Role", agent.role], ["Node", agent.node ? nodeName(agent.node) : "none yet", agent.node ? `Ray's id: ${agent.node}` : null], ["Turns", busy ? activity.turns ?? 0 : ""], ["Tokens", busy ? count(tokens(activity.usage)) : ""],
      ["Context", activity.context_tokens ? count(activity.context_tokens) : ""], ["Cost of this run", busy ? money(activity.cost_usd) : ""], ["Cost of all runs", money(agent.cost_usd)],
      ["Memory", activity.rss_mb ? `${size(activity.rss_mb)}, ${activity.processes} processes` : ""], ["Last activity", ago(activity.last_event_at ?? agent.updated_at)],
      ["Runs", `${agent.runs}${agent.failures ? `, ${agent.failures} failed` : ""}${agent.restarts ? `, restarted ${agent.restarts}×` : ""}`]].filter(([, value]) => value !== "");
    keyed(this.facts, facts, ([name]) => name, ([name]) => h("div", {}, h("dt", { text: name }), h("dd")), (node, [, value, title]) => {
      setText(node.lastChild, value);
      setAttr(node.lastChild, "title", title);
    });
    this.interrupt.hidden = !busy;
    const over = !known;
    this.drain.hidden = over || agent.state === "draining";
    this.now.hidden = over;
    setText(this.drain, busy ? "Stop after this run" : "Stop");
    approvalCards(this.approvals, [...fleet.approvals.values()].filter((one) => one.agent_id === this.id));
  }

  async send(field, control) {
    const text = field.value.trim();
    if (!text) return void field.focus();
    const answer = await act(control, () => post(`/agents/${encodeURIComponent(this.id)}/send`, { text }));
    if (!answer) return;
    field.value = "";
    field.focus();
    put(this.note, answer.delivered ? "Delivered into the running conversation." : ["The agent was idle: it became ", h("a", { href: `?tab=tasks&task=${answer.task_id}`, data: { go: `tab=tasks&task=${answer.task_id}&agent=` }, text: "a task of its own" }), "."]);
    if (answer.task_id) this.show(answer.task_id);
  }

  async doInterrupt() {
    if (!(await confirm(`Interrupt ${this.id}?`, "What it runs now is cancelled; its task becomes cancelled and can be retried. The agent stays.", "Interrupt the run"))) return;
    await act(this.interrupt, () => post(`/agents/${encodeURIComponent(this.id)}/interrupt`), (answer) => (answer.done ? "Interrupted." : "It had nothing to interrupt."));
  }

  async stop(drain) {
    const busy = !!fleet.agents.get(this.id)?.task_id;
    const words = !busy ? "The agent ends. The role keeps one agent less." : drain ? "It ends its run first, then stops. It takes nothing new." : "Its run ends at once; the task goes on with another agent.";
    if (!(await confirm(`Stop ${this.id}?`, words, drain ? (busy ? "Stop after this run" : "Stop the agent") : "Stop now"))) return;
    const done = await act(drain ? this.drain : this.now, () => post(`/agents/${encodeURIComponent(this.id)}/stop`, { drain }));
    if (done) toast(drain && busy ? `${this.id} stops after its run.` : `${this.id} stops.`, "good");
  }
}
