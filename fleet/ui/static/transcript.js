// The transcript of a task or of one run: windowed, so that 10,000 events open at once and scroll smoothly.
import { get, listOf, query } from "./api.js";
import { add, button, h, longText, put, setText } from "./dom.js";
import { diffOfEdit } from "./diff.js";
import { clock, fullTime, money, ms, span } from "./format.js";
import { watchTask } from "./live.js";
import { Items, toolLine } from "./transcript-items.js";

const PAGE = 1000;
const GUESS_PX = 44;
const OVERSCAN_PX = 800;

export class Transcript {
  /** `taskId`: whose events; `runId`: only those of one run. */
  constructor(taskId, { runId = null, height = null } = {}) {
    this.taskId = taskId;
    this.runId = runId;
    this.mode = "read";
    this.events = [];
    this.ids = new Set();
    this.built = new Items();
    this.heights = new Map();
    this.nodes = new Map();
    this.closed = new Set();
    this.opened = new Set();
    this.stick = true;
    this.older = false;
    this.firstId = 0;
    this.body = h("div", { class: "f-tr-body", role: "log", "aria-label": "Transcript", tabindex: "0" });
    if (height) this.body.style.setProperty("height", height);
    this.pad = h("div", { class: "f-tr-pad" });
    this.body.append(this.pad);
    this.note = h("span", { class: "f-dim" });
    this.find = h("input", { type: "search", class: "f-input small", placeholder: "Find in transcript", "aria-label": "Find in transcript" });
    this.find.addEventListener("input", () => this.refilter());
    this.modes = ["read", "raw", "stderr"].map((mode) =>
      h("button", { type: "button", class: "f-seg", "aria-pressed": String(mode === "read"), data: { mode }, on: { click: () => this.setMode(mode) } }, { read: "Transcript", raw: "Raw frames", stderr: "stderr" }[mode]),
    );
    this.tail = button("Follow ↓", () => this.follow(), { kind: "small" });
    this.tail.hidden = true;
    this.node = h("section", { class: "f-transcript", "aria-label": "Transcript" },
      h("div", { class: "f-tr-bar" }, h("div", { class: "f-segs", role: "group", "aria-label": "View" }, this.modes), this.find, this.note, this.tail),
      this.body);
    this.body.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.resize = new ResizeObserver((entries) => this.measure(entries));
    this.boxResize = new ResizeObserver(() => this.draw());
    this.boxResize.observe(this.body);
    this.shown = [];
    this.offsets = [0];
  }

  /** Begin: the newest page at once over the socket, which goes on with new events; older pages after it. */
  open() {
    setText(this.note, "loading…");
    let first = true;
    this.stop = watchTask(this.taskId, {
      history: PAGE,
      onEvents: (events) => {
        this.takeLive(events);
        if (!first) return;
        first = false;
        this.follow();
        this.loadOlder();
      },
      onTask: () => {
        if (!this.events.length) this.refilter();
      },
    });
    return this;
  }

  close() {
    this.gone = true;
    this.stop?.();
    this.resize.disconnect();
    this.boxResize.disconnect();
  }

  async loadOlder() {
    try {
      this.older = true;
      while (this.older && !this.gone) {
        const path = `/tasks/${encodeURIComponent(this.taskId)}/transcript`;
        const page = listOf(await get(path + query({ before: this.firstId, newest: true, limit: 2 * PAGE })));
        if (this.gone) return;
        this.older = page.length >= 2 * PAGE;
        this.merge(page);
        this.rebuild();
      }
    } catch (error) {
      this.older = false;
      setText(this.note, error.message);
    }
  }

  merge(page) {
    const fresh = page.filter((event) => (!this.runId || event.run_id === this.runId) && !this.ids.has(event.id));
    for (const event of fresh) this.ids.add(event.id);
    if (!fresh.length) return [];
    const inOrder = !this.events.length || fresh[0].id > this.events[this.events.length - 1].id;
    this.events = inOrder ? this.events.concat(fresh) : [...this.events, ...fresh].sort((a, b) => a.id - b.id);
    this.firstId = this.events[0].id;
    return inOrder ? fresh : null;
  }

  takeLive(events) {
    if (this.gone) return;
    const fresh = this.merge(events);
    if (fresh === null) return void this.rebuild();
    if (!fresh.length) return;
    if (this.mode === "read") for (const event of fresh) this.built.push(event);
    this.refilter();
  }

  rebuild() {
    const anchor = this.anchor();
    this.built.clear();
    if (this.mode === "read") for (const event of this.events) this.built.push(event);
    this.refilter(anchor);
  }

  setMode(mode) {
    this.mode = mode;
    for (const one of this.modes) one.setAttribute("aria-pressed", String(one.dataset.mode === mode));
    this.heights.clear();
    for (const node of this.nodes.values()) node.remove();
    this.nodes.clear();
    this.rebuild();
    this.follow();
  }

  /** Choose what is shown, keeping the reader's place. */
  refilter(anchor = this.anchor()) {
    const words = this.find.value.trim().toLowerCase();
    let list;
    if (this.mode === "read") {
      list = this.built.items;
      if (this.closed.size) {
        const hidden = new Set(this.closed);
        list = list.filter((item) => {
          if (item.parent && hidden.has(item.parent)) {
            hidden.add(item.key);
            return false;
          }
          return true;
        });
      }
      list = list.filter((item) => item.type !== "stderr");
    } else {
      const wanted = this.mode === "stderr" ? this.events.filter((event) => event.kind === "stderr") : this.events;
      list = wanted.map((event) => ({ type: this.mode === "stderr" ? "stderr" : "raw", key: "e" + event.id, event, at: event.at, depth: 0, text: event.payload?.text ?? event.payload?.line ?? "" }));
    }
    if (words) list = list.filter((item) => searchText(item).includes(words));
    this.shown = list;
    for (const key of this.built.changed) this.redraw(key);
    this.built.changed.clear();
    const what = this.mode === "read" ? "steps" : "events";
    setText(this.note, `${list.length.toLocaleString()} ${what}${this.older ? ", loading older…" : ""}`);
    this.layout();
    if (this.stick) this.toEnd();
    else if (anchor) this.restore(anchor);
    this.draw();
  }

  redraw(key) {
    const node = this.nodes.get(key);
    if (!node) return;
    this.resize.unobserve(node);
    node.remove();
    this.nodes.delete(key);
  }

  layout() {
    const offsets = new Array(this.shown.length + 1);
    let top = 0;
    for (let index = 0; index < this.shown.length; index += 1) {
      offsets[index] = top;
      top += this.heights.get(this.shown[index].key) ?? GUESS_PX;
    }
    offsets[this.shown.length] = top;
    this.offsets = offsets;
    this.pad.style.height = top + "px";
  }

  indexAt(y) {
    let low = 0;
    let high = this.shown.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.offsets[middle] <= y) low = middle;
      else high = middle - 1;
    }
    return Math.max(0, low);
  }

  draw() {
    if (!this.body.clientHeight) return;
    if (!this.shown.length) {
      for (const node of this.nodes.values()) node.remove();
      this.nodes.clear();
      this.pad.dataset.empty = this.mode === "stderr" ? "Nothing was written to stderr." : this.find.value ? "Nothing here has these words." : "No events yet. They appear here as the agent works.";
      return;
    }
    delete this.pad.dataset.empty;
    const from = this.indexAt(this.body.scrollTop - OVERSCAN_PX);
    const to = this.indexAt(this.body.scrollTop + this.body.clientHeight + OVERSCAN_PX);
    const wanted = new Set();
    for (let index = from; index <= to; index += 1) {
      const item = this.shown[index];
      wanted.add(item.key);
      let node = this.nodes.get(item.key);
      if (!node) {
        node = h("div", { class: "f-tr-item", data: { type: item.type, depth: String(Math.min(item.depth, 3)) } });
        node.itemKey = item.key;
        put(node, this.view(item));
        this.nodes.set(item.key, node);
        this.pad.append(node);
        this.resize.observe(node);
      }
      node.style.transform = `translateY(${this.offsets[index]}px)`;
    }
    for (const [key, node] of this.nodes) {
      if (wanted.has(key)) continue;
      this.resize.unobserve(node);
      node.remove();
      this.nodes.delete(key);
    }
  }

  measure(entries) {
    let moved = false;
    const anchor = this.anchor();
    for (const entry of entries) {
      const height = entry.borderBoxSize?.[0]?.blockSize ?? entry.target.offsetHeight;
      if (!height || Math.abs((this.heights.get(entry.target.itemKey) ?? GUESS_PX) - height) < 0.5) continue;
      this.heights.set(entry.target.itemKey, height);
      moved = true;
    }
    if (!moved) return;
    this.layout();
    if (this.stick) this.toEnd();
    else if (anchor) this.restore(anchor);
    this.draw();
  }

  anchor() {
    if (!this.shown.length) return null;
    const index = this.indexAt(this.body.scrollTop);
    return { key: this.shown[index].key, by: this.body.scrollTop - this.offsets[index] };
  }

  restore({ key, by }) {
    const index = this.shown.findIndex((item) => item.key === key);
    if (index >= 0 && Math.abs(this.body.scrollTop - this.offsets[index] - by) > 1) this.body.scrollTop = this.offsets[index] + by;
  }

  toEnd() {
    this.body.scrollTop = this.body.scrollHeight;
  }

  follow() {
    this.stick = true;
    this.tail.hidden = true;
    this.toEnd();
    this.draw();
  }

  onScroll() {
    const rest = this.body.scrollHeight - this.body.scrollTop - this.body.clientHeight;
    this.stick = rest < 60;
    this.tail.hidden = this.stick;
    this.draw();
  }

  view(item) {
    switch (item.type) {
      case "text":
        return prose(String(item.text));
      case "prompt":
        return said(item, "Task", item.text);
      case "message":
        return said(item, item.by === "you" ? "Message" : `Message from ${item.by}`, item.text);
      case "thinking":
        return h("details", { class: "f-tr-thinking" }, h("summary", {}, "Thinking"), longText(item.text, { tag: "div", cls: "f-prose" }));
      case "tool":
        return this.tool(item);
      case "result":
        return resultLine(item);
      case "stderr":
        return longText(item.text, { cls: "f-pre stderr" });
      case "gap":
        return h("div", { class: "f-tr-line", data: { tone: "warn" }, text: item.text });
      case "raw":
        return this.raw(item.event);
      default:
        return h("div", { class: "f-tr-line", data: { tone: item.tone } }, h("time", { title: fullTime(item.at), text: clock(item.at) }), h("span", { text: item.text }));
    }
  }

  tool(item) {
    const running = item.output === null;
    const state = running ? "running" : item.failed ? "failed" : "succeeded";
    const seconds = item.to ? (ms(item.to) - ms(item.from)) / 1000 : null;
    const card = h("details", { class: "f-tool", data: { state } });
    card.open = this.opened.has(item.key);
    card.addEventListener("toggle", () => {
      if (card.open) this.opened.add(item.key);
      else this.opened.delete(item.key);
      if (card.open && card.children.length === 1) add(card, toolBody(item));
    });
    add(card, h("summary", {},
      h("span", { class: "f-dot", data: { state } }),
      h("b", { text: item.name }),
      h("code", { class: "f-tool-line", text: toolLine(item.name, item.input) }),
      h("span", { class: "f-tool-time", text: running ? "running…" : seconds !== null ? span(seconds) : "" })));
    if (card.open) add(card, toolBody(item));
    if (!item.steps) return card;
    const folded = this.closed.has(item.key);
    const fold = button(`${folded ? "Show" : "Hide"} the subagent's ${item.steps} step${item.steps === 1 ? "" : "s"}`, () => {
      if (folded) this.closed.delete(item.key);
      else this.closed.add(item.key);
      this.redraw(item.key);
      this.stick = false;
      this.refilter();
    }, { kind: "link" });
    return [card, fold];
  }

  raw(event) {
    const card = h("details", { class: "f-raw" });
    card.open = this.opened.has("e" + event.id);
    const body = () => longText(JSON.stringify(event.payload, null, 2), { limit: 20000 });
    card.addEventListener("toggle", () => {
      if (card.open) this.opened.add("e" + event.id);
      else this.opened.delete("e" + event.id);
      if (card.open && card.children.length === 1) add(card, body());
    });
    add(card, h("summary", {},
      h("code", { text: `#${event.seq}` }), " ", h("b", { text: `${event.kind} ${event.type ?? ""}` }), " ",
      h("time", { class: "f-dim", title: fullTime(event.at), text: clock(event.at) })));
    if (card.open) add(card, body());
    return card;
  }
}

function searchText(item) {
  if (item.event) return (item.event.kind + " " + item.event.type + " " + JSON.stringify(item.event.payload)).toLowerCase();
  return [item.text, item.name, item.output, item.input && JSON.stringify(item.input)].filter(Boolean).join(" ").toLowerCase();
}

function said(item, who, text) {
  return h("div", { class: "f-said" }, h("div", { class: "f-said-who" }, who, h("time", { title: fullTime(item.at), text: clock(item.at) })), longText(text, { tag: "div", cls: "f-prose" }));
}

/** An agent's words: fenced code as code, the rest as text. No markup is ever made from them. */
export function prose(text) {
  const out = h("div", { class: "f-agent-said" });
  if (text.length > 20000) return longText(text, { tag: "div", cls: "f-prose" });
  const parts = text.split(/```[^\n]*\n?/);
  parts.forEach((part, index) => {
    if (!part.trim()) return;
    out.append(index % 2 ? longText(part.replace(/\n$/, ""), { cls: "f-pre" }) : inline(part.trim()));
  });
  return out;
}

function inline(text) {
  const node = h("div", { class: "f-prose" });
  for (const piece of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (piece.length > 2 && piece.startsWith("`") && piece.endsWith("`")) node.append(h("code", { text: piece.slice(1, -1) }));
    else if (piece.length > 4 && piece.startsWith("**") && piece.endsWith("**")) node.append(h("strong", { text: piece.slice(2, -2) }));
    else add(node, piece);
  }
  return node;
}

function toolBody(item) {
  const edit = diffOfEdit(item.name, item.input);
  const input = edit ?? (item.name === "Bash" && item.input.command ? longText(item.input.command) : longText(JSON.stringify(item.input, null, 2)));
  return h("div", { class: "f-tool-body" },
    h("div", { class: "f-tool-head" }, "Input", copyButton(() => item.input.command ?? JSON.stringify(item.input, null, 2))), input,
    item.output === null ? h("div", { class: "f-dim" }, "No output yet.") : [
      h("div", { class: "f-tool-head" }, item.failed ? "Output (an error)" : "Output", copyButton(() => item.output)),
      item.output ? longText(item.output) : h("div", { class: "f-dim" }, "It printed nothing."),
    ]);
}

export function copyButton(text, label = "Copy") {
  const node = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
      setText(node, "Copied");
    } catch {
      setText(node, "Not allowed");
    }
    setTimeout(() => setText(node, label), 1500);
  }, { kind: "link" });
  return node;
}

function resultLine(item) {
  const frame = item.frame;
  const bad = frame.is_error || (frame.subtype && frame.subtype !== "success");
  const parts = [bad ? (frame.subtype === "success" ? frame.terminal_reason ?? "error" : frame.subtype ?? "error").replaceAll("_", " ") : "Finished",
    frame.num_turns !== undefined ? `${frame.num_turns} turns` : "", frame.duration_ms !== undefined ? span(frame.duration_ms / 1000) : "",
    frame.total_cost_usd !== undefined ? money(frame.total_cost_usd) : ""].filter(Boolean);
  return h("div", { class: "f-tr-line", data: { tone: bad ? "bad" : "good" } }, h("time", { title: fullTime(item.at), text: clock(item.at) }), h("b", { text: parts.join(" · ") }));
}
