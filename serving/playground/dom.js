// Elements are made here and nowhere else. Text goes in as text: nothing on this page parses markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id, which index.html has. */
export const at = (id) => document.getElementById(id);

/** An element; `props` are attributes, `on` listeners by event, children are nodes or texts. */
export function el(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false).map(asNode));
  return node;
}

const asNode = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

/** A button that does one thing. */
export function button(text, act, props = {}) {
  return el("button", { type: "button", ...props, on: { click: act } }, text);
}

/** Let a select offer these [value, text] pairs; what was chosen stays chosen where it still is one. */
export function offer(select, pairs) {
  const before = select.options.length ? select.value : null;
  select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

/** Tell those who do not see the page what happened. */
export function announce(text) {
  at("said").textContent = text;
}

/** A number as people read it. */
export const number = (n) => n.toLocaleString("en");

/** "1 demonstration", "2 demonstrations". */
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

/** Lines of a text without empty ones. */
export const lines = (text) => text.split("\n").map((l) => l.trim()).filter(Boolean);

/** Show a dialog; its cancel button and Escape close it. */
export function open(dialog) {
  const cancel = dialog.querySelector("button[value=cancel]");
  if (cancel) cancel.onclick = () => dialog.close();
  if (!dialog.open) dialog.showModal();
}

/** What a user answers to a question, as a promise of true or false. */
export function confirmed(title, text, yes) {
  const dialog = at("confirm-dialog");
  at("confirm-title").textContent = title;
  at("confirm-text").textContent = text;
  at("confirm-yes").textContent = yes;
  return new Promise((resolve) => {
    let answer = false;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      answer = true;
      dialog.close();
    };
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    open(dialog);
  });
}
