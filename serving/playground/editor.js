// One demonstration, new or changed.

import { call, demonstrationAt, inPool, Problem } from "./api.js";
import { at, lines, offer, open } from "./dom.js";
import { attempt } from "./notice.js";
import { takePictures } from "./pictures.js";

const dialog = at("demonstration-dialog");
const pictures = takePictures({
  input: at("d-picture"),
  place: dialog,
  list: at("d-pictures"),
  said: at("d-picture-said"),
});

/** Let a user fill in a demonstration of a pool; `d` is the one that is changed, null: a new one. */
export function edit(pool, d, saved) {
  const form = dialog.querySelector("form");
  const labels = Object.keys(pool.task.verbaliser ?? {});
  at("demonstration-title").textContent = d ? "Edit the demonstration" : "Add a demonstration";
  at("demonstration-notice").replaceChildren();
  at("d-id").value = d?.id ?? "";
  at("d-id").readOnly = Boolean(d);
  at("d-input").value = d?.input ?? "";
  at("d-output").value = d?.output ?? "";
  at("d-output").hidden = labels.length > 0;
  at("d-label").hidden = !labels.length;
  offer(at("d-label"), labels.map((label) => [label, label]));
  if (d && labels.includes(d.output)) at("d-label").value = d.output;
  at("d-choices").value = (d?.choices ?? []).join("\n");
  at("d-references").value = (d?.references ?? []).join("\n");
  at("d-metadata").value = Object.entries(d?.metadata ?? {}).map((pair) => pair.join(" = ")).join("\n");
  at("d-more").open = Boolean(d?.choices || d?.references || d?.metadata || d?.media);
  pictures.set(d?.media);
  form.onsubmit = async (event) => {
    event.preventDefault();
    await attempt(at("demonstration-notice"), async () => {
      await save(pool, d, filled(labels));
      dialog.close();
      await saved();
    }, { control: form.querySelector(".primary") });
  };
  open(dialog);
  at("d-input").focus();
}

async function save(pool, d, made) {
  const id = at("d-id").value.trim();
  if (d) await call("PUT", demonstrationAt(pool.name, d.id), made);
  else await call("POST", inPool(pool.name, "/demonstrations"), { demonstrations: [{ ...made, ...(id && { id }) }] });
}

function filled(labels) {
  const pairs = lines(at("d-metadata").value).map((line) => {
    const cut = line.indexOf("=");
    if (cut < 1) throw new Problem("metadata", `“${line}”: write a name, =, and a value.`);
    return [line.slice(0, cut).trim(), line.slice(cut + 1).trim()];
  });
  return {
    input: at("d-input").value,
    output: labels.length ? at("d-label").value : at("d-output").value,
    choices: lines(at("d-choices").value),
    references: lines(at("d-references").value),
    metadata: Object.fromEntries(pairs),
    media: pictures.get(),
  };
}
