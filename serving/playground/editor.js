// One demonstration, new or changed.

import { call, demonstrationAt, inPool, Problem, send, stored } from "./api.js";
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

/** Let a user fill in a demonstration of a pool; `read` is the one that is changed as it is stored, null: a new one. */
export function edit(pool, read, saved) {
  let { d, tag } = read ?? { d: null, tag: null };
  const form = dialog.querySelector("form");
  const labels = Object.keys(pool.task.verbaliser ?? {});
  at("demonstration-title").textContent = d ? "Edit the demonstration" : "Add a demonstration";
  at("demonstration-notice").replaceChildren();
  at("d-id").value = d?.id ?? "";
  at("d-id").readOnly = Boolean(d);
  at("d-output").hidden = labels.length > 0;
  at("d-label").hidden = !labels.length;
  const offered = new Set(labels.length && d ? [...labels, d.output] : labels); // its own may be none of them
  offer(at("d-label"), [...offered].map((label) => [label, label]));
  const fields = {
    input: kept(at("d-input"), d?.input ?? ""),
    output: kept(at(labels.length ? "d-label" : "d-output"), d?.output ?? at("d-label").value),
    choices: kept(at("d-choices"), d?.choices ?? [], (all) => all.join("\n"), lines),
    references: kept(at("d-references"), d?.references ?? [], (all) => all.join("\n"), lines),
    metadata: kept(at("d-metadata"), d?.metadata ?? {}, written, pairs),
  };
  at("d-more").open = Boolean(d?.choices || d?.references || d?.metadata || d?.media);
  pictures.set(d?.media);
  form.onsubmit = async (event) => {
    event.preventDefault();
    await attempt(at("demonstration-notice"), async () => {
      const filled = Object.entries(fields).map(([name, value]) => [name, value()]);
      const made = { ...Object.fromEntries(filled), media: pictures.get() };
      try {
        await save(pool, d, tag, made);
      } catch (problem) {
        if (problem.kind !== "precondition-failed") throw problem;
        const now = await stored(pool.name, d.id);
        const conflict = changedMeanwhile(d, now.d);
        ({ d, tag } = now);
        throw conflict;
      }
      dialog.close();
      await saved();
    }, { control: form.querySelector(".primary") });
  };
  open(dialog);
  at("d-input").focus();
}

async function save(pool, d, tag, made) {
  const id = at("d-id").value.trim();
  if (d) await send("PUT", demonstrationAt(pool.name, d.id), { body: JSON.stringify(made), match: tag });
  else await call("POST", inPool(pool.name, "/demonstrations"), { demonstrations: [{ ...made, ...(id && { id }) }] });
}

/** What someone else has made of a demonstration since it was read. */
function changedMeanwhile(before, now) {
  const told = (value) => JSON.stringify(value) ?? "empty";
  const names = Object.keys({ ...before, ...now }).filter((name) => told(before[name]) !== told(now[name]));
  const changes = names.map((name) => `${name} is ${told(now[name]).slice(0, 300)}`).join("; ");
  return new Problem("changed meanwhile", `Someone changed it since it was opened here: ${changes}. Save once more to replace that, or cancel.`);
}

/** Show a value in a control; what is returned reads it again, and gives the very same back where nobody changed its text. */
function kept(control, value, write = String, read = String) {
  control.value = write(value);
  const shown = control.value; // the browser ends lines in its own way
  return () => (control.value === shown ? value : read(control.value));
}

const written = (metadata) => Object.entries(metadata).map((pair) => pair.join(" = ")).join("\n");

const pairs = (text) => Object.fromEntries(lines(text).map((line) => {
  const cut = line.indexOf("=");
  if (cut < 1) throw new Problem("metadata", `“${line}”: write a name, =, and a value.`);
  return [line.slice(0, cut).trim(), line.slice(cut + 1).trim()];
}));
