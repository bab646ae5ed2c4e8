// Metadata conditions as people type them, `lang=en year>=2020`, and as the service reads them.

import { Problem } from "./api.js";

const OPERATORS = { "=": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte" };
const CONDITION = /\s*([^\s=!<>"]+)\s*(!=|>=|<=|=|>|<)\s*(?:"([^"]*)"|([^\s"]+))(?=\s|$)/y;

/** The `where` of a request; an empty text has no conditions. */
export function conditions(text) {
  const where = {};
  CONDITION.lastIndex = 0;
  while (text.slice(CONDITION.lastIndex).trim()) {
    const from = CONDITION.lastIndex;
    const found = CONDITION.exec(text);
    if (!found) throw new Problem("metadata", `“${text.slice(from).trim()}” is no condition; write lang=en or year>=2020.`);
    const [, field, operator, quoted, bare] = found;
    where[field] = { ...where[field], [OPERATORS[operator]]: valueOf(quoted ?? bare, operator, quoted !== undefined) };
  }
  return where;
}

/** Sizes are compared as numbers where they are numbers; equality goes by the text. */
function valueOf(text, operator, quoted) {
  const sized = operator !== "=" && operator !== "!=";
  return sized && !quoted && Number.isFinite(Number(text)) ? Number(text) : text;
}
