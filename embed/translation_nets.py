"""Networks that take a picture apart into content and attribute, and put a picture of either style together again."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udr.errors import ConfigError

__all__ = ["AttributeNet", "ContentNet", "Generator", "TranslationNet"]

STYLES = 2
CELLS = 8  # of a side of contents in an index, whatever the size of pictures
AXES = 256  # numbers of a content's vector in an index
SLOPE = 0.01  # of leaky rectifiers


def normalised(before: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with instance normalisation and ReLU."""
    conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, padding_mode="reflect")
    return nn.Sequential(conv, nn.InstanceNorm2d(width), nn.ReLU())


class _Residual(nn.Module):
    """Two convolutions with instance normalisation beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, 1, 1, padding_mode="reflect")
        self.body = nn.Sequential(normalised(width, width, 3), last, nn.InstanceNorm2d(width))

    def forward(self, cells: Tensor) -> Tensor:
        found: Tensor = cells + self.body(cells)
        return found


class _Shrinking(nn.Module):
    """A residual block that halves the sides by means, without normalisation, which would erase what attributes are."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(before, before, 3, 1, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(before, width, 3, 1, 1),
        )
        self.beside = nn.Conv2d(before, width, 1)

    def forward(self, cells: Tensor) -> Tensor:
        found: Tensor = F.avg_pool2d(self.body(cells), 2) + self.beside(F.avg_pool2d(cells, 2))
        return found


class ContentNet(nn.Module):
    """One style's own part of the content encoder: a wide convolution, two that halve the sides, residual blocks.

    Shape: (n, 3, s, s) from -1 to 1 -> (n, 4·width, s/4, s/4).
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        first = nn.Conv2d(3, width, 7, 1, 3, padding_mode="reflect")
        shrink = [normalised(width, 2 * width, 3, 2), normalised(2 * width, 4 * width, 3, 2)]
        residual = [_Residual(4 * width) for _ in range(blocks)]
        self.body = nn.Sequential(first, nn.LeakyReLU(SLOPE), *shrink, *residual)

    def forward(self, pictures: Tensor) -> Tensor:
        cells: Tensor = self.body(pictures)
        return cells


class AttributeNet(nn.Module):
    """One style's attribute encoder, of the concatenating variant: a strided convolution, shrinking blocks, a mean.

    Shape: (n, 3, s, s) from -1 to 1 -> mean and logarithm of the variance, (n, attributes) each.
    """

    def __init__(self, width: int, blocks: int, attributes: int) -> None:
        super().__init__()
        widths = [min(4, 1 + i) * width for i in range(blocks + 1)]  # 64, 128, 192, 256 in the paper's layout
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1)]
        layers += [_Shrinking(before, after) for before, after in pairwise(widths)]
        self.body = nn.Sequential(*layers, nn.LeakyReLU(SLOPE))
        self.mean, self.log_variance = nn.Linear(widths[-1], attributes), nn.Linear(widths[-1], attributes)

    def statistics(self, pictures: Tensor) -> Tensor:
        """Means and deviations over the cells of every layer, (n, s): texture, whatever lies where."""
        found, cells = [], pictures
        for layer in self.body:
            cells = layer(cells)
            found += [cells.mean((2, 3)), cells.flatten(2).std(2, correction=0)]
        return torch.cat(found, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        cells: Tensor = self.body(pictures)
        found = cells.mean((2, 3))
        return self.mean(found), self.log_variance(found)


class Generator(nn.Module):
    """One style's own part of the generator: the attribute is laid beside the cells before every step.

    Shape: content (n, 4·width, h, h) and attributes (n, a) -> pictures (n, 3, 4h, 4h) from -1 to 1.
    """

    def __init__(self, width: int, blocks: int, attributes: int) -> None:
        super().__init__()
        widths = [4 * width + attributes, 2 * width, width]
        self.residual = nn.Sequential(*[_Residual(widths[0]) for _ in range(blocks)])
        self.grow = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(before + attributes, after, 4, 2, 1),  # even shares for every pixel
                nn.GroupNorm(1, after),
                nn.ReLU(),
            )
            for before, after in pairwise(widths)
        )
        self.last = nn.Conv2d(width + attributes, 3, 1)

    def forward(self, content: Tensor, attributes: Tensor) -> Tensor:
        cells: Tensor = self.residual(_beside(content, attributes))
        for step in self.grow:
            cells = step(_beside(cells, attributes))
        pictures: Tensor = self.last(_beside(cells, attributes)).tanh()
        return pictures


def _beside(cells: Tensor, attributes: Tensor) -> Tensor:
    """Attributes (n, a) repeated over the cells (n, d, h, w), behind their features."""
    tiled = attributes[:, :, None, None].expand(-1, -1, cells.shape[2], cells.shape[3])
    return torch.cat([cells, tiled.to(cells.dtype)], 1)


class TranslationNet(nn.Module):
    """Encoders and generators of two styles, 0 and 1, whose content meets in one space.

    Source: Lee et al. 2020, "DRIT++: Diverse Image-to-Image Translation via Disentangled Representations",
    arXiv 1905.01270. The paper's layout is width 64, 3 blocks, 3 attribute blocks and 8 attributes at 216 pixels.
    The buffers are set once training has ended (`embed.translation.calibrate`).

    Args:
        size: pixels of a side, a multiple of 4.
        width: features of the first layers.
        blocks: residual blocks of each style's content encoder and of its generator.
        attribute_blocks: that shrink the picture in the attribute encoder.
        attributes: numbers that an attribute is.
    """

    content_mean: Tensor  # (d,) of pooled contents, and the axes (d, AXES) that indexes see them along
    content_axes: Tensor
    attribute_mean: Tensor  # (2·a,) of what both encoders read, and its spread
    attribute_spread: Tensor
    style_weight: Tensor  # (s,) and its bias: a line between the styles, -1 and 1 at their means
    style_bias: Tensor

    def __init__(self, size: int, width: int, blocks: int, attribute_blocks: int, attributes: int) -> None:
        super().__init__()
        least = 2 ** (attribute_blocks + 1)
        if size % 4 or size < max(16, least):
            raise ConfigError(f"size: {size} pixels do not fit; expected a multiple of 4, at least {max(16, least)}")
        self.size, self.width, self.attributes = size, width, attributes
        self.content = nn.ModuleList(ContentNet(width, blocks) for _ in range(STYLES))
        self.content_shared = _Residual(4 * width)
        self.attribute = nn.ModuleList(AttributeNet(width, attribute_blocks, attributes) for _ in range(STYLES))
        self.generator_shared = _Residual(4 * width)
        self.generator = nn.ModuleList(Generator(width, blocks, attributes) for _ in range(STYLES))
        cells, texture = 4 * width * CELLS * CELLS, self.statistics(torch.zeros(1, 3, size, size)).shape[1]
        self.register_buffer("content_mean", torch.zeros(cells))
        self.register_buffer("content_axes", torch.zeros(cells, AXES))
        self.register_buffer("attribute_mean", torch.zeros(STYLES * attributes))
        self.register_buffer("attribute_spread", torch.ones(STYLES * attributes))
        self.register_buffer("style_weight", torch.zeros(texture))
        self.register_buffer("style_bias", torch.zeros(1))

    @property
    def device(self) -> torch.device:
        return next(self.content_shared.parameters()).device

    def contents(self, pictures: Tensor, style: int) -> Tensor:
        """Content of pictures of a style, (n, 3, s, s) from -1 to 1 -> (n, 4·width, s/4, s/4); noisy in training."""
        cells: Tensor = self.content_shared(self.content[style](pictures))
        return cells + torch.randn_like(cells) if self.training else cells

    def pooled(self, pictures: Tensor) -> Tensor:
        """Contents of pictures of any style, by both encoders together: means over 8 x 8 equal parts, (n, d)."""
        cells = self.contents(pictures, 0).float() + self.contents(pictures, 1).float()
        return F.adaptive_avg_pool2d(cells, CELLS).flatten(1)

    def attribute_of(self, pictures: Tensor, style: int) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the attribute, (n, attributes) each, by a style's encoder."""
        found: tuple[Tensor, Tensor] = self.attribute[style](pictures)
        return found

    def attributes_of(self, pictures: Tensor) -> Tensor:
        """Means of attributes of pictures of any style, by both encoders side by side, (n, 2·attributes)."""
        return torch.cat([self.attribute_of(pictures, style)[0].float() for style in range(STYLES)], 1)

    def statistics(self, pictures: Tensor) -> Tensor:
        """What the layers of both attribute encoders see in pictures of any style, (n, s)."""
        return torch.cat([one.statistics(pictures).float() for one in self.attribute], 1)  # type: ignore[operator]

    def pictures(self, content: Tensor, attributes: Tensor, style: int) -> Tensor:
        """Pictures in a style, (n, 3, s, s) from -1 to 1."""
        found: Tensor = self.generator[style](self.generator_shared(content), attributes)
        return found
