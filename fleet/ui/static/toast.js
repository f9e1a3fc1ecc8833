// Short messages and questions.
import { button, h, put } from "./dom.js";

let box = null;

export function toast(text, kind = "info") {
  if (!box) {
    box = h("div", { class: "f-toasts", role: "status", "aria-live": "polite" });
    document.body.append(box);
  }
  const note = h("div", { class: "f-toast", data: { kind }, text });
  note.addEventListener("click", () => note.remove());
  box.append(note);
  while (box.children.length > 4) box.firstChild.remove();
  setTimeout(() => note.remove(), kind === "bad" ? 12000 : 5000);
}

/** Run an action of a button: the button is busy meanwhile, an error becomes a message. */
export async function act(control, action, done = null) {
  control?.setAttribute("aria-busy", "true");
  if (control) control.disabled = true;
  try {
    const answer = await action();
    if (done) toast(typeof done === "function" ? done(answer) : done, "good");
    return answer;
  } catch (error) {
    toast(error.message, "bad");
    return undefined;
  } finally {
    control?.removeAttribute("aria-busy");
    if (control) control.disabled = false;
  }
}

/** Open a modal dialog; `build(close)` returns its content. Resolves with what `close` was given, null when dismissed. */
export function dialog(title, build) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const node = h("dialog", { class: "f-dialog", "aria-label": title });
    let answer = null;
    const close = (value = null) => {
      answer = value;
      node.close();
    };
    node.addEventListener("close", () => {
      node.remove();
      before?.focus?.();
      resolve(answer);
    });
    node.addEventListener("click", (event) => {
      if (event.target === node) close();
    });
    put(node, h("h2", { text: title }), build(close));
    document.body.append(node);
    node.showModal();
  });
}

/** Ask for a yes; the button says what will happen. */
export function confirm(title, text, yes, kind = "danger") {
  return dialog(title, (close) => [
    h("p", { text }),
    h("div", { class: "f-row end" }, button("Keep as it is", () => close(false)), button(yes, () => close(true), { kind })),
  ]);
}

/** Ask for words. */
export function askText(title, label, { value = "", yes = "OK", rows = 4, kind = "primary" } = {}) {
  return dialog(title, (close) => {
    const field = h("textarea", { rows, class: "f-input", "aria-label": label, value });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) close(field.value);
    });
    setTimeout(() => field.focus());
    return [
      h("label", { class: "f-label", text: label }),
      field,
      h("div", { class: "f-row end" }, button("Back", () => close()), button(yes, () => close(field.value), { kind })),
    ];
  });
}
