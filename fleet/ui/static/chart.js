// Charts as SVG: stacked bars and lines over time, with a table of the same numbers for who cannot see them.
import { add, h, put, s } from "./dom.js";

const W = 640;
const H = 220;
const M = { left: 52, right: 12, top: 12, bottom: 28 };

/** Round steps for an axis up to `top`. */
export function ticks(top, whole = false) {
  if (!(top > 0)) return [0, 1];
  const rough = whole ? Math.max(1, top / 4) : top / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, whole && power < 10 ? 3 : 2.5, 5, 10].find((one) => one * power >= rough) * power;
  const out = [];
  for (let value = 0; value < top + step * 0.999; value += step) out.push(Number(value.toPrecision(12)));
  return out;
}

/**
 * Draw a chart.
 *   kind: "bars" (stacked) or "lines". slots: labels of the x axis in order. series: [{name, color, values}] with one
 *   value (or null) for each slot. format: a number as text. whole: values are counts.
 */
export function chart({ title, kind, slots, series, format, note = "", whole = false }) {
  const used = series.filter((one) => one.values.some((value) => value));
  const box = h("figure", { class: "f-chart" }, h("figcaption", {}, h("h3", { text: title }), note ? h("p", { class: "f-dim", text: note }) : null));
  if (!used.length) return add(box, h("div", { class: "f-empty small" }, h("p", {}, "Nothing in this time yet. Choose a longer one, or come back after some tasks ended.")));
  const sums = slots.map((_, index) => used.reduce((sum, one) => sum + (one.values[index] ?? 0), 0));
  const top = kind === "bars" ? Math.max(...sums) : Math.max(...used.flatMap((one) => one.values.map((value) => value ?? 0)));
  const marks = ticks(top, whole);
  const limit = marks[marks.length - 1];
  const x = (index) => M.left + ((W - M.left - M.right) * (index + 0.5)) / slots.length;
  const y = (value) => H - M.bottom - ((H - M.top - M.bottom) * value) / limit;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${describe(slots, used, format)}` });
  for (const mark of marks) {
    svg.append(s("line", { x1: M.left, x2: W - M.right, y1: y(mark), y2: y(mark), class: "f-axis" }));
    svg.append(s("text", { x: M.left - 6, y: y(mark) + 4, "text-anchor": "end" }, format(mark)));
  }
  const every = Math.ceil(slots.length / 8);
  slots.forEach((slot, index) => {
    if (index % every === 0) svg.append(s("text", { x: x(index), y: H - 8, "text-anchor": "middle" }, slot));
  });
  if (kind === "bars") {
    const width = Math.min(28, ((W - M.left - M.right) / slots.length) * 0.7);
    slots.forEach((slot, index) => {
      let base = 0;
      for (const one of used) {
        const value = one.values[index] ?? 0;
        if (!value) continue;
        svg.append(s("rect", { x: x(index) - width / 2, width, y: y(base + value), height: Math.max(1, y(base) - y(base + value)), rx: 1.5, fill: one.color }, s("title", {}, `${slot} · ${one.name}: ${format(value)}`)));
        base += value;
      }
    });
  } else {
    for (const one of used) {
      let path = "";
      let gap = true;
      one.values.forEach((value, index) => {
        if (value === null || value === undefined) {
          gap = true;
          return;
        }
        path += `${gap ? "M" : "L"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
        gap = false;
      });
      svg.append(s("path", { d: path, fill: "none", stroke: one.color, "stroke-width": 2, "stroke-linejoin": "round" }));
      one.values.forEach((value, index) => {
        if (value !== null && value !== undefined) svg.append(s("circle", { cx: x(index), cy: y(value), r: 2.5, fill: one.color }, s("title", {}, `${slots[index]} · ${one.name}: ${format(value)}`)));
      });
    }
  }
  const legend = h("div", { class: "f-legend" }, used.map((one) => {
    const key = h("i", { "aria-hidden": "true" });
    key.style.background = one.color;
    const total = one.values.reduce((sum, value) => sum + (value ?? 0), 0);
    return h("span", {}, key, kind === "bars" ? `${one.name} ${format(total)}` : one.name);
  }));
  const numbers = h("details", { class: "f-numbers" }, h("summary", {}, "Show the numbers"));
  numbers.addEventListener("toggle", () => numbers.children.length === 1 && numbers.append(table(slots, used, format)));
  return add(box, svg, legend, numbers);
}

function describe(slots, series, format) {
  return series.map((one) => `${one.name} ${format(one.values.reduce((sum, value) => Math.max(sum, value ?? 0), 0))} at most`).join(", ") + ` over ${slots.length} steps`;
}

function table(slots, series, format) {
  const body = h("tbody");
  put(body, slots.map((slot, index) => h("tr", {}, h("th", { scope: "row", text: slot }), series.map((one) => h("td", { class: "f-num", text: one.values[index] === null || one.values[index] === undefined ? "" : format(one.values[index]) })))));
  return h("div", { class: "f-scroll" }, h("table", { class: "f-table" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), series.map((one) => h("th", { scope: "col", text: one.name })))), body));
}
