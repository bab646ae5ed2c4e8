"""Labels of demonstrations that come in, put into their metadata by a labeller."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embed.labeller import Labeller, as_metadata, load_labeller
from embed.media import open_picture
from udr.errors import DataError
from udr.types import Demonstration

__all__ = ["Tagger", "open_tagger"]


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
        places = [i for i, d in enumerate(found) if self._reads(d)]
        if places:
            with self._lock:  # one at a time: more would only share the cores
                labels = self._labeller.label([found[i].query for i in places], threshold=self._threshold)
            for i, own in zip(places, labels, strict=True):
                found[i] = replace(found[i], metadata={**as_metadata(own), **found[i].metadata})
        return found

    def _reads(self, demonstration: Demonstration) -> bool:
        if self._labeller.reads == "text":
            return bool(demonstration.input.strip())
        picture = next((media for media in demonstration.media if media.kind == "image"), None)
        if picture is None:
            return False
        try:
            open_picture(picture, demonstration.id)
        except DataError:  # told by an encoder that reads it, if the pool has one
            return False
        return True


def open_tagger(folder: Path, threshold: float = 0.0) -> Tagger:
    """Open a labeller's folder, or the run of `udr pretrain` around it.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    inside = folder / "labeller"
    return Tagger(load_labeller(inside if inside.is_dir() else folder), threshold)
