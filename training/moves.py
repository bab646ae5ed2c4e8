"""Chances that pictures and sounds of one thing might have taken as well: place on a canvas, speed, pitch, gaps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["canvases", "moved_sounds"]

SCALES = (0.45, 1.0)  # of a picture on its canvas
BESIDE = 0.5  # share of canvases with a second picture
SPEEDS = (0.85, 1.18)
PITCH = 2  # bands of mel that a voice may lie higher or lower
GAP, BANDS = 12, 6  # frames and bands that are silenced at most


def canvases(pictures: Tensor, share: float) -> Tensor:
    """Put a share of pictures, smaller, somewhere on a white canvas, half of those with a part of another one.

    White counts as nothing: where two lie on each other, the darker one is seen.

    Shape: (n, 3, s, s) from 0 to 1, in and out.
    """
    n = len(pictures)
    scale = torch.empty(n, device=pictures.device).uniform_(*SCALES)
    put = torch.rand(n, device=pictures.device) < share
    scale = torch.where(put, scale, 1.0)
    others = put & (torch.rand(n, device=pictures.device) < BESIDE)
    own = _placed(pictures, scale)
    beside = _placed(pictures.roll(1, 0), torch.empty(n, device=pictures.device).uniform_(0.25, 0.5))
    return torch.where(others[:, None, None, None], torch.minimum(own, beside), own)


def _placed(pictures: Tensor, scale: Tensor) -> Tensor:
    """Pictures at a scale (n,), wherever they fit wholly."""
    room = 1 - scale
    x, y = ((2 * torch.rand(len(scale), device=scale.device) - 1) * room for _ in range(2))
    zero = torch.zeros_like(scale)
    rows = [torch.stack([1 / scale, zero, -x / scale], 1), torch.stack([zero, 1 / scale, -y / scale], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return 1 - F.grid_sample(1 - pictures, grid, align_corners=False)  # what lies outside is white


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
