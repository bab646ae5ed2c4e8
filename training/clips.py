"""Videos for pre-training: decoded once at an even rate, scaled to one size, and kept as one array on disk."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from embed.video_media import open_video
from training.pictures import TOLD, Pictures, folder_rows
from udr.artifacts import read_json, replacing, write_json
from udr.errors import ArtifactError, DataError
from udr.types import Progress

__all__ = ["VIDEO_ENDINGS", "Videos", "middle_clips", "prepare_videos", "split_folder"]

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".wmv")
AHEAD = 2  # videos in work for each process, so that few are held at once


@dataclass(frozen=True)
class Videos:
    """Videos of one size and rate.

    Args:
        frames: (sum of t, 3, side, side), uint8, one video after another.
        starts: (n + 1,), where each one's frames begin, and where the last one's end.
        names: of each, a file.
        labels: of each, where the source has some.
        left_out: of those that could not be read, a line each; the first ones.
        unread: how many could not be read.
    """

    frames: NDArray[np.uint8]
    starts: NDArray[np.int64]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    left_out: tuple[str, ...] = ()
    unread: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def side(self) -> int:
        return int(self.frames.shape[-1])

    def length(self, number: int) -> int:
        """Frames of a video."""
        return int(self.starts[number + 1] - self.starts[number])

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """A step's videos by their numbers (n,): which frames of them are read is for the method to draw."""
        return rows

    def clip(self, number: int, start: int, pace: int, frames: int) -> NDArray[np.uint8]:
        """Every `pace`-th frame from `start` on, (frames, 3, side, side); after the last one the first one again."""
        places = (start + pace * np.arange(frames)) % self.length(number)
        return np.asarray(self.frames[self.starts[number] + places])


@dataclass(frozen=True)
class _Middles:
    """The middle clip of each of some videos, read when it is asked for."""

    videos: Videos
    rows: NDArray[np.int64]
    frames: int
    pace: int
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), self.frames, 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | NDArray[np.int64]) -> _Middles:
        return _Middles(self.videos, self.rows[part], self.frames, self.pace, self.size)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.uint8]:
        found = np.empty(self.shape, np.uint8)
        cut = (self.videos.side - self.size) // 2
        for i, number in enumerate(self.rows):
            start = max(0, self.videos.length(number) - self.pace * (self.frames - 1) - 1) // 2
            clip = self.videos.clip(int(number), start, self.pace, self.frames)
            found[i] = clip[:, :, cut : cut + self.size, cut : cut + self.size]
        return found


def middle_clips(videos: Videos, rows: NDArray[np.int64], frames: int, pace: int, size: int) -> Pictures:
    """The middle clip of each of some videos, its middle square: what a probe asks about.

    Shape of the pixels: (n, frames, 3, size, size).
    """
    pixels = cast(NDArray[np.uint8], _Middles(videos, np.asarray(rows, np.int64), frames, pace, size))
    labels = None if videos.labels is None else tuple(videos.labels[i] for i in rows)
    return Pictures(pixels, tuple(videos.names[i] for i in rows), labels)


def split_folder(source: Path, split: str | None) -> Path:
    """The folder of a split, a subfolder of that name.

    Raises:
        DataError: no such folder.
    """
    folder = source / split if split else source
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of videos (a subfolder a class)")
    return folder


def prepare_videos(
    source: Path,
    side: int,
    rate: float,
    longest: float,
    cache: Path,
    workers: int = 2,
    progress: Progress | None = None,
    names: Collection[str] | None = None,
) -> Videos:
    """Read a folder of videos (a subfolder a class), those of some names or all, or what was kept of it.

    Of each the middle `longest` seconds at `rate` frames a second. What cannot be read is left out and counted. The
    array is kept in `cache` under the files' names, sizes and times, so a second run reads it at once.

    Raises:
        DataError: no such folder, or nothing in it can be read.
    """
    rows = [row for row in folder_rows(split_folder(source, None), VIDEO_ENDINGS) if names is None or row[0] in names]
    if not rows:
        raise DataError(f"{source}: no videos ({', '.join(VIDEO_ENDINGS)})")
    state = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for _, p, _ in rows]
    key = hashlib.blake2b(json.dumps([side, rate, longest, state]).encode(), digest_size=8).hexdigest()
    array, facts = cache / f"{key}.frames", cache / f"{key}.json"
    if not facts.is_file():
        _prepare(rows, side, rate, longest, array, facts, workers, progress)
    return _read(array, facts, side)


def _prepare(
    rows: Sequence[tuple[str, Path, str | None]],
    side: int,
    rate: float,
    longest: float,
    array: Path,
    facts: Path,
    workers: int,
    progress: Progress | None,
) -> None:
    """Decode and write one after another; the first frame of each in `starts` is counted, not bytes."""
    names: list[str] = []
    labels: list[str | None] = []
    wrong: list[str] = []
    starts = [0]
    with replacing(array) as temporary, temporary.open("wb") as file:
        for (name, _, label), frames in zip(rows, _in_processes(rows, side, rate, longest, workers), strict=True):
            if isinstance(frames, str):
                wrong.append(frames)
            else:
                file.write(frames.tobytes())
                names.append(name)
                labels.append(label)
                starts.append(starts[-1] + len(frames))
            if progress:
                progress(len(names) + len(wrong), len(rows))
        if not names:
            raise DataError(f"none of {len(wrong)} videos can be read; the first: {wrong[0]}")
    said = {"names": names, "labels": None if None in labels else labels, "starts": starts}
    write_json(facts, {**said, "left_out": wrong[:TOLD], "unread": len(wrong)})


def decoded(path: Path, name: str, side: int, rate: float, longest: float) -> NDArray[np.uint8] | str:
    """The middle of a video at an even rate, uint8 (t, 3, side, side), or what is wrong with it."""
    try:
        with open_video(path, name) as video:
            kept = min(video.seconds, longest)
            count = max(1, round(kept * rate))
            times = (video.seconds - kept) / 2 + (np.arange(count) + 0.5) / rate
            # between two frames of that rate, so that rounded time stamps show neither of them twice
            return video.frames(times.tolist(), side)
    except DataError as error:
        return str(error)


def _in_processes(
    rows: Sequence[tuple[str, Path, str | None]], side: int, rate: float, longest: float, workers: int
) -> Iterator[NDArray[np.uint8] | str]:
    """Each video's frames in order, or what is wrong with it; a few videos are not worth a process."""
    if workers < 2 or len(rows) < 2 * workers * AHEAD:
        for name, path, _ in rows:
            yield decoded(path, name, side, rate, longest)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[Future[NDArray[np.uint8] | str]] = deque()
        for name, path, _ in rows:
            waiting.append(pool.submit(decoded, path, name, side, rate, longest))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(array: Path, facts: Path, side: int) -> Videos:
    known = read_json(facts)
    labels, starts = known["labels"], np.array(known["starts"], np.int64)
    try:
        frames = np.memmap(array, np.uint8, "r", shape=(int(starts[-1]), 3, side, side))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{array}: damaged ({error}); delete it and {facts.name}") from None
    return Videos(
        frames,
        starts,
        tuple(known["names"]),
        None if labels is None else tuple(labels),
        tuple(known["left_out"]),
        int(known["unread"]),
    )
