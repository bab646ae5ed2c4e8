"""Rendered scenes of which everything is known: what lies where, how far, its outline, what stands out.

A floor and a wall of one colour; on the floor one to four things of five shapes, all dull but one, which is vivid.
Things farther off are smaller, stand higher and fade, so that a network can learn how far they are. Every label is
made with the pixels and exact:

- `semseg`: 0 ground, 1 + the place in SHAPES; of the nearest thing at each pixel.
- `depth`: distance of that thing or of the ground, above 0 and at most 1, the wall's.
- `edges`: the outline of each thing against the ground and what lies behind it: its outermost pixels.
- `saliency`: what is seen of the vivid thing.
- attributes: the `ground`'s colour, how many `objects` there are, the `shape` of which most is seen.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from udr.artifacts import replacing
from udr.errors import ConfigError
from udr.types import Progress

__all__ = ["GROUNDS", "SHAPES", "Scene", "render_scene", "scenes_table"]

SHAPES = ("ball", "box", "triangle", "ring", "cross")
GROUNDS = {"red": 0.0, "yellow": 0.15, "green": 0.35, "blue": 0.6, "purple": 0.8, "grey": -1.0}  # hues; grey has none
MOST = 4  # things of a scene
NEAREST = 0.3  # depth of the floor at the lower edge
RADIUS = 0.1  # of a thing at depth 1, as a share of the side
SEEN = 12, 0.4  # pixels and share of a thing that others leave to be seen, at 48 pixels a side
TRIES = 20  # at a place for a thing
SCHEMA = pa.schema(
    [(name, pa.binary()) for name in ("image", "semseg", "depth", "edges", "saliency")]
    + [(name, pa.string()) for name in ("ground", "objects", "shape", "label", "split")]
)


@dataclass(frozen=True)
class Scene:
    """A picture and its labels, all of `size` pixels a side.

    Args:
        pixels: (size, size, 3), uint8.
        semseg: (size, size), uint8.
        depth: (size, size), float32.
        edges: (size, size), bool.
        saliency: (size, size), bool.
        things: (size, size), uint8, which thing is seen where, from 1; 0 is the ground.
        attributes: by name.
    """

    pixels: NDArray[np.uint8]
    semseg: NDArray[np.uint8]
    depth: NDArray[np.float32]
    edges: NDArray[np.bool_]
    saliency: NDArray[np.bool_]
    things: NDArray[np.uint8]
    attributes: dict[str, str]


@dataclass(frozen=True)
class _Thing:
    """Where a thing is, (size, size) each: its mask, its depth and how much light falls on it."""

    shape: int
    mask: NDArray[np.bool_]
    depth: NDArray[np.float64]
    light: NDArray[np.float64]
    away: float  # depth of its middle


def render_scene(number: int, seed: int = 0, size: int = 48) -> Scene:
    """The scene of a number; the same for ever.

    Raises:
        ConfigError: fewer than 16 pixels a side.
    """
    if size < 16:
        raise ConfigError(f"size {size}: a scene has 16 pixels a side at least")
    rng = np.random.default_rng([seed, number])
    down, across = (np.mgrid[:size, :size] + 0.5) / size
    horizon, name = rng.uniform(0.25, 0.45), str(rng.choice(list(GROUNDS)))
    below = np.clip((down - horizon) / (1 - horizon), 0, 1)
    ground = 1 / (1 + (1 / NEAREST - 1) * below)
    things = _things(rng, down, across, horizon)
    vivid = int(rng.integers(len(things)))
    fog, wall = _ground_colours(rng, name)
    blots = np.kron(rng.uniform(-0.05, 0.05, (6, 6)), np.ones((-(-size // 6),) * 2))[:size, :size]
    shade = np.where(below > 0, 1.0 - 0.25 * below, 0.85) + blots
    colour, depth = wall * shade[..., None], ground.copy()
    seen = np.zeros((size, size), np.uint8)
    for i, thing in enumerate(things):
        own = _own_colour(rng, i == vivid) * thing.light[..., None]
        faded = own + (fog - own) * 0.35 * thing.away
        colour = np.where(thing.mask[..., None], faded, colour)
        depth = np.where(thing.mask, thing.depth, depth)
        seen[thing.mask] = i + 1
    noisy = colour * rng.uniform(0.8, 1.1) + rng.normal(0, 0.02, colour.shape)
    kinds = np.array([0, *(1 + thing.shape for thing in things)], np.uint8)
    sizes = [int((seen == i + 1).sum()) for i in range(len(things))]
    return Scene(
        (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8),
        kinds[seen],
        depth.astype(np.float32),
        _edges(seen),
        seen == vivid + 1,
        seen,
        {"ground": name, "objects": str(len(things)), "shape": SHAPES[things[int(np.argmax(sizes))].shape]},
    )


def _things(
    rng: np.random.Generator, down: NDArray[np.float64], across: NDArray[np.float64], horizon: float
) -> list[_Thing]:
    """Some things, the farthest first; of each enough is seen."""
    wanted, found = int(rng.integers(1, MOST + 1)), list[_Thing]()
    for _ in range(wanted):
        for _ in range(TRIES):
            tried = sorted([*found, _thing(rng, down, across, horizon)], key=lambda thing: -thing.away)
            if _all_are_seen(tried):
                found = tried
                break
    return found


def _thing(rng: np.random.Generator, down: NDArray[np.float64], across: NDArray[np.float64], horizon: float) -> _Thing:
    shape, away = int(rng.integers(len(SHAPES))), float(rng.uniform(0.35, 0.85))
    radius = RADIUS * rng.uniform(0.9, 1.25) / away
    foot = horizon + (1 - horizon) * (1 / away - 1) / (1 / NEAREST - 1)
    middle, tilt = rng.uniform(radius, 1 - radius), 0.0 if shape == 0 else rng.uniform(-0.35, 0.35)
    x, y = (across - middle) / radius, (down - foot + radius) / radius
    u, v = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    middle_distance = np.hypot(u, v)
    flat, even = np.full_like(u, away), np.full_like(u, 0.9)
    if SHAPES[shape] == "ball":
        bulge = np.sqrt(np.clip(1 - middle_distance**2, 0, 1))
        return _Thing(shape, middle_distance <= 1, away - 0.1 * bulge, 0.4 + 0.6 * bulge * (0.8 - 0.2 * (u + v)), away)
    if SHAPES[shape] == "box":
        turned = 0.05 * rng.choice((-1, 1)) * u  # one side is nearer
        return _Thing(shape, np.maximum(abs(u), abs(v)) <= 0.85, away + turned, 0.9 - 4 * turned, away)
    if SHAPES[shape] == "triangle":
        return _Thing(shape, (abs(v) <= 0.9) & (abs(u) <= (v + 0.9) / 1.8), flat, even, away)
    if SHAPES[shape] == "ring":
        return _Thing(shape, abs(middle_distance - 0.75) <= 0.25, flat, even, away)
    arms = np.minimum(abs(u), abs(v)) <= 0.33
    return _Thing(shape, arms & (np.maximum(abs(u), abs(v)) <= 1), flat, even, away)


def _all_are_seen(things: list[_Thing]) -> bool:
    """True when things, the farthest first, leave enough of each other and lie in the picture."""
    size = things[0].mask.shape[0]
    left = np.zeros((size, size), np.int64)
    for i, thing in enumerate(things):
        left[thing.mask] = i + 1
    for i, thing in enumerate(things):
        pixels = int((left == i + 1).sum())
        if pixels < SEEN[0] * (size / 48) ** 2 or pixels < SEEN[1] * thing.mask.sum():
            return False
    return True


def _ground_colours(rng: np.random.Generator, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of what things fade to, and of the wall; red, green and blue from 0 to 1."""
    hue, light = GROUNDS[name], rng.uniform(0.5, 0.8)
    grey = hue < 0
    near = (hue + rng.uniform(-0.03, 0.03)) % 1
    fog, wall = (colorsys.hsv_to_rgb(near, 0.0 if grey else s, light) for s in (0.3, 0.5))
    return np.array(fog), np.array(wall)


def _own_colour(rng: np.random.Generator, vivid: bool) -> NDArray[np.float64]:
    saturation, light = (rng.uniform(0.85, 1), rng.uniform(0.85, 1)) if vivid else rng.uniform((0.1, 0.35), (0.35, 0.8))
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), saturation, light))


def _edges(seen: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels beside one that is seen of something behind; things are numbered from the farthest on."""
    found = np.zeros(seen.shape, np.bool_)
    found[:, 1:] |= seen[:, 1:] > seen[:, :-1]
    found[1:] |= seen[1:] > seen[:-1]
    found[:, :-1] |= seen[:, :-1] > seen[:, 1:]
    found[:-1] |= seen[:-1] > seen[1:]
    return found


def scenes_table(
    out: Path, count: int = 4000, seed: int = 0, size: int = 48, progress: Progress | None = None
) -> dict[str, int]:
    """Write scenes as a table, the last fifth as split test; give the rows of each split.

    Pictures and labels are PNG files: `depth` in 65,535ths, `edges` and `saliency` as 0 and 255. `label` repeats the
    shape, for commands that know one label alone.

    Raises:
        ConfigError: fewer than ten scenes, or too few pixels.
        ArtifactError: the disk is full or the folder cannot be written.
    """
    if count < 10:
        raise ConfigError(f"count {count}: ten scenes at least")
    tests = count // 5
    with replacing(out) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for start in range(0, count, 500):
            rows = list(_rows(range(start, min(count, start + 500)), count - tests, seed, size))
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            if progress:
                progress(start + len(rows), count)
    return {"train": count - tests, "test": tests}


def _rows(numbers: range, first_test: int, seed: int, size: int) -> Iterator[dict[str, bytes | str]]:
    for number in numbers:
        scene = render_scene(number, seed, size)
        yield {
            "image": _png(scene.pixels),
            "semseg": _png(scene.semseg),
            "depth": _png((scene.depth * 65535).round().astype(np.uint16)),
            "edges": _png(scene.edges.astype(np.uint8) * 255),
            "saliency": _png(scene.saliency.astype(np.uint8) * 255),
            **scene.attributes,
            "label": scene.attributes["shape"],
            "split": "test" if number >= first_test else "train",
        }


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
