// Building and changing the page. Everything that an agent or a person wrote reaches it through text nodes only.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. `props`: class, text, on (listeners by name), data, style (custom properties too), else attributes. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Make an SVG element. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.setAttribute("class", value);
    else if (key === "text") node.textContent = visible(value);
    else if (key === "on") for (const [name, listener] of Object.entries(value)) node.addEventListener(name, listener);
    else if (key === "data") Object.assign(node.dataset, value);
    else if (key === "style") for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
    else if (key === "value") node.value = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  add(node, children);
  return node;
}

/** Append children: nodes, texts, nested lists; empty ones are left out. */
export function add(node, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(visible(child)));
  }
  return node;
}

/** Replace all children. */
export function put(node, ...children) {
  node.replaceChildren();
  return add(node, ...children);
}

// Control characters and marks that reorder text are drawn as signs: a command under review must read as it runs.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** Return the text with control characters and direction marks made visible. */
export function visible(text) {
  return String(text ?? "").replace(HIDDEN, (sign) => {
    const code = sign.codePointAt(0);
    if (code === 13) return "";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    if (code === 127) return "\u2421";
    return "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  });
}

/** Set a node's text only when it differs, so that nothing is drawn twice and selections stay. */
export function setText(node, text) {
  const wanted = visible(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Set an attribute only when it differs; null removes it. */
export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** Keep the children of `parent` in step with `items` by key: nodes are made once, moved only when out of order. */
export function keyed(parent, items, keyOf, make, update) {
  const known = (parent.keyedNodes ??= new Map());
  const wanted = new Set();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let node = known.get(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
      known.set(key, node);
    }
    update?.(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const [key, node] of known) {
    if (wanted.has(key)) continue;
    node.remove();
    known.delete(key);
  }
  for (const node of [...parent.childNodes]) if (!wanted.has(node.dataset?.key)) node.remove();
}

/** A button. */
export function button(label, onClick, { kind = "", title = null, aria = null, disabled = false, id = null } = {}) {
  return h("button", { type: "button", class: `f-btn ${kind}`, title, "aria-label": aria, disabled, id, on: { click: onClick } }, label);
}

const PIECE = 4000;

/** A long text: the first part, with a button for the rest. The rest comes in pieces that are laid out only when they
 * are seen: one line of a megabyte in one piece holds the browser up for tens of seconds. */
export function longText(text, { limit = 4000, tag = "pre", cls = "f-pre" } = {}) {
  const full = visible(text);
  if (full.length <= limit) return h(tag, { class: cls, text: full });
  const body = h(tag, { class: cls, text: full.slice(0, limit) });
  const more = button(`Show all ${full.length.toLocaleString()} characters`, () => {
    put(body, pieces(full).map((piece) => h("div", { class: "f-piece", text: piece })));
    more.remove();
  }, { kind: "link" });
  return h("div", { class: "f-long" }, body, more);
}

/** Cut a text into pieces, at ends of lines where there are any. */
export function pieces(text) {
  const out = [];
  for (let at = 0; at < text.length; ) {
    let end = Math.min(at + PIECE, text.length);
    const line = text.lastIndexOf("\n", end - 1);
    if (end < text.length && line >= at) end = line + 1;
    out.push(text.slice(at, end));
    at = end;
  }
  return out;
}

/** The pill of a state. */
export function pill(state, label = state) {
  return h("span", { class: "f-pill", data: { state } }, label);
}

/** A line that says that something is empty and what to do next. */
export function empty(title, next, ...actions) {
  return h("div", { class: "f-empty" }, h("strong", { text: title }), h("p", { text: next }), actions);
}
