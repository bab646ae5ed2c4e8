// A demonstration as people read it.

import { el } from "./dom.js";
import { shown } from "./pictures.js";

/** Its input, pictures, output and what else it has, and above them these marks. */
export function card(d, marks) {
  return el("li", { class: "card" }, el("div", { class: "marks" }, marks), body(d));
}

/** What a demonstration says. */
export function body(d) {
  const long = d.input.length > 900;
  const media = shown(d.media);
  const tags = [
    ...(d.choices ?? []).map((c) => `choice: ${c}`),
    ...(d.references ?? []).filter((r) => r !== d.output).map((r) => `also: ${r}`),
    ...Object.entries(d.metadata ?? {}).map(([k, v]) => `${k}: ${v}`),
  ];
  return [
    el("p", { class: long ? "text long" : "text", tabindex: long ? 0 : null }, d.input),
    media.length ? el("div", { class: "pictures" }, media) : null,
    el("p", { class: "output" }, el("span", { class: "unseen" }, "Output:"), el("b", {}, d.output || "(empty)")),
    tags.length ? el("ul", { class: "tags", "aria-label": "Details" }, tags.map((t) => el("li", {}, t))) : null,
  ];
}

/** A bar whose length is a share of the whole; the number beside it says the same. */
export function bar(share) {
  const inner = el("span");
  inner.style.setProperty("--share", Math.max(0, Math.min(1, share)));
  return el("span", { class: "meter", "aria-hidden": "true" }, inner);
}
