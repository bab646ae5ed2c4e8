"""What a frozen video encoder is worth on labelled videos, beside an untrained one and raw pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from warnings import warn

import numpy as np
import torch

from embed.video import VideoEncoder
from embed.video_backbones import build_video_backbone
from embed.video_media import open_video
from training.clips import VIDEO_ENDINGS
from training.pictures import folder_rows
from training.probes import knn_accuracy, linear_accuracy
from udr.errors import DataError, UDRWarning
from udr.types import Progress

__all__ = ["probe_videos"]

EVERY = 5  # of a class's videos one is asked, where no folders say which

Row = tuple[str, Path, str]


def probe_videos(
    source: Path, encoder: VideoEncoder, split: str, asked: str, k: int, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """Accuracy of the nearest (`r@1`), of the `k` nearest and of a linear classifier, of three kinds of vectors.

    Videos lie in a folder a class: within the folders `split` and `asked` of `source` if there are such; else every
    fifth of a class is asked. What cannot be read is left out with a warning.

    Raises:
        DataError: no labelled videos, or none left of one part.
    """
    known, queries = _parts(source, split, asked)
    torch.manual_seed(0)
    own = encoder.backbone
    untrained = build_video_backbone(own.name, own.size, own.frames).to(own.device)
    other = VideoEncoder(untrained, "", rate=encoder.rate, pace=encoder.pace, clips=encoder.clips)
    vectors: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        name: ([], []) for name in ("pixels", "untrained", "encoder")
    }
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
        vectors["untrained"][part].append(other.encode_clips(clips).mean(0))
        vectors["encoder"][part].append(encoder.encode_clips(clips).mean(0))
        if progress:
            progress(number, len(rows))
    if not labels[0] or not labels[1]:
        raise DataError(f"{source}: none of {len(rows)} videos can be read, or those of one part alone")
    names = {label: i for i, label in enumerate(sorted({*labels[0], *labels[1]}))}
    y, z = (np.array([names[label] for label in part], np.int64) for part in labels)
    found = {}
    for title, (bank, asking) in vectors.items():
        a, b = np.stack(bank), np.stack(asking)
        found[title] = {
            "r@1": round(knn_accuracy(a, y, b, z, 1), 4),
            "knn": round(knn_accuracy(a, y, b, z, k), 4),
            "linear": round(linear_accuracy(a, y, b, z), 4),
        }
    return found


def _parts(source: Path, split: str, asked: str) -> tuple[list[Row], list[Row]]:
    if (source / split).is_dir() and (source / asked).is_dir():
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
