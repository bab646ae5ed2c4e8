"""The video encoder that is learnt here: a backbone of clips behind `udr.types.Encoder`, and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from embed.folders import WEIGHTS, save_folder
from embed.media import media_of
from embed.video_backbones import VideoBackbone, build_video_backbone
from embed.video_media import Video, open_video
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.errors import ArtifactError
from udr.types import Demonstration, FloatArray, Media, Query

__all__ = ["KIND", "VideoEncoder", "clip_times", "load_video_encoder", "save_video_backbone"]

KIND = "video"  # of an encoder folder
AT_ONCE = 8  # clips in one forward pass


def clip_times(seconds: float, clips: int, frames: int, step: float) -> NDArray[np.float64]:
    """When the frames of evenly spread clips are on show, (clips, frames), in seconds.

    A clip reaches over frames · step seconds. Fewer clips are taken where more would overlap, and one where the video
    is shorter than a clip: it is shown again from its beginning.
    """
    reach = frames * step
    fit = max(1, min(clips, int(seconds / reach + 1e-6)))
    spare = max(0.0, seconds - fit * reach)
    begins = [spare * (i + 0.5) / fit + i * reach for i in range(fit)]
    times = np.array(begins)[:, None] + (np.arange(frames) + 0.5) * step
    return times % seconds if seconds > 0 else np.zeros_like(times)


class VideoEncoder:
    """Vectors of length 1 of videos, each the mean over some of its clips; a text beside them is not read.

    Args:
        backbone: of clips.
        fingerprint: of its weights and of how clips are taken.
        rate: frames a second at pace 1.
        pace: of the clips.
        clips: of a video at most.
    """

    def __init__(self, backbone: VideoBackbone, fingerprint: str, *, rate: float, pace: int, clips: int) -> None:
        self.backbone = backbone.eval()
        self.fingerprint = fingerprint
        self.rate, self.pace, self.clips = rate, pace, clips

    @property
    def dim(self) -> int:
        return self.backbone.dim

    @property
    def step(self) -> float:
        """Seconds between two frames of a clip."""
        return self.pace / self.rate

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries' videos, float32 (n, d).

        Raises:
            DataError: a query without a video, or one that cannot be read.
        """
        found = np.empty((len(queries), self.dim), np.float32)
        for i, query in enumerate(queries):
            found[i] = self.encode_video(media_of(query, "video"), query.id)
        return found

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations' videos, float32 (m, d)."""
        return self.encode_queries([d.query for d in demonstrations])

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """No text is read, so none is cut."""
        return [0] * len(texts)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """None: no text is read."""
        return [0] * len(queries)

    def encode_video(self, source: Path | bytes | Media, where: str = "") -> FloatArray:
        """The vector of one video, float32 (d,).

        Raises:
            DataError: it cannot be read.
        """
        with open_video(source, where) as video:
            return _unit(self.encode_clips(self.read_clips(video)).mean(0))

    def read_clips(self, video: Video) -> NDArray[np.uint8]:
        """Its evenly spread clips, uint8 (clips, frames, 3, size, size)."""
        own = self.backbone
        times = clip_times(video.seconds, self.clips, own.frames, self.step)
        flat, back = np.unique(times, return_inverse=True)  # ascending, as videos are read
        return video.frames(flat, own.size)[back.reshape(times.shape)]

    def encode_clips(self, clips: NDArray[np.uint8]) -> FloatArray:
        """Vectors of length 1 of clips (n, frames, 3, size, size), float32 (n, d)."""
        found = np.empty((len(clips), self.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(clips), AT_ONCE):
                part = torch.tensor(clips[start : start + AT_ONCE], device=self.backbone.device).float() / 255
                found[start : start + len(part)] = self.backbone.pooled(part).float().cpu().numpy()
        return _unit(found)


def _unit(vectors: FloatArray) -> FloatArray:
    normed: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return normed


def save_video_backbone(
    backbone: VideoBackbone, folder: Path, facts: dict[str, Any], *, rate: float, pace: int, clips: int
) -> None:
    """Write an encoder folder; `facts` say how it was made, the rest how it takes clips.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    known = {"kind": KIND, "backbone": backbone.name, "size": backbone.size, "frames": backbone.frames}
    known |= {"rate": rate, "pace": pace, "clips": clips, **facts}
    save_folder(backbone, folder, known, "encoder.json", _fingerprint)


def load_video_encoder(folder: Path, device: str = "auto") -> VideoEncoder:
    """Open what `save_video_backbone` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    saved = read_json(folder / "encoder.json")
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no video encoder")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the encoder's files differ from what was saved; restore or train it again")
    backbone = build_video_backbone(str(saved["backbone"]), int(saved["size"]), int(saved["frames"]))
    try:
        backbone.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder}: not the weights of {saved['backbone']} ({str(error).splitlines()[0]})"
        ) from None
    rate, pace, clips = float(saved["rate"]), int(saved["pace"]), int(saved["clips"])
    fingerprint = str(saved["fingerprint"])
    return VideoEncoder(backbone.to(choose_device(device)), fingerprint, rate=rate, pace=pace, clips=clips)


def _fingerprint(folder: Path, saved: Mapping[str, Any]) -> str:
    taken = "-".join(str(saved.get(name)) for name in ("backbone", "size", "frames", "rate", "pace", "clips"))
    return f"{fingerprint_files(folder, ('.safetensors',))}-{taken}"
