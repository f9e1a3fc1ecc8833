// Tool calls that wait for a person: on a page of their own, and on the agent's and the task's page.
import { get, listOf, post, query } from "./api.js";
import { button, empty, h, keyed, longText, pill, put, setText } from "./dom.js";
import { diffOfEdit } from "./diff.js";
import { ago, clock, fullTime, span } from "./format.js";
import { fleet, on } from "./live.js";
import { act, askText, dialog } from "./toast.js";

export function approvalsView() {
  const waiting = h("div", { class: "f-approvals" });
  const past = h("div");
  const node = h("div", { class: "f-view f-page" },
    h("section", { "aria-label": "Waiting approvals" }, h("h2", {}, "Waiting for you"), waiting),
    h("section", { class: "f-panel", "aria-label": "Decided approvals" }, h("h2", {}, "Decided"), past));
  let seen = "";

  async function loadPast() {
    try {
      const all = listOf(await get("/approvals" + query({ all: true, limit: 100 }))).filter((one) => one.state !== "waiting");
      if (!all.length) return void put(past, h("p", { class: "f-dim" }, "Nothing was decided yet."));
      put(past, h("div", { class: "f-scroll" }, h("table", { class: "f-table" }, h("thead", {}, h("tr", {}, ["When", "What", "Agent", "Answer", "By", "Words"].map((name) => h("th", { scope: "col", text: name })))),
        h("tbody", {}, all.map((one) => h("tr", {},
          h("td", {}, h("time", { title: fullTime(one.decided_at ?? one.created_at), text: clock(one.decided_at ?? one.created_at) })),
          h("td", {}, h("b", { text: one.tool }), " ", h("code", { class: "f-clip", text: callLine(one) })),
          h("td", {}, h("a", { href: `?agent=${one.agent_id}`, data: { go: `agent=${one.agent_id}` }, text: one.agent_id })),
          h("td", {}, pill(one.state), one.state === "allowed" && one.scope !== "once" ? ` for the ${one.scope}` : "", one.changed_input ? " with a changed input" : ""),
          h("td", { text: one.decided_by || (one.state === "expired" ? "nobody in time" : "") }),
          h("td", { class: "f-clip", text: one.message })))))));
    } catch (error) {
      put(past, h("p", { class: "f-dim", text: error.message }));
    }
  }

  function draw() {
    const list = [...fleet.approvals.values()].sort((a, b) => a.created_at.localeCompare(b.created_at));
    if (!list.length) keyed(waiting, [{ id: "none" }], (one) => one.id, () => empty("Nothing waits for you.", "A tool call outside a role's rules waits here when the role says approvals = \"ask\" in fleet.toml; else it is refused."));
    else approvalCards(waiting, list, true);
    const now = list.map((one) => one.id).join();
    if (now !== seen) {
      seen = now;
      loadPast();
    }
  }
  on("approvals resync", draw);
  on("clock", () => node.offsetParent && approvalCards.tick(waiting));
  draw();
  loadPast();
  return { node, shown: loadPast };
}

function callLine(one) {
  const input = one.input ?? {};
  return String(input.command ?? input.file_path ?? input.url ?? input.description ?? JSON.stringify(input)).slice(0, 200);
}

/** Keep cards for these approvals in `parent`. */
export function approvalCards(parent, list, withLinks = false) {
  keyed(parent, list, (one) => one.id, (one) => card(one, withLinks));
  approvalCards.tick(parent);
}
approvalCards.tick = (parent) => {
  for (const node of parent.children) node.tick?.();
};

function card(one, withLinks) {
  const left = h("span", { class: "f-num f-dim" });
  const role = fleet.roles.find((entry) => entry.role?.name === one.role)?.role;
  const shown = diffOfEdit(one.tool, one.input) ?? (one.input?.command ? longText(one.input.command, { cls: "f-pre command" }) : longText(JSON.stringify(one.input, null, 2)));
  const send = (control, body, done) => act(control, () => post(`/approvals/${encodeURIComponent(one.id)}`, { by: "control room", ...body }), done);
  const allow = (scope, label, kind, title) => {
    const control = button(label, () => send(control, { allow: true, scope }, "Allowed."), { kind, title });
    return control;
  };
  const change = button("Change…", async () => {
    const changed = await changeInput(one);
    if (changed) send(change, { allow: true, changed_input: changed }, "Allowed with your input.");
  }, { kind: "small", title: "Allow it with another input" });
  const deny = button("Deny…", async () => {
    const message = await askText("Deny this call", "Words to the agent (they reach it as the answer; may be empty)", { yes: "Deny", kind: "danger" });
    if (message !== null) send(deny, { allow: false, message }, "Denied.");
  }, { kind: "small danger" });
  const node = h("article", { class: "f-approval", "aria-label": `${one.agent_id} wants to use ${one.tool}` },
    h("div", { class: "f-row wrap" }, h("span", { class: "f-dot", data: { state: "waiting" } }),
      h("span", {}, h("b", { text: one.agent_id }), " wants to use ", h("b", { text: one.tool })), h("span", { class: "f-grow" }), left),
    withLinks ? h("div", { class: "f-row wrap f-dim" },
      h("a", { href: `?tab=tasks&task=${one.task_id}`, data: { go: `tab=tasks&task=${one.task_id}` }, text: fleet.tasks.get(one.task_id)?.title ?? one.task_id }),
      h("a", { href: `?agent=${one.agent_id}`, data: { go: `agent=${one.agent_id}` }, text: "its transcript" })) : null,
    one.description ? h("p", { text: one.description }) : null, shown,
    h("div", { class: "f-row wrap" }, allow("once", "Allow once", "primary small"), allow("task", "Allow for this task", "small", "Such calls of this task are not asked again"),
      allow("role", `Allow for ${one.role}`, "small", "Such calls of every task of the role are not asked again"), change, deny));
  node.tick = () => {
    const seconds = (Date.parse(one.expires_at) - Date.now()) / 1000;
    setText(left, `waits ${ago(one.created_at)} · ${seconds > 0 ? `in ${span(seconds)} it is ${role?.approval_default === "allow" ? "allowed" : "denied"} by itself` : "time is over"}`);
  };
  node.tick();
  return node;
}

function changeInput(one) {
  const simple = typeof one.input?.command === "string";
  return dialog("Change the input", (close) => {
    const field = h("textarea", { class: "f-input mono", rows: 8, "aria-label": simple ? "Command" : "Input as JSON", value: simple ? one.input.command : JSON.stringify(one.input, null, 2) });
    const wrong = h("p", { class: "f-error", role: "alert" });
    setTimeout(() => field.focus());
    return [h("label", { class: "f-label" }, simple ? "Command" : "Input as JSON"), field, wrong,
      h("div", { class: "f-row end" }, button("Back", () => close()), button("Allow with this input", () => {
        if (simple) return close({ ...one.input, command: field.value });
        try {
          close(JSON.parse(field.value));
        } catch (error) {
          setText(wrong, "Expected JSON, but " + error.message);
        }
        return undefined;
      }, { kind: "primary" }))];
  });
}
