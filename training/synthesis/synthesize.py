"""Pictures for layouts: noise is edited, becomes pictures, and those whose things lie in their boxes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.synthesis.attention import layer_side, preference_maps, watching, word_maps
from training.synthesis.blocks import MOVES, Box, Cells, Move, cells_of_boxes, move_blocks
from training.synthesis.layouts import Scene, Share, box_cells
from training.synthesis.model import TextToImage
from udr.errors import ConfigError
from udr.types import FloatArray, Progress

__all__ = ["Edit", "Made", "edited_noise", "painted", "placed", "repaint", "resampled", "synthesize"]

AT_ONCE = 8  # pictures in one batch
LATE = 0.5  # share of the steps, the last ones, whose maps tell where things came to lie
Edit = Literal["sorted", "exchange", "none"]


@dataclass(frozen=True)
class Made:
    """One picture that was asked for.

    Args:
        scene: number of its layout.
        number: of it among those of the layout.
        pixels: (3, s, s), uint8; of the try that was accepted, or of the best one.
        seed: of that try's noise.
        tries: how many were made until one was accepted, or in all.
        placed: of each phrase, see `placed`.
        accepted: False where no try was good enough.
    """

    scene: int
    number: int
    pixels: NDArray[np.uint8]
    seed: int
    tries: int
    placed: dict[str, float]
    accepted: bool


def edited_noise(
    model: TextToImage, noise: Tensor, scene: Scene, move: Edit, seeds: Sequence[int], steps: int, layer: str | None
) -> Tensor:
    """Noise (n, c, h, w) whose blocks that would rather become a phrase lie in the phrase's box.

    Raises:
        ConfigError: the prompt does not hold a phrase, or a box has no cell of its own.
    """
    phrases = list(scene.boxes)
    maps = preference_maps(model, noise, scene.prompt, phrases, steps, layer)
    boxes = _boxes(scene, next(iter(maps.values())).shape[1])
    cells_of_boxes(boxes, next(iter(maps.values())).shape[1])  # told of random noise as well
    if move == "none":
        return noise
    moved = []
    for i, (own, seed) in enumerate(zip(noise, seeds, strict=True)):
        source = MOVES[_as_move(move)]([maps[p][i] for p in phrases], boxes, np.random.default_rng([seed, 1]))
        moved.append(move_blocks(own, source))
    return torch.stack(moved)


def _as_move(edit: Edit) -> Move:
    return "sorted" if edit == "sorted" else "exchange"


def _boxes(scene: Scene, side: int) -> list[Box]:
    return [box_cells(share, side) for share in scene.boxes.values()]


def placed(score: FloatArray, cells: Cells) -> float:
    """How much of where a thing came to lie is in its box: of as many cells as the box has, the highest of a map
    (side, side), the share that the box holds. 1 is all; by chance it is the box's share of the picture."""
    highest = np.argsort(-score.ravel(), kind="stable")[: len(cells)]
    return float(np.isin(highest, cells).mean())


def painted(
    model: TextToImage, noise: Tensor, scene: Scene, steps: int, guidance: float | None, layer: str | None
) -> tuple[NDArray[np.uint8], list[dict[str, float]]]:
    """Pictures of noise (n, c, h, w), uint8 (n, 3, s, s), and of each how its phrases are placed.

    It takes no detector: the maps of the last half of the steps, in the same layer, tell where the phrases came to lie.
    """
    phrases = list(scene.boxes)
    with watching(model.unet, layer or model.layer) as seen:
        latents = model.paint(noise, [scene.prompt] * len(noise), steps, guidance)
    late = torch.stack([one[len(noise) :] for one in seen[round(LATE * len(seen)) :]]).mean(0)
    maps = word_maps(late, {phrase: model.places(scene.prompt, phrase) for phrase in phrases})
    cells = cells_of_boxes(_boxes(scene, next(iter(maps.values())).shape[1]), next(iter(maps.values())).shape[1])
    found = [{p: placed(maps[p][i], own) for p, own in zip(phrases, cells, strict=True)} for i in range(len(noise))]
    return model.decode(latents), found


def synthesize(
    model: TextToImage,
    scenes: Sequence[Scene],
    *,
    move: Edit = "sorted",
    seed: int = 0,
    tries: int = 8,
    least: float = 0.5,
    steps: int = 25,
    guidance: float | None = None,
    layer: str | None = None,
    progress: Progress | None = None,
) -> list[Made]:
    """As many pictures of each layout as it wants, each of the first try in which every phrase is placed.

    The noise of a try depends on (seed, layout, picture, try) alone, so any picture can be made alone.

    Args:
        move: how the noise is edited; none: not at all, for comparison.
        tries: noises that are drawn for a picture at most.
        least: how much of every phrase must be placed, see `placed`.
        progress: told the pictures that are settled.

    Raises:
        ConfigError: a prompt without one of its phrases, or a box without a cell of its own.
        UnknownNameError: a word that the model does not know, or no such layer.
    """
    side = layer_side(model, layer)
    for scene in scenes:  # what cannot be is told before anything is made
        cells_of_boxes(_boxes(scene, side), side)
        for phrase in scene.boxes:
            model.places(scene.prompt, phrase)
    found: list[Made] = []
    wanted = sum(scene.count for scene in scenes)
    for index, scene in enumerate(scenes):
        best: dict[int, Made] = {}
        for attempt in range(tries):
            pending = [n for n in range(scene.count) if n not in best or not best[n].accepted]
            for start in range(0, len(pending), AT_ONCE):
                numbers = pending[start : start + AT_ONCE]
                seeds = [_seed_of(seed, index, number, attempt) for number in numbers]
                noise = torch.stack([model.noise(own) for own in seeds])
                noise = edited_noise(model, noise, scene, move, seeds, steps, layer)
                pictures, scores = painted(model, noise, scene, steps, guidance, layer)
                for number, own, pixels, score in zip(numbers, seeds, pictures, scores, strict=True):
                    accepted = min(score.values()) >= least
                    made = Made(index, number, pixels, own, attempt + 1, score, accepted)
                    before = best.get(number)
                    if before is None or accepted or min(score.values()) > min(before.placed.values()):
                        best[number] = made
            if progress:
                done = scene.count if attempt + 1 == tries else sum(made.accepted for made in best.values())
                progress(len(found) + done, wanted)
            if all(made.accepted for made in best.values()):
                break
        for number in range(scene.count):
            own_best = best[number]
            found.append(own_best if own_best.accepted else _with_tries(own_best, tries))
    return found


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _with_tries(made: Made, tries: int) -> Made:
    return Made(made.scene, made.number, made.pixels, made.seed, tries, made.placed, made.accepted)


def resampled(model: TextToImage, noise: Tensor, region: Share, seed: int) -> Tensor:
    """Noise (c, h, w) with new noise in the cells under a region, and nowhere else.

    Raises:
        ConfigError: a region that is none.
    """
    x0, y0, x1, y1 = box_cells(region, model.shape[1])
    found = noise.clone()
    found[:, y0:y1, x0:x1] = model.noise(seed)[:, y0:y1, x0:x1]
    return found


def repaint(
    model: TextToImage,
    prompt: str,
    noise: Tensor,
    region: Share,
    seeds: Sequence[int],
    steps: int = 25,
    guidance: float | None = None,
) -> NDArray[np.uint8]:
    """A picture of noise (c, h, w), and one for each seed with new noise under a region: uint8 (1 + n, 3, s, s).

    The noise outside stays, and so mostly does what it becomes.

    Raises:
        ConfigError: a region that is none, or no seeds.
    """
    if not seeds:
        raise ConfigError("a region is painted anew by one seed at least")
    noises = torch.stack([noise, *(resampled(model, noise, region, seed) for seed in seeds)])
    parts = [part for start in range(0, len(noises), AT_ONCE) for part in [noises[start : start + AT_ONCE]]]
    return np.concatenate([model.decode(model.paint(part, [prompt] * len(part), steps, guidance)) for part in parts])
