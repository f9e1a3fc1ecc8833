// Throughput, failures, waiting and run times, cost and tokens by role, agents at work: rollups that DuckDB makes.
import { post } from "./api.js";
import { button, h, put, setText } from "./dom.js";
import { count, money, span } from "./format.js";
import { chart } from "./chart.js";
import { go, here } from "./place.js";

const SPANS = {
  hour: { label: "By hour", steps: 24, seconds: 3600, text: (date) => date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" }) },
  day: { label: "By day", steps: 14, seconds: 86400, text: (date) => date.toLocaleDateString(undefined, { month: "short", day: "numeric" }) },
  week: { label: "By week", steps: 12, seconds: 604800, text: (date) => date.toLocaleDateString(undefined, { month: "short", day: "numeric" }) },
};
const COLORS = ["#4f8ef7", "#3fb68b", "#b583f0", "#e0a03c", "#e0689b", "#4fb8cf", "#97a63c", "#d97757", "#8c96a3"];
const GOOD = "#3fb68b";
const BAD = "#e5534b";
const STALE_MS = 15_000;

const stamp = (at) => new Date(at).toISOString().slice(0, 19).replace("T", " ");

export function chartsView() {
  const grid = h("div", { class: "f-charts" });
  const said = h("span", { class: "f-dim", role: "status" });
  const modes = Object.entries(SPANS).map(([name, one]) => h("button", { type: "button", class: "f-seg", data: { span: name }, on: { click: () => go({ span: name === "hour" ? null : name }) } }, one.label));
  const node = h("div", { class: "f-view f-page" }, h("div", { class: "f-bar" }, h("div", { class: "f-segs", role: "group", "aria-label": "Step" }, modes), button("Refresh", () => load(true), { kind: "small" }), said), grid);
  let shownSpan = null;
  let loadedAt = 0;
  let turn = 0;

  async function load(force = false) {
    const name = SPANS[here().get("span")] ? here().get("span") : "hour";
    if (!force && name === shownSpan && Date.now() - loadedAt < STALE_MS) return;
    const mine = (turn += 1);
    for (const mode of modes) mode.setAttribute("aria-pressed", String(mode.dataset.span === name));
    setText(said, "reading…");
    try {
      const data = await read(name);
      if (mine !== turn) return;
      shownSpan = name;
      loadedAt = Date.now();
      draw(data);
      setText(said, "your time zone, as of " + new Date().toLocaleTimeString());
    } catch (error) {
      if (mine === turn) setText(said, error.message);
    }
  }

  function draw({ slots, byTask, byRun }) {
    const roles = [...new Set(byRun.rows.map((row) => row.role))].sort();
    const color = (role) => COLORS[roles.indexOf(role) % COLORS.length];
    const perRole = (key) => roles.map((role) => ({ name: role, color: color(role), values: slots.map((_, index) => byRun.at(index, (row) => row.role === role).reduce((sum, row) => sum + Number(row[key] ?? 0), 0)) }));
    const of = (key) => slots.map((_, index) => byTask.at(index).map((row) => (row[key] === null ? null : Number(row[key])))[0] ?? null);
    put(grid,
      chart({ title: "Tasks ended", kind: "bars", slots, format: count, whole: true, series: [{ name: "succeeded", color: GOOD, values: of("ok") }, { name: "failed", color: BAD, values: of("bad") }, { name: "cancelled", color: "#8c96a3", values: of("gone") }] }),
      chart({ title: "Cost by role", kind: "bars", slots, format: money, series: perRole("usd") }),
      chart({ title: "Waiting time", kind: "lines", slots, format: span, note: "from queued to started", series: [{ name: "median", color: COLORS[0], values: of("wait50") }, { name: "95 of 100 below", color: COLORS[3], values: of("wait95") }] }),
      chart({ title: "Run time", kind: "lines", slots, format: span, note: "the last run of each task", series: [{ name: "median", color: COLORS[0], values: of("run50") }, { name: "95 of 100 below", color: COLORS[3], values: of("run95") }] }),
      chart({ title: "Tokens by role", kind: "bars", slots, format: count, whole: true, series: perRole("tokens") }),
      chart({ title: "Agents at work", kind: "bars", slots, format: count, whole: true, note: "agents that ended a run in each step", series: perRole("agents") }));
  }

  const placed = () => here().get("tab") === "charts" && load();
  setInterval(() => node.offsetParent && !document.hidden && load(), 30_000);
  return { node, shown: placed, placed };
}

/** Ask for the rollups; rows come with `slot`, the index of their step. */
async function read(name) {
  const { steps, seconds, text } = SPANS[name];
  // Steps begin at the reader's full hours, midnights and Mondays: the database keeps UTC, so times are shifted for the cut.
  const offset = -new Date().getTimezoneOffset() * 60;
  const local = Date.now() / 1000 + offset;
  const first = name === "week" ? 4 * 86400 : 0;
  const end = Math.floor((local - first) / seconds) * seconds + first + seconds;
  const begin = end - steps * seconds;
  const from = stamp((begin - offset) * 1000);
  const slot = `CAST(floor((epoch(finished_at) + ${offset} - ${begin}) / ${seconds}) AS INTEGER) AS slot`;
  const where = `WHERE finished_at >= TIMESTAMP '${from}'`;
  const [byTask, byRun] = await Promise.all([
    rows(`SELECT ${slot}, count(*) FILTER (state = 'succeeded') AS ok, count(*) FILTER (state IN ('failed', 'dead')) AS bad, count(*) FILTER (state = 'cancelled') AS gone,
      quantile_cont(wait_s, 0.5) AS wait50, quantile_cont(wait_s, 0.95) AS wait95, quantile_cont(run_s, 0.5) AS run50, quantile_cont(run_s, 0.95) AS run95
      FROM tasks ${where} GROUP BY slot ORDER BY slot`),
    rows(`SELECT ${slot}, role, sum(cost_usd) AS usd, sum(input_tokens + output_tokens + cache_read_tokens + cache_write_tokens) AS tokens, count(DISTINCT agent_id) AS agents
      FROM runs ${where} GROUP BY slot, role ORDER BY slot`),
  ]);
  const slots = Array.from({ length: steps }, (_, index) => text(new Date((begin + index * seconds - offset) * 1000)));
  return { slots, byTask, byRun };
}

async function rows(query) {
  const answer = await post("/sql", { query, timeout_s: 20 });
  const list = answer.rows.map((row) => Object.fromEntries(answer.columns.map((name, index) => [name, row[index]])));
  return { rows: list, at: (slot, fits = () => true) => list.filter((row) => Number(row.slot) === slot && fits(row)) };
}
