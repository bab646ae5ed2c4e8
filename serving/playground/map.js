// Demonstrations as points on a plane, coloured and shaped by output; a pointer or the arrow keys tell the text.

import { button, el, number, svg } from "./dom.js";

const WIDE = { width: 720, height: 480 };
const NARROW = { width: 360, height: 360 };
const MARGIN = 18;
const HUES = 8; // outputs that have a colour and a shape of their own; the others share grey
const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (x, y, r) => `M${x} ${y - 1.3 * r}l${1.25 * r} ${2.2 * r}h${-2.5 * r}z`,
  (x, y, r) => `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z`,
];
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Draw the map that the service gave into a place. */
export function drawMap(place, map, sampled) {
  const groups = grouped(map.points);
  const size = place.clientWidth < 600 ? NARROW : WIDE;
  const points = placed(map.points, groups, size);
  const middle = { x: size.width / 2, y: size.height / 2 };
  const told = el("div", { class: "point", role: "status" }, "Point at a mark, or focus the map and use the arrow keys.");
  const drawing = svg("svg", {
    viewBox: `0 0 ${size.width} ${size.height}`,
    tabindex: 0,
    role: "application",
    "aria-label": `Map of ${map.sampled} demonstrations; the arrow keys go from one to the next`,
  });
  const marks = points.map((p) => svg("path", { class: `mark hue-${p.hue}`, d: SHAPES[p.hue % SHAPES.length](p.x, p.y, 3.6) }));
  drawing.append(...marks);
  let here = -1;

  function show(i) {
    if (i < 0 || i === here) return;
    marks[here]?.classList.remove("here");
    here = i;
    marks[i].classList.add("here");
    drawing.append(marks[i]); // above the others
    const p = map.points[i];
    told.replaceChildren(
      el("p", { class: "mono" }, p.id),
      el("p", { class: "text" }, p.input),
      el("p", { class: "output" }, el("span", { class: "unseen" }, "Output:"), el("b", {}, p.output || "(empty)")));
  }

  drawing.addEventListener("pointermove", (event) => show(nearest(points, pointed(drawing, event, size), 24)));
  drawing.addEventListener("pointerdown", (event) => show(nearest(points, pointed(drawing, event, size), 60)));
  drawing.addEventListener("focus", () => here < 0 && show(nearest(points, middle, Infinity)));
  drawing.addEventListener("keydown", (event) => {
    if (!(event.key in WAYS)) return;
    event.preventDefault();
    show(next(points, points[here] ?? middle, WAYS[event.key]));
  });
  const variance = map.variance.map((v) => `${(100 * v).toFixed(0)} %`).join(" and ");
  place.replaceChildren(
    el("p", { class: "reason" }, `The two principal components of the vectors of ${map.retriever}: they hold ${variance} of the variance, so what lies apart here is apart, and what lies together may not be near.`),
    el("div", { class: "map" }, drawing, el("div", {}, legend(groups, points, marks), told)),
    sampled);
}

/** The outputs that get a hue, the commonest first, each with how many have it; the rest under null. */
function grouped(points) {
  const counts = new Map();
  for (const p of points) counts.set(p.output, (counts.get(p.output) ?? 0) + 1);
  const common = [...counts].filter(([, n]) => n > 1 || counts.size <= HUES).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, HUES);
  const rest = points.length - common.reduce((sum, [, n]) => sum + n, 0);
  return rest ? [...common, [null, rest]] : common;
}

function placed(points, groups, size) {
  const hues = new Map(groups.filter(([output]) => output !== null).map(([output], i) => [output, i]));
  const [xs, ys] = ["x", "y"].map((axis) => points.map((p) => p[axis]));
  const [x, y] = [scale(xs, size.width), scale(ys, size.height)];
  return points.map((p) => ({ x: x(p.x), y: size.height - y(p.y), hue: hues.get(p.output) ?? HUES }));
}

function scale(values, length) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = length - 2 * MARGIN;
  return (v) => Math.round(10 * (high > low ? MARGIN + ((v - low) / (high - low)) * room : length / 2)) / 10;
}

/** Where a pointer stands in the drawing's own units. */
function pointed(drawing, event, size) {
  const box = drawing.getBoundingClientRect();
  return { x: ((event.clientX - box.left) / box.width) * size.width, y: ((event.clientY - box.top) / box.height) * size.height };
}

function nearest(points, from, within) {
  let [best, least] = [-1, within ** 2];
  points.forEach((p, i) => {
    const far = (p.x - from.x) ** 2 + (p.y - from.y) ** 2;
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

/** The nearest point in a direction; what lies aside counts as further away. */
function next(points, from, [dx, dy]) {
  let [best, least] = [-1, Infinity];
  points.forEach((p, i) => {
    const along = (p.x - from.x) * dx + (p.y - from.y) * dy;
    const aside = Math.abs((p.x - from.x) * dy) + Math.abs((p.y - from.y) * dx);
    if (along > 0 && along + 3 * aside < least) [best, least] = [i, along + 3 * aside];
  });
  return best;
}

/** Outputs by their marks; pressing one fades the others. */
function legend(groups, points, marks) {
  const buttons = groups.map(([output, n], i) => {
    const hue = output === null ? HUES : i;
    const sign = svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { class: `mark hue-${hue}`, d: SHAPES[hue % SHAPES.length](0, 0, 5) }));
    const one = button("", () => {
      const pressed = one.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === one && pressed));
      points.forEach((p, j) => marks[j].classList.toggle("faded", pressed && p.hue !== hue));
    }, { "aria-pressed": "false" });
    one.append(sign, el("span", { class: "name" }, output === null ? "other outputs" : output || "(empty)"), el("span", { class: "n" }, number(n)));
    return one;
  });
  return el("ul", { class: "legend", "aria-label": "Outputs" }, buttons.map((b) => el("li", {}, b)));
}
