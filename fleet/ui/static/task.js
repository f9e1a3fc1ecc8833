// One task: what happened and why, its runs' transcripts, its diff with comments, its result; cancel, retry, continue.
import { approvalCards } from "./approvals.js";
import { get, listOf, post } from "./api.js";
import { button, empty, h, keyed, longText, pill, put, setAttr, setText } from "./dom.js";
import { diffView, followUp } from "./diff.js";
import { ago, clock, count, fullTime, money, span, tokens, workspaceText } from "./format.js";
import { fleet, nodeName, off, on } from "./live.js";
import { go, here } from "./place.js";
import { askPriority, canCancel, canPrioritize, canRetry } from "./tasks.js";
import { copyButton, prose, Transcript } from "./transcript.js";
import { act, askText, confirm } from "./toast.js";

export class TaskPage {
  constructor(id) {
    this.id = id;
    this.task = null;
    this.title = h("h2", {}, id);
    this.state = pill("queued", "…");
    this.note = h("div", { class: "f-note" });
    this.note.hidden = true;
    this.facts = h("dl", { class: "f-facts" });
    this.approvals = h("div");
    this.result = h("div");
    this.diff = h("div");
    this.timeline = h("ol", { class: "f-timeline" });
    this.prompt = h("div");
    this.slot = h("div", { class: "f-tr-slot" });
    this.runPick = h("div", { class: "f-chips", role: "group", "aria-label": "Runs" });
    this.cancel = button("Cancel", () => this.doCancel(), { kind: "small danger" });
    this.retry = button("Retry", () => act(this.retry, () => post(this.path("/retry")), "Queued again.").then(() => this.load()), { kind: "small primary" });
    this.prio = button("Priority…", () => this.doPriority(), { kind: "small" });
    this.goOn = button("Continue…", () => this.doContinue(), { kind: "small", title: "Go on with this task's conversation" });
    this.again = button("Copy to a new task", () => this.copy(), { kind: "small" });
    this.node = h("article", { class: "f-task" },
      h("div", { class: "f-row wrap" }, button("← Tasks", () => go({ task: null, run: null }), { kind: "link" }), h("code", { class: "f-dim", text: id }), copyButton(() => id, "Copy id")),
      h("div", { class: "f-row wrap" }, this.state, this.title),
      h("div", { class: "f-row wrap" }, this.cancel, this.retry, this.goOn, this.prio, this.again), this.note, this.approvals,
      h("div", { class: "f-task-cols" },
        h("div", { class: "f-col-main" }, this.result, this.diff,
          h("section", { class: "f-panel", "aria-label": "Transcript" }, h("div", { class: "f-row wrap" }, h("h3", {}, "Transcript"), this.runPick), this.slot)),
        h("div", { class: "f-col-side" },
          h("section", { class: "f-panel", "aria-label": "Facts" }, h("h3", {}, "Facts"), this.facts),
          h("section", { class: "f-panel", "aria-label": "Timeline" }, h("h3", {}, "Timeline"), this.timeline),
          h("section", { class: "f-panel", "aria-label": "Prompt" }, h("div", { class: "f-row" }, h("h3", {}, "Prompt"), h("span", { class: "f-grow" }), copyButton(() => this.task?.prompt ?? "")), this.prompt))));
    this.listener = (kinds) => this.changed(kinds);
    on("tasks approvals resync clock", this.listener);
    this.load();
  }

  path(rest = "") {
    return `/tasks/${encodeURIComponent(this.id)}${rest}`;
  }

  close() {
    this.gone = true;
    off(this.listener);
    this.transcript?.close();
  }

  placed() {
    const run = here().get("run");
    if (this.task && run !== this.shownRun) this.showRun(run);
  }

  async load() {
    if (this.busy) return void (this.again_ = true);
    this.busy = true;
    try {
      const detail = await get(this.path());
      if (this.gone) return;
      if (detail.id !== this.id) return void go({ task: detail.id }, { replace: true });
      const [moves] = await Promise.allSettled([get(this.path("/transitions"))]);
      if (this.gone) return;
      this.task = detail;
      this.moves = moves.status === "fulfilled" ? listOf(moves.value) : [];
      this.draw();
      if (detail.result && this.resultOf !== detail.result.run_id) this.loadResult(detail.result.run_id);
      if (!this.transcript) this.showRun(here().get("run"));
    } catch (error) {
      if (!this.task) put(this.node, button("← Tasks", () => go({ task: null, run: null }), { kind: "link" }), empty(error.status === 404 ? "There is no such task." : "The task could not be read.", error.message));
    } finally {
      this.busy = false;
      if (this.again_) {
        this.again_ = false;
        this.load();
      }
    }
  }

  changed(kinds) {
    if (this.gone) return;
    const brief = fleet.tasks.get(this.id);
    if (kinds.has("resync") || (brief && this.task && brief.updated_at > this.task.updated_at)) this.load();
    approvalCards(this.approvals, [...fleet.approvals.values()].filter((one) => one.task_id === this.id));
    if (kinds.has("clock") && this.task) this.drawFacts();
  }

  draw() {
    const { task } = this;
    setText(this.title, task.title || task.id);
    setText(this.state, task.state);
    setAttr(this.state, "data-state", task.state);
    this.cancel.hidden = !canCancel(task);
    this.retry.hidden = !canRetry(task);
    this.prio.hidden = !canPrioritize(task);
    this.goOn.hidden = canCancel(task) || !task.session_id;
    this.note.hidden = !(task.reason || task.why);
    const good = task.state === "succeeded";
    this.note.dataset.tone = task.reason && !good ? (task.state === "queued" || task.state === "scheduled" ? "warn" : "bad") : "";
    put(this.note, task.reason && !good ? [h("strong", { text: task.sentence || task.reason.replaceAll("_", " ") }), task.detail ? h("div", {}, longText(task.detail, { tag: "span", cls: "f-wrap", limit: 1000 })) : null, task.remedy ? h("div", { class: "f-dim", text: "What to do: " + task.remedy }) : null] : null,
      task.why ? h("div", { text: `${canCancel(task) && task.state !== "running" ? "Why it waits" : "Why this agent"}: ${task.why}` }) : null);
    if (this.promptText !== task.prompt) {
      this.promptText = task.prompt;
      put(this.prompt, longText(task.prompt, { tag: "div", cls: "f-prose" }));
    }
    this.drawFacts();
    this.drawTimeline();
    this.drawRuns();
    if (!task.result && task.state === "succeeded") put(this.result, h("p", { class: "f-dim" }, "The result is being read."));
  }

  drawFacts() {
    const { task } = this;
    const link = (id) => h("a", { href: `?tab=tasks&task=${id}`, data: { go: `tab=tasks&task=${id}` }, text: id });
    const usage = task.usage ?? {};
    const ran = task.started_at ? ((task.finished_at ? Date.parse(task.finished_at) : Date.now()) - Date.parse(task.started_at)) / 1000 : null;
    const facts = [["Role", task.role], ["Priority", task.priority], ["Agent", task.agent_id ? h("a", { href: `?agent=${task.agent_id}`, data: { go: `agent=${task.agent_id}` }, text: task.agent_id }) : "none yet"], ["Node", task.node ? h("span", { title: `Ray's id: ${task.node}`, text: nodeName(task.node) }) : null],
      ["Working directory", workspaceText(task.workspace)], ["Made", h("time", { title: fullTime(task.created_at), text: clock(task.created_at) })],
      ["Not before", task.not_before && task.state === "scheduled" ? `${clock(task.not_before)} (${ago(task.not_before)})` : null],
      ["Took", ran !== null ? span(ran) + (task.finished_at ? "" : " so far") : null], ["Turns", task.turns], ["Cost", money(task.cost_usd)],
      ["Tokens", `${count(tokens(usage))} (in ${count(usage.input_tokens)}, out ${count(usage.output_tokens)}, cache ${count((usage.cache_read_tokens ?? 0) + (usage.cache_write_tokens ?? 0))})`],
      ["Runs", task.number_of_runs + (task.retries_used ? `, ${task.retries_used} retries used` : "") + (task.losses ? `, ${task.losses} losses` : "")],
      ["Waits for", task.depends_on?.length ? task.depends_on.map((id) => [link(id), " "]) : null], ["Continues", task.continue_from ? link(task.continue_from) : null],
      ["Only by", task.agent], ["Key", task.idempotency_key], ["Labels", Object.entries(task.labels ?? {}).map(([key, value]) => `${key}=${value}`).join(", ")],
      ["Limits", Object.entries(task.limits ?? {}).filter(([, value]) => value !== null).map(([key, value]) => `${key} ${value}`).join(", ")], ["Session", task.session_id]];
    keyed(this.facts, facts.filter(([, value]) => value !== null && value !== undefined && value !== ""), ([name]) => name, ([name]) => h("div", {}, h("dt", { text: name }), h("dd")), (node, [, value]) => {
      const dd = node.lastChild;
      if (value instanceof Node || Array.isArray(value)) {
        const text = value instanceof Node ? value.textContent : "list";
        if (dd.dataset.shown !== text) {
          dd.dataset.shown = text;
          put(dd, value);
        }
      } else setText(dd, value);
    });
  }

  drawTimeline() {
    const moves = this.moves.length ? this.moves : [{ at: this.task.created_at, new: "made", old: null }];
    const at = (one) => one.at ?? one.time;
    put(this.timeline, moves.slice(-200).map((one, index, list) => {
      const next = list[index + 1] ? Date.parse(isoOf(at(list[index + 1]))) : null;
      const lasted = next !== null ? span((next - Date.parse(isoOf(at(one)))) / 1000) : "";
      return h("li", {}, pill(one.new), one.what && one.what !== "task" ? h("code", { class: "f-dim", text: ` ${one.what} ${one.id ?? one.subject ?? ""}` }) : null,
        h("time", { class: "f-dim", title: fullTime(isoOf(at(one))), text: " " + clock(isoOf(at(one))) }), lasted ? h("span", { class: "f-dim", text: ` · ${lasted}` }) : null,
        one.reason || one.why ? h("div", { class: "f-dim f-wrap", text: [one.reason?.replaceAll("_", " "), one.why].filter(Boolean).join(": ") }) : null);
    }));
  }

  drawRuns() {
    const runs = this.task.runs ?? [];
    const entries = runs.length > 1 ? [{ id: "", label: "All runs" }, ...runs.map((run) => ({ ...run, label: `Run ${run.number}` }))] : [];
    keyed(this.runPick, entries, (one) => one.id || "all", (one) => h("button", { type: "button", class: "f-chip", on: { click: () => go({ run: one.id || null }) } }, one.label), (node, one) => {
      node.setAttribute("aria-pressed", String((this.shownRun ?? "") === one.id));
      setAttr(node, "data-state", one.state ?? null);
      setAttr(node, "title", one.id ? `${one.state}${one.reason ? ", " + one.reason : ""} by ${one.agent_id}${one.node ? " on " + nodeName(one.node) : ""}, ${money(one.cost_usd)}${one.why ? ". " + one.why : ""}` : null);
    });
  }

  showRun(run) {
    this.transcript?.close();
    this.shownRun = run ?? null;
    this.transcript = new Transcript(this.id, { runId: run ?? null }).open();
    put(this.slot, this.transcript.node);
    if (this.task) this.drawRuns();
  }

  async loadResult(runId) {
    this.resultOf = runId;
    try {
      const result = await get(this.path("/result"));
      if (this.gone) return;
      put(this.result, h("section", { class: "f-panel", "aria-label": "Result" }, h("div", { class: "f-row" }, h("h3", {}, "Result"), h("span", { class: "f-grow" }), copyButton(() => result.text)),
        result.text ? prose(result.text) : h("p", { class: "f-dim" }, "It said nothing at the end."),
        result.structured !== null && result.structured !== undefined ? longText(JSON.stringify(result.structured, null, 2)) : null,
        result.branch ? h("p", { class: "f-dim" }, "Branch ", h("code", { text: result.branch }), result.workspace_path ? [" in ", h("code", { text: result.workspace_path })] : null) : null,
        result.denials?.length ? h("p", { class: "f-warn-text", text: `${result.denials.length} tool call(s) were refused: ` + result.denials.map((one) => one.tool_name ?? one.tool ?? "?").join(", ") }) : null));
      if (result.diff) put(this.diff, h("section", { class: "f-panel", "aria-label": "Diff" }, h("h3", {}, "Changes"), diffView(result.diff, { onSend: this.task.session_id ? (comments) => this.sendComments(comments) : null })));
    } catch (error) {
      this.resultOf = null;
      put(this.result, h("p", { class: "f-dim", text: error.message }));
    }
  }

  async sendComments(comments) {
    const text = await askText("Send the comments back", "This becomes a follow-up task that goes on with the same conversation", { value: followUp(comments), rows: 12, yes: "Send as a follow-up" });
    if (text?.trim()) await this.follow(text);
  }

  async doContinue() {
    const text = await askText("Continue this task", "What should it do next? It knows all it did before.", { yes: "Continue" });
    if (text?.trim()) await this.follow(text);
  }

  async follow(text) {
    const made = await act(this.goOn, () => post(this.path("/continue"), { prompt: text }), "A follow-up task goes on with the conversation.");
    if (made) go({ task: made.id, run: null });
  }

  async doCancel() {
    const running = this.task.state === "running";
    if (!(await confirm("Cancel this task?", running ? "Its run is interrupted." : "It leaves the queue.", "Cancel the task"))) return;
    await act(this.cancel, () => post(this.path("/cancel"), {}), "Cancelled.");
    this.load();
  }

  async doPriority() {
    const value = await askPriority("this task");
    if (value === null) return;
    await act(this.prio, () => post(this.path("/priority"), { priority: value }), `Priority ${value}.`);
    this.load();
  }

  copy() {
    sessionStorage.setItem("fleet-copy", JSON.stringify(this.task));
    go({ tab: "new", task: null, run: null });
  }
}

const isoOf = (at) => (typeof at === "number" ? new Date(at * 1000).toISOString() : /[Z+]/.test(String(at).slice(10)) ? at : String(at).replace(" ", "T") + "Z");
