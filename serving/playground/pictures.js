// Pictures: taken from the user as data-URIs that the service accepts, and shown where they are data-URIs.

import { call, Problem } from "./api.js";
import { button, el } from "./dom.js";

const SHOWN = /^data:image\/(png|jpeg|gif|webp|bmp|avif|svg\+xml)[;,]/i;
const SIDES = [512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16];
let longest = null;

/** Media as people see them: data-URI images as images, all else as its address, which is not fetched. */
export function shown(media, remove = null) {
  return (media ?? []).map((one, i) =>
    el("figure", {},
      one.kind === "image" && SHOWN.test(one.uri)
        ? el("img", { src: one.uri, alt: "Picture of this input" })
        : el("span", { class: "address" }, `${one.kind}: ${one.uri.length > 200 ? `${one.uri.slice(0, 200)}…` : one.uri}`),
      remove && button("Remove", () => remove(i), { class: "small" })));
}

/** Let a file input and a place take pictures; `media` is the list that they are put in. */
export function takePictures({ input, place, list, said }) {
  const media = [];
  const draw = () => list.replaceChildren(...shown(media, (i) => {
    media.splice(i, 1);
    said.textContent = "";
    draw();
  }));
  const take = async (file) => {
    try {
      const [uri, words] = await asDataUri(file);
      media.push({ kind: "image", uri });
      said.textContent = words;
      draw();
    } catch (problem) {
      said.textContent = problem.detail ?? String(problem);
    }
  };
  input.addEventListener("change", async () => {
    for (const file of input.files) await take(file);
    input.value = "";
  });
  if (place) takeDrops(place, take);
  return {
    get: () => media.map((m) => ({ ...m })),
    set: (given) => {
      media.splice(0, media.length, ...(given ?? []));
      said.textContent = "";
      draw();
    },
  };
}

/** Hand each file that is dropped on a place to `take`. */
export function takeDrops(place, take) {
  place.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    place.classList.add("dropping");
  });
  place.addEventListener("dragleave", () => place.classList.remove("dropping"));
  place.addEventListener("drop", async (event) => {
    place.classList.remove("dropping");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    for (const file of event.dataTransfer.files) await take(file);
  });
}

/** A picture as a data-URI, made smaller where the service would not take it as it is, and what to say of it. */
async function asDataUri(file) {
  if (!file.type.startsWith("image/")) throw new Problem("no picture", `${file.name} is no picture.`);
  const limit = await longestUri();
  const whole = await read(file);
  if (whole.length <= limit) return [whole, `${file.name} is taken as it is.`];
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Problem("no picture", `${file.name} cannot be read as a picture.`);
  });
  for (const side of SIDES) {
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
    const canvas = el("canvas", {
      width: Math.max(1, Math.round(bitmap.width * scale)),
      height: Math.max(1, Math.round(bitmap.height * scale)),
    });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const uri = canvas.toDataURL("image/jpeg", 0.8);
    if (uri.length <= limit) {
      return [uri, `${file.name} was made smaller, ${canvas.width} × ${canvas.height}: the service takes addresses of at most ${limit} characters.`];
    }
  }
  throw new Problem("too large", `${file.name} does not fit into the ${limit} characters that the service takes.`);
}

const read = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("not read", `${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });

/** How long the address of a picture may be, as the service's own schema says. */
async function longestUri() {
  if (longest === null) {
    const schema = await call("GET", "/openapi.json");
    longest = schema.components?.schemas?.MediaBody?.properties?.uri?.["x-max-length"]?.image ?? Infinity;
  }
  return longest;
}
