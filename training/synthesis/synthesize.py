"""Pictures for layouts: noise is edited, becomes pictures, and those whose things lie in their boxes are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.synthesis.attention import layer_side, preference_maps, watching, word_maps
from training.synthesis.blocks import MOVES, Box, Cells, cells_of_boxes, move_blocks
from training.synthesis.layouts import Scene, Share, box_cells
from training.synthesis.model import TextToImage
from udr.errors import ConfigError
from udr.types import FloatArray, Progress

__all__ = ["Edit", "Made", "edited_noise", "painted", "placed", "repaint", "resampled", "synthesize"]

AT_ONCE = 16  # pictures in one batch, of any layouts
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
    model: TextToImage,
    noise: Tensor,
    scenes: Sequence[Scene],
    move: Edit,
    seeds: Sequence[int],
    steps: int | None = None,
    layer: str | None = None,
) -> Tensor:
    """Noise (n, c, h, w) whose blocks that would rather become a phrase lie in the phrase's box, a layout each.

    Raises:
        ConfigError: a prompt does not hold a phrase, or a box has no cell of its own.
    """
    if move == "none":
        return noise
    maps = preference_maps(model, noise, [s.prompt for s in scenes], [list(s.boxes) for s in scenes], steps, layer)
    moved = []
    for own, scene, scores, seed in zip(noise, scenes, maps, seeds, strict=True):
        of_phrases = [scores[phrase] for phrase in scene.boxes]
        boxes = _boxes(scene, of_phrases[0].shape[0])
        moved.append(move_blocks(own, MOVES[move](of_phrases, boxes, np.random.default_rng([seed, 1]))))
    return torch.stack(moved)


def _boxes(scene: Scene, side: int) -> list[Box]:
    return [box_cells(share, side) for share in scene.boxes.values()]


def placed(score: FloatArray, cells: Cells) -> float:
    """How much of where a thing came to lie is in its box: of as many cells as the box has, the highest of a map
    (side, side), the share that the box holds. 1 is all; by chance it is the box's share of the picture."""
    highest = np.argsort(-score.ravel(), kind="stable")[: len(cells)]
    return float(np.isin(highest, cells).mean())


def painted(
    model: TextToImage,
    noise: Tensor,
    scenes: Sequence[Scene],
    steps: int | None = None,
    guidance: float | None = None,
    layer: str | None = None,
) -> tuple[NDArray[np.uint8], list[dict[str, float]]]:
    """Pictures of noise (n, c, h, w), uint8 (n, 3, s, s), and of each how the phrases of its layout are placed.

    It takes no detector: the maps of the last half of the steps, in the same layer, tell where the phrases came to lie.
    """
    with watching(model.unet, layer or model.layer) as seen:
        latents = model.paint(noise, [scene.prompt for scene in scenes], steps, guidance)
    late = torch.stack([one[len(noise) :] for one in seen[round(LATE * len(seen)) :]]).mean(0)
    found = []
    for scene, maps in zip(scenes, word_maps(late, [_places(model, scene) for scene in scenes]), strict=True):
        side = maps[next(iter(maps))].shape[0]
        cells = cells_of_boxes(_boxes(scene, side), side)
        found.append({p: placed(maps[p], own) for p, own in zip(scene.boxes, cells, strict=True)})
    return model.decode(latents), found


def _places(model: TextToImage, scene: Scene) -> dict[str, list[int]]:
    return {phrase: model.places(scene.prompt, phrase) for phrase in scene.boxes}


def synthesize(
    model: TextToImage,
    scenes: Sequence[Scene],
    *,
    move: Edit = "sorted",
    seed: int = 0,
    tries: int = 8,
    least: float = 0.5,
    steps: int | None = None,
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

    Returns:
        All that were wanted, layout by layout; those that no try got right are not accepted.

    Raises:
        ConfigError: a prompt without one of its phrases, or a box without a cell of its own.
        UnknownNameError: a word that the model does not know, or no such layer.
    """
    side = layer_side(model, layer)
    for scene in scenes:  # what cannot be is told before anything is made
        cells_of_boxes(_boxes(scene, side), side)
        _places(model, scene)
    wanted = [(index, number) for index, scene in enumerate(scenes) for number in range(scene.count)]
    best: dict[tuple[int, int], Made] = {}
    for attempt in range(tries):
        pending = [key for key in wanted if key not in best or not best[key].accepted]
        for start in range(0, len(pending), AT_ONCE):
            keys = pending[start : start + AT_ONCE]
            own = [scenes[index] for index, _ in keys]
            seeds = [int(np.random.SeedSequence([seed, *key, attempt]).generate_state(1)[0]) for key in keys]
            noise = torch.stack([model.noise(one) for one in seeds])
            noise = edited_noise(model, noise, own, move, seeds, steps, layer)
            pictures, scores = painted(model, noise, own, steps, guidance, layer)
            for key, one, pixels, score in zip(keys, seeds, pictures, scores, strict=True):
                made = Made(*key, pixels, one, attempt + 1, score, min(score.values()) >= least)
                best[key] = _better(best.get(key), made)
            if progress:
                over = start + len(keys) if attempt + 1 == tries else 0
                settled = sum(made.accepted for made in best.values())
                progress(max(settled, len(wanted) - len(pending) + over), len(wanted))
    return [best[key] for key in wanted]


def _better(before: Made | None, made: Made) -> Made:
    """The one that is placed better, with the number of tries until now."""
    if before is None or made.accepted or min(made.placed.values()) > min(before.placed.values()):
        return made
    return replace(before, tries=made.tries)


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
    steps: int | None = None,
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
