"""Labels of demonstrations that come in, put into their metadata by a labeller."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from embed.labeller import Label, Labeller, as_metadata, load_labeller
from embed.media import open_picture, pixels_of
from serving.schemas import MOST_METADATA
from udr.errors import DataError
from udr.types import Demonstration

__all__ = ["Tagger", "open_tagger"]

_Found = tuple[list[int], list[tuple[Label, ...]]]  # places of those that are labelled, and their labels


class Tagger:
    """Adds labels and confidences to metadata, as `label:NAME`; what a demonstration says of itself stays.

    A labeller of pictures labels demonstrations with a picture that can be opened, one of texts those with an input.

    Args:
        labeller: what labels them.
        threshold: labels of a smaller confidence are left out.
    """

    def __init__(self, labeller: Labeller, threshold: float = 0.0) -> None:
        self._labeller, self._threshold, self._lock = labeller, threshold, threading.Lock()

    def __call__(self, demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
        """The same demonstrations with labels; those with nothing to be labelled by as they are."""
        found = list(demonstrations)
        with self._lock:  # one at a time: more would only share the cores, and a picture may take much memory
            places, labels = self._of_texts(found) if self._labeller.reads == "text" else self._of_pictures(found)
        for i, own in zip(places, labels, strict=True):
            found[i] = replace(found[i], metadata=_with_tags(found[i].metadata, own))
        return found

    def _of_texts(self, demonstrations: Sequence[Demonstration]) -> _Found:
        places = [i for i, d in enumerate(demonstrations) if d.input.strip()]
        return places, self._labeller.label([demonstrations[i].query for i in places], threshold=self._threshold)

    def _of_pictures(self, demonstrations: Sequence[Demonstration]) -> _Found:
        """Each picture is opened once, and only its few pixels are kept."""
        places, pixels = [], []
        for i, one in enumerate(demonstrations):
            picture = next((media for media in one.media if media.kind == "image"), None)
            if picture is not None:
                with suppress(DataError):  # told by an encoder that reads it, if the pool has one
                    pixels.append(pixels_of(open_picture(picture, one.id), self._labeller.size))
                    places.append(i)
        if not places:
            return [], []
        return places, self._labeller.label_pixels(np.stack(pixels), threshold=self._threshold)


def _with_tags(stated: Mapping[str, str], labels: Sequence[Label]) -> dict[str, str]:
    """The surest tags that fit beside what is stated."""
    tags = as_metadata(sorted(labels, key=lambda label: -label.confidence))
    new = [(key, value) for key, value in tags.items() if key not in stated]
    return {**dict(new[: max(0, MOST_METADATA - len(stated))]), **stated}


def open_tagger(folder: Path, threshold: float = 0.0) -> Tagger:
    """Open a labeller's folder, or the run of `udr pretrain` around it.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    inside = folder / "labeller"
    return Tagger(load_labeller(inside if inside.is_dir() else folder), threshold)
