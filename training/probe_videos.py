"""What a frozen video encoder is worth on labelled videos, beside an untrained one and raw pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray

from embed.video import VideoEncoder
from embed.video_backbones import build_video_backbone
from embed.video_media import open_video
from training.clips import VIDEO_ENDINGS
from training.pictures import folder_rows
from training.probes import knn_accuracy, linear_accuracy
from training.questions import answered
from training.retrieval import recall
from udr.errors import DataError, UDRWarning
from udr.types import FloatArray, Progress

__all__ = ["answer_questions", "first_ranks", "probe_videos"]

EVERY = 5  # of a class's videos one is asked, where no folders say which

Row = tuple[str, Path, str]


def probe_videos(
    source: Path,
    encoder: VideoEncoder,
    split: str,
    asked: str,
    k: int,
    *,
    untrained: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Recall of a video of the same class, accuracy of the `k` nearest and of a linear classifier, by kind of vectors:
    raw pixels, those of the untrained network of a seed, and the encoder's.

    Videos lie in a folder a class: within the folders `split` and `asked` of `source` if there are such; else every
    fifth of a class is asked. What cannot be read is left out with a warning.

    Raises:
        DataError: no labelled videos, or none left of one part.
    """
    known, queries = _parts(source, split, asked)
    own, encoders = encoder.backbone, {}
    if untrained:
        torch.manual_seed(seed)
        other = build_video_backbone(own.name, own.size, own.frames).to(own.device)
        encoders["untrained"] = VideoEncoder(other, "", rate=encoder.rate, pace=encoder.pace, clips=encoder.clips)
    encoders["encoder"] = encoder
    vectors: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {name: ([], []) for name in ("pixels", *encoders)}
    labels: tuple[list[str], list[str]] = ([], [])
    rows = [(0, row) for row in known] + [(1, row) for row in queries]
    for number, (part, (name, path, label)) in enumerate(rows, 1):
        try:
            with open_video(path, name) as video:
                clips = encoder.read_clips(video)
        except DataError as error:
            warn(f"left out: {error}", UDRWarning, stacklevel=2)
            continue
        labels[part].append(label)
        vectors["pixels"][part].append(clips.mean(0, dtype=np.float32).ravel() / 255)
        for title, one in encoders.items():
            vectors[title][part].append(one.encode_clips(clips).mean(0))
        if progress:
            progress(number, len(rows))
    if not labels[0] or not labels[1]:
        raise DataError(f"{source}: none of {len(rows)} videos can be read, or those of one part alone")
    names = {label: i for i, label in enumerate(sorted({*labels[0], *labels[1]}))}
    y, z = (np.array([names[label] for label in part], np.int64) for part in labels)
    found = {}
    for title, (bank, asking) in vectors.items():
        a, b = np.stack(bank), np.stack(asking)
        row = recall(first_ranks(a, y, b, z))
        row |= {"knn": knn_accuracy(a, y, b, z, k), "linear": linear_accuracy(a, y, b, z)}
        found[title] = {name: round(value, 4) for name, value in row.items()}
    return found


def first_ranks(
    bank: FloatArray, classes: NDArray[np.int64], queries: FloatArray, answers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rank of the nearest row of the bank, by cosine, that is of a query's class, from 1; behind all if none is.

    Shape: bank (m, d), classes (m,), queries (n, d), answers (n,) -> (n,).
    """
    a, b = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (bank, queries))
    right = classes[np.argsort(-(b @ a.T), axis=1, kind="stable")] == answers[:, None]
    found: NDArray[np.int64] = np.where(right.any(1), right.argmax(1), len(bank)) + 1
    return found


def answer_questions(
    source: Path,
    folder: Path,
    encoder: VideoEncoder,
    split: str,
    asked: str,
    cache: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """How well the questions of its training are answered on the videos that are asked (`training.questions`)."""
    inside = source / asked if _has_parts(source, split, asked) else source
    names = {name for name, _, _ in _parts(source, split, asked)[1]}
    return answered(folder, encoder.backbone, inside, names, cache, seed, progress)


def _has_parts(source: Path, split: str, asked: str) -> bool:
    return (source / split).is_dir() and (source / asked).is_dir()


def _parts(source: Path, split: str, asked: str) -> tuple[list[Row], list[Row]]:
    if _has_parts(source, split, asked):
        return _labelled(source / split), _labelled(source / asked)
    seen: Counter[str] = Counter()
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in _labelled(source):
        seen[row[2]] += 1
        parts[seen[row[2]] % EVERY == 0].append(row)
    if not parts[1]:
        raise DataError(f"{source}: fewer than {EVERY} videos of each class")
    return parts


def _labelled(folder: Path) -> list[Row]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of videos, a subfolder a class")
    rows = [(name, path, label) for name, path, label in folder_rows(folder, VIDEO_ENDINGS) if label is not None]
    if not rows:
        raise DataError(f"{folder}: no videos in a folder a class ({', '.join(VIDEO_ENDINGS)})")
    return rows
