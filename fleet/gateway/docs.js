// Draws openapi.json. Nothing here builds HTML from text: names and descriptions go through textContent.
"use strict";

const el = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

let spec = null;

const resolve = (schema) => {
  while (schema && schema.$ref) schema = schema.$ref.slice(2).split("/").reduce((at, key) => at[key], spec);
  return schema || {};
};

const named = (schema) => (schema && schema.$ref ? schema.$ref.split("/").pop() : null);

function typeOf(schema) {
  if (!schema) return "any";
  if (schema.$ref) return named(schema);
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((type) => type !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return "[" + typeOf(schema.items) + "]";
  return schema.type || "any";
}

function bounds(schema) {
  const inner = [schema, ...(schema.anyOf || [])];
  const words = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", maxLength: "length ≤", maxItems: "items ≤", minLength: "length ≥" };
  const found = [];
  for (const part of inner)
    for (const [key, word] of Object.entries(words)) if (part[key] !== undefined) found.push(word + " " + part[key]);
  if (schema.default !== undefined && schema.default !== null) found.push("default " + JSON.stringify(schema.default));
  return found.join(", ");
}

function fields(schema) {
  const model = resolve(schema);
  if (!model.properties) return el("p", { class: "dim" }, typeOf(schema));
  const rows = Object.entries(model.properties).map(([name, part]) =>
    el("tr", {},
      el("td", {}, el("code", {}, name), (model.required || []).includes(name) ? " *" : ""),
      el("td", {}, typeOf(part)),
      el("td", { class: "dim" }, [bounds(part), part.description || ""].filter(Boolean).join(" · "))));
  return el("table", {}, el("tbody", {}, ...rows));
}

function example(schema, depth = 0) {
  const model = resolve(schema);
  if (model.default !== undefined) return model.default;
  if (model.anyOf) return example(model.anyOf[0], depth);
  if (model.enum) return model.enum[0];
  if (model.properties && depth < 2) {
    const wanted = model.required && model.required.length ? model.required : Object.keys(model.properties);
    return Object.fromEntries(wanted.map((name) => [name, example(model.properties[name], depth + 1)]));
  }
  return { string: "", integer: 1, number: 1, boolean: true, array: [] }[model.type] ?? {};
}

function tryOut(verb, path, parameters, body) {
  const inputs = parameters.map((parameter) => [parameter, el("input", { class: "field", "aria-label": parameter.name })]);
  const text = body ? el("textarea", { "aria-label": "Body", spellcheck: "false" }) : null;
  if (text) text.value = JSON.stringify(example(body), null, 2);
  const out = el("pre", { hidden: "" });
  const button = el("button", {}, "Send");
  button.addEventListener("click", async () => {
    const query = new URLSearchParams();
    let target = path;
    for (const [parameter, input] of inputs) {
      if (input.value === "") continue;
      if (parameter.in === "path") target = target.replace("{" + parameter.name + "}", encodeURIComponent(input.value));
      else if (parameter.in === "query") query.append(parameter.name, input.value);
    }
    out.hidden = false;
    out.textContent = "…";
    try {
      const options = { method: verb.toUpperCase(), headers: {} };
      if (text) { options.body = text.value; options.headers["Content-Type"] = "application/json"; }
      const answer = await fetch(target.slice(1) + (query.size ? "?" + query : ""), options);
      out.textContent = answer.status + " " + answer.statusText + "\n";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let shown = 0; shown < 200000; ) {
        const { done, value } = await reader.read();
        if (done) {
          try {
            const [status, ...rest] = out.textContent.split("\n");
            out.textContent = status + "\n" + JSON.stringify(JSON.parse(rest.join("\n")), null, 2);
          } catch { /* not JSON: shown as it came */ }
          return;
        }
        shown += value.length;
        out.append(value);
      }
      reader.cancel();
    } catch (error) {
      out.textContent = String(error);
    }
  });
  const rows = inputs.map(([parameter, input]) =>
    el("tr", {}, el("td", {}, el("code", {}, parameter.name), parameter.required ? " *" : ""),
      el("td", { class: "dim" }, [typeOf(parameter.schema), bounds(parameter.schema || {}), parameter.description || ""].filter(Boolean).join(" · ")),
      el("td", {}, parameter.in === "header" ? "header" : input)));
  return el("div", {}, rows.length ? el("table", {}, el("tbody", {}, ...rows)) : null, text, button, out);
}

function operation(path, verb, told) {
  const body = told.requestBody && told.requestBody.content && told.requestBody.content["application/json"];
  const schema = body && (body.schema.anyOf ? body.schema.anyOf[0] : body.schema);
  const answers = Object.entries(told.responses || {})
    .map(([status, answer]) => [status, answer.content && answer.content["application/json"] && answer.content["application/json"].schema])
    .filter(([status, answer]) => answer && named(answer) && status < "300");
  const inside = el("div", { class: "body" });
  const details = el("details", {},
    el("summary", {}, el("span", { class: "verb " + verb }, verb.toUpperCase()), el("span", { class: "path" }, path),
      el("span", { class: "dim" }, (told.description || told.summary || "").split("\n")[0])),
    inside);
  details.addEventListener("toggle", () => {
    if (inside.childNodes.length) return;
    inside.append(el("p", {}, told.description || ""));
    if (schema) inside.append(el("h3", {}, "Body: " + typeOf(schema)), fields(schema));
    if (told.requestBody && told.requestBody.description) inside.append(el("p", { class: "dim" }, told.requestBody.description));
    for (const [status, answer] of answers) inside.append(el("h3", {}, status + ": " + typeOf(answer)), fields(answer));
    inside.append(el("h3", {}, "Try it"), tryOut(verb, path, told.parameters || [], schema));
  });
  details.dataset.words = (verb + " " + path + " " + (told.description || "")).toLowerCase();
  return details;
}

async function draw() {
  const main = document.getElementById("operations");
  try {
    spec = await (await fetch("openapi.json")).json();
  } catch (error) {
    main.textContent = "openapi.json did not load: " + error;
    return;
  }
  const groups = new Map();
  for (const [path, verbs] of Object.entries(spec.paths))
    for (const [verb, told] of Object.entries(verbs)) {
      const tag = (told.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(path, verb, told));
    }
  main.replaceChildren();
  const intro = (spec.info.description || "").trim();
  if (intro) main.append(el("pre", {}, intro));
  for (const [tag, operations] of groups) main.append(el("section", {}, el("h2", {}, tag), ...operations));
  document.getElementById("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const node of main.querySelectorAll("details")) node.hidden = !words.every((word) => node.dataset.words.includes(word));
    for (const section of main.querySelectorAll("section")) section.hidden = !section.querySelector("details:not([hidden])");
  });
}

draw();
