"""Where in a long video something like a clip is to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.video import AT_ONCE, VideoEncoder
from embed.video_media import Video, open_video
from udr.types import FloatArray, Media, Progress

__all__ = ["Segment", "localise"]

HOPS = 4  # windows that begin within the reach of one


class Segment(NamedTuple):
    """A part of a video in seconds, and the cosine of its vector and the clip's."""

    begin: float
    end: float
    score: float


def localise(
    encoder: VideoEncoder,
    clip: Path | bytes | Media,
    video: Path | bytes | Media,
    top: int = 1,
    progress: Progress | None = None,
) -> list[Segment]:
    """The `top` segments that are most like the clip, the best first; no two share more than half of their length.

    Clips of the encoder begin all over the video, a quarter of their reach apart; a segment is as long as `clip`, and
    its vector the mean over those in it, as the clip's own is. The video is read once, in memory that does not grow
    with it. One that is shorter than the clip is one segment.

    Raises:
        DataError: one of both cannot be read.
    """
    with open_video(clip) as short:
        length = short.seconds
        asked = encoder.encode_clips(np.concatenate(list(_windows(short, encoder)))).mean(0)
    with open_video(video) as long:
        whole = long.seconds
        vectors = np.concatenate([_encoded(encoder, part, long, progress) for part in _windows(long, encoder)])
    hop = _hop(encoder) * encoder.step
    reach = encoder.backbone.frames * encoder.step
    together = min(len(vectors), 1 + max(0, round((length - reach) / hop)))
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors, 0, dtype=np.float64)])
    means = sums[together:] - sums[:-together]
    scores = means @ asked / np.maximum(np.linalg.norm(means, axis=1) * np.linalg.norm(asked), 1e-12)
    found: list[Segment] = []
    for i in np.argsort(-scores, kind="stable"):
        begin = float(i * hop)
        if all(abs(begin - other.begin) > length / 2 for other in found):
            found.append(Segment(round(begin, 3), round(min(whole, begin + length), 3), float(scores[i])))
        if len(found) == top:
            break
    return found


def _hop(encoder: VideoEncoder) -> int:
    """Frames from one window's beginning to the next one's."""
    return max(1, encoder.backbone.frames // HOPS)


def _windows(video: Video, encoder: VideoEncoder) -> Iterator[NDArray[np.uint8]]:
    """The clips of a video that begin a hop apart, some at a time (n, frames, 3, size, size); at least one."""
    frames, hop, step = encoder.backbone.frames, _hop(encoder), encoder.step
    count = max(1, int((video.seconds / step - frames) // hop + 1))
    times = (np.arange((count - 1) * hop + frames) + 0.5) * step
    if video.seconds < frames * step:  # shown again from its beginning
        size = encoder.backbone.size
        flat, back = np.unique(times % video.seconds if video.seconds else times * 0, return_inverse=True)
        yield video.frames(flat, size)[back][None]
        return
    kept: list[NDArray[np.uint8]] = []
    ready: list[NDArray[np.uint8]] = []
    for frame in video.each(times.tolist(), encoder.backbone.size):
        kept.append(frame)
        if len(kept) == frames:
            ready.append(np.stack(kept))
            del kept[:hop]
        if len(ready) == AT_ONCE:
            yield np.stack(ready)
            ready = []
    if ready:
        yield np.stack(ready)


def _encoded(encoder: VideoEncoder, clips: NDArray[np.uint8], video: Video, progress: Progress | None) -> FloatArray:
    if progress:
        progress(int(video.at), int(video.seconds))
    return encoder.encode_clips(clips)
