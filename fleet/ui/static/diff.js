// Unified diffs with colours, line numbers and comments on lines.
import { add, button, h, put } from "./dom.js";

/** Parse a unified diff into `[{path, old, lines: [{kind, oldNo, newNo, text}], added, removed}]`. */
export function parseDiff(text) {
  const files = [];
  let file = null;
  let oldNo = 0;
  let newNo = 0;
  let left = 0;
  let right = 0;
  for (const line of String(text ?? "").split("\n")) {
    if (line.startsWith("diff --git ")) {
      const found = /^diff --git "?a\/(.*?)"? "?b\/(.*?)"?$/.exec(line);
      file = { path: found?.[2] ?? line.slice(11), lines: [], added: 0, removed: 0 };
      files.push(file);
      left = right = 0;
      continue;
    }
    // Inside a hunk the counts of its header decide, so that a removed line "-- x" is not taken for a file header.
    const inHunk = left > 0 || right > 0;
    if (!inHunk && line.startsWith("--- ")) {
      // Plain diffs have no "diff --git" line: there a file begins at this one.
      if (!file || file.named) {
        file = { path: "", lines: [], added: 0, removed: 0 };
        files.push(file);
      }
      file.named = true;
      const old = line.slice(4).replace(/\t.*$/, "").replace(/^"?a\//, "").replace(/"$/, "");
      if (!file.path) file.path = old;
      continue;
    }
    if (!inHunk && line.startsWith("+++ ")) {
      const path = line.slice(4).replace(/\t.*$/, "").replace(/^"?b\//, "").replace(/"$/, "");
      if (path !== "/dev/null") file.path = path;
      continue;
    }
    const hunk = !inHunk && /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)$/.exec(line);
    if (hunk && file) {
      oldNo = Number(hunk[1]);
      newNo = Number(hunk[3]);
      left = hunk[2] === undefined ? 1 : Number(hunk[2]);
      right = hunk[4] === undefined ? 1 : Number(hunk[4]);
      file.lines.push({ kind: "hunk", text: line });
      continue;
    }
    if (!file) continue;
    if (inHunk && line.startsWith("+")) {
      file.lines.push({ kind: "add", newNo: newNo++, text: line.slice(1) });
      file.added += 1;
      right -= 1;
    } else if (inHunk && line.startsWith("-")) {
      file.lines.push({ kind: "del", oldNo: oldNo++, text: line.slice(1) });
      file.removed += 1;
      left -= 1;
    } else if (line.startsWith("\\")) file.lines.push({ kind: "note", text: line });
    else if (inHunk) {
      file.lines.push({ kind: "same", oldNo: oldNo++, newNo: newNo++, text: line.slice(1) });
      left -= 1;
      right -= 1;
    } else if (line.trim() && !line.startsWith("index ")) file.lines.push({ kind: "note", text: line });
  }
  return files;
}

/** The words of a follow-up made from comments. */
export function followUp(comments, more = "") {
  const lines = ["Your changes were reviewed. Please work in these comments:", ""];
  for (const one of comments) {
    lines.push(`- ${one.path}:${one.line}${one.side === "old" ? " (a removed line)" : ""}: ${one.comment.trim()}`);
    lines.push(`    > ${one.text.trim().slice(0, 200)}`);
  }
  if (more.trim()) lines.push("", more.trim());
  return lines.join("\n");
}

const FOLD_LINES = 800;

/** Draw a diff. `onSend(comments)` makes lines commentable and offers to send the comments. */
export function diffView(text, { onSend = null } = {}) {
  const files = parseDiff(text);
  if (!files.length) return h("p", { class: "f-dim" }, "No changes in files.");
  const comments = new Map();
  const send = button("", () => onSend([...comments.values()]), { kind: "primary" });
  const bar = h("div", { class: "f-diff-send" }, h("span", { class: "f-dim" }, "Click a line's number to comment on it."), send);
  const refresh = () => {
    send.hidden = !comments.size;
    put(send, `Send ${comments.size} comment${comments.size === 1 ? "" : "s"} back…`);
  };
  refresh();
  const added = files.reduce((sum, file) => sum + file.added, 0);
  const removed = files.reduce((sum, file) => sum + file.removed, 0);
  return h("div", { class: "f-diff" },
    h("div", { class: "f-diff-sum" }, `${files.length} file${files.length === 1 ? "" : "s"} changed `, h("span", { class: "f-add" }, `+${added}`), " ", h("span", { class: "f-del" }, `−${removed}`), onSend ? bar : null),
    files.map((file) => fileView(file, onSend ? comments : null, refresh)));
}

function fileView(file, comments, refresh) {
  const table = h("div", { class: "f-diff-lines", role: "table", "aria-label": `Changes in ${file.path}` });
  const fill = () => add(table, file.lines.map((line) => lineView(file, line, comments, refresh)));
  const details = h("details", { class: "f-diff-file" },
    h("summary", {}, h("code", { text: file.path }), h("span", { class: "f-add" }, `+${file.added}`), h("span", { class: "f-del" }, `−${file.removed}`)), table);
  if (file.lines.length <= FOLD_LINES) {
    details.open = true;
    fill();
  } else details.addEventListener("toggle", fill, { once: true });
  return details;
}

function lineView(file, line, comments, refresh) {
  if (line.kind === "hunk" || line.kind === "note") return h("div", { class: `f-diff-line ${line.kind}`, role: "row" }, h("span", { role: "cell", class: "f-diff-text", text: line.text }));
  const number = line.newNo ?? line.oldNo;
  const side = line.kind === "del" ? "old" : "new";
  const sign = { add: "+", del: "−", same: " " }[line.kind];
  const mark = comments
    ? h("button", { type: "button", class: "f-diff-no", title: "Comment on this line", "aria-label": `Comment on line ${number} of ${file.path}` }, String(number))
    : h("span", { class: "f-diff-no" }, String(number));
  const row = h("div", { class: `f-diff-line ${line.kind}`, role: "row" },
    h("span", { role: "cell" }, mark), h("span", { role: "cell", class: "f-diff-sign", "aria-label": { add: "added", del: "removed", same: "" }[line.kind] || null }, sign), h("span", { role: "cell", class: "f-diff-text", text: line.text.slice(0, 5000) }));
  if (comments) mark.addEventListener("click", () => comment(row, file, line, number, side, comments, refresh));
  return row;
}

function comment(row, file, line, number, side, comments, refresh) {
  const key = `${file.path}:${side}:${number}`;
  const there = row.nextElementSibling;
  if (there?.classList.contains("f-diff-comment")) return void there.querySelector("textarea").focus();
  const field = h("textarea", { class: "f-input", rows: 2, "aria-label": `Comment on ${file.path} line ${number}`, placeholder: "What should change here?", value: comments.get(key)?.comment ?? "" });
  field.addEventListener("input", () => {
    if (field.value.trim()) comments.set(key, { path: file.path, line: number, side, text: line.text, comment: field.value });
    else comments.delete(key);
    refresh();
  });
  const box = h("div", { class: "f-diff-comment", role: "row" }, h("div", { role: "cell" }, field, button("Remove", () => {
    comments.delete(key);
    box.remove();
    refresh();
  }, { kind: "link" })));
  row.after(box);
  field.focus();
}

/** What an editing tool is about to do, or did, as a diff; null for other tools. */
export function diffOfEdit(tool, input) {
  if (!input) return null;
  const path = input.file_path ?? input.notebook_path ?? "";
  const edits = tool === "MultiEdit" && Array.isArray(input.edits) ? input.edits : tool === "Edit" ? [input] : null;
  if (edits) return editView(path, edits.map((edit) => [String(edit.old_string ?? ""), String(edit.new_string ?? "")]));
  if (tool === "Write" && typeof input.content === "string") return editView(path, [["", input.content]]);
  return null;
}

function editView(path, pairs) {
  const rows = [];
  for (const [before, after] of pairs) {
    const old = before ? before.split("\n") : [];
    const now = after ? after.split("\n") : [];
    let head = 0;
    while (head < old.length && head < now.length && old[head] === now[head]) head += 1;
    let tail = 0;
    while (tail < old.length - head && tail < now.length - head && old[old.length - 1 - tail] === now[now.length - 1 - tail]) tail += 1;
    const line = (kind, text) => rows.push(h("div", { class: `f-diff-line ${kind}` }, h("span", { class: "f-diff-sign" }, { add: "+", del: "−", same: " " }[kind]), h("span", { class: "f-diff-text", text: text.slice(0, 5000) })));
    old.slice(Math.max(0, head - 3), head).forEach((text) => line("same", text));
    old.slice(head, old.length - tail).forEach((text) => line("del", text));
    now.slice(head, now.length - tail).slice(0, 2000).forEach((text) => line("add", text));
    old.slice(old.length - tail, old.length - tail + 3).forEach((text) => line("same", text));
  }
  return h("div", { class: "f-diff" }, h("div", { class: "f-diff-file" }, h("div", { class: "f-diff-path" }, h("code", { text: path })), h("div", { class: "f-diff-lines" }, rows)));
}
