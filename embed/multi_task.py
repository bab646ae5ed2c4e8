"""The multi-task image encoder: one pass gives a picture's vector, its attributes and its maps; and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from embed.folders import WEIGHTS, save_folder, shape_of
from embed.image import PictureEncoder
from embed.media import media_of, open_picture, pixels_of
from embed.multi_task_nets import DenseKind, MultiTaskNet, Outputs, build_multi_task_net
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.errors import ArtifactError, UDRError
from udr.types import FloatArray, Query

__all__ = ["KIND", "Attribute", "MultiTaskEncoder", "load_multi_task", "save_multi_task"]

KIND = "multi_task"  # of an encoder folder
AT_ONCE = 32  # pictures in one forward pass


class Attribute(NamedTuple):
    """What is said of a picture in one respect."""

    value: str
    probability: float  # from 0 to 1


class MultiTaskEncoder(PictureEncoder):
    """Vectors of length 1 of pictures, and what the network's tasks say of them.

    Args:
        net: the trained network.
        kinds: of its dense tasks.
        classes: words of each attribute, in the order of its logits.
        fingerprint: of the folder.
    """

    def __init__(
        self,
        net: MultiTaskNet,
        kinds: Mapping[str, DenseKind],
        classes: Mapping[str, Sequence[str]],
        fingerprint: str,
    ) -> None:
        self.net, self.fingerprint = net.eval(), fingerprint
        self.kinds = dict(kinds)
        self.classes = {name: tuple(words) for name, words in classes.items()}

    @property
    def dim(self) -> int:
        return self.net.dim

    @property
    def size(self) -> int:
        return self.net.size

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Vectors of pictures (n, 3, size, size), float32 (n, d)."""
        return _vectors(self._outputs(pixels))

    def encode_described(self, queries: Sequence[Query]) -> tuple[FloatArray, list[dict[str, Attribute]]]:
        """Vectors float32 (n, d) and the attributes of each picture, by one pass.

        Raises:
            DataError: as `encode_queries`.
        """
        vectors = np.empty((len(queries), self.dim), np.float32)
        told: list[dict[str, Attribute]] = []
        for start in range(0, len(queries), AT_ONCE):
            part = queries[start : start + AT_ONCE]
            pictures = [open_picture(media_of(q, "image"), q.id) for q in part]
            outputs = self._outputs(np.stack([pixels_of(picture, self.net.size) for picture in pictures]))
            vectors[start : start + len(part)] = _vectors(outputs)
            told += self._described(outputs, len(part))
        return vectors, told

    def maps(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Of pictures (n, 3, size, size) the map of each dense task, (n, size, size).

        Classes (uint8) of a segmentation; depths, and probabilities of edges and saliency (float32).
        """
        outputs, found = self._outputs(pixels), dict[str, NDArray[Any]]()
        for task, kind in self.kinds.items():
            logits = outputs.tasks[task].float().cpu()
            if kind == "segmentation":
                found[task] = logits.argmax(1).numpy().astype(np.uint8)
            else:
                found[task] = (logits if kind == "depth" else logits.sigmoid())[:, 0].numpy()
        return found

    def _outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            outputs: Outputs = self.net(torch.tensor(pixels, device=self.net.device).float() / 255)
            return outputs

    def _described(self, outputs: Outputs, count: int) -> list[dict[str, Attribute]]:
        told: list[dict[str, Attribute]] = [{} for _ in range(count)]
        for name, words in self.classes.items():
            best, where = outputs.tasks[name].float().softmax(1).max(1)
            for own, probability, number in zip(told, best.tolist(), where.tolist(), strict=True):
                own[name] = Attribute(words[number], probability)
        return told


def _vectors(outputs: Outputs) -> FloatArray:
    found: FloatArray = torch.nn.functional.normalize(outputs.embedding.float(), dim=1).cpu().numpy()
    return found


def save_multi_task(net: MultiTaskNet, folder: Path, shape: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write an encoder folder; `shape` is what `build_multi_task_net` was given, with `kinds` of dense tasks and
    `classes` of attributes, `facts` say how it was made.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    known = {"kind": KIND, "shape": dict(shape), **facts}
    save_folder(net, folder, known, "encoder.json", _fingerprint)


def load_multi_task(folder: Path, device: str = "auto") -> MultiTaskEncoder:
    """Open what `save_multi_task` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    saved = read_json(folder / "encoder.json")
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no multi-task encoder")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the encoder's files differ from what was saved; restore or train it again")
    try:
        shape = dict(saved["shape"])
        kinds, classes = shape.pop("kinds"), shape.pop("classes")
        net = build_multi_task_net(**shape)
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError, LookupError, UDRError) as error:
        raise ArtifactError(f"{folder}: not the weights of such an encoder ({str(error).splitlines()[0]})") from None
    return MultiTaskEncoder(net.to(choose_device(device)), kinds, classes, str(saved["fingerprint"]))


def _fingerprint(folder: Path, saved: Mapping[str, Any]) -> str:
    shape = shape_of(saved)
    words = "-".join(str(shape.get(key)) for key in ("network", "backbone", "size"))
    return f"{fingerprint_files(folder, ('.safetensors',))}-{words}"
