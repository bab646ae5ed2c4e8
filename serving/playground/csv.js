// CSV (RFC 4180) as NDJSON lines of demonstrations.

import { Problem } from "./api.js";

const LISTS = ["choices", "references"];

/** Records of a CSV text, each with the line that it begins in; quoted fields may hold commas, quotes and lines. */
export function* records(text) {
  let row = [];
  let field = "";
  let quoted = false;
  let line = 1;
  let begun = 1;
  for (let i = 0; i < text.length; i += 1) {
    const c = text[i];
    if (c === "\n") line += 1;
    if (quoted) {
      if (c !== '"') field += c;
      else if (text[i + 1] === '"') field += text[(i += 1)];
      else quoted = false;
    } else if (c === '"' && field === "") quoted = true;
    else if (c === ",") {
      row.push(field);
      field = "";
    } else if (c === "\n" || c === "\r") {
      if (c === "\r" && text[i + 1] === "\n") continue;
      if (row.length || field) yield { line: begun, row: [...row, field] };
      row = [];
      field = "";
      begun = line;
    } else field += c;
  }
  if (quoted) throw new Problem("CSV", `line ${begun}: a quote is opened and never closed.`);
  if (row.length || field) yield { line: begun, row: [...row, field] };
}

/** NDJSON of a CSV file whose first line names the columns, and the CSV line of each of its lines. */
export function asNdjson(text) {
  const all = records(text.replace(/^\uFEFF/, ""));
  const head = all.next().value?.row.map((name) => name.trim()) ?? [];
  for (const name of ["input", "output"]) {
    if (!head.includes(name)) throw new Problem("CSV", `The first line names no column “${name}”; it names ${head.join(", ") || "none"}.`);
  }
  const made = [];
  const places = [];
  for (const { line, row } of all) {
    if (row.length > head.length) throw new Problem("CSV", `line ${line}: ${row.length} fields where the first line names ${head.length}.`);
    made.push(JSON.stringify(demonstration(head, row)));
    places.push(line);
  }
  return { ndjson: made.join("\n"), places };
}

/** Columns that are no field of a demonstration are its metadata; lists are JSON or parted by |. */
function demonstration(head, row) {
  const found = {};
  const metadata = {};
  head.forEach((name, i) => {
    const value = row[i];
    if (name === "input" || name === "output") found[name] = value ?? "";
    else if (!value) return;
    else if (name === "id") found.id = value;
    else if (LISTS.includes(name)) found[name] = list(value);
    else metadata[name] = value;
  });
  return { ...found, metadata };
}

function list(value) {
  try {
    const found = JSON.parse(value);
    if (Array.isArray(found)) return found.map(String);
  } catch {
    // not JSON
  }
  return value.split("|").map((v) => v.trim());
}
