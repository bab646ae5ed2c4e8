"""Views of which some show the picture in the other style: translation as an augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from embed.translation import Translator
from training.augment import Drawn, Views
from training.heads import in_full
from udr.errors import ConfigError

__all__ = ["TranslatedViews"]


OURS = ("translated", "style", "attribute")  # numbers that are drawn beside a view's


class TranslatedViews(Views):
    """Views, a share of which is made of the translated picture: its style is no longer what two views share.

    Into which of the two styles, and with which attribute, is drawn for each picture.

    Args:
        views: what is made of pictures and of translated ones.
        translator: for pictures of the same size. It is no part of what is learnt.
        share: how likely each view is of the translated picture.
    """

    def __init__(self, views: Views, translator: Translator, share: float) -> None:
        super().__init__(views.pipelines, views.size)
        if translator.size != views.size:
            raise ConfigError(f"translator: of pictures of {translator.size} pixels, and size is {views.size}")
        self.translator, self.share = translator, share

    def draw(self, count: int, generator: torch.Generator | None = None) -> list[Drawn]:
        """As `Views`, with which pictures are translated (n,), into which style, and their attributes (n, a)."""
        tables = super().draw(count, generator)
        for table in tables:
            table["translated"] = torch.rand(count, generator=generator) < self.share
            table["style"] = torch.randint(2, (count,), generator=generator)
            table["attribute"] = torch.randn(count, self.translator.net.attributes, generator=generator)
        return tables

    def see(self, pictures: Tensor, drawn: Sequence[Drawn]) -> tuple[Tensor, ...]:
        """As `Views`, of pictures that are uint8 or from 0 to 1."""
        with in_full(pictures), torch.no_grad():
            whole = pictures if pictures.dtype == torch.uint8 else (pictures * 255).round().byte()
            found = []
            for view, own in zip(self.pipelines, drawn, strict=True):
                rest = {name: value for name, value in own.items() if name not in OURS}
                found.append(view.see(self._seen(whole, own), rest))
            return tuple(found)

    def _seen(self, whole: Tensor, own: Drawn) -> Tensor:
        chosen, styles, attributes = (own[name].cpu().numpy() for name in OURS)
        seen = whole.clone()
        for style in (0, 1):
            rows = np.flatnonzero(chosen & (styles == style))
            if len(rows):
                pixels = whole[torch.from_numpy(rows).to(whole.device)].cpu().numpy()
                made = torch.from_numpy(self.translator.translate(pixels, style, attributes[rows]))
                seen[torch.from_numpy(rows).to(whole.device)] = made.to(whole.device)
        return seen
