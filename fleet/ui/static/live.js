// What the fleet is now: one WebSocket brings a snapshot and then what changed. Views subscribe and draw what changed.
import { get, listOf } from "./api.js";

export const fleet = {
  connected: false,
  ever: false,
  fresh: true,
  rehearsal: document.getElementById("fleet-main")?.dataset.rehearsal === "true",
  status: {},
  counts: {},
  agents: new Map(),
  tasks: new Map(),
  approvals: new Map(),
  roles: [],
  nodes: [],
};

const KEPT_TASKS = 2000;
const SILENCE_MS = 40_000;
const listeners = new Map();
let socket = null;
let tries = 0;
let lastSeen = 0;
let pending = new Set();
let frame = null;
let slowTimer = null;

/** Call `listener` once per drawn frame after something of these kinds changed: agents, tasks, approvals, counts,
 * status, roles, nodes, connection, resync (a new snapshot), clock (each second). */
export function on(kinds, listener) {
  for (const kind of kinds.split(" ")) {
    if (!listeners.has(kind)) listeners.set(kind, new Set());
    listeners.get(kind).add(listener);
  }
}

export function off(listener) {
  for (const group of listeners.values()) group.delete(listener);
}

function emit(...kinds) {
  for (const kind of kinds) pending.add(kind);
  // A hidden tab gets no animation frames: a timer lets it keep up all the same.
  frame ??= document.hidden ? setTimeout(flush, 250) : requestAnimationFrame(flush);
}

function flush() {
  frame = null;
  const kinds = pending;
  pending = new Set();
  const called = new Set();
  for (const kind of kinds) {
    for (const listener of listeners.get(kind) ?? []) {
      if (called.has(listener)) continue;
      called.add(listener);
      try {
        listener(kinds);
      } catch (error) {
        console.error(error);
      }
    }
  }
}

function address(path) {
  return `${window.location.protocol === "https:" ? "wss" : "ws"}://${window.location.host}${path}`;
}

const pause = (attempt) => Math.min(250 * 2 ** attempt, 5000) * (0.75 + Math.random() / 2);

function connect() {
  socket = new WebSocket(address("/api/ws"));
  lastSeen = Date.now();
  socket.addEventListener("message", (message) => {
    lastSeen = Date.now();
    tries = 0;
    take(JSON.parse(message.data));
  });
  socket.addEventListener("close", () => {
    setConnected(false);
    setTimeout(connect, pause(tries));
    tries = Math.min(tries + 1, 6);
  });
}

function setConnected(value) {
  if (fleet.connected === value) return;
  fleet.connected = value;
  fleet.ever ||= value;
  emit("connection");
}

function take(message) {
  if (message.type !== "snapshot" && message.type !== "changes") return;
  const first = message.type === "snapshot";
  if (first) {
    fleet.rehearsal = message.rehearsal ?? fleet.rehearsal;
    fleet.agents = new Map();
    setConnected(true);
    emit("agents", "tasks", "approvals", "counts", "status", "resync");
    reloadSlow();
  }
  if (message.fresh !== undefined && message.fresh !== fleet.fresh) {
    fleet.fresh = message.fresh;
    emit("connection");
  }
  for (const card of message.agents ?? []) fleet.agents.set(card.id, card);
  for (const id of message.gone ?? []) fleet.agents.delete(id);
  if (message.agents || message.gone) emit("agents");
  for (const task of message.tasks ?? []) {
    fleet.tasks.delete(task.id);
    fleet.tasks.set(task.id, task);
    changedTasks.add(task.id);
  }
  if (message.tasks) emit("tasks");
  while (fleet.tasks.size > KEPT_TASKS) fleet.tasks.delete(fleet.tasks.keys().next().value);
  if (message.approvals) {
    fleet.approvals = new Map(message.approvals.map((one) => [one.id, one]));
    emit("approvals");
  }
  if (message.counts) {
    fleet.counts = message.counts;
    emit("counts");
  }
  if (message.status) {
    if (message.status.paused !== fleet.status.paused) slowSoon();
    fleet.status = message.status;
    emit("status");
  }
}

/** Ids of tasks that changed since the last time somebody took them. */
export const changedTasks = new Set();

export function slowSoon() {
  slowTimer ??= setTimeout(() => {
    slowTimer = null;
    reloadSlow();
  }, 200);
}

// Also of nodes that have gone since: their agents and runs are still on the page.
const nodeNames = new Map();

/** A node's name as people know it; of one that this page never saw, the start of Ray's id. */
export function nodeName(id) {
  return id ? nodeNames.get(id) ?? id.slice(0, 8) : "";
}

/** Ask for what the router computes and the socket does not carry: roles and nodes. */
export async function reloadSlow() {
  const [roles, nodes] = await Promise.allSettled([get("/roles"), get("/nodes")]);
  if (roles.status === "fulfilled") fleet.roles = listOf(roles.value, "roles");
  if (nodes.status === "fulfilled") fleet.nodes = listOf(nodes.value, "nodes");
  for (const node of fleet.nodes) nodeNames.set(node.id, node.name);
  emit("roles", "nodes");
}

/** A task's events from the newest `history` on, then as they are written, over a socket of its own; after a loss it
 * goes on behind the last event seen. Returns a stop function. */
export function watchTask(taskId, { history = 1000, onEvents, onTask = () => {} }) {
  let last = 0;
  let stopped = false;
  let own = null;
  let attempt = 0;
  const open = () => {
    if (stopped) return;
    const from = last ? `after=${last}&history=0` : `history=${history}`;
    own = new WebSocket(address(`/api/ws?task=${encodeURIComponent(taskId)}&${from}`));
    own.addEventListener("message", (raw) => {
      attempt = 0;
      const message = JSON.parse(raw.data);
      if (message.type === "events") {
        for (const event of message.events) last = Math.max(last, event.id ?? 0);
        onEvents(message.events);
      } else if (message.type === "task" || message.type === "end") onTask(message);
    });
    own.addEventListener("close", (event) => {
      if (stopped || event.code === 1000 || event.code === 4404) return;
      setTimeout(open, pause(attempt));
      attempt = Math.min(attempt + 1, 6);
    });
  };
  open();
  return () => {
    stopped = true;
    own?.close();
  };
}

export function start() {
  connect();
  setInterval(() => emit("clock"), 1000);
  setInterval(() => {
    if (!document.hidden && fleet.connected) reloadSlow();
  }, 8000);
  // A server that vanished without closing (a pulled cable) is noticed by its silence; it pings every 15 s.
  setInterval(() => {
    if (socket?.readyState === WebSocket.OPEN && Date.now() - lastSeen > SILENCE_MS) socket.close();
  }, 5000);
}
