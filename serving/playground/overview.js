// What a pool holds: its facts, its outputs, the lengths of its texts, and its map.

import { call, inPool } from "./api.js";
import { bar } from "./cards.js";
import { at, confirmed, count, el, number } from "./dom.js";
import { drawMap } from "./map.js";
import { attempt, showProblem } from "./notice.js";

const BARS = 12;

export function overview(context) {
  at("delete-pool").addEventListener("click", async () => {
    const { name, demonstrations } = context.pool;
    if (!(await confirmed(`Delete the pool ${name}?`, `Its ${count(demonstrations, "demonstration")} and all feedback on it go with it, for good.`, "Delete it"))) return;
    await attempt(at("overview-notice"), async () => {
      await call("DELETE", inPool(name));
      await context.refresh();
    });
  });

  async function show(pool) {
    at("facts").replaceChildren(facts(pool));
    for (const id of ["outputs", "lengths", "map"]) at(id).replaceChildren(el("p", { class: "busy" }, "Counting…"));
    const statistics = await call("GET", inPool(pool.name, "/statistics"));
    if (pool !== context.pool) return; // another one was gone to meanwhile
    const said = sampled(statistics);
    at("outputs").replaceChildren(...outputs(statistics.outputs, statistics.sampled), said);
    at("lengths").replaceChildren(...lengths("Inputs", statistics.input_characters), ...lengths("Outputs", statistics.output_characters));
    await showMap(pool);
  }

  async function showMap(pool) {
    if (!pool.demonstrations) return at("map").replaceChildren(el("p", { class: "reason" }, "The pool is empty."));
    try {
      const map = await call("GET", inPool(pool.name, "/map"));
      if (pool !== context.pool) return;
      if (!map.sampled) return at("map").replaceChildren(el("p", { class: "reason" }, "Nothing is encoded yet."));
      drawMap(at("map"), map, sampled(map));
    } catch (problem) {
      if (problem.status === 409) at("map").replaceChildren(el("p", { class: "reason" }, `${problem.detail}.`));
      else showProblem(at("map"), problem, () => showMap(pool));
    }
  }

  return {
    enter: (pool) => attempt(at("overview-notice"), () => show(pool), { again: () => show(context.pool) }),
  };
}

function facts(pool) {
  const labels = Object.keys(pool.task.verbaliser ?? {});
  const rows = [
    ["Demonstrations", number(pool.demonstrations)],
    ["Answers by", pool.retriever],
    ["Kept for a roll-back", pool.previous_retriever ?? "none"],
    ["Encodings", pool.encodings.map((e) => `${e.retriever} (${e.state})`).join(", ") || "none"],
    ["Kind of task", pool.task.kind],
    ["Instruction", pool.task.instruction || "none"],
    ["Labels", labels.length ? (labels.length > 6 ? `${labels.length} labels` : labels.join(", ")) : "free text"],
    ["Changes so far", number(pool.seq)],
  ];
  return el("dl", { class: "facts panel" }, rows.map(([term, said]) => el("div", {}, el("dt", {}, term), el("dd", {}, said))));
}

const sampled = ({ sampled: n, demonstrations: all }) =>
  el("p", { class: "reason" }, n < all ? `Of ${number(n)} demonstrations, drawn evenly from all ${number(all)}.` : `Of all ${count(n, "demonstration")}.`);

const bars = (rows) => {
  const most = Math.max(...rows.map((r) => r.count), 1);
  return el("ul", { class: "bars" }, rows.map((r) =>
    el("li", {}, el("span", { class: "name", title: r.name }, r.name), bar(r.count / most), el("span", { class: "n" }, r.said ?? number(r.count)))));
};

function outputs(found, n) {
  if (!n) return [el("p", { class: "reason" }, "None yet.")];
  const shown = found.most_common.slice(0, BARS);
  const rows = shown.map(({ output, count: c }) => ({ name: output || "(empty)", count: c, said: `${number(c)} · ${(100 * c / n).toFixed(1)} %` }));
  const rest = n - shown.reduce((sum, one) => sum + one.count, 0);
  if (rest) rows.push({ name: `${number(found.distinct - shown.length)} others`, count: rest, said: `${number(rest)} · ${(100 * rest / n).toFixed(1)} %` });
  return [el("p", { class: "reason" }, count(found.distinct, "distinct output")), bars(rows)];
}

function lengths(title, found) {
  if (!found.histogram.length) return [];
  const { shortest, median, longest } = found;
  return [
    el("h3", {}, title),
    el("p", { class: "reason" }, shortest === longest
      ? `${count(shortest, "character")} each`
      : `${number(shortest)} to ${count(longest, "character")}, half of them up to ${number(median)}`),
    bars(found.histogram.map((h) => ({ name: `up to ${number(h.up_to)}`, count: h.count }))),
  ];
}
