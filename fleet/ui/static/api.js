// The REST API from the page. The browser's cookie is the credential; a refusal carries what to do in its message.

export class ApiError extends Error {
  constructor(status, body) {
    super(body.message || `The server answered ${status}.`);
    this.status = status;
    this.code = body.error || "error";
    this.fields = body;
  }
}

export async function api(method, path, body) {
  let answer;
  try {
    answer = await fetch("/api" + path, {
      method,
      credentials: "same-origin",
      headers: body === undefined ? { accept: "application/json" } : { accept: "application/json", "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    throw new ApiError(0, { error: "unavailable", message: "The server does not answer. The page tries again by itself." });
  }
  const text = await answer.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    data = { message: text.slice(0, 300) };
  }
  if (!answer.ok) {
    if (answer.status === 401) document.dispatchEvent(new CustomEvent("fleet:unauthorized"));
    const detail = data && data.detail;
    if (data && !data.message && detail) data.message = typeof detail === "string" ? detail : JSON.stringify(detail);
    throw new ApiError(answer.status, data || {});
  }
  return data;
}

export const get = (path) => api("GET", path);
export const post = (path, body = {}) => api("POST", path, body);

/** `{a: 1, b: [x, y], c: null}` → `?a=1&b=x&b=y`. */
export function query(values) {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) parts.append(key, one);
  }
  const text = parts.toString();
  return text ? "?" + text : "";
}

/** A list in an answer that is a list, or holds it under `key`. */
export const listOf = (answer, key) => (Array.isArray(answer) ? answer : answer?.[key] ?? answer?.items ?? []);

/** Do `action` for each of `items`, six at a time; return `{done, failed: [[item, error]]}`. */
export async function each(items, action, onStep = () => {}) {
  const failed = [];
  let done = 0;
  const waiting = [...items];
  const worker = async () => {
    while (waiting.length) {
      const item = waiting.shift();
      try {
        await action(item);
        done += 1;
      } catch (error) {
        failed.push([item, error]);
      }
      onStep(done + failed.length);
    }
  };
  await Promise.all(Array.from({ length: Math.min(6, waiting.length) }, worker));
  return { done, failed };
}
