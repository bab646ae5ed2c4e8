// The model's answer to a prompt, as it streams, and what came of it.

import { call, gone, headers, problemOf, Problem, raised } from "./api.js";
import { announce, at, button, el } from "./dom.js";
import { attempt, showProblem } from "./notice.js";

/**
 * The panel of an answer to what `asked` asked.
 *
 * `none` is a promise of why no model can answer, empty where one can; `signal` ends it all with the query.
 */
export function answering(asked, found, none, signal) {
  const inside = el("div", {}, el("p", { class: "reason" }, "Looking for models…"));
  none.then((why) => inside.replaceChildren(...(why ? [el("p", { class: "reason" }, why)] : conversation(asked, found, signal))));
  return el("section", { class: "panel", "aria-label": `Answer with ${found.retriever}` }, el("h2", {}, "Answer"), inside);
}

/** The button that asks, and below it what is answered. */
function conversation(asked, found, signal) {
  const notice = el("div");
  const said = el("p", { class: "answer", hidden: true });
  const after = el("div");
  let stopper = null;
  const model = () => at("model").value;
  const ask = button(`Ask ${model()}`, () => go(), { class: "primary" });
  at("model").addEventListener("change", () => (ask.textContent = `Ask ${model()}`), { signal });
  const stop = button("Stop", () => stopper.abort(), { hidden: true });

  async function go() {
    stopper = new AbortController();
    signal.addEventListener("abort", () => stopper.abort());
    notice.replaceChildren();
    after.replaceChildren();
    said.textContent = "";
    said.hidden = stop.hidden = false;
    said.classList.add("going");
    ask.disabled = true;
    stop.focus();
    try {
      for await (const piece of stream(body(asked, model()), stopper.signal)) said.append(piece);
      announce(`Answer: ${said.textContent}`);
      if (asked.queries[0].input.trim()) after.replaceChildren(outcome(asked, found, said.textContent)); // else there is nothing to learn for
    } catch (problem) {
      if (problem.name === "AbortError") announce("Stopped.");
      else showProblem(notice, problem, go);
      said.hidden = !said.textContent;
    } finally {
      said.classList.remove("going");
      ask.disabled = false;
      if (document.activeElement === stop) ask.focus();
      stop.hidden = true;
    }
  }

  return [said, notice, el("div", { class: "buttons" }, ask, stop), after];
}

/** A chat request through the front, which puts the same demonstrations in. */
function body(asked, model) {
  const { pool, queries, ...settings } = asked;
  const { input, media = [] } = queries[0];
  const pictures = media.map((m) => ({ type: "image_url", image_url: { url: m.uri } }));
  const content = pictures.length ? [...(input ? [{ type: "text", text: input }] : []), ...pictures] : input;
  return { model: `${pool}@${model}`, stream: true, messages: [{ role: "user", content }], udr: settings };
}

/** The pieces of a streamed answer. */
async function* stream(request, signal) {
  let answer;
  try {
    answer = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(request),
      signal,
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : gone();
  }
  if (!answer.ok) throw raised(problemOf(answer.status, await answer.text(), (name) => answer.headers.get(name)));
  for await (const { event, data } of events(answer.body)) {
    if (data === "[DONE]") return;
    const said = parsed(data);
    if (event === "error" || said?.error || said?.object === "error") throw failed(said);
    const piece = said?.choices?.[0]?.delta?.content;
    if (piece) yield piece;
  }
  throw broken();
}

/** Server-sent events: their names and data. */
async function* events(bytes) {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  let waiting = "";
  let event = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const whole = (waiting + decoder.decode(value, { stream: true })).split(/\r?\n/);
      waiting = whole.pop();
      for (const line of whole) {
        if (line.startsWith("event:")) event = line.slice(6).trim();
        else if (line.startsWith("data:")) yield { event, data: line.slice(5).trim() };
        else if (!line) event = "";
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : broken();
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Problem("unreadable answer", `The LLM server sent ${data.slice(0, 100)}`);
  }
}

/** What an LLM server says that fails in the middle of its answer. */
function failed(said) {
  const error = said?.error ?? said;
  return new Problem("the LLM server failed", String(error?.message ?? (typeof error === "string" ? error : JSON.stringify(error))).slice(0, 300));
}

const broken = () => new Problem("answer broken off", "The LLM server broke off before its answer was whole.");

/** Was it right? What is said here goes to the service as feedback; a correction waits for a reviewer. */
function outcome(asked, found, output) {
  const notice = el("div");
  const corrected = el("input", { "aria-label": "Correct output", placeholder: "Correct output" });
  const record = (words, stated) => attempt(notice, async () => {
    const ids = found.results[0].demonstrations.map((d) => d.id);
    const one = { input: asked.queries[0].input, choices: asked.queries[0].choices ?? [], demonstrations: ids, output, ...stated };
    await call("POST", "/v1/feedback", { pool: asked.pool, outcomes: [one] });
    node.replaceChildren(el("p", { class: "reason", role: "status" }, words));
  });
  const correct = el("form", { class: "side" }, corrected, el("button", {}, "Send to review"));
  correct.addEventListener("submit", (event) => {
    event.preventDefault();
    if (corrected.value.trim()) record("Sent: it waits under Review.", { correct: false, corrected_output: corrected.value.trim() });
    else corrected.focus();
  });
  const buttons = el("div", { class: "buttons" }, el("span", { class: "reason" }, "Was it right?"),
    button("Yes", () => record("Noted as right.", { correct: true }), { class: "small" }),
    button("No", () => record("Noted as wrong.", { correct: false }), { class: "small" }));
  const node = el("div", { class: "outcome" }, buttons, correct, notice);
  return node;
}
