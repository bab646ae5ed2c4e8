"""Networks that judge what DRIT makes: is a picture real, at several scales, and of which style is a content?"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from udr.errors import ConfigError

__all__ = ["ContentJudge", "PictureJudge"]

SLOPE = 0.01  # of leaky rectifiers


class PictureJudge(nn.Module):
    """Strided convolutions on the picture and on smaller ones of it, a network for each scale.

    Shape: pictures (n, 3, s, s) -> of each scale logits (n, 1, h, h).

    Args:
        size: pixels of a side.
        width: features of the first layer, doubled by each of the next.
        layers: that halve the sides; 4 in the paper's layout.
        scales: how often the picture is looked at, each time half as large; 3 in the paper's layout.
    """

    def __init__(self, size: int, width: int, layers: int, scales: int) -> None:
        super().__init__()
        if size >> (layers + scales - 1) < 1:
            raise ConfigError(f"drit: pictures of {size} pixels are too small for {layers} layers at {scales} scales")
        self.scales = nn.ModuleList(_judge(width, layers) for _ in range(scales))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        found = []
        for network in self.scales:
            found.append(network(pictures))
            pictures = F.avg_pool2d(pictures, 3, 2, 1, count_include_pad=False)
        return found


def _judge(width: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    before = 3
    for i in range(layers):
        parts += [nn.Conv2d(before, width << i, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        before = width << i
    return nn.Sequential(*parts, nn.Conv2d(before, 1, 1))


class ContentJudge(nn.Module):
    """Strided convolutions with instance normalisation while there is something to normalise, then one number.

    Shape: contents (n, d, h, h) -> logits (n, 1), above 0 for style 1.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(3):
            if side < 4:  # a single cell is 0 once it is normalised
                break
            side = (side + 1) // 2
            parts += [nn.Conv2d(width, width, 7, 2, 3), nn.InstanceNorm2d(width), nn.LeakyReLU(SLOPE)]
        parts += [nn.Conv2d(width, width, min(4, side)), nn.LeakyReLU(SLOPE), nn.Conv2d(width, 1, 1)]
        self.body = nn.Sequential(*parts)

    def forward(self, contents: Tensor) -> Tensor:
        logits: Tensor = self.body(contents)
        return logits.mean((2, 3))
