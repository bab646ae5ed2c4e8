"""The image encoder that is learnt here: a backbone of ours behind `udr.types.Encoder`, and its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embed.backbones import Backbone, build_backbone
from embed.folders import WEIGHTS, save_folder
from embed.media import media_of, open_picture, pixels_of
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.errors import ArtifactError
from udr.types import Demonstration, FloatArray, Query

__all__ = ["ImageEncoder", "PictureEncoder", "encode_pictures", "load_image_encoder", "save_backbone"]

KIND = "image"  # of an encoder folder
AT_ONCE = 32  # pictures in one forward pass


def encode_pictures(
    queries: Sequence[Query], dim: int, encode: Callable[[list[Image.Image]], FloatArray]
) -> FloatArray:
    """Open the pictures of queries, some at a time, and put their vectors together, float32 (n, dim).

    Raises:
        DataError: a query without a picture, or one that cannot be opened.
    """
    found = np.empty((len(queries), dim), np.float32)
    for start in range(0, len(queries), AT_ONCE):
        part = queries[start : start + AT_ONCE]
        found[start : start + len(part)] = encode([open_picture(media_of(q, "image"), q.id) for q in part])
    return found


class PictureEncoder(ABC):
    """What encoders share that see a picture as a square of one size: they say how pixels become vectors."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Numbers of a vector."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Pixels of a side."""

    @abstractmethod
    def encode_pixels(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Vectors of pictures (n, 3, size, size), float32 (n, d)."""

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries' pictures, float32 (n, d).

        Raises:
            DataError: a query without a picture, or one that cannot be opened.
        """
        return encode_pictures(
            queries, self.dim, lambda p: self.encode_pixels(np.stack([pixels_of(x, self.size) for x in p]))
        )

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations' pictures, float32 (m, d)."""
        return self.encode_queries([d.query for d in demonstrations])

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Nothing of a picture is left out."""
        return [0] * len(texts)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """None: no text is read."""
        return [0] * len(queries)


class ImageEncoder(PictureEncoder):
    """Vectors of length 1 of pictures; a text beside them is not read, and a demonstration is its picture."""

    def __init__(self, backbone: Backbone, fingerprint: str) -> None:
        self.backbone = backbone.eval()
        self.fingerprint = fingerprint

    @property
    def dim(self) -> int:
        return self.backbone.dim

    @property
    def size(self) -> int:
        return self.backbone.size

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Vectors of pictures (n, 3, size, size), float32 (n, d)."""
        return _unit(self._cells(pixels).mean((2, 3))).cpu().numpy()

    def encode_regions(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Vectors of each cell of pictures (n, 3, size, size), float32 (n, h·w, d), row by row."""
        return _unit(self._cells(pixels).flatten(2).transpose(1, 2)).cpu().numpy()

    def _cells(self, pixels: NDArray[np.uint8]) -> Tensor:
        device = self.backbone.device
        with torch.inference_mode():
            cells: Tensor = self.backbone(torch.tensor(pixels, device=device).float() / 255)
            return cells


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def save_backbone(backbone: Backbone, folder: Path, facts: dict[str, Any]) -> None:
    """Write an encoder folder; `facts` say how it was made.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    known = {"kind": KIND, "backbone": backbone.name, "size": backbone.size, **facts}
    save_folder(backbone, folder, known, "encoder.json", _fingerprint)


def load_image_encoder(folder: Path, device: str = "auto") -> ImageEncoder:
    """Open what `save_backbone` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    saved = read_json(folder / "encoder.json")
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no image encoder")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the encoder's files differ from what was saved; restore or train it again")
    backbone = build_backbone(str(saved["backbone"]), int(saved["size"]))
    try:
        backbone.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder}: not the weights of {saved['backbone']} ({str(error).splitlines()[0]})"
        ) from None
    return ImageEncoder(backbone.to(choose_device(device)), str(saved["fingerprint"]))


def _fingerprint(folder: Path, saved: Mapping[str, Any]) -> str:
    return f"{fingerprint_files(folder, ('.safetensors',))}-{saved.get('backbone')}-{saved.get('size')}"
