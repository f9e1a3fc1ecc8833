// Search over all transcripts; the SQL desk below it is Gradio's.
import { get, listOf, query } from "./api.js";
import { add, button, empty, h, pill, put, setText, visible } from "./dom.js";
import { clock, fullTime } from "./format.js";
import { fleet, on } from "./live.js";
import { select } from "./overview.js";
import { go, here } from "./place.js";

export function searchView() {
  const words = h("input", { type: "search", class: "f-input", placeholder: "Words in any transcript", "aria-label": "Words in any transcript" });
  const tool = h("input", { class: "f-input small", placeholder: "Tool, e.g. Bash", "aria-label": "Tool" });
  const path = h("input", { class: "f-input small", placeholder: "File path", "aria-label": "File path" });
  const role = select("Role", [["", "All roles"]]);
  const run = button("Search", () => go({ tab: "search", words: words.value.trim() || null, tool: tool.value.trim() || null, path: path.value.trim() || null, in: role.value || null }), { kind: "primary small" });
  const said = h("span", { class: "f-dim", role: "status" });
  const found = h("div", { class: "f-found" });
  const node = h("div", { class: "f-view f-page" }, h("section", { "aria-label": "Search transcripts" }, h("h2", {}, "Search transcripts"),
    h("div", { class: "f-bar" }, words, tool, path, role, run, said), found), h("h2", {}, "SQL"));
  for (const one of [words, tool, path]) one.addEventListener("keydown", (event) => event.key === "Enter" && run.click());
  let asked = "";

  async function placed() {
    const now = here();
    if (now.get("tab") !== "search") return;
    const want = { q: now.get("words") ?? "", tool: now.get("tool"), path: now.get("path"), role: now.get("in") };
    if (document.activeElement !== words) words.value = want.q;
    tool.value = want.tool ?? "";
    path.value = want.path ?? "";
    const key = JSON.stringify(want);
    if (key === asked) return;
    asked = key;
    if (!want.q && !want.tool && !want.path) {
      setText(said, "");
      return void put(found);
    }
    setText(said, "searching…");
    try {
      const list = listOf(await get("/search" + query({ ...want, limit: 100 })));
      setText(said, `${list.length}${list.length === 100 ? " newest" : ""} found`);
      put(found, list.length ? list.map((one) => row(one, want.q)) : empty("Nothing was said with these words.", "Fewer words find more. The search covers texts, tool calls and their output."));
    } catch (error) {
      setText(said, error.message);
      asked = "";
    }
  }

  on("roles", () => {
    const before = role.value || here().get("in") || "";
    put(role, h("option", { value: "", text: "All roles" }), fleet.roles.map((one) => h("option", { value: one.role.name, text: one.role.name })));
    role.value = before;
  });
  placed();
  return { node, placed, shown: placed };
}

function row(one, words) {
  const at = typeof one.at === "number" ? one.at : String(one.at).replace(" ", "T").replace(/(\d)$/, "$1Z").replace(/ZZ$/, "Z");
  return h("a", { class: "f-found-row", href: `?tab=tasks&task=${one.task_id}&run=${one.run_id ?? ""}`, data: { go: `tab=tasks&task=${one.task_id}&run=${one.run_id ?? ""}` } },
    h("div", { class: "f-row wrap" }, one.state ? pill(one.state) : null, h("span", { class: "f-dim", text: one.role }), h("code", { class: "f-dim", text: one.task_id }), h("span", { class: "f-grow" }), h("time", { class: "f-dim", title: fullTime(at), text: clock(at) })),
    marked(one.snippet, words));
}

/** The snippet with the words marked, made of text nodes. */
function marked(text, words) {
  const node = h("div", { class: "f-prose f-snippet" });
  const list = words.split(/\s+/).filter(Boolean).map((one) => one.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!list.length) return add(node, text);
  for (const piece of visible(text).split(new RegExp(`(${list.join("|")})`, "gi"))) {
    if (list.some((one) => new RegExp(`^${one}$`, "i").test(piece))) node.append(h("mark", { text: piece }));
    else add(node, piece);
  }
  return node;
}
