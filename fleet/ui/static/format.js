// Numbers, money, sizes and times as people read them; times in the reader's zone.

export const ms = (at) => (at === null || at === undefined ? null : typeof at === "number" ? at * 1000 : Date.parse(at));

export function money(usd) {
  const value = Number(usd) || 0;
  return "$" + value.toFixed(value >= 100 ? 0 : value >= 0.995 || value === 0 ? 2 : 4).replace(/(\.\d\d)0+$/, "$1");
}

export function count(n) {
  const value = Number(n) || 0;
  if (value < 1000) return String(Math.round(value));
  if (value < 1e6) return (value / 1e3).toFixed(value < 1e4 ? 1 : 0) + "k";
  return (value / 1e6).toFixed(value < 1e7 ? 1 : 0) + "M";
}

/** `1 turn`, `2 turns`. */
export const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

export function tokens(usage) {
  if (!usage) return 0;
  return (usage.input_tokens || 0) + (usage.output_tokens || 0) + (usage.cache_read_tokens || 0) + (usage.cache_write_tokens || 0);
}

export function size(mb) {
  const value = Number(mb) || 0;
  return value >= 1024 ? (value / 1024).toFixed(1) + " GiB" : Math.round(value) + " MiB";
}

export function span(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "";
  const value = Math.max(0, seconds);
  if (value < 1) return Math.round(value * 1000) + " ms";
  if (value < 10) return value.toFixed(1) + " s";
  if (value < 60) return Math.round(value) + " s";
  if (value < 3600) return Math.floor(value / 60) + " min " + Math.round(value % 60) + " s";
  if (value < 86400) return Math.floor(value / 3600) + " h " + Math.floor((value % 3600) / 60) + " min";
  return Math.floor(value / 86400) + " d " + Math.floor((value % 86400) / 3600) + " h";
}

export function ago(at) {
  const when = ms(at);
  if (when === null || isNaN(when)) return "";
  const seconds = (Date.now() - when) / 1000;
  if (seconds < 0) return "in " + span(-seconds);
  if (seconds < 60) return Math.floor(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h";
  return Math.floor(seconds / 86400) + " d";
}

export const since = (at) => (at ? (Date.now() - ms(at)) / 1000 : null);

export function clock(at) {
  const when = ms(at);
  if (when === null || isNaN(when)) return "";
  const date = new Date(when);
  const today = new Date().toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString() : date.toLocaleDateString() + " " + date.toLocaleTimeString();
}

/** The full time with the zone, for titles. */
export function fullTime(at) {
  const when = ms(at);
  return when === null || isNaN(when) ? "" : new Date(when).toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
}

export function firstLine(text, limit = 140) {
  const line = String(text ?? "").trim().split("\n", 1)[0];
  return line.length > limit ? line.slice(0, limit - 1) + "…" : line;
}

/** Where a run works, in the short form the command line takes. */
export function workspaceText(workspace) {
  if (!workspace) return "the role's";
  if (workspace.kind === "scratch") return "scratch";
  return `${workspace.kind}:${workspace.path ?? ""}${workspace.ref ? "@" + workspace.ref : ""}`;
}
