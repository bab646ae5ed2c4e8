// The frame: which pool, which view, the key; the address behind # says both, so that a reload keeps the place.

import { call, inPool, key } from "./api.js";
import { browsing } from "./demonstrations.js";
import { announce, at, offer, open } from "./dom.js";
import { attempt } from "./notice.js";
import { overview } from "./overview.js";
import { askForPool } from "./pools.js";
import { reviewing } from "./review.js";
import { trying } from "./try.js";
import { uploading } from "./upload.js";

const context = { go, refresh: start, pool: null };
const views = {
  try: trying(context),
  demonstrations: browsing(context),
  review: reviewing(context),
  upload: uploading(context),
  overview: overview(context),
};
let pools = [];
let entries = 0;

/** Pool and view that the address names. */
function place() {
  const [pool, view] = location.hash.replace(/^#\/?/, "").split("/");
  return { pool: decoded(pool ?? ""), view: Object.hasOwn(views, view ?? "") ? view : "try" };
}

function decoded(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return ""; // an address that was typed
  }
}

function go(pool, view) {
  const hash = `#/${encodeURIComponent(pool)}/${view}`;
  if (location.hash === hash) enter();
  else location.hash = hash;
}

/** Ask which pools there are, and show the place that the address names. */
async function start() {
  await attempt(at("service-notice"), async () => {
    pools = await everyPool();
    await enter();
  }, { again: start });
}

async function everyPool() {
  const found = [];
  let cursor = "";
  do {
    const page = await call("GET", `/v1/pools?limit=1000&cursor=${encodeURIComponent(cursor)}`);
    found.push(...page.pools);
    cursor = page.next;
  } while (cursor);
  return found;
}

async function enter() {
  const { pool, view } = place();
  if (pools.length && !pools.some((p) => p.name === pool)) {
    history.replaceState(null, "", `#/${encodeURIComponent(pools[0].name)}/${view}`);
    return enter();
  }
  offer(at("pool"), pools.map((p) => [p.name, p.name]));
  for (const node of [at("pool"), ...at("pool").labels]) node.hidden = !pools.length;
  at("pool").value = pool;
  at("view-welcome").hidden = pools.length > 0;
  for (const link of document.querySelectorAll("[data-view]")) {
    const own = link.dataset.view;
    link.hidden = !pools.length;
    link.href = `#/${encodeURIComponent(pool)}/${own}`;
    if (own === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  entries += 1;
  if (!pools.length) {
    show(null);
    return announce("This service has no pools yet.");
  }
  document.title = `${pool} · UDR playground`;
  const own = entries;
  const found = await attempt(at("service-notice"), () => call("GET", inPool(pool)), { again: start });
  if (own !== entries) return; // another place was gone to meanwhile
  if (found) context.pool = found; // what is shown always belongs to it
  show(found ? view : null);
  if (!found) return;
  await attempt(at("service-notice"), () => views[view].enter(found), { again: start });
}

function show(view) {
  for (const name of Object.keys(views)) at(`view-${name}`).hidden = name !== view;
}

// -- the key

function askForKey(problem = null) {
  const why = at("key-why");
  why.hidden = !problem;
  if (problem) {
    const unknown = key.get() ? "The service does not know this key (any more)." : "This service asks for a key.";
    why.textContent = problem.status === 401 ? unknown : `Not allowed: ${problem.detail}.`;
  }
  at("key").value = key.get();
  at("forget-key").hidden = !key.get();
  open(at("key-dialog"));
  at("key").focus();
}

function useKey(value) {
  key.set(value);
  at("key-dialog").close();
  start();
}

key.asked = askForKey;
at("open-key").addEventListener("click", () => askForKey());
at("forget-key").addEventListener("click", () => useKey(""));
at("key-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
});

at("pool").addEventListener("change", () => go(at("pool").value, place().view));
for (const id of ["new-pool", "first-pool"]) {
  at(id).addEventListener("click", () => askForPool(async (name) => {
    pools = await everyPool();
    go(name, "upload");
  }));
}
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address behind # is the place
  at("main").focus();
});
window.addEventListener("hashchange", async () => {
  await enter();
  announce(`${document.querySelector("[data-view][aria-current]").textContent}, pool ${at("pool").value}`);
});
start();
