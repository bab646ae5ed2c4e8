r"""Edited noise on a small text-to-image model: what its first step tells, what moving blocks and repainting do.

    udr data shapes --out runs/shapes.parquet
    udr pretrain training/configs/pretrain/diffusion.yaml data=runs/shapes.parquet out=runs/diffusion
    python -m tests.benchmarks.synthesis gates model=artifact:runs/diffusion/model [pictures=128] [sheets=FOLDER]
    python -m tests.benchmarks.synthesis gap model=artifact:runs/diffusion/model

Where a thing came to lie is told by its colour alone, pixel by pixel, which no attention has a part in: prompts name
two things of different colours. `gates` writes results/synthesis.json, what is asked of the method beside what was
found; `gap` writes results/synthesis_gap.json: a pool that lacks one layout of one class, filled by synthesis, and
what a probe makes of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embed.media import pixels_of
from tests.benchmarks.record import write_result
from training.probes import knn_accuracy, linear_accuracy
from training.progress import hush_transformers
from training.shapes import COLOURS, SHAPES, draw_shape
from training.sheets import draw_rows
from training.synthesis.attention import cross_attentions, layer_side, preference_maps
from training.synthesis.layouts import Scene
from training.synthesis.model import TextToImage
from training.synthesis.registry import open_text_to_image
from training.synthesis.repaints import changes
from training.synthesis.synthesize import Edit, edited_noise, painted, resampled, synthesize
from training.synthesis.tables import draw_made
from udr.artifacts import read_json

AT_ONCE, STEPS, TRIES = 32, 25, 6
EDITS: tuple[Edit, ...] = ("none", "sorted", "exchange")
HALF = 0.5  # of a box's side, in shares of the picture's: things have 11 to 14 of 32 pixels
PLACED = 0.5  # of a thing's pixels, in its box: then it counts as placed


def prompts(count: int, seed: int) -> list[tuple[str, tuple[str, str]]]:
    """Prompts of two things of different colours, and their names."""
    random = Random(seed)
    found = []
    for _ in range(count):
        names = tuple(f"{colour} {random.choice(SHAPES)}" for colour in random.sample(sorted(COLOURS), 2))
        found.append((f"a {names[0]} and a {names[1]}", (names[0], names[1])))
    return found


def mask_of(pixels: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    """The pixels of (3, s, s) that are nearest to a thing's colour, of all colours and white."""
    known = [*COLOURS.values(), (255, 255, 255)]
    far = np.stack([((pixels.astype(float) - np.array(c)[:, None, None]) ** 2).sum(0) for c in known])
    found: NDArray[np.bool_] = far.argmin(0) == list(COLOURS).index(name.split()[0])
    return found


def shares_of(mask: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """The share of each cell that a mask covers, (side, side)."""
    wide = mask.shape[0] // side
    found: NDArray[np.float64] = mask.reshape(side, wide, side, wide).mean((1, 3))
    return found


def area_under_curve(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """How often a true cell has a higher score than another one; ties count by half."""
    true, false = scores[truth], scores[~truth]
    if not len(true) or not len(false):
        return float("nan")
    above = (true[:, None] > false[None]).mean() + 0.5 * (true[:, None] == false[None]).mean()
    return float(above)


def painted_of(model: TextToImage, asked: Sequence[tuple[str, Any]], noise: torch.Tensor) -> NDArray[np.uint8]:
    parts = []
    for start in range(0, len(asked), AT_ONCE):
        words = [prompt for prompt, _ in asked[start : start + AT_ONCE]]
        parts.append(model.decode(model.paint(noise[start : start + AT_ONCE], words, STEPS)))
    return np.concatenate(parts)


def first_step(model: TextToImage, count: int) -> dict[str, Any]:
    """How well the first step's map tells where a thing will lie, layer by layer.

    Beside it the map of the other thing of the prompt, of the same thing in another noise, and of the words that name
    no thing: what is of the noise alone, and not of the word.
    """
    asked = prompts(count, 0)
    noise = torch.stack([model.noise(i) for i in range(count)])
    pictures = painted_of(model, asked, noise)
    told: dict[str, Any] = {}
    words = [[*names, *(word for name in names for word in name.split())] for _, names in asked]
    texts = [prompt for prompt, _ in asked]
    for layer in cross_attentions(model.unet):
        found: dict[str, list[float]] = {"own": [], "other_thing": [], "other_noise": [], "colour": [], "shape": []}
        maps = preference_maps(model, noise, texts, words, STEPS, layer)
        elsewhere = preference_maps(model, noise.roll(1, 0), texts, words, STEPS, layer)
        for picture, (_, names), here, there in zip(pictures, asked, maps, elsewhere, strict=True):
            for own, other in (names, names[::-1]):
                truth = shares_of(mask_of(picture, own), here[own].shape[0]) >= 0.5
                colour, shape = own.split()
                for title, scores in (
                    ("own", here[own]),
                    ("other_thing", here[other]),
                    ("other_noise", there[own]),
                    ("colour", here[colour]),
                    ("shape", here[shape]),
                ):
                    found[title].append(area_under_curve(scores.ravel(), truth.ravel()))
        told[layer] = {title: round(float(np.nanmean(values)), 4) for title, values in found.items()}
    return told


def scenes_of(count: int, seed: int) -> list[Scene]:
    """Prompts with a box for each thing, half the picture's side, anywhere, neither over the other."""
    random, found = Random(seed), []
    for prompt, names in prompts(count, seed):
        while True:
            corners = [(random.randint(0, 4) / 8, random.randint(0, 4) / 8) for _ in names]
            if max(abs(corners[0][0] - corners[1][0]), abs(corners[0][1] - corners[1][1])) >= HALF:
                break
        boxes = {name: (x, y, x + HALF, y + HALF) for name, (x, y) in zip(names, corners, strict=True)}
        found.append(Scene(prompt=prompt, boxes=boxes, count=1))
    return found


def in_box(pixels: NDArray[np.uint8], scene: Scene) -> dict[str, float]:
    """Of each thing the share of its pixels that lie in its box; 0 where there are none."""
    side, found = pixels.shape[1], {}
    for name, (x0, y0, x1, y1) in scene.boxes.items():
        mask = mask_of(pixels, name)
        part = mask[round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)]
        found[name] = float(part.sum() / mask.sum()) if mask.any() else 0.0
    return found


def blocks_of(latents: torch.Tensor, side: int) -> list[bytes]:
    """The blocks of latents (c, h, w) that cells of a map of side × side stand for, whatever their order."""
    tall = latents.shape[1] // side
    blocks = latents.numpy().reshape(latents.shape[0], side, tall, side, tall).transpose(1, 3, 0, 2, 4)
    return sorted(block.tobytes() for row in blocks for block in row)


def in_box_rates(
    model: TextToImage, count: int, layer: str | None = None, edits: Sequence[Edit] = EDITS
) -> dict[str, Any]:
    """What share of things' pixels lies in their boxes, from random noise and from moved blocks of the same noise."""
    told: dict[str, Any] = {}
    scenes, side = scenes_of(count, 1), layer_side(model, layer)
    for move in edits:
        rates, both, agreed, exact = [], [], [], []
        for start in range(0, count, AT_ONCE):
            part = scenes[start : start + AT_ONCE]
            seeds = [10_000 + start + i for i in range(len(part))]
            noise = torch.stack([model.noise(seed) for seed in seeds])
            edited = edited_noise(model, noise, part, move, seeds, STEPS, layer)
            exact += [blocks_of(a, side) == blocks_of(b, side) for a, b in zip(edited, noise, strict=True)]
            pictures, placed = painted(model, edited, part, STEPS, None, layer)
            for scene, picture, said in zip(part, pictures, placed, strict=True):
                own = in_box(picture, scene)
                rates += list(own.values())
                both.append(min(own.values()) >= PLACED)
                agreed.append((min(said.values()) >= PLACED, both[-1]))
        accepted = [truth for said, truth in agreed if said]
        told[move] = {
            "in_box": round(float(np.mean(rates)), 4),
            "standard_error": round(float(np.std(rates) / np.sqrt(len(rates))), 4),
            "both_placed": round(float(np.mean(both)), 4),
            "accepted_by_attention": round(len(accepted) / len(scenes), 4),
            "of_those_both_placed": round(float(np.mean(accepted)), 4) if accepted else None,
            "edits_that_are_permutations": float(np.mean(exact)),
        }
    return told


def repainted(model: TextToImage, count: int) -> dict[str, float]:
    """The mean change of pixels inside and outside of a region whose noise is new, and where all noise is new."""
    inside, outside, regions, everywhere = [], [], [], []
    asked = prompts(count, 2)
    for i in range(count):
        random = Random(i)
        x, y = random.randint(0, 4) / 8, random.randint(0, 4) / 8
        regions.append((x, y, x + HALF, y + HALF))
    noise = torch.stack([model.noise(20_000 + i) for i in range(count)])
    other = torch.stack([resampled(model, noise[i], regions[i], 30_000 + i) for i in range(count)])
    another = torch.stack([model.noise(30_000 + i) for i in range(count)])
    before, after, others = (painted_of(model, asked, own) for own in (noise, other, another))
    for a, b, c, region in zip(before, after, others, regions, strict=True):
        everywhere.append(changes(a, c, (0, 0, 1, 1))[0])
        one, rest = changes(a, b, region)
        inside.append(one)
        outside.append(rest)
    ratio = float(np.mean(inside) / np.mean(outside))
    return {
        "inside": round(float(np.mean(inside)), 4),
        "outside": round(float(np.mean(outside)), 4),
        "ratio": round(ratio, 2),
        "all_new_everywhere": round(float(np.mean(everywhere)), 4),
    }


def trained(address: str) -> dict[str, Any]:
    """How the model came about."""
    return {k: v for k, v in read_json(Path(address.partition(":")[2]) / "model.json").items() if k != "words"}


def gates(model: str, pictures: str = "128", sheets: str = "", name: str = "synthesis", layer: str = "") -> None:
    opened, count = open_text_to_image(model, "cpu"), int(pictures)
    opened = replace(opened, layer=layer or opened.layer)
    began = time.process_time()
    attention = first_step(opened, count)
    print(attention, flush=True)
    boxes = in_box_rates(opened, count)
    print(boxes, flush=True)
    sharpest = max(attention, key=lambda title: attention[title]["own"])
    by_sharpest = in_box_rates(opened, count, sharpest, EDITS[1:])
    print(sharpest, by_sharpest, flush=True)
    region = repainted(opened, count // 2)
    print(region, flush=True)
    tries: dict[str, dict[str, float]] = {}
    made = {}
    for move in EDITS:
        scenes = [scene.model_copy(update={"count": 4}) for scene in scenes_of(4, 3)]
        made[move] = synthesize(opened, scenes, move=move, tries=TRIES, steps=STEPS)
        accepted = sum(m.accepted for m in made[move])
        tries[move] = {
            "wanted": len(made[move]),
            "accepted": accepted,
            "tries_per_accepted": round(sum(m.tries for m in made[move]) / max(1, accepted), 2),
        }
        if sheets:
            draw_made(made[move], scenes, Path(sheets) / f"made_{move}.png", f"noise: {move}")
    own = attention[opened.layer]
    passed = {
        "auc_above_0.6": own["own"] > 0.6,
        "auc_above_that_of_other_noise_by_0.1": own["own"] > own["other_noise"] + 0.1,
        "sorted_in_box_above_random_by_0.1": boxes["sorted"]["in_box"] > boxes["none"]["in_box"] + 0.1,
        "exchange_in_box_above_random_by_0.1": boxes["exchange"]["in_box"] > boxes["none"]["in_box"] + 0.1,
        "repaint_inside_4_times_outside": region["ratio"] > 4,
        "edits_are_permutations": all(boxes[move]["edits_that_are_permutations"] == 1 for move in EDITS),
    }
    figures: dict[str, Any] = {"model": trained(model)} | {
        "pictures": count,
        "steps": STEPS,
        "layer": opened.layer,
        "gates": passed,
    }
    figures |= {"first_step_auc": attention, "in_box": boxes, "in_box_by_sharpest_layer": {sharpest: by_sharpest}}
    figures |= {"repaint": region, "tries_of_6_at_most": tries}
    figures["processor_seconds"] = round(time.process_time() - began)
    print(passed, tries)
    print(write_result(name, figures))
    if sheets:
        attention_sheet(opened, Path(sheets) / "attention.png")
        repaint_sheet(opened, Path(sheets) / "repaint.png")


def attention_sheet(model: TextToImage, out: Path) -> None:
    """First-step maps beside what the noise became: without the edit, and with it."""
    rows = []
    for i, scene in enumerate(scenes_of(6, 4)):
        noise = model.noise(40_000 + i)[None]
        names = list(scene.boxes)
        (maps,) = preference_maps(model, noise, [scene.prompt], [names], STEPS)
        edited = edited_noise(model, noise, [scene], "sorted", [i], STEPS)
        pictures = model.decode(model.paint(torch.cat([noise, edited]), [scene.prompt] * 2, STEPS))
        target = np.full_like(pictures[0], 255)
        for name, (x0, y0, x1, y1) in scene.boxes.items():
            colour = np.array(COLOURS[name.split()[0]], np.uint8)[:, None, None]
            target[:, round(y0 * 32) : round(y1 * 32), round(x0 * 32) : round(x1 * 32)] = colour
        rows.append([*(heat(maps[name]) for name in names), pictures[0], target, pictures[1]])
    titles = ["1st thing, step 1", "2nd thing, step 1", "random noise", "boxes", "blocks moved"]
    draw_rows(rows, titles, out, "where the first step would put things, and where they come to lie")


def heat(scores: NDArray[Any]) -> NDArray[np.uint8]:
    """A map as a picture, black where it is highest."""
    low, high = scores.min(), scores.max()
    shades = 255 - ((scores - low) / (high - low) * 255).astype(np.uint8)
    return np.repeat(np.kron(shades, np.ones((4, 4), np.uint8))[None], 3, 0)


def repaint_sheet(model: TextToImage, out: Path) -> None:
    rows = []
    for i, (prompt, _) in enumerate(prompts(5, 5)):
        noise = model.noise(50_000 + i)
        noises = [noise, *(resampled(model, noise, (0, 0, 0.5, 0.5), 60_000 + j) for j in range(5))]
        rows.append(list(model.decode(model.paint(torch.stack(noises), [prompt] * len(noises), STEPS))))
    draw_rows(rows, ["first", *"12345"], out, "new noise under the upper left quarter")


@cache
def drawing(colour: str, shape: str, side: int) -> NDArray[np.uint8]:
    return pixels_of(draw_shape(shape, COLOURS[colour]), side)


def canvases_of(
    rng: Random, kind: str, lacking: str, side_of: str, count: int, alone: bool = False
) -> tuple[NDArray[np.uint8], list[str]]:
    """Rendered canvases of one thing, and its colour or shape; those of the class `lacking` in one half alone.

    Args:
        side_of: left or right: where things of that class lie; any: wherever the others do.
        alone: none of the other classes.
    """
    pixels, labels = [], []
    while len(pixels) < count:
        colour, shape = rng.choice(sorted(COLOURS)), rng.choice(SHAPES)
        side = rng.randint(11, 14)
        x, y = rng.randint(0, 32 - side), rng.randint(0, 32 - side)
        label = colour if kind == "colour" else shape
        if label == lacking and side_of != "any" and (x + side / 2 < 16) != (side_of == "left"):
            continue
        if alone and label != lacking:
            continue
        canvas = np.full((3, 32, 32), 255, np.uint8)
        canvas[:, y : y + side, x : x + side] = drawing(colour, shape, side)
        pixels.append(canvas)
        labels.append(label)
    return np.stack(pixels), labels


def gap(model: str, seeds: str = "3", pool: str = "600", more: str = "60", name: str = "synthesis_gap") -> None:
    """A pool whose things of one class all lie on the left: does a probe of pixels gain by synthesis on the right?

    Test pictures are rendered. Beside synthesis stand the pool as it is, and as many rendered pictures in its place.
    """
    opened, told = open_text_to_image(model, "cpu"), {}
    for kind, lacking in (("colour", "purple"), ("shape", "ring")):
        rows: dict[str, dict[str, list[float]]] = {}
        for seed in range(int(seeds)):
            rng = Random(seed)
            own, labels = canvases_of(rng, kind, lacking, "left", int(pool))
            test, answers = canvases_of(rng, kind, lacking, "any", 1000)
            wanted = int(more)
            right, _ = canvases_of(rng, kind, lacking, "right", wanted + 300, alone=True)
            filled = {
                "as_it_is": np.empty((0, 3, 32, 32), np.uint8),
                "synthesised": made_for(opened, kind, lacking, wanted, seed),
                "rendered": right[:wanted],
            }
            asked = right[wanted:]
            classes = sorted({*labels, *answers})
            for title, added in filled.items():
                bank = np.concatenate([own, added])
                known = np.array([classes.index(x) for x in [*labels, *[lacking] * len(added)]])
                line = rows.setdefault(title, {})
                for part, pictures, truth in (
                    ("all", test, np.array([classes.index(x) for x in answers])),
                    ("lacking", asked, np.full(len(asked), classes.index(lacking))),
                ):
                    line.setdefault(f"knn_{part}", []).append(knn_accuracy(bank, known, pictures, truth, 5))
                linear = linear_accuracy(bank, known, asked, np.full(len(asked), classes.index(lacking)))
                line.setdefault("linear_lacking", []).append(linear)
                line.setdefault("added", []).append(len(added))
        told[kind] = {"lacking": lacking} | {
            title: {key: [round(float(np.mean(v)), 4), round(float(np.std(v)), 4)] for key, v in line.items()}
            for title, line in rows.items()
        }
        print(kind, told[kind], flush=True)
    print(write_result(name, {"seeds": int(seeds), "pool": int(pool), "mean_and_deviation": told}))


def made_for(model: TextToImage, kind: str, lacking: str, wanted: int, seed: int) -> NDArray[np.uint8]:
    """Synthesised pictures of a class in boxes on the right, in every colour or shape, as many as are accepted."""
    names = [f"{lacking} {s}" for s in SHAPES] if kind == "colour" else [f"{c} {lacking}" for c in sorted(COLOURS)]
    rng = Random(seed)
    scenes = []
    for i in range(wanted):
        x, y = rng.uniform(0.45, 0.55), rng.uniform(0, 0.55)
        prompt = f"a {names[i % len(names)]}"
        scenes.append(Scene(prompt=prompt, boxes={names[i % len(names)]: (x, y, x + 0.45, y + 0.45)}, count=1))
    found = synthesize(model, scenes, seed=seed, tries=4, steps=STEPS)
    return np.stack([made.pixels for made in found if made.accepted])


PARTS = {"gates": gates, "gap": gap}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    hush_transformers()
    PARTS[sys.argv[1]](**dict(argument.split("=", 1) for argument in sys.argv[2:]))
