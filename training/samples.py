"""What CIM does to pictures, to be looked at: the original, the corrupted one, and what the backbone makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.losses.cim import window_statistics
from training.methods.cim import CIM
from training.sheets import draw_rows

__all__ = ["corrupted_rows", "draw_samples"]

SHOWN = 8  # pictures


def draw_samples(method: CIM, pixels: NDArray[np.uint8], seed: int, out: Path) -> None:
    """Draw pictures (n, 3, s, s), the first ones, with what becomes of them.

    Raises:
        ArtifactError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    titles = ["original", "as tokens", "masked", "corrupted"]
    titles += ["restored"] if method.objective == "restore" else ["replaced", "detected"]
    draw_rows(
        corrupted_rows(method, pixels[:SHOWN], seed), titles, out, f"CIM on held-out pictures; tokens: {method.draw}"
    )


@torch.no_grad()
def corrupted_rows(method: CIM, pixels: NDArray[np.uint8], seed: int) -> list[list[NDArray[np.uint8]]]:
    """Of each picture (3, s, s) a row: it, by its tokens, its masked cells in grey, corrupted, restored or detected.

    By its own tokens a picture shows what the tokenizer loses, which no sampling is to blame for.

    What is restored are pixels less their window's mean, over its deviation. Both are taken from the corrupted picture,
    so that nothing of the original is seen in the restored one. To detect, the row ends with the tokens that were
    replaced, and with the probability of it, white where it is 1.
    """
    was_training, device = method.training, method.backbone.device
    method.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        view = torch.from_numpy(np.array(pixels)).to(device).float() / 255
        corrupted, sampled, golden, masked, _ = method.corrupt(view)
    found = method.head(method.backbone(corrupted)).float()
    size = view.shape[2]
    hidden = torch.where(_wide(masked.float(), method.side, size) > 0.5, torch.full_like(view, 0.5), view)
    if method.objective == "restore":
        mean, deviation = window_statistics(corrupted, method.window)
        ends = [F.pixel_shuffle(found, method.pixels) * deviation + mean]
    else:
        cells = ((sampled != golden).float(), method.detected(found).sigmoid())
        ends = [_wide(c, method.side, size).expand_as(view) for c in cells]
    method.train(was_training)
    columns = [_pixels(column) for column in (view, method.tokenizer.pictures(golden), hidden, corrupted, *ends)]
    return [list(row) for row in zip(*columns, strict=True)]


def _wide(cells: Tensor, side: int, size: int) -> Tensor:
    """Numbers of cells (n, cells) as pictures (n, 1, size, size)."""
    return F.interpolate(cells.view(-1, 1, side, side), size=(size, size), mode="nearest")


def _pixels(pictures: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = (pictures.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return found
