// A query, and beside it what one or two retrievers make of it.

import { answering } from "./answer.js";
import { call } from "./api.js";
import { column } from "./column.js";
import { conditions } from "./conditions.js";
import { announce, at, el, lines, offer } from "./dom.js";
import { attempt, showProblem } from "./notice.js";
import { takePictures } from "./pictures.js";

const NO_UPSTREAM =
  "No LLM server is configured, so there are no answers here. Start the service with “udr serve --upstream http://HOST:PORT” to see them.";

export function trying(context) {
  const pictures = takePictures({
    input: at("query-picture"),
    place: at("query"),
    list: at("query-pictures"),
    said: at("picture-said"),
  });
  let entered = "";
  let going = null;
  let noModel = Promise.resolve("");

  const invite = () => at("columns").replaceChildren(
    el("p", { class: "invitation" }, context.pool.demonstrations
      ? "Type a query: the demonstrations that suit it, the prompt and the answer stand here."
      : "This pool is empty. Upload a file, or add demonstrations, and they are found here at once."));

  async function find() {
    going?.abort();
    const { signal } = (going = new AbortController());
    const place = at("columns");
    place.replaceChildren();
    let asked;
    try {
      asked = request(context.pool.name, pictures.get());
    } catch (problem) {
      showProblem(place, problem);
      return;
    }
    const retrievers = [at("retriever").value, at("other").value].filter((r, i) => i === 0 || r !== "none");
    place.setAttribute("aria-busy", "true");
    const columns = retrievers.map((retriever) => {
      const node = el("div", { class: "column" }, el("p", { class: "busy" }, "Looking…"));
      place.append(node);
      return one(node, { ...asked, retriever }, signal);
    });
    const found = await Promise.all(columns);
    place.setAttribute("aria-busy", "false");
    if (place.getBoundingClientRect().top > 0.8 * innerHeight) place.scrollIntoView(); // it stands below the form
    if (!signal.aborted && found.some((n) => n !== undefined)) announce(`${found.map((n) => n ?? 0).join(" and ")} demonstrations in the prompt`);
  }

  const one = (node, body, signal) =>
    attempt(node, async () => {
      const answer = await call("POST", "/v1/prompt", { ...body, explain: true }, signal);
      node.replaceChildren(...column(context, body, answer, answering(body, answer, noModel, signal)));
      return answer.results[0].demonstrations.length;
    }, { again: find });

  at("query-form").addEventListener("submit", (event) => {
    event.preventDefault();
    find();
  });
  at("query").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find();
  });

  return {
    async enter(pool) {
      const names = await call("GET", "/v1/retrievers");
      offer(at("tokenizer"), names.tokenizers.map((t) => [t, t === "bytes" ? "bytes (an upper bound)" : t]));
      const pairs = retrieversOf(pool);
      offer(at("retriever"), pairs);
      offer(at("other"), [["none", "nothing"], ...pairs]);
      noModel = findModels(pool.name); // an LLM server that is silent holds nothing up
      if (entered === pool.name) return;
      entered = pool.name;
      invite();
    },
  };
}

/** What a pool can be asked by. */
function retrieversOf(pool) {
  const pairs = [["", `${pool.retriever} (the pool's own)`]];
  if (pool.previous_retriever) pairs.push([pool.previous_retriever, `${pool.previous_retriever} (before the switch)`]);
  if (pool.retriever !== "bm25") pairs.push(["hybrid", "hybrid (words and vectors)"], ["bm25", "bm25 (words)"]);
  return pairs;
}

/** Offer the models that answer; where there are none, say and return why. */
async function findModels(pool) {
  const said = at("no-model");
  try {
    const { data } = await call("GET", "/v1/models");
    const own = data.map((m) => m.id).filter((id) => id.startsWith(`${pool}@`)).map((id) => id.slice(pool.length + 1));
    const all = own.length ? own : data.map((m) => m.id).filter((id) => !id.includes("@"));
    offer(at("model"), all.map((id) => [id, id]));
    said.textContent = all.length ? "" : "The LLM server has no models.";
  } catch (problem) {
    offer(at("model"), []);
    said.textContent = problem.status === 404 ? NO_UPSTREAM : `No answers now: ${problem.detail}.`;
  }
  at("model-field").hidden = !at("model").value;
  said.hidden = !said.textContent;
  return said.textContent;
}

/** The body of a request for a prompt. */
function request(pool, media) {
  const choices = lines(at("choices").value);
  const threshold = at("threshold").value;
  return {
    pool,
    queries: [{ input: at("query").value, ...(choices.length && { choices }), ...(media.length && { media }) }],
    k: Number(at("k").value),
    budget: Number(at("budget").value),
    reserve: Number(at("reserve").value),
    tokenizer: at("tokenizer").value,
    selection: at("selection").value,
    order: at("order").value,
    where: conditions(at("where").value),
    // stated even where it is as usual, so that the answer's prompt is this one whatever the pool's front says
    threshold: threshold === "" ? null : Number(threshold),
    considered: 100,
    without_copies: at("copies").checked,
  };
}
