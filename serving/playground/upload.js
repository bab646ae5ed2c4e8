// A file becomes demonstrations: sent, then stored and encoded by a job of the service.

import { call, gone, headers, inPool, problemOf, Problem, raised } from "./api.js";
import { asNdjson } from "./csv.js";
import { announce, at, count, el, number } from "./dom.js";
import { attempt } from "./notice.js";
import { takeDrops } from "./pictures.js";

const TYPES = {
  jsonl: "application/x-ndjson",
  ndjson: "application/x-ndjson",
  csv: "application/x-ndjson",
  parquet: "application/vnd.apache.parquet",
};
const LARGEST_CSV = 200e6; // bytes: it is read as a whole by the browser
const LOOK = 300; // milliseconds between two looks at a job

export function uploading(context) {
  let dropped = null;

  async function upload() {
    const file = dropped ?? at("file").files[0];
    const { pool } = context;
    if (!file) throw new Problem("no file", "Choose a file first.");
    const kind = file.name.split(".").pop().toLowerCase();
    if (!(kind in TYPES)) throw new Problem("unknown kind of file", `${file.name}: expected one that ends in .jsonl, .ndjson, .csv or .parquet.`);
    if (kind === "csv" && file.size > LARGEST_CSV) throw new Problem("too large", `${file.name}: CSV is read up to ${number(LARGEST_CSV)} bytes; send it as JSONL or Parquet.`);
    const { content, places } = kind === "csv" ? read(await file.text()) : { content: file, places: null };
    at("upload-name").textContent = `${file.name} into ${pool.name}`;
    at("upload-progress").hidden = false;
    at("refused").replaceChildren();
    at("done").value = 0;
    const mode = at("upsert").checked ? "upsert" : "add";
    const job = await sent(`${inPool(pool.name, "/load")}?mode=${mode}`, content, TYPES[kind]);
    await follow(pool, job, places);
    await listJobs();
  }

  async function follow(pool, begun, places) {
    let job = begun;
    at("cancel").hidden = false;
    at("cancel").onclick = () => attempt(at("upload-notice"), () => call("DELETE", `/v1/jobs/${job.id}`));
    try {
      for (;;) {
        at("done").max = Math.max(job.total, 1);
        at("done").value = job.state === "done" ? at("done").max : job.done;
        at("upload-said").textContent = said(job);
        showRefused(job, places);
        if (!["receiving", "queued", "running"].includes(job.state)) break;
        await new Promise((wake) => setTimeout(wake, LOOK));
        job = await call("GET", `/v1/jobs/${job.id}`);
      }
    } finally {
      at("cancel").hidden = true;
    }
    announce(`Upload ${job.state}`);
    if (job.created + job.replaced) {
      at("upload-said").append(" ", el("a", { href: `#/${encodeURIComponent(pool.name)}/demonstrations` }, "Look at them"));
    }
    if (job.state === "failed") throw new Problem("the load failed", job.error ?? "The service does not say why.");
  }

  async function listJobs() {
    const { pool } = context;
    const { jobs } = await call("GET", inPool(pool.name, "/jobs"));
    if (pool !== context.pool) return; // another one was gone to meanwhile
    at("jobs").replaceChildren(jobs.length ? jobTable(jobs) : el("p", { class: "reason" }, "None yet."));
  }

  at("upload-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(at("upload-notice"), upload, { control: at("send") });
  });
  at("file").addEventListener("change", () => {
    dropped = null;
    at("file-help").textContent = at("file").files.length ? "" : at("file-help").textContent;
  });
  takeDrops(at("drop"), (file) => {
    dropped = file;
    at("file").value = "";
    at("file-help").textContent = `${file.name}, ${number(file.size)} bytes`;
  });

  return {
    enter: () => attempt(at("upload-notice"), listJobs, { again: listJobs }),
  };
}

function read(text) {
  const { ndjson, places } = asNdjson(text);
  return { content: new Blob([ndjson]), places };
}

/** Send a payload and tell how much of it has gone; only XMLHttpRequest says so. */
function sent(path, content, type) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers({ "Content-Type": type }))) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      at("sent").max = event.total || 1;
      at("sent").value = event.loaded;
    };
    request.onerror = () => reject(gone());
    request.onload = () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText));
      else reject(raised(problemOf(request.status, request.responseText, (name) => request.getResponseHeader(name))));
    };
    request.send(content);
  });
}

function said(job) {
  const counts = ["created", "replaced", "unchanged", "refused"].map((name) => `${number(job[name] ?? 0)} ${name}`).join(", ");
  const left = job.seconds_left === null || job.seconds_left === undefined ? "" : `, ${Math.ceil(job.seconds_left)} s left`;
  return `${job.state[0].toUpperCase()}${job.state.slice(1)}: ${counts}${left}.`;
}

/** Lines that could not be used, of a CSV file by its own lines; and, without one, what is stored and cannot be encoded. */
function showRefused(job, places) {
  if (!job.errors.length) return;
  const rows = job.errors.map((e) => el("tr", {}, el("td", { class: "n" }, String(places?.[e.line - 1] ?? e.line ?? "")), el("td", {}, e.detail)));
  const lines = job.errors.filter((e) => e.line !== null).length;
  const more = job.refused > lines ? `, the first ${lines} of ${number(job.refused)}` : "";
  const stored = rows.length > lines ? `, ${number(rows.length - lines)} stored and not encoded` : "";
  at("refused").replaceChildren(el("div", { class: "scrolling" }, el("table", {},
    el("caption", {}, `${count(job.refused ?? lines, "refused line")}${more}${stored}`),
    el("thead", {}, el("tr", {}, el("th", { class: "n", scope: "col" }, "Line"), el("th", { scope: "col" }, "Why"))),
    el("tbody", {}, rows))));
}

function jobTable(jobs) {
  const rows = jobs.slice(0, 20).map((job) => el("tr", {},
    el("td", {}, job.kind === "switch" ? `switch to ${job.retriever}` : `load (${job.format})`),
    el("td", { title: job.error }, job.state),
    el("td", { class: "n" }, job.kind === "load" ? number(job.created) : ""),
    el("td", { class: "n" }, job.kind === "load" ? number(job.refused) : ""),
    el("td", {}, new Date(job.begun * 1000).toLocaleString("en"))));
  const head = [["What"], ["State"], ["Created", "n"], ["Refused", "n"], ["Begun"]];
  return el("div", { class: "scrolling", tabindex: 0, role: "region", "aria-label": "Earlier loads and switches" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map(([text, kind]) => el("th", { scope: "col", class: kind ?? null }, text)))),
    el("tbody", {}, rows)));
}
