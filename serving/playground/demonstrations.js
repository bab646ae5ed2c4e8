// The demonstrations of a pool: looked through, filtered, changed.

import { call, demonstrationAt, inPool, send, stored } from "./api.js";
import { card } from "./cards.js";
import { conditions } from "./conditions.js";
import { announce, at, button, confirmed, count, el } from "./dom.js";
import { edit } from "./editor.js";
import { attempt } from "./notice.js";

const PAGE = 50;

export function browsing(context) {
  const notice = at("demonstrations-notice");
  let next = null;
  let shown = 0;

  async function show(cursor = "") {
    const { pool } = context;
    const words = at("words").value.trim();
    const where = conditions(at("filter").value);
    const page = words ? await byWords(words, where) : await inOrder(cursor, where);
    if (pool !== context.pool) return; // another one was gone to meanwhile
    const cards = page.demonstrations.map(item);
    cursor ? at("demonstrations").append(...cards) : at("demonstrations").replaceChildren(...cards);
    shown = cursor ? shown + cards.length : cards.length;
    next = page.next ?? null;
    at("more").hidden = !next;
    at("demonstrations-said").textContent = said(words, where);
  }

  const inOrder = (cursor, where) => {
    const query = new URLSearchParams({ limit: PAGE, cursor });
    if (Object.keys(where).length) query.set("where", JSON.stringify(where));
    return call("GET", `${inPool(context.pool.name, "/demonstrations")}?${query}`);
  };

  const byWords = async (words, where) => {
    const asked = { pool: context.pool.name, queries: [words], retriever: "bm25", k: PAGE, where };
    const { results } = await call("POST", "/v1/retrieve", asked);
    return { demonstrations: results[0].demonstrations };
  };

  function said(words, where) {
    if (!shown) return words || Object.keys(where).length ? "No demonstration meets this." : "This pool is empty: upload a file, or add a demonstration.";
    if (words) return `The ${count(shown, "nearest demonstration")} by words.`;
    const whole = Object.keys(where).length ? "" : ` of ${count(context.pool.demonstrations, "demonstration")}`;
    return next || whole ? `${shown}${whole}, in the order they came.` : `${count(shown, "demonstration")}.`;
  }

  const again = (cursor = "") => attempt(notice, () => show(cursor), { control: at("more"), again: () => again(cursor) });

  async function changed(words) {
    context.pool = await call("GET", inPool(context.pool.name));
    await again();
    announce(words);
  }

  function item(d) {
    const buttons = el("div", { class: "buttons" },
      button("Edit", () => change(d), { class: "small", "aria-label": `Edit ${d.id}` }),
      button("Delete", () => remove(d), { class: "small danger", "aria-label": `Delete ${d.id}` }));
    return card(d, [el("span", { class: "mono" }, d.id), buttons]);
  }

  const change = ({ id }) => attempt(notice, async () => {
    const { pool } = context;
    edit(pool, await stored(pool.name, id), () => changed(`${id} saved`));
  });

  const remove = ({ id }) => attempt(notice, async () => {
    const { pool } = context;
    const { d, tag } = await stored(pool.name, id);
    if (!(await confirmed("Delete this demonstration?", `${id}: ${d.input.slice(0, 200)}`, "Delete it"))) return;
    await send("DELETE", demonstrationAt(pool.name, id), { match: tag });
    await changed(`${id} deleted`);
  }, { again: () => remove({ id }) });

  at("filter-form").addEventListener("submit", (event) => {
    event.preventDefault();
    again();
  });
  at("more").addEventListener("click", () => again(next));
  at("add").addEventListener("click", () => edit(context.pool, null, () => changed("added")));
  return { enter: () => again() };
}
