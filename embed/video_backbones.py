"""Networks that turn clips into features over time and space: R3D, R(2+1)D, C3D and S3D, small and as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from udr.errors import UnknownNameError

__all__ = ["VIDEO_BACKBONES", "VideoBackbone", "build_video_backbone"]


class VideoBackbone(nn.Module):
    """Clips (n, t, 3, size, size) from 0 to 1 -> features (n, dim, t', h, w).

    Args:
        name: under which it is built.
        size: pixels of a side.
        frames: of a clip.
        body: the network, from pixels between -1 and 1, (n, 3, t, size, size).
        dim: features of a cell.
    """

    def __init__(self, name: str, size: int, frames: int, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.name, self.size, self.frames, self.dim = name, size, frames, dim
        self.body = body

    def forward(self, clips: Tensor) -> Tensor:
        cells: Tensor = self.body(clips.transpose(1, 2) * 2 - 1)
        return cells

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    def pooled(self, clips: Tensor) -> Tensor:
        """The mean over time and space, (n, dim)."""
        cells: Tensor = self(clips)
        return cells.mean((2, 3, 4))


Triple = tuple[int, int, int]
Convolution = Callable[[int, int, int, Triple], nn.Module]  # channels in, out, of the middle; strides
CUBE, ONCE = (3, 3, 3), (1, 1, 1)


def _norm(
    before: int, after: int, kernel: Triple, stride: Triple = ONCE, active: bool = True, eps: float = 1e-5
) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride, normalised, with a ReLU."""
    time, height, width = (k // 2 for k in kernel)
    layers: list[nn.Module] = [
        nn.Conv3d(before, after, kernel, stride, (time, height, width), bias=False),
        nn.BatchNorm3d(after, eps),
    ]
    return [*layers, nn.ReLU()] if active else layers


# -- residual networks: Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions", arXiv 1711.11248


def _cubic(before: int, after: int, middle: int, stride: Triple) -> nn.Module:
    return nn.Conv3d(before, after, CUBE, stride, 1, bias=False)


def _factored(before: int, after: int, middle: int, stride: Triple) -> nn.Module:
    """Over space, then over time."""
    time, height, width = stride
    return nn.Sequential(
        *_norm(before, middle, (1, 3, 3), (1, height, width)),
        nn.Conv3d(middle, after, (3, 1, 1), (time, 1, 1), (1, 0, 0), bias=False),
    )


class _Residual(nn.Module):
    """Two convolutions beside a way around them. `middle` has as many weights as a cube would (section 3.5)."""

    def __init__(self, convolution: Convolution, before: int, after: int, stride: int) -> None:
        super().__init__()
        middle = before * after * 27 // (before * 9 + 3 * after)
        strides = (stride, stride, stride)
        self.body = nn.Sequential(
            convolution(before, after, middle, strides),
            nn.BatchNorm3d(after),
            nn.ReLU(),
            convolution(after, after, middle, ONCE),
            nn.BatchNorm3d(after),
        )
        same = stride == 1 and before == after
        self.around = nn.Identity() if same else nn.Sequential(*_norm(before, after, ONCE, strides, active=False))
        self.active = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.active(self.body(x) + self.around(x))
        return out


def _residual(
    convolution: Convolution, stem: Sequence[nn.Module], widths: Sequence[int], depths: Sequence[int]
) -> tuple[nn.Module, int]:
    layers = list(stem)
    before = widths[0]
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for j in range(depth):
            layers.append(_Residual(convolution, before, width, 2 if i and not j else 1))
            before = width
    return nn.Sequential(*layers), widths[-1]


def _r3d(widths: Sequence[int], depths: Sequence[int], kernel: int = 7) -> tuple[nn.Module, int]:
    stem = _norm(3, widths[0], (3, kernel, kernel), (1, 2, 2))
    return _residual(_cubic, stem, widths, depths)


def _r2plus1d(widths: Sequence[int], depths: Sequence[int], kernel: int = 7, middle: int = 45) -> tuple[nn.Module, int]:
    stem = [*_norm(3, middle, (1, kernel, kernel), (1, 2, 2)), *_norm(middle, widths[0], (3, 1, 1))]
    return _residual(_factored, stem, widths, depths)


# -- C3D: Tran et al. 2015, "Learning Spatiotemporal Features with 3D Convolutional Networks", arXiv 1412.0767; without
# its fully connected layers, and with each convolution normalised, as is usual in pre-training


def _c3d(widths: Sequence[int]) -> tuple[nn.Module, int]:
    """Eight convolutions; the first pooling keeps time, each next one halves all."""
    layers: list[nn.Module] = []
    before = 3
    for i, width in enumerate(widths):
        for _ in range(1 if i < 2 else 2):
            layers += _norm(before, width, CUBE)
            before = width
        if i + 1 < len(widths):
            layers.append(nn.MaxPool3d((1, 2, 2) if not i else 2, ceil_mode=True))
    return nn.Sequential(*layers), before


# -- S3D: Xie et al. 2018, "Rethinking Spatiotemporal Feature Learning", arXiv 1712.04851; 1 x 1 convolutions and
# poolings as in Inception v1

SMALL_SPREAD = 1e-3  # its normalisation's ε


class _Gate(nn.Module):
    """Features weighted by what the whole clip shows: σ(Wx̄) · x, of S3D-G."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.weigh(x.mean((2, 3, 4))))
        return x * weights[:, :, None, None, None]


def _point(before: int, after: int) -> list[nn.Module]:
    return _norm(before, after, ONCE, eps=SMALL_SPREAD)


def _separable(before: int, after: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Over space, then over time, each normalised."""
    return [
        *_norm(before, after, (1, size, size), (1, stride, stride), eps=SMALL_SPREAD),
        *_norm(after, after, (size, 1, 1), (stride, 1, 1), eps=SMALL_SPREAD),
    ]


class _Inception(nn.Module):
    """Four branches side by side. Widths: 1 x 1; before and after two separable ones; after the pooling."""

    def __init__(self, before: int, widths: Sequence[int], gated: bool) -> None:
        super().__init__()
        a, b0, b1, c0, c1, d = widths

        def gate(width: int) -> list[nn.Module]:
            return [_Gate(width)] if gated else []

        self.branches = nn.ModuleList(
            [
                nn.Sequential(*_point(before, a), *gate(a)),
                nn.Sequential(*_point(before, b0), *_separable(b0, b1), *gate(b1)),
                nn.Sequential(*_point(before, c0), *_separable(c0, c1), *gate(c1)),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), *_point(before, d), *gate(d)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


BLOCKS = (  # of Inception v1; None is a pooling that halves time too
    *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None),
    *((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)),
    *((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None),
    *((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def _s3d(gated: bool, part: int = 1, stem: int = 7) -> tuple[nn.Module, int]:
    """`part`: every width is divided by it; `stem`: the first kernel, after which a small one does not pool."""
    first, second = 64 // part, 192 // part
    layers: list[nn.Module] = [*_separable(3, first, stem, 2)]
    if stem == 7:
        layers.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
    layers += [*_point(first, first), *_separable(first, second)]
    layers.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
    before, poolings = second, 0
    for widths in BLOCKS:
        if widths is None:
            layers.append(nn.MaxPool3d(2, 2, ceil_mode=True) if poolings else nn.MaxPool3d(3, 2, 1))
            poolings += 1
            continue
        own = [max(1, width // part) for width in widths]
        layers.append(_Inception(before, own, gated))
        before = own[0] + own[2] + own[4] + own[5]
    return nn.Sequential(*layers), before


TINY, SMALL = (16, 32, 64, 128), (32, 64, 128, 256)
FULL = (64, 128, 256, 512)
VIDEO_BACKBONES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "r2plus1d_tiny": partial(_r2plus1d, TINY, (1, 1, 1, 1), kernel=3, middle=12),
    "r2plus1d_small": partial(_r2plus1d, SMALL, (1, 1, 1, 1), kernel=3, middle=24),
    "r2plus1d_10": partial(_r2plus1d, FULL, (1, 1, 1, 1)),  # the one that STOR is published with
    "r2plus1d_18": partial(_r2plus1d, FULL, (2, 2, 2, 2)),
    "r3d_tiny": partial(_r3d, TINY, (1, 1, 1, 1), kernel=3),
    "r3d_18": partial(_r3d, FULL, (2, 2, 2, 2)),
    "c3d_tiny": partial(_c3d, (12, 24, 48, 96, 128)),
    "c3d": partial(_c3d, (64, 128, 256, 512, 512)),
    "s3d_tiny": partial(_s3d, False, part=8, stem=3),
    "s3d": partial(_s3d, False),
    "s3d_g": partial(_s3d, True),
}


def build_video_backbone(name: str, size: int, frames: int) -> VideoBackbone:
    """Make an untrained backbone for clips of so many frames of `size` pixels; any number of both fits all of them.

    Weights are drawn so that features keep their size from layer to layer (He et al. 2015, arXiv 1502.01852).

    Raises:
        UnknownNameError: no such backbone (lists the near names).
    """
    if name not in VIDEO_BACKBONES:
        raise UnknownNameError("video backbone", name, VIDEO_BACKBONES)
    body, dim = VIDEO_BACKBONES[name]()
    for layer in body.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return VideoBackbone(name, size, frames, body, dim)
