// Errors where they happened: what is wrong, and a way to try again.

import { button, el } from "./dom.js";

/** Show a problem in its place; `again` is what another try does. */
export function showProblem(place, problem, again = null) {
  if (problem.name === "AbortError") return;
  const retry = again && button("Try again", () => {
    place.replaceChildren();
    again();
  });
  const title = problem.title ?? "error in the page";
  const node = el("div", { class: "notice", role: "alert" },
    el("p", {}, el("strong", {}, title[0].toUpperCase() + title.slice(1)), el("br"), problem.detail ?? String(problem)), retry);
  place.replaceChildren(node);
  if (retry && problem.wait) countDown(retry, problem.wait);
  if (!problem.title) console.error(problem);
}

/** A button that says for how long the service wants to be left alone. */
function countDown(retry, seconds) {
  retry.disabled = true;
  retry.textContent = `Try again in ${seconds} s`;
  const clock = setInterval(() => {
    seconds -= 1;
    retry.disabled = seconds > 0;
    retry.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds <= 0) clearInterval(clock);
  }, 1000);
}

/** Do something, with its problem shown in `place` and with `control` not to be pressed meanwhile. */
export async function attempt(place, act, { control = null, again = null } = {}) {
  place.replaceChildren();
  if (control) control.disabled = true;
  try {
    return await act();
  } catch (problem) {
    showProblem(place, problem, again);
    return undefined;
  } finally {
    if (control) control.disabled = false;
  }
}
