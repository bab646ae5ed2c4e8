"""Captioned things as arrays: what a cross-modal training draws its batches from, several variants of each thing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.audio import frames_of, open_sound
from embed.cross_modal import Modality, padded
from embed.media import open_picture, pixels_of
from embed.towers import grams_of
from training.captioned import Captioned
from udr.errors import DataError, UDRWarning
from udr.types import Encoder, Media, Progress, Query

__all__ = ["Material", "Variants", "prepare_material"]

ROOM = 1.25  # pictures are kept so much larger than they are seen, for crops


@dataclass(frozen=True)
class Variants:
    """One modality of n things: of thing i the variants starts[i] to starts[i + 1], maybe none.

    Args:
        starts: (n + 1,).
        values: of all variants, pixels (m, 3, s, s), letter groups (m, w, g), vectors (m, d), or frames one by one.
    """

    starts: Tensor
    values: Tensor | list[NDArray[np.float16]]

    def drawn(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Which of the rows have a variant, (n,), and one of each of those, by torch's own state."""
        first, behind = self.starts[rows], self.starts[rows + 1]
        there = behind > first
        places = (first + (torch.rand(len(rows)) * (behind - first)).long())[there]
        return there, self.at(places)

    def at(self, places: Tensor) -> tuple[Tensor, ...]:
        """Variants by their places, as a tower reads them."""
        if isinstance(self.values, Tensor):
            return (self.values[places],)
        return padded([self.values[int(place)] for place in places])


@dataclass(frozen=True)
class Material:
    """Things in all their modalities.

    Args:
        variants: of each modality.
        concepts: (n,), equal where two things have the same caption and so are no others to each other.
        order: (m,), the things as they are drawn from, some maybe more than once.
        left_out: pictures and sounds that could not be read.
    """

    variants: dict[Modality, Variants]
    concepts: Tensor
    order: NDArray[np.int64]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the loop hands on of rows (n,): the numbers of things, (n,)."""
        found: NDArray[np.int64] = self.order[rows]
        return found


def prepare_material(
    rows: Sequence[Captioned],
    size: int,
    modalities: Sequence[Modality],
    languages: Sequence[str],
    frozen: dict[Modality, Encoder],
    order: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> Material:
    """Read the pictures, captions and sounds of rows once; what cannot be read is left out, with a warning each.

    Args:
        rows: the things.
        size: pixels that a picture is seen at.
        modalities: which to read.
        languages: of captions and sounds; none: all.
        frozen: encoders that read a modality in our place.
        order: the rows as they are to be drawn from; none: each once.
        progress: told the things.

    Raises:
        DataError: no thing has two of the modalities.
    """
    wrong = [0]
    found: dict[Modality, list[list[object]]] = {modality: [] for modality in modalities}
    for i, row in enumerate(rows):
        for modality in modalities:
            found[modality].append(_readable(row, modality, languages, size, modality in frozen, wrong))
        if progress:
            progress(i + 1, len(rows))
    pairs = sum(sum(bool(found[m][i]) for m in modalities) >= 2 for i in range(len(rows)))
    if not pairs:
        raise DataError(f"nothing of {len(rows)} rows has two of {', '.join(modalities)}, so nothing can be learnt")
    variants = {modality: _stacked(modality, found[modality], frozen.get(modality)) for modality in modalities}
    captions = [" ".join(row.texts()[:1]).lower() or row.id for row in rows]
    concepts = torch.from_numpy(np.unique(captions, return_inverse=True)[1])
    return Material(variants, concepts, np.arange(len(rows)) if order is None else order, wrong[0])


def _readable(
    row: Captioned, modality: Modality, languages: Sequence[str], size: int, whole: bool, wrong: list[int]
) -> list[object]:
    """The variants of one thing in one modality: pixels, texts or frames; or queries, for another encoder."""
    if modality == "text":
        return list(row.texts(languages))
    if modality == "image":
        return _tried(partial(_shown, row, size, whole), wrong)
    sounds = [s.sound for s in row.sounds if not languages or s.language in languages]
    found: list[object] = []
    for sound in sounds:
        found += _tried(partial(_heard, sound, row.id, whole), wrong)
    return found


def _shown(row: Captioned, size: int, whole: bool) -> list[object]:
    picture = open_picture(row.image, row.id)
    if whole:
        return [Query(row.id, "", media=(Media("image", data=row.image),))]
    return [pixels_of(picture, round(ROOM * size))]


def _heard(sound: bytes, where: str, whole: bool) -> list[object]:
    wave = open_sound(sound, where)
    if whole:
        return [Query(where, "", media=(Media("audio", data=sound),))]
    return [frames_of(wave).astype(np.float16)]


def _tried(read: Callable[[], list[object]], wrong: list[int]) -> list[object]:
    try:
        return read()
    except DataError as error:
        wrong[0] += 1
        warnings.warn(f"left out: {error}", UDRWarning, stacklevel=2)
        return []


def _stacked(modality: Modality, found: list[list[object]], frozen: Encoder | None) -> Variants:
    starts = torch.tensor([0, *np.cumsum([len(own) for own in found])])
    flat: list[Any] = [one for own in found for one in own]
    if not flat:
        raise DataError(f"nothing to learn from of modality {modality}; leave it out of cross_modal.modalities")
    if frozen is not None:
        queries = [Query(f"caption {i}", one) if isinstance(one, str) else one for i, one in enumerate(flat)]
        return Variants(starts, torch.from_numpy(frozen.encode_queries(queries)))
    if modality == "text":
        return Variants(starts, grams_of(flat))
    if modality == "image":
        return Variants(starts, torch.from_numpy(np.stack(flat)))
    return Variants(starts, flat)
