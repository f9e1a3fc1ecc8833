// The form for new tasks: one, or many from lines or a CSV; templates; what is wrong is said next to its field.
import { api, get, listOf, post } from "./api.js";
import { button, h, put, setText } from "./dom.js";
import { fleet, on } from "./live.js";
import { go, here } from "./place.js";
import { act, askText, toast } from "./toast.js";

const PROMPT_BYTES = 1_000_000;
const BATCH = 1000;
const TEMPLATES = "templates";

export function newTaskView() {
  const fields = {};
  let turn = 0;

  function field(name, label, control, help = "") {
    const id = `fleet-new-${name}`;
    control.id = id;
    const error = h("div", { class: "f-error", id: id + "-error", role: "alert" });
    control.setAttribute("aria-describedby", id + "-error");
    fields[name] = { control, error };
    control.addEventListener("input", () => wrong(name, ""));
    return h("div", { class: "f-field" }, h("label", { class: "f-label", for: id, text: label }), control, help ? h("div", { class: "f-help", text: help }) : null, error);
  }

  function wrong(name, text) {
    const { control, error } = fields[name];
    setText(error, text);
    control.setAttribute("aria-invalid", text ? "true" : "false");
    return !text;
  }

  const input = (props = {}) => h("input", { class: "f-input", autocomplete: "off", ...props });
  const role = h("select", { class: "f-input" });
  const prompt = h("textarea", { class: "f-input", rows: 8, placeholder: "What should the agent do?" });
  const file = h("input", { type: "file", multiple: true, class: "f-file", "aria-label": "Add files to the prompt", accept: "text/*,.md,.py,.js,.ts,.json,.toml,.yaml,.yml,.csv,.log,.diff,.patch" });
  const kind = h("select", { class: "f-input" }, [["", "The role's own"], ["scratch", "A fresh empty folder"], ["directory", "A directory, worked in directly"], ["worktree", "A git worktree of a local repository"], ["git", "A worktree of a clone of a git URL"]].map(([value, text]) => h("option", { value, text })));
  const size = h("div", { class: "f-help", role: "status" });
  const many = h("textarea", { class: "f-input mono", rows: 8, placeholder: "One prompt on each line.\nOr a CSV whose first line names columns: prompt,role,priority,workspace,key" });
  const manyFile = h("input", { type: "file", class: "f-file", accept: ".csv,.txt,text/csv,text/plain", "aria-label": "Read the lines from a file" });
  const manyInfo = h("div", { class: "f-help", role: "status" });
  const templates = h("select", { class: "f-input small", "aria-label": "Template" });
  const progress = h("progress", { class: "f-progress", max: 1, value: 0, "aria-label": "Submitted" });
  progress.hidden = true;
  const done = h("div", { class: "f-done", role: "status" });
  const submit = button("Submit task", () => send(), { kind: "primary", id: "fleet-new-submit" });
  const modes = ["one", "many"].map((mode) => h("button", { type: "button", class: "f-seg", data: { mode }, "aria-pressed": String(mode === "one"), on: { click: () => setMode(mode) } }, { one: "One task", many: "Many at once" }[mode]));
  const oneBox = h("div", {}, field("prompt", "Prompt", prompt), h("div", { class: "f-row wrap" }, h("label", { class: "f-help" }, "Put text files into the prompt: ", file), size));
  const manyBox = h("div", {}, field("many", "Prompts", many), h("div", { class: "f-row wrap" }, h("label", { class: "f-help" }, "From a file: ", manyFile), manyInfo));
  manyBox.hidden = true;

  const node = h("div", { class: "f-view f-page f-narrow" },
    h("div", { class: "f-bar" }, h("div", { class: "f-segs", role: "group", "aria-label": "How many" }, modes), h("span", { class: "f-grow" }), templates,
      button("Save as template…", saveTemplate, { kind: "small" }), button("Delete template", deleteTemplate, { kind: "small" })),
    h("form", { class: "f-panel f-form", novalidate: true, on: { submit: (event) => event.preventDefault() } },
      field("role", "Role", role), oneBox, manyBox,
      h("div", { class: "f-cols" }, field("priority", "Priority", input({ type: "number", min: 0, max: 9, value: 5 }), "0 to 9; higher goes first"), field("kind", "Working directory", kind),
        field("path", "Path or URL", input({ placeholder: "/home/me/project" }), "Under the configured roots"), field("ref", "Branch or commit", input({ placeholder: "HEAD" }))),
      h("details", {}, h("summary", {}, "Limits and more"),
        h("div", { class: "f-cols" }, field("max_turns", "Most turns", input({ type: "number", min: 1, max: 1000, placeholder: "the role's" })), field("max_cost_usd", "Most cost (USD)", input({ type: "number", min: 0, step: "any", placeholder: "the role's" })),
          field("time_limit_s", "Time limit (seconds)", input({ type: "number", min: 1, step: "any", placeholder: "the role's" })), field("retries", "Retries", input({ type: "number", min: 0, max: 100, placeholder: "the role's" })),
          field("idempotency_key", "Idempotency key", input({ maxlength: 200 }), "The same key again gives the first task"), field("depends_on", "Waits for tasks", input({ placeholder: "ids, with commas" })),
          field("labels", "Labels", input({ placeholder: "name=value, name=value" })), field("agent", "Only this agent", input({ placeholder: "any agent of the role" })))),
      h("div", { class: "f-row wrap" }, submit, h("span", { class: "f-help" }, "Ctrl+Enter submits"), progress), done));

  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    }
  });
  prompt.addEventListener("input", measure);
  many.addEventListener("input", measureMany);
  kind.addEventListener("input", showPath);
  file.addEventListener("change", () => readFiles(file, (name, text) => {
    prompt.value += `${prompt.value && !prompt.value.endsWith("\n") ? "\n" : ""}\n<file name="${name}">\n${text}\n</file>\n`;
    measure();
  }));
  manyFile.addEventListener("change", () => readFiles(manyFile, (name, text) => {
    many.value = text;
    measureMany();
  }));
  templates.addEventListener("change", useTemplate);

  async function readFiles(control, take) {
    for (const one of control.files) {
      if (one.size > PROMPT_BYTES * 8) toast(`${one.name} is too large (${one.size.toLocaleString()} bytes).`, "bad");
      else take(one.name, await one.text());
    }
    control.value = "";
  }

  function setMode(mode) {
    for (const one of modes) one.setAttribute("aria-pressed", String(one.dataset.mode === mode));
    oneBox.hidden = mode !== "one";
    manyBox.hidden = mode === "one";
    fields.idempotency_key.control.disabled = mode !== "one";
    measureMany();
  }

  const isMany = () => !manyBox.hidden;
  const bytes = (text) => new TextEncoder().encode(text).length;

  function measure() {
    const n = bytes(prompt.value);
    setText(size, n ? `${n.toLocaleString()} of ${PROMPT_BYTES.toLocaleString()} bytes` : "");
    if (n > PROMPT_BYTES) wrong("prompt", `Expected at most ${PROMPT_BYTES.toLocaleString()} bytes, but there are ${n.toLocaleString()}. Put large texts into files that the agent reads.`);
  }

  function measureMany() {
    setText(submit, "Submit task");
    if (!isMany()) return;
    try {
      const list = parseMany(many.value);
      setText(manyInfo, `${list.length} task${list.length === 1 ? "" : "s"}`);
      setText(submit, `Submit ${list.length} task${list.length === 1 ? "" : "s"}`);
    } catch (error) {
      setText(manyInfo, "");
      wrong("many", error.message);
    }
  }

  function showPath() {
    const value = kind.value;
    fields.path.control.closest(".f-field").hidden = !value || value === "scratch";
    fields.ref.control.closest(".f-field").hidden = value !== "worktree" && value !== "git";
  }

  function number(name, { min, max, whole = true }) {
    const { control } = fields[name];
    if (control.value.trim() === "" && !control.validity.badInput) return null;
    const value = Number(control.value);
    const range = max === undefined ? `a number of at least ${min}` : `a${whole ? " whole" : ""} number from ${min} to ${max}`;
    if (control.validity.badInput || !isFinite(value) || (whole && !Number.isInteger(value)) || value < min || (max !== undefined && value > max)) {
      wrong(name, `Expected ${range}.`);
      return undefined;
    }
    return value;
  }

  /** Read the form; null when something is wrong (said next to its field). */
  function read() {
    for (const name of Object.keys(fields)) wrong(name, "");
    const spec = { role: role.value };
    let fine = role.value ? true : wrong("role", "Choose a role.");
    if (!isMany()) {
      spec.prompt = prompt.value;
      const n = bytes(prompt.value);
      if (!prompt.value.trim()) fine = wrong("prompt", "Say what the agent should do.");
      else if (n > PROMPT_BYTES) fine = wrong("prompt", `Expected at most ${PROMPT_BYTES.toLocaleString()} bytes, but there are ${n.toLocaleString()}.`);
    }
    const priority = number("priority", { min: 0, max: 9 });
    if (priority === undefined) fine = false;
    else spec.priority = priority ?? 5;
    const limits = {};
    for (const [name, rule] of [["max_turns", { min: 1, max: 1000 }], ["max_cost_usd", { min: 0.000001, whole: false }], ["time_limit_s", { min: 0.001, whole: false }], ["retries", { min: 0, max: 100 }]]) {
      const value = number(name, rule);
      if (value === undefined) fine = false;
      else if (value !== null) limits[name] = value;
    }
    spec.limits = limits;
    if (kind.value) {
      const path = fields.path.control.value.trim();
      if (kind.value !== "scratch" && !path) fine = wrong("path", kind.value === "git" ? "Give the URL of the repository." : "Give the path.");
      else if ((kind.value === "directory" || kind.value === "worktree") && !/^[/~]/.test(path)) fine = wrong("path", "Expected an absolute path, such as /home/me/project.");
      spec.workspace = kind.value === "scratch" ? { kind: "scratch" } : { kind: kind.value, path, ref: fields.ref.control.closest(".f-field").hidden ? null : fields.ref.control.value.trim() || null };
    }
    if (!isMany() && fields.idempotency_key.control.value.trim()) spec.idempotency_key = fields.idempotency_key.control.value.trim();
    const after = fields.depends_on.control.value.split(/[\s,]+/).filter(Boolean);
    if (after.length) spec.depends_on = after;
    if (fields.agent.control.value.trim()) spec.agent = fields.agent.control.value.trim();
    const labels = {};
    for (const part of fields.labels.control.value.split(",").map((one) => one.trim()).filter(Boolean)) {
      const at = part.indexOf("=");
      if (at < 1) fine = wrong("labels", `Expected name=value, but got “${part}”.`);
      else labels[part.slice(0, at).trim()] = part.slice(at + 1).trim();
    }
    spec.labels = labels;
    if (!fine) {
      const first = Object.values(fields).find(({ control }) => control.getAttribute("aria-invalid") === "true");
      first?.control.closest("details")?.setAttribute("open", "");
      first?.control.focus();
    }
    return fine ? spec : null;
  }

  async function send() {
    const spec = read();
    if (!spec) return;
    let specs = [spec];
    if (isMany()) {
      try {
        specs = parseMany(many.value).map((row) => ({ ...spec, ...row }));
      } catch (error) {
        return void wrong("many", error.message);
      }
      if (!specs.length) return void wrong("many", "Write at least one line.");
    }
    // A key of our own makes a click that is repeated after a lost answer return the first tasks.
    turn += 1;
    const stamp = `ui-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}-${turn}`;
    specs = specs.map((one, index) => (one.idempotency_key ? one : { ...one, idempotency_key: `${stamp}-${index}` }));
    submit.disabled = true;
    submit.setAttribute("aria-busy", "true");
    progress.hidden = specs.length <= BATCH;
    progress.max = specs.length;
    const made = [];
    try {
      if (specs.length === 1) made.push(await post("/tasks", specs[0]));
      else for (let at = 0; at < specs.length; at += BATCH) {
        made.push(...listOf(await post("/tasks", specs.slice(at, at + BATCH)), "tasks"));
        progress.value = made.length;
      }
      if (made.length === 1) put(done, "Submitted: ", h("a", { href: `?tab=tasks&task=${made[0].id}`, data: { go: `tab=tasks&task=${made[0].id}` }, text: made[0].title || made[0].id }));
      else put(done, `Submitted ${made.length} tasks. `, h("a", { href: "?tab=tasks", data: { go: "tab=tasks" } }, "See them"));
      (isMany() ? many : prompt).value = "";
      measure();
      if (isMany()) measureMany();
    } catch (error) {
      refused(error, made.length);
    } finally {
      submit.disabled = false;
      submit.removeAttribute("aria-busy");
      progress.hidden = true;
    }
  }

  function refused(error, sent) {
    const name = String(error.fields?.field ?? "");
    const row = /^tasks\.(\d+)\.?(.*)$/.exec(name);
    const key = (row ? row[2] : name).split(".");
    const target = row && isMany() && ["prompt", "role", "priority", "workspace"].includes(key[0]) ? "many"
      : key[0] === "workspace" || error.code === "workspace_refused" ? (fields.path.control.closest(".f-field").hidden ? "kind" : "path")
      : error.code === "unknown_role" ? "role" : error.code === "prompt_too_large" ? (isMany() ? "many" : "prompt") : fields[key[key.length - 1]] ? key[key.length - 1] : null;
    const text = (row ? `Line ${Number(row[1]) + 1 + sent}: ` : "") + error.message;
    if (target) {
      wrong(target, text);
      fields[target].control.closest("details")?.setAttribute("open", "");
      fields[target].control.focus();
    } else toast(text, "bad");
    put(done, sent ? `${sent} tasks were submitted before the one that was refused.` : "");
  }

  function drawRoles() {
    const names = fleet.roles.map((one) => one.role?.name).filter(Boolean);
    if (names.join() === [...role.options].map((option) => option.value).join()) return;
    const before = role.dataset.wanted || role.value;
    put(role, names.map((name) => h("option", { value: name, text: name })));
    if (names.includes(before)) role.value = before;
  }

  let kept = {};
  async function loadTemplates() {
    try {
      const { value } = await get("/settings/" + TEMPLATES);
      kept = value && !Array.isArray(value) ? value : {};
    } catch {
      kept = {};
    }
    put(templates, h("option", { value: "", text: Object.keys(kept).length ? "Use a template…" : "No templates yet" }), Object.keys(kept).sort().map((name) => h("option", { value: name, text: name })));
  }

  async function saveTemplate() {
    const name = await askText("Save as template", "Name", { rows: 1, yes: "Save" });
    if (!name?.trim()) return;
    const values = Object.fromEntries(Object.entries(fields).filter(([key]) => key !== "idempotency_key" && key !== "many").map(([key, { control }]) => [key, control.value]));
    await loadTemplates();
    await act(null, () => api("PUT", "/settings/" + TEMPLATES, { value: { ...kept, [name.trim().slice(0, 80)]: values } }), "Template saved.");
    await loadTemplates();
    templates.value = name.trim().slice(0, 80);
  }

  async function deleteTemplate() {
    const name = templates.value;
    if (!name) return void toast("Choose a template first.");
    await loadTemplates();
    const rest = { ...kept };
    delete rest[name];
    await act(null, () => api("PUT", "/settings/" + TEMPLATES, { value: rest }), "Template deleted.");
    await loadTemplates();
  }

  function useTemplate() {
    const values = kept[templates.value];
    if (values) fill(values);
  }

  function fill(values) {
    for (const [key, value] of Object.entries(values)) {
      if (!fields[key]) continue;
      fields[key].control.value = value ?? "";
      if (key === "role") role.dataset.wanted = value;
      wrong(key, "");
    }
    showPath();
    measure();
  }

  function shown() {
    loadTemplates();
    placed();
  }

  function placed() {
    if (here().get("tab") !== "new") return;
    const copied = sessionStorage.getItem("fleet-copy");
    if (!copied) return;
    sessionStorage.removeItem("fleet-copy");
    const task = JSON.parse(copied);
    fill({ role: task.role, prompt: task.prompt, priority: task.priority, kind: task.workspace?.kind ?? "", path: task.workspace?.path ?? "", ref: task.workspace?.ref ?? "",
      max_turns: task.limits?.max_turns, max_cost_usd: task.limits?.max_cost_usd, time_limit_s: task.limits?.time_limit_s, retries: task.limits?.retries, labels: Object.entries(task.labels ?? {}).map(([key, value]) => `${key}=${value}`).join(", ") });
  }

  role.addEventListener("change", () => delete role.dataset.wanted);
  on("roles", drawRoles);
  drawRoles();
  showPath();
  loadTemplates();
  return { node, shown, placed };
}

/** Lines, or a CSV whose header has a `prompt` column, as parts of tasks. */
export function parseMany(text) {
  const head = text.split("\n", 1)[0].split(",").map((name) => name.trim().toLowerCase().replace(/^"|"$/g, ""));
  if (!head.includes("prompt")) return text.split("\n").map((line) => line.trim()).filter(Boolean).map((prompt) => ({ prompt }));
  const known = new Set(["prompt", "role", "priority", "workspace", "key", "idempotency_key"]);
  const odd = head.find((name) => !known.has(name));
  if (odd !== undefined) throw new Error(`Line 1: unknown column “${odd}”; expected some of ${[...known].join(", ")}.`);
  return parseCsv(text).slice(1).map((cells, index) => {
    const row = Object.fromEntries(head.map((name, at) => [name, (cells[at] ?? "").trim()]));
    if (!row.prompt) throw new Error(`Line ${index + 2}: the prompt is empty.`);
    const out = { prompt: row.prompt };
    if (row.role) out.role = row.role;
    if (row.priority) {
      if (!/^[0-9]$/.test(row.priority)) throw new Error(`Line ${index + 2}: expected a priority from 0 to 9, but got “${row.priority}”.`);
      out.priority = Number(row.priority);
    }
    if (row.workspace) out.workspace = row.workspace;
    const key = row.idempotency_key || row.key;
    if (key) out.idempotency_key = key;
    return out;
  });
}

/** A CSV with quoted cells, as rows of cells; empty lines are left out. */
export function parseCsv(text) {
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < text.length; at += 1) {
    const sign = text[at];
    if (quoted) {
      if (sign === '"' && text[at + 1] === '"') {
        cell += '"';
        at += 1;
      } else if (sign === '"') quoted = false;
      else cell += sign;
    } else if (sign === '"' && cell === "") quoted = true;
    else if (sign === ",") {
      row.push(cell);
      cell = "";
    } else if (sign === "\n") {
      row.push(cell.replace(/\r$/, ""));
      rows.push(row);
      row = [];
      cell = "";
    } else cell += sign;
  }
  row.push(cell);
  rows.push(row);
  return rows.filter((one) => one.some((value) => value.trim()));
}
