"""Chances that pictures and sounds of one thing might have taken as well: place on a canvas, speed, pitch, gaps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["moved_pictures", "moved_sounds", "whole_pictures"]

SMALLER = (0.45, 1.0)  # sides of a picture on its canvas
LARGER = (1.0, 1.5)  # of one that is not put on a canvas, and so is cropped
WHOLE = (0.8, 1.0)  # of one that must stay whole
BESIDE = 0.5  # share of canvases with a second picture
BESIDE_SIDES = (0.25, 0.5)
COLOURS = 0.3  # how far brightness, contrast and saturation may go from 1
SPEEDS = (0.85, 1.18)
PITCH = 2  # bands of mel that a voice may lie higher or lower
GAP, BANDS = 12, 6  # frames and bands that are silenced at most


def moved_pictures(pictures: Tensor, size: int, composed: float) -> Tensor:
    """Crop, mirror and recolour pictures; put a share of them, smaller, on a white canvas, half beside another one.

    White counts as nothing: where two pictures lie on each other, the darker one is seen.

    Shape: (n, 3, any, any) from 0 to 1 -> (n, 3, size, size).
    """
    n, device = len(pictures), pictures.device
    small = torch.rand(n, device=device) < composed
    scale = torch.where(small, _uniform(n, SMALLER, device), _uniform(n, LARGER, device))
    seen = _placed(pictures, scale, size)
    others = (small & (torch.rand(n, device=device) < BESIDE)).nonzero()[:, 0]
    if len(others):
        beside = _placed(pictures[(others + 1) % n], _uniform(len(others), BESIDE_SIDES, device), size)
        seen = seen.index_copy(0, others, torch.minimum(seen[others], beside))
    return _recoloured(seen)


def whole_pictures(pictures: Tensor, size: int) -> Tensor:
    """Mirror, recolour and shrink pictures a little, so that all that is seen in them still is.

    Shape: (n, 3, any, any) from 0 to 1 -> (n, 3, size, size).
    """
    return _recoloured(_placed(pictures, _uniform(len(pictures), WHOLE, pictures.device), size))


def _uniform(n: int, between: tuple[float, float], device: torch.device) -> Tensor:
    return torch.empty(n, device=device).uniform_(*between)


def _placed(pictures: Tensor, scale: Tensor, size: int) -> Tensor:
    """Pictures at a scale (n,) of the canvas's side, wherever they fit or fill it; half of them mirrored."""
    n = len(scale)
    x, y = ((2 * torch.rand(n, device=scale.device) - 1) * (1 - scale).abs() for _ in range(2))
    mirrored = 1 - 2 * (torch.rand(n, device=scale.device) < 0.5).float()
    zero = torch.zeros_like(scale)
    rows = [torch.stack([mirrored / scale, zero, -x / scale], 1), torch.stack([zero, 1 / scale, -y / scale], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 3, size, size], align_corners=False)
    return 1 - F.grid_sample(1 - pictures, grid, align_corners=False)  # what lies outside is white


def _recoloured(pictures: Tensor) -> Tensor:
    bright, contrast, colour = (
        _uniform(len(pictures), (1 - COLOURS, 1 + COLOURS), pictures.device)[:, None, None, None] for _ in range(3)
    )
    grey = pictures.mean(1, keepdim=True)
    pictures = grey + colour * (pictures - grey)
    mean = grey.mean((2, 3), keepdim=True)
    return (bright * (mean + contrast * (pictures - mean))).clamp(0, 1)


def moved_sounds(frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Another speed for the batch, another pitch for each sound, and a stretch of time and of bands silenced.

    Shape: frames (n, t, mels) with zeros behind each sound, lengths (n,); the result alike.
    """
    n, t, mels = frames.shape
    speed = float(torch.empty(()).uniform_(*SPEEDS))
    longer = max(1, round(t / speed))
    frames = F.interpolate(frames.transpose(1, 2), longer, mode="linear", align_corners=False)
    lengths = (lengths / speed).round().long().clamp(1, longer)
    shift = torch.randint(-PITCH, PITCH + 1, (n, 1), device=frames.device)
    bands = (torch.arange(mels, device=frames.device)[None] + shift).clamp(0, mels - 1)
    frames = frames.gather(1, bands[..., None].expand(-1, -1, longer)).transpose(1, 2)
    time, place = torch.arange(longer, device=frames.device)[None], torch.arange(mels, device=frames.device)[None]
    first = (torch.rand(n, device=frames.device) * lengths).long()[:, None]
    gap = torch.randint(0, GAP, (n, 1), device=frames.device)
    low = torch.randint(0, mels, (n, 1), device=frames.device)
    wide = torch.randint(0, BANDS, (n, 1), device=frames.device)
    silent = ((time >= first) & (time < first + gap))[..., None] | ((place >= low) & (place < low + wide))[:, None]
    return frames.masked_fill(silent | (time >= lengths[:, None])[..., None], 0), lengths
