// Corrected outputs that wait for a reviewer.

import { call, inPool } from "./api.js";
import { announce, at, button, count, el } from "./dom.js";
import { attempt } from "./notice.js";

export function reviewing(context) {
  const notice = at("review-notice");
  const list = at("waiting");
  let next = null;

  async function show(cursor = "") {
    const { pool } = context;
    const query = new URLSearchParams({ state: "waiting", limit: 50, cursor });
    const page = await call("GET", `${inPool(pool.name, "/feedback")}?${query}`);
    if (pool !== context.pool) return; // another one was gone to meanwhile
    const items = page.feedback.map(item);
    cursor ? list.append(...items) : list.replaceChildren(...items);
    next = page.next;
    at("more-waiting").hidden = !next;
    tell();
  }

  const tell = () => {
    const n = list.children.length;
    at("review-said").textContent = n ? `${count(n, "correction")}${next ? " and more" : ""} to review.` : "Nothing waits.";
  };

  function item(row) {
    const field = `corrected-${row.id}`;
    const output = el("textarea", { id: field, rows: 2 });
    output.value = row.corrected_output ?? "";
    const shown = output.value; // the browser ends lines in its own way
    const place = el("div");
    const decide = (accept) => attempt(place, async () => {
      const changed = accept && output.value !== shown ? { output: output.value } : {};
      await call("POST", inPool(context.pool.name, `/feedback/${row.id}/review`), { accept, ...changed });
      const beside = (node.nextElementSibling ?? node.previousElementSibling)?.querySelector("textarea");
      node.remove();
      (beside ?? at("main")).focus();
      announce(accept ? "Accepted: it is a demonstration now." : "Rejected.");
      tell();
    });
    const node = el("li", { class: "card" },
      el("div", { class: "marks" },
        el("span", {}, `from ${row.caller}`),
        el("span", {}, new Date(row.at * 1000).toLocaleString("en")),
        row.demonstrations?.length ? el("span", {}, `${count(row.demonstrations.length, "demonstration")} in its prompt`) : null),
      el("p", { class: "text" }, row.input),
      row.output === undefined ? null : el("p", { class: "reason" }, "The model said: ", el("b", {}, row.output)),
      el("div", { class: "field" }, el("label", { for: field }, "Correct output"), output),
      place,
      el("div", { class: "buttons" }, button("Accept", () => decide(true), { class: "primary small" }), button("Reject", () => decide(false), { class: "small danger" })));
    return node;
  }

  const again = (cursor = "") => attempt(notice, () => show(cursor), { control: at("more-waiting"), again: () => again(cursor) });
  at("more-waiting").addEventListener("click", () => again(next));
  return { enter: () => again() };
}
