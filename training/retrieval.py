"""How well things are found across modalities: recall and median rank in every direction, on things never seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.cross_modal import CrossModalEncoder, CrossModalNet, Modality
from training.captioned import Captioned
from training.probes import spread
from udr.errors import DataError, UDRWarning
from udr.types import FloatArray, Media, Query

__all__ = [
    "FOUND_AMONG",
    "RetrievalProbe",
    "as_query",
    "check_asked",
    "directions",
    "own_ranks",
    "recall",
    "vectors_of",
]

FOUND_AMONG = (1, 5, 10)


def own_ranks(queries: FloatArray, gallery: FloatArray) -> NDArray[np.int64]:
    """The rank of each query's own thing, that of the same row, from 1; ties count against it.

    Shape: both (n, d) -> (n,).
    """
    similarities = queries @ gallery.T
    found: NDArray[np.int64] = (similarities >= similarities.diagonal()[:, None]).sum(1)
    return found


def recall(ranks: NDArray[np.int64]) -> dict[str, float]:
    """R@1, R@5 and R@10, shares of queries, and the median rank."""
    found = {f"R@{k}": float((ranks <= k).mean()) for k in FOUND_AMONG}
    return found | {"median_rank": float(np.median(ranks))}


def as_query(row: Captioned, modality: Modality, language: str = "", voice: str = "") -> Query | None:
    """A thing by one modality: its picture, or its first caption or sound of a language and of a voice.

    None where the thing has none; an empty language or voice is any.
    """
    if modality == "image":
        return Query(row.id, "", media=(Media("image", data=row.image),))
    if modality == "text":
        texts = row.texts([language] if language else [])
        return Query(row.id, texts[0]) if texts else None
    for sound in row.sounds:
        if language in ("", sound.language) and (not voice or sound.voice.startswith(voice)):
            return Query(row.id, "", media=(Media("audio", data=sound.sound),))
    return None


def check_asked(
    source: Path, rows: Sequence[Captioned], modalities: Sequence[Modality], language: str, voice: str
) -> None:
    """Raise DataError where a table holds nothing in a language, or nobody who speaks, that was asked for."""
    sounds = [sound for row in rows for sound in row.sounds] if "audio" in modalities else []
    languages = {sound.language for sound in sounds}
    if "text" in modalities:
        languages |= {own for row in rows for own, text in row.captions if text.strip()}
    if language and language not in languages:
        raise DataError(
            f"{source}: no captions in language {language}; it has {', '.join(sorted(languages)) or 'none'}"
        )
    voices = {sound.voice for sound in sounds if language in ("", sound.language)}
    if not any(own.startswith(voice) for own in voices) and voice:
        raise DataError(f"{source}: nobody speaks as voice {voice}; it has {', '.join(sorted(voices)) or 'none'}")


def vectors_of(
    encoder: CrossModalEncoder, rows: Sequence[Captioned], modality: Modality, language: str = "", voice: str = ""
) -> tuple[NDArray[np.int64], FloatArray]:
    """Which rows have the modality, and their vectors."""
    queries = [as_query(row, modality, language, voice) for row in rows]
    there = [i for i, query in enumerate(queries) if query is not None]
    return np.array(there, np.int64), encoder.encode_queries([query for query in queries if query is not None])


def directions(
    encoder: CrossModalEncoder, rows: Sequence[Captioned], language: str = "", voice: str = ""
) -> dict[str, dict[str, float]]:
    """Recall from each modality to each other one, among things that have both, with how many those are."""
    found = {m: vectors_of(encoder, rows, m, language, voice) for m in encoder.modalities}
    return _directions(found)


def _directions(found: Mapping[Modality, tuple[NDArray[np.int64], FloatArray]]) -> dict[str, dict[str, float]]:
    told = {}
    for a, b in permutations(found, 2):
        both = np.intersect1d(found[a][0], found[b][0])
        if len(both):
            one, other = (found[m][1][np.searchsorted(found[m][0], both)] for m in (a, b))
            told[f"{a}→{b}"] = recall(own_ranks(one, other)) | {"n": len(both)}
    return told


def _can_be_read(encoder: CrossModalEncoder, modality: Modality, query: Query) -> bool:
    try:
        encoder.inputs(modality, [query])
    except DataError as error:
        warnings.warn(f"left out: {error}", UDRWarning, stacklevel=2)
        return False
    return True


class RetrievalProbe:
    """The online probe: recall among ten over all directions, on things that are not learnt from.

    Args:
        open_encoder: gives the encoder of what is being trained, in its present state.
        rows: the things; their files are opened once.
        language: of captions and speech; empty: any.
    """

    def __init__(self, open_encoder: Callable[[], CrossModalEncoder], rows: Sequence[Captioned], language: str) -> None:
        self._open, self._rows, self._language = open_encoder, rows, language
        self._inputs: dict[Modality, tuple[NDArray[np.int64], tuple[Tensor, ...]]] = {}

    @torch.inference_mode()
    def __call__(self, net: CrossModalNet, k: int) -> dict[str, float]:
        """Mean R@10, and how far the vectors of one modality spread."""
        was_training = net.training
        encoder = self._open()  # puts the net into its other mode
        for modality in encoder.modalities if not self._inputs else ():
            queries = [as_query(row, modality, self._language) for row in self._rows]
            asked = [(i, q) for i, q in enumerate(queries) if q is not None and _can_be_read(encoder, modality, q)]
            if asked:
                there = np.array([i for i, _ in asked], np.int64)
                self._inputs[modality] = there, encoder.inputs(modality, [q for _, q in asked])
        found = {m: (there, encoder.encode_inputs(m, inputs)) for m, (there, inputs) in self._inputs.items()}
        net.train(was_training)
        told = _directions(found)
        mean = float(np.mean([one["R@10"] for one in told.values()])) if told else 0.0
        return {"recall_at_10": mean, "spread": spread(next(iter(found.values()))[1])}
