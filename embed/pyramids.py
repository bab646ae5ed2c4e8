"""Networks that turn pixels into features at four scales, in stages that tasks may share or have each their own of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from embed.backbones import MEAN, SPREAD
from udr.errors import ConfigError, UnknownNameError

__all__ = ["PYRAMIDS", "BasicBlock", "build_stages", "normalised", "widths_of"]

PYRAMIDS: dict[str, tuple[int, ...]] = {  # features at strides 2, 4, 8 and 16
    "pyramid_small": (16, 32, 64, 96),
    "pyramid_mid": (32, 64, 96, 128),
    "pyramid_wide": (48, 96, 192, 384),
}
STRIDE = 16  # of the last stage


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 around which the input is added (He et al. 2016, arXiv 1512.03385, figure 5)."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.beside: nn.Module = nn.Identity()
        if before != width or stride > 1:
            self.beside = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.last = nn.ReLU()

    def forward(self, cells: Tensor) -> Tensor:
        found: Tensor = self.last(self.layers(cells) + self.beside(cells))
        return found


def widths_of(name: str) -> tuple[int, ...]:
    """Features of each scale.

    Raises:
        UnknownNameError: no such pyramid (lists the near names).
    """
    if name not in PYRAMIDS:
        raise UnknownNameError("backbone of several scales", name, PYRAMIDS)
    return PYRAMIDS[name]


def build_stages(name: str, size: int, copies: Sequence[int] = (1, 1, 1, 1)) -> list[list[nn.Module]]:
    """Untrained stages, as many copies of each as are asked for; the first reads normalised pixels.

    Raises:
        UnknownNameError: no such pyramid.
        ConfigError: a size that is no multiple of the last stage's stride.
    """
    widths = widths_of(name)
    if size % STRIDE or size < STRIDE:
        raise ConfigError(f"size {size}: a pyramid wants a multiple of {STRIDE} pixels")
    found = [[_stem(widths[0]) for _ in range(copies[0])]]
    for (before, width), count in zip(pairwise(widths), copies[1:], strict=True):
        found.append([BasicBlock(before, width, 2) for _ in range(count)])
    return found


def _stem(width: int) -> nn.Module:
    first = nn.Conv2d(3, width, 3, 2, 1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), BasicBlock(width, width))


def normalised(pixels: Tensor) -> Tensor:
    """Pixels (n, 3, s, s) from 0 to 1, moved about 0 as all our networks read them."""
    mean, spread = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, SPREAD))
    return (pixels - mean) / spread
