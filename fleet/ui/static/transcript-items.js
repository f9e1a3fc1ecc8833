// From events to what a reader sees: texts, tool cards with input, output and duration, subagents nested in their call.

/** Build items from events. Feed events in order with `push`; `items` is the list in reading order. */
export class Items {
  constructor() {
    this.clear();
  }

  clear() {
    this.items = [];
    this.tools = new Map();
    this.changed = new Set();
    this.run = null;
  }

  push(event) {
    const payload = event.payload ?? {};
    if (event.run_id !== this.run) {
      if (this.run !== null) this.put(event, { type: "line", tone: "strong", text: `Run ${event.run_id} by ${event.agent_id}` });
      this.run = event.run_id;
    }
    switch (event.kind) {
      case "frame":
        return this.frame(event, payload);
      case "state":
        return this.put(event, { type: "line", tone: "state", text: stateText(event.type, payload) });
      case "stderr":
        return this.put(event, { type: "stderr", text: payload.text ?? payload.line ?? JSON.stringify(payload) });
      case "message":
        return this.put(event, { type: "message", text: payload.text ?? payload.message ?? JSON.stringify(payload), by: payload.by ?? "you" });
      case "gap":
        return this.put(event, { type: "gap", text: `${payload.count ?? "Some"} events were left out under pressure.` });
      default:
        return undefined;
    }
  }

  frame(event, frame) {
    const parent = frame.parent_tool_use_id ?? null;
    switch (event.type || frame.type) {
      case "assistant":
        for (const [index, block] of blocks(frame.message?.content).entries()) this.said(event, block, index, parent);
        return;
      case "user":
        for (const [index, block] of blocks(frame.message?.content).entries()) this.answered(event, block, index, parent, frame);
        return;
      case "system":
        this.system(event, frame, parent);
        return;
      case "result":
        this.put(event, { type: "result", frame });
        return;
      case "rate_limit_event":
        this.put(event, { type: "line", tone: "warn", text: "Rate limit: " + short(frame.rate_limit_info ?? frame) });
        return;
      default:
        // Deltas, control frames and whatever comes later are in the raw view.
    }
  }

  said(event, block, index, parent) {
    if (block.type === "text") {
      if ((block.text ?? "").trim()) this.put(event, { type: "text", text: block.text }, index, parent);
    } else if (block.type === "thinking") {
      this.put(event, { type: "thinking", text: block.thinking ?? "" }, index, parent);
    } else if (block.type === "tool_use" || block.type === "server_tool_use") {
      const item = this.put(
        event,
        { type: "tool", id: block.id, name: block.name, input: block.input ?? {}, output: null, failed: false, from: event.at, to: null, steps: 0 },
        index,
        parent,
      );
      this.tools.set(block.id, item);
    } else this.put(event, { type: "line", tone: "state", text: `${block.type}: ${short(block)}` }, index, parent);
  }

  answered(event, block, index, parent, frame) {
    if (block.type === "tool_result") {
      const item = this.tools.get(block.tool_use_id);
      const output = contentText(block.content);
      if (!item) {
        this.put(event, { type: "tool", id: block.tool_use_id, name: "result of an earlier call", input: {}, output, failed: !!block.is_error, from: event.at, to: event.at, steps: 0 }, index, parent);
        return;
      }
      item.output = output;
      item.failed = !!block.is_error;
      item.to = event.at;
      this.changed.add(item.key);
      return;
    }
    if (block.type === "text" && (block.text ?? "").trim() && !frame.isSynthetic) {
      this.put(event, { type: "prompt", text: block.text }, index, parent);
    }
  }

  system(event, frame, parent) {
    const subtype = frame.subtype ?? "";
    if (subtype === "init") {
      const text = `Claude Code ${frame.claude_code_version ?? ""} · ${frame.model ?? ""} · ${frame.cwd ?? ""}`;
      this.put(event, { type: "line", tone: "state", text });
    } else if (subtype === "api_retry") {
      const text = `The model service answered ${frame.error_status ?? "nothing"} (${frame.error ?? ""}); try ${frame.attempt ?? "?"} of ${frame.max_retries ?? "?"}`;
      this.put(event, { type: "line", tone: "warn", text });
    } else if (subtype === "compact_boundary") {
      this.put(event, { type: "line", tone: "state", text: "The conversation was compacted." });
    } else if (subtype === "permission_denied") {
      this.put(event, { type: "line", tone: "warn", text: "A tool call was refused: " + short(frame.tool_name ?? frame) }, 0, parent);
    } else if (subtype.startsWith("model_")) {
      this.put(event, { type: "line", tone: "warn", text: subtype.replaceAll("_", " ") });
    }
  }

  put(event, item, index = 0, parent = null) {
    const key = `${event.id ?? event.run_id + ":" + event.seq}.${index}`;
    const full = { ...item, key, at: event.at, runId: event.run_id, eventId: event.id, depth: 0, parent: null, end: null };
    const owner = parent && this.tools.get(parent);
    if (owner) {
      full.depth = owner.depth + 1;
      full.parent = owner.key;
      owner.steps += 1;
      this.changed.add(owner.key);
      // Right after the last of its siblings: two subagents at once stay two blocks.
      let place = this.items.indexOf(owner) + 1;
      while (place < this.items.length && this.items[place].depth > owner.depth) place += 1;
      this.items.splice(place, 0, full);
    } else this.items.push(full);
    return full;
  }
}

function blocks(content) {
  if (typeof content === "string") return [{ type: "text", text: content }];
  return Array.isArray(content) ? content : [];
}

/** The text of a tool's answer, whatever its form. */
export function contentText(content) {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (Array.isArray(content)) {
    return content.map((part) => (part.type === "text" ? part.text : part.type === "image" ? "[image]" : JSON.stringify(part))).join("\n");
  }
  return JSON.stringify(content, null, 2);
}

export function short(value, limit = 200) {
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "";
  return text.length > limit ? text.slice(0, limit) + "…" : text;
}

function stateText(type, payload) {
  const words = (type || "state").replaceAll("_", " ");
  const rest = payload.text ?? payload.detail ?? payload.why ?? payload.path ?? payload.reason;
  if (rest) return `${words}: ${rest}`;
  const keys = Object.keys(payload);
  return keys.length ? `${words}: ${short(payload)}` : words;
}

/** One line that says what a tool call does. */
export function toolLine(name, input) {
  const known = { Bash: "command", Read: "file_path", Write: "file_path", Edit: "file_path", MultiEdit: "file_path", NotebookEdit: "notebook_path", Glob: "pattern", Grep: "pattern", WebFetch: "url", WebSearch: "query", Task: "description", Agent: "description" };
  const value = input?.[known[name]] ?? input?.description ?? input?.command ?? input?.file_path;
  return short(value !== undefined && value !== null ? String(value).split("\n", 1)[0] : Object.keys(input ?? {}).length ? input : "", 160);
}
