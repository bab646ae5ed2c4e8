"""Augmentations of whole batches of tensors, with each paper's strengths as a preset.

What is drawn and what is done with it are two steps: numbers are drawn for a batch from a generator, and any part
of the batch can be worked on with its rows of them, in any process or thread, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from training import colours
from training.heads import in_full
from udr.errors import UnknownNameError

__all__ = ["PRESETS", "Drawn", "View", "Views", "build_views"]

Drawn = dict[str, Tensor]  # numbers of one view, (n, …) each

TRIES = 10  # of a crop's shape, before the whole picture is taken
RATIO = (3 / 4, 4 / 3)  # of a crop's sides
SIGMAS = (0.1, 2.0)  # pixels, of a blur
ORDERS = tuple(permutations(range(4)))  # in which brightness, contrast, saturation and hue may follow each other
ALIKE = 32  # neighbours in a batch, at least, that share such an order: they are worked on together, and fit a cache


@dataclass(frozen=True)
class View:
    """A crop scaled to the whole, a mirror, colours, grey, blur and solarisation.

    Args:
        area: of the crop, a share of the picture's.
        jitter: most that brightness, contrast and saturation are multiplied by beyond 1, and that the hue is turned.
        jittered, grey, blurred, solarised: how likely each is.
    """

    area: tuple[float, float]
    jitter: tuple[float, float, float, float]
    jittered: float = 0.8
    grey: float = 0.2
    blurred: float = 0.0
    solarised: float = 0.0

    def draw(self, count: int, size: int, generator: torch.Generator | None = None) -> Drawn:
        """Numbers for `count` pictures of `size` pixels."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator)

        def happens(likely: float) -> Tensor:
            return uniform() < likely

        top, height, left, width = _boxes(size, self.area, uniform(TRIES), uniform(TRIES), uniform(2))
        b, c, s, h = self.jitter
        reach = torch.tensor([b, c, s, h])
        factors = torch.tensor([1.0, 1.0, 1.0, 0.0]) + reach * (2 * uniform(4) - 1)
        factors[:, :3].clamp_(min=0)
        factors[~happens(self.jittered)] = torch.tensor([1.0, 1.0, 1.0, 0.0])
        alike = max(ALIKE, -(-count // 8))  # a device with many cores works on few large groups
        order = torch.randint(len(ORDERS), (-(-count // alike),), generator=generator)
        return {
            "rows": torch.stack([top, height], 1),
            "columns": torch.stack([left, width], 1),
            "mirrored": happens(0.5),
            "factors": factors,
            "order": order.repeat_interleave(alike)[:count],
            "grey": happens(self.grey),
            "sigma": (SIGMAS[0] + (SIGMAS[1] - SIGMAS[0]) * uniform()) * happens(self.blurred),  # 0: none
            "solarised": happens(self.solarised),
        }

    def see(self, pictures: Tensor, drawn: Drawn) -> Tensor:
        """Pictures (n, 3, s, s), uint8 or from 0 to 1 -> the view of each, float32 from 0 to 1, of the same shape."""
        found = torch.empty(pictures.shape, device=pictures.device, memory_format=torch.channels_last)
        drawn = {name: value.to(pictures.device, non_blocking=True) for name, value in drawn.items()}
        for start, end, order in _groups(drawn["order"]):
            own = {name: value[start:end] for name, value in drawn.items()}
            found[start:end] = self._apply(pictures[start:end], own, ORDERS[order])
        return found

    def _apply(self, pictures: Tensor, drawn: Drawn, order: Sequence[int]) -> Tensor:
        size = pictures.shape[-1]
        rows = colours.resampling(drawn["rows"], size)
        columns = colours.resampling(drawn["columns"], size)
        columns = torch.where(drawn["mirrored"][:, None, None], columns.flip(1), columns)
        scale = 255 if pictures.dtype == torch.uint8 else 1
        view = colours.along_both(pictures.float(), rows / scale, columns).clamp_(0, 1)
        if any(self.jitter) and self.jittered:
            for i in order:
                colours.CHANGES[i](view, drawn["factors"][:, i])
        if self.grey:
            view.lerp_(colours.grey_of(view), drawn["grey"].to(view.dtype).view(-1, 1, 1, 1))
        if self.blurred:
            blur = colours.blurring(drawn["sigma"], size, max(3, size // 10 | 1))
            view = colours.along_both(view, blur, blur)
        if self.solarised:
            view = torch.where(drawn["solarised"].view(-1, 1, 1, 1) & (view >= 0.5), 1 - view, view)
        return view.clamp_(0, 1)


def _boxes(
    size: int, area: tuple[float, float], areas: Tensor, ratios: Tensor, places: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tops, heights, lefts and widths of crops, whole pixels; of tries (n, t) the first that fits counts."""
    area_of = size * size * (area[0] + (area[1] - area[0]) * areas)
    low, high = torch.tensor(RATIO).log()
    ratio = torch.exp(low + (high - low) * ratios)
    widths, heights = (area_of * ratio).sqrt().round(), (area_of / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= size) & (heights >= 1) & (heights <= size)
    first = fits.int().argmax(1, keepdim=True)
    none = ~fits.any(1)
    height, width = (side.gather(1, first)[:, 0].masked_fill(none, size) for side in (heights, widths))
    top, left = ((places[:, i] * (size - side + 1)).floor() for i, side in enumerate((height, width)))
    return top, height, left, width


def _groups(order: Tensor) -> Iterator[tuple[int, int, int]]:
    """Begin, end and order of neighbours that share one."""
    found, counts = torch.unique_consecutive(order.cpu(), return_counts=True)
    start = 0
    for code, count in zip(found.tolist(), counts.tolist(), strict=True):
        step = count if order.is_cuda else ALIKE
        for begin in range(start, start + count, step):
            yield begin, min(start + count, begin + step), code
        start += count


class Views(nn.Module):
    """Pictures (n, 3, s, s) from 0 to 1, or uint8 -> as many views of each as there are pipelines, of the same shape.

    What is drawn depends on the generator alone, by default torch's own, so a seeded step sees the same views again.
    """

    def __init__(self, pipelines: Sequence[View], size: int) -> None:
        super().__init__()
        self.pipelines, self.size = tuple(pipelines), size

    def draw(self, count: int, generator: torch.Generator | None = None) -> list[Drawn]:
        """Numbers for so many pictures, a table for each pipeline."""
        return [pipeline.draw(count, self.size, generator) for pipeline in self.pipelines]

    def see(self, pictures: Tensor, drawn: Sequence[Drawn]) -> tuple[Tensor, ...]:
        """The views of pictures by numbers that were drawn for them."""
        with in_full(pictures), torch.no_grad():
            return tuple(p.see(pictures, own) for p, own in zip(self.pipelines, drawn, strict=True))

    def forward(self, pictures: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        return self.see(pictures, self.draw(len(pictures), generator))


def _colours(strength: float) -> tuple[float, float, float, float]:
    """SimCLR's, Chen et al. 2020, appendix A."""
    return 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength


PRESETS: dict[str, Callable[[], Sequence[View]]] = {
    # Chen et al. 2020, arXiv 2002.05709, appendix A; and B.9 for CIFAR-10: weaker colours, no blur
    "simclr": lambda: [View((0.08, 1), _colours(1.0), blurred=0.5)] * 2,
    "simclr_small": lambda: [View((0.08, 1), _colours(0.5))] * 2,
    # of our own, for small grey pictures in which things stand upright in the middle, such as Fashion-MNIST's
    "grey_small": lambda: [View((0.3, 1), (0.6, 0.6, 0.0, 0.0), grey=0.0)] * 2,
    # Chen et al. 2020, arXiv 2003.04297 (MoCo v2), which DenseCL takes
    "moco_v2": lambda: [View((0.2, 1), (0.4, 0.4, 0.4, 0.1), blurred=0.5)] * 2,
    "moco_v2_small": lambda: [View((0.2, 1), (0.4, 0.4, 0.4, 0.1))] * 2,
    # Chen et al. 2021, arXiv 2104.02057 (MoCo v3), which MEC takes: two views that are not made alike
    "moco_v3": lambda: [
        View((0.2, 1), (0.4, 0.4, 0.2, 0.1), blurred=1.0),
        View((0.2, 1), (0.4, 0.4, 0.2, 0.1), blurred=0.1, solarised=0.2),
    ],
    "moco_v3_small": lambda: [
        View((0.2, 1), (0.4, 0.4, 0.2, 0.1)),
        View((0.2, 1), (0.4, 0.4, 0.2, 0.1), solarised=0.2),
    ],
    # Bao et al. 2022, arXiv 2106.08254 (BEiT), which CIM takes: one view
    "beit": lambda: [View((0.08, 1), (0.4, 0.4, 0.4, 0.0), grey=0.0)],
    "beit_small": lambda: [View((0.3, 1), (0.4, 0.4, 0.4, 0.0), grey=0.0)],
}


def build_views(name: str, size: int) -> Views:
    """A preset for pictures of `size` pixels; those ending in `_small` are for some 32 pixels: no blur.

    Raises:
        UnknownNameError: no such preset (lists the near names).
    """
    if name not in PRESETS:
        raise UnknownNameError("augmentation", name, PRESETS)
    return Views(PRESETS[name](), size)
