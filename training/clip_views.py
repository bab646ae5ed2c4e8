"""Views of clips: turned, cropped and augmented, with one draw for all frames of a clip."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.clip_pairs import Box

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it names functions of torch that are to go
    from kornia.color import rgb_to_grayscale
    from kornia.enhance import adjust_hue
    from kornia.filters import gaussian_blur2d

__all__ = ["crop_clips", "strengthen"]

TILT = 10.0  # degrees to either side
JITTER = 0.4  # of brightness, contrast and saturation
HUE = 0.1  # of the circle
JITTERED, SPLIT, BLURRED, FLIPPED = 0.8, 0.2, 0.5, 0.5  # how often


def crop_clips(clips: Tensor, turns: Sequence[int], boxes: Sequence[Box], size: int) -> Tensor:
    """Turn each clip by quarters, counter-clockwise, then cut its box and scale it, antialiased.

    Shape: clips (n, t, 3, side, side) of 0 to 255, the result (n, t, 3, size, size) from 0 to 1.
    """
    found = clips.new_empty((*clips.shape[:3], size, size), dtype=torch.float32)
    for i, (clip, turn, box) in enumerate(zip(clips, turns, boxes, strict=True)):
        turned = torch.rot90(clip, turn, (2, 3))
        part = turned[:, :, box.top : box.top + box.height, box.left : box.left + box.width].float()
        found[i] = F.interpolate(part, (size, size), mode="bilinear", antialias=True) / 255
    return found.clamp_(0, 1)


def strengthen(clips: Tensor, share: float) -> Tensor:
    """Mirror every other clip; tilt, colour and blur a `share` of them before that.

    Shape: clips (n, t, 3, size, size) from 0 to 1, and so the result. Draws are torch's, one a clip.
    """
    chosen = torch.rand(len(clips)) < share
    if chosen.any():
        clips = clips.clone()
        clips[chosen] = _strong(clips[chosen])
    mirrored = torch.rand(len(clips), device=clips.device) < FLIPPED
    return torch.where(mirrored[:, None, None, None, None], clips.flip(4), clips)


def _strong(clips: Tensor) -> Tensor:
    n, t, c, size, _ = clips.shape
    clips = _tilted(clips.reshape(n, t * c, size, size)).reshape(clips.shape)
    clips = _where(_often(n, JITTERED), _jittered(clips), clips)
    one = clips[torch.arange(n), :, torch.randint(c, (n,))].unsqueeze(2).expand_as(clips)  # a channel in place of all
    clips = _where(_often(n, SPLIT), one, clips)
    kernel = max(3, size // 10 | 1)
    sigma = torch.empty(n, 1).uniform_(0.1, 2.0).expand(n, 2).to(clips)
    blurred = gaussian_blur2d(clips.reshape(n, t * c, size, size), (kernel, kernel), sigma).reshape(clips.shape)
    return _where(_often(n, BLURRED), blurred, clips).clamp(0, 1)


def _tilted(planes: Tensor) -> Tensor:
    """Turned by a few degrees, each by its own: frames and colours (n, t·3, size, size) are channels here."""
    angle = torch.deg2rad(torch.empty(len(planes)).uniform_(-TILT, TILT)).to(planes)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(turn, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, padding_mode="reflection", align_corners=False)


def _jittered(clips: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in an order that a batch shares."""
    n, t = clips.shape[:2]
    by = [torch.empty(n).uniform_(1 - JITTER, 1 + JITTER).to(clips)[:, None, None, None, None] for _ in range(3)]
    hue = (torch.empty(n).uniform_(-HUE, HUE).to(clips) * 2 * torch.pi).repeat_interleave(t)
    for which in torch.randperm(4).tolist():
        if which == 0:
            clips = clips * by[0]
        elif which == 1:
            mean = rgb_to_grayscale(clips).mean((1, 2, 3, 4), keepdim=True)  # of all frames: one change for a clip
            clips = mean + (clips - mean) * by[1]
        elif which == 2:
            grey = rgb_to_grayscale(clips)
            clips = grey + (clips - grey) * by[2]
        else:
            clips = adjust_hue(clips.flatten(0, 1), hue).reshape(clips.shape)
        clips = clips.clamp(0, 1)
    return clips


def _often(count: int, probability: float) -> Tensor:
    return torch.rand(count) < probability


def _where(chosen: Tensor, some: Tensor, others: Tensor) -> Tensor:
    return torch.where(chosen.to(some.device)[:, None, None, None, None], some, others)
