"""Augmentations of whole batches of tensors, with each paper's strengths as a preset; by kornia."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from training.heads import in_full
from udr.errors import UnknownNameError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it names functions of torch that are to go
    import kornia.augmentation as K

__all__ = ["PRESETS", "Views", "build_views"]


class Views(nn.Module):
    """Pictures (n, 3, s, s) from 0 to 1 -> as many views of each as there are pipelines, of the same shape.

    What is drawn depends on torch's state alone, so a seeded step sees the same views again.
    """

    def __init__(self, pipelines: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pipelines = nn.ModuleList(pipelines)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        with in_full(pictures):
            return tuple(pipeline(pictures).clamp(0, 1) for pipeline in self.pipelines)


def _pipeline(
    size: int,
    area: tuple[float, float],
    jitter: tuple[float, float, float, float],
    jittered: float = 0.8,
    grey: float = 0.2,
    blurred: float = 0.0,
    solarised: float = 0.0,
) -> nn.Module:
    """A crop of so much area, colours, grey, blur and solarisation, each with its probability, and a mirror."""
    steps: list[Any] = [
        K.RandomResizedCrop((size, size), scale=area, ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*jitter, p=jittered),
        K.RandomGrayscale(p=grey),
    ]
    if blurred:
        kernel = max(3, size // 10 | 1)
        steps.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=blurred))
    if solarised:
        steps.append(K.RandomSolarize(thresholds=0.0, additions=0.0, p=solarised))
    return nn.Sequential(*steps)


def _colours(strength: float) -> tuple[float, float, float, float]:
    """SimCLR's, Chen et al. 2020, appendix A."""
    return 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength


def _twice(pipeline: Callable[[], nn.Module]) -> Views:
    return Views([pipeline(), pipeline()])


PRESETS: dict[str, Callable[[int], Views]] = {
    # Chen et al. 2020, arXiv 2002.05709, appendix A; and B.9 for CIFAR-10: weaker colours, no blur
    "simclr": lambda size: _twice(lambda: _pipeline(size, (0.08, 1), _colours(1.0), blurred=0.5)),
    "simclr_small": lambda size: _twice(lambda: _pipeline(size, (0.08, 1), _colours(0.5))),
    # Chen et al. 2020, arXiv 2003.04297 (MoCo v2), which DenseCL takes
    "moco_v2": lambda size: _twice(lambda: _pipeline(size, (0.2, 1), (0.4, 0.4, 0.4, 0.1), blurred=0.5)),
    "moco_v2_small": lambda size: _twice(lambda: _pipeline(size, (0.2, 1), (0.4, 0.4, 0.4, 0.1))),
    # Chen et al. 2021, arXiv 2104.02057 (MoCo v3), which MEC takes: two views that are not made alike
    "moco_v3": lambda size: Views(
        [
            _pipeline(size, (0.2, 1), (0.4, 0.4, 0.2, 0.1), blurred=1.0),
            _pipeline(size, (0.2, 1), (0.4, 0.4, 0.2, 0.1), blurred=0.1, solarised=0.2),
        ]
    ),
    "moco_v3_small": lambda size: Views(
        [
            _pipeline(size, (0.2, 1), (0.4, 0.4, 0.2, 0.1)),
            _pipeline(size, (0.2, 1), (0.4, 0.4, 0.2, 0.1), solarised=0.2),
        ]
    ),
    # Bao et al. 2022, arXiv 2106.08254 (BEiT), which CIM takes: one view
    "beit": lambda size: Views([_pipeline(size, (0.08, 1), (0.4, 0.4, 0.4, 0.0), grey=0.0)]),
    "beit_small": lambda size: Views([_pipeline(size, (0.3, 1), (0.4, 0.4, 0.4, 0.0), grey=0.0)]),
}


def build_views(name: str, size: int) -> Views:
    """A preset for pictures of `size` pixels; those ending in `_small` are for some 32 pixels: no blur.

    Raises:
        UnknownNameError: no such preset (lists the near names).
    """
    if name not in PRESETS:
        raise UnknownNameError("augmentation", name, PRESETS)
    return PRESETS[name](size)
