// A pool is made.

import { call } from "./api.js";
import { at, lines, open } from "./dom.js";
import { attempt } from "./notice.js";

/** Ask what the pool is to be, make it, and tell its name. */
export function askForPool(made) {
  const dialog = at("pool-dialog");
  const form = dialog.querySelector("form");
  form.reset();
  at("pool-notice").replaceChildren();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const name = at("pool-name").value.trim();
    await attempt(at("pool-notice"), async () => {
      await call("POST", "/v1/pools", { name, task: task() });
      dialog.close();
      await made(name);
    }, { control: form.querySelector(".primary") });
  };
  open(dialog);
  at("pool-name").focus();
}

function task() {
  const instruction = at("pool-instruction").value.trim();
  const pairs = lines(at("pool-labels").value).map((line) => {
    const [label, word] = line.split(/\s*=\s*/, 2);
    return [label, word || label];
  });
  return { ...(instruction && { instruction }), ...(pairs.length && { verbaliser: Object.fromEntries(pairs) }) };
}
