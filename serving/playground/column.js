// What one retriever made of a query: demonstrations by rank, what was left out and why, the prompt.

import { call, demonstrationAt } from "./api.js";
import { bar, body, card } from "./cards.js";
import { announce, button, count, el, number } from "./dom.js";
import { shown } from "./pictures.js";

/** The nodes of a column; `answer` is the panel with the model's answer. */
export function column(context, asked, found, answer) {
  const result = found.results[0];
  const best = Math.max(...result.demonstrations.map((d) => d.similarity), Number.EPSILON);
  const scored = found.retriever === "bm25" || found.retriever === "hybrid" ? "score" : "similarity";
  const ranked = [...result.demonstrations].sort((a, b) => a.rank - b.rank);
  return [
    head(asked, found, result),
    ranked.length
      ? el("ol", { class: "cards plain", "aria-label": "Demonstrations by rank" }, ranked.map((d) => card(d, marks(d, best, scored))))
      : el("p", { class: "invitation" }, "No demonstration meets these settings."),
    leftOut(context, "Did not fit the budget", result.dropped, (d) => `${d.reason} (${count(d.tokens, "token")})`),
    leftOut(context, "Passed over", result.passed_over ?? [], (d) => `rank ${d.rank}, ${scored} ${d.similarity.toFixed(3)}: ${d.reason}`),
    prompt(result),
    answer,
  ];
}

function head(asked, found, result) {
  const cut = result.tokens_cut ? `The encoder did not read the last ${count(result.tokens_cut, "token")} of the query.` : "";
  return el("header", {},
    el("h2", {}, found.retriever),
    el("p", {}, `${count(result.demonstrations.length, "demonstration")}, ${number(result.tokens)} of ${number(result.budget)} tokens (${asked.tokenizer})`),
    bar(result.tokens / result.budget),
    cut && el("p", {}, cut));
}

const marks = (d, best, scored) => [
  el("span", { class: "rank" }, el("span", { class: "unseen" }, "Rank "), String(d.rank)),
  el("span", {}, `${scored} ${d.similarity.toFixed(3)}`),
  bar(d.similarity / best),
  d.tokens === undefined || d.tokens === null ? null : el("span", {}, count(d.tokens, "token")),
  el("span", { class: "mono" }, d.id),
];

/** Those left out, with their reasons; their texts are fetched when they are looked at. */
function leftOut(context, title, rows, why) {
  if (!rows.length) return el("p", { class: "reason" }, `${title}: none.`);
  const list = el("ul", { class: "cards plain" }, rows.map((row) =>
    el("li", { class: "card", "data-id": row.id }, el("div", { class: "marks" }, el("span", { class: "mono" }, row.id)), el("p", { class: "reason" }, why(row)))));
  const fold = el("details", { class: "fold" }, el("summary", {}, `${title} (${rows.length})`), list);
  fold.addEventListener("toggle", () => fold.open && fill(context.pool.name, list), { once: true });
  return fold;
}

async function fill(pool, list) {
  await Promise.all([...list.children].map(async (item) => {
    try {
      item.append(...body(await call("GET", demonstrationAt(pool, item.dataset.id))).filter(Boolean));
    } catch (problem) {
      item.append(el("p", { class: "reason" }, problem.detail));
    }
  }));
}

/** What a turn of a chat holds: a text, or parts of which some are pictures. */
function contents(content) {
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : content;
  return parts.flatMap((part) => part.type === "image_url"
    ? shown([{ kind: "image", uri: part.image_url.url }])
    : [el("p", { class: "text" }, part.text)]);
}

function prompt(result) {
  const text = el("pre", { class: "prompt", tabindex: 0, "aria-label": "The prompt as text" }, result.text);
  const turns = el("div", { class: "turns", tabindex: 0, role: "group", "aria-label": "The prompt as chat messages" }, result.messages.map((m) =>
    el("div", { class: `turn ${m.role === "assistant" ? "assistant" : "user"}` }, el("h4", {}, m.role), ...contents(m.content))));
  const said = el("span", { class: "reason", role: "status" });
  return el("details", { class: "fold", open: true },
    el("summary", {}, "Prompt"),
    el("details", { open: true }, el("summary", {}, "As text"), text, el("div", { class: "buttons" }, copying(result.text, said), said)),
    el("details", {}, el("summary", {}, "As chat messages"), turns));
}

const copying = (text, said) => button("Copy", async () => {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "Copied.";
  } catch {
    said.textContent = "The browser did not let it be copied; mark it and copy by hand.";
  }
  announce(said.textContent);
}, { class: "small" });
