// Requests to the service, with the key of this tab, and its errors (RFC 9457) as one kind of exception.

const KEY = "udr-key";

/** What the service said no with, or that it said nothing. */
export class Problem extends Error {
  constructor(title, detail, { status = 0, kind = "", wait = 0 } = {}) {
    super(detail);
    Object.assign(this, { title, detail, status, kind, wait });
  }

  /** True where another key may help. */
  get wantsKey() {
    return this.status === 401 && this.kind === "unauthorized" || this.kind === "forbidden";
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
  asked: () => {}, // replaced by the dialog: hears of problems that another key may solve
};

/** The path of something of a pool. */
export const inPool = (pool, rest = "") => `/v1/pools/${encodeURIComponent(pool)}${rest}`;

/** The path of a demonstration. */
export const demonstrationAt = (pool, id) => inPool(pool, `/demonstrations/${encodeURIComponent(id)}`);

export const headers = (more = {}) => (key.get() ? { Authorization: `Bearer ${key.get()}`, ...more } : more);

/** The answer to a request, as it comes; raises a Problem where it is none that was wanted. */
export async function send(method, path, { body, type = "application/json", match, signal } = {}) {
  const more = { ...(body !== undefined && { "Content-Type": type }), ...(match && { "If-Match": match }) };
  let answer;
  try {
    answer = await fetch(path, { method, body, signal, headers: headers(more) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw gone();
  }
  if (answer.ok) return answer;
  throw raised(problemOf(answer.status, await answer.text(), (name) => answer.headers.get(name)));
}

/** The JSON that a request is answered with; null where there is none. */
export async function call(method, path, body, signal) {
  const answer = await send(method, path, { body: body === undefined ? undefined : JSON.stringify(body), signal });
  return answer.status === 204 ? null : await answer.json();
}

/** A demonstration as it is now, and the ETag by which a change of it tells that it was read. */
export async function stored(pool, id) {
  const answer = await send("GET", demonstrationAt(pool, id));
  return { d: await answer.json(), tag: answer.headers.get("ETag") };
}

/** The service does not answer. */
export const gone = () =>
  new Problem("service gone", "The service does not answer. Is it still running? Nothing that it had acknowledged is lost.");

/** Let the key dialog hear of a problem that a key may solve. */
export function raised(problem) {
  if (problem.wantsKey) key.asked(problem);
  return problem;
}

/** What an answer with an error status says: a problem body, an error of the OpenAI API, or its status alone. */
export function problemOf(status, text, header) {
  const wait = Number.parseInt(header("retry-after") ?? "", 10) || 0;
  let said = null;
  try {
    said = JSON.parse(text);
  } catch {
    // a proxy's page, or nothing
  }
  if (said && typeof said.detail === "string") {
    return new Problem(said.title ?? `status ${status}`, said.detail, { status, kind: ours(said.type), wait });
  }
  if (typeof said?.error?.message === "string") {
    const kind = ours(said.error.type);
    return new Problem(kind ? kind.replaceAll("-", " ") : "the LLM server refused", said.error.message, { status, kind, wait });
  }
  return new Problem(`status ${status}`, text.slice(0, 300) || "The answer says nothing more.", { status, wait });
}

const ours = (type) => (String(type).startsWith("urn:udr:") ? String(type).slice("urn:udr:".length) : "");
