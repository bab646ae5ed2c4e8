"""One space for pictures, words and sounds, with one shared set of codes that all are made of, and its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from embed.audio import MELS, frames_of, open_sound
from embed.backbones import build_backbone
from embed.folders import WEIGHTS, save_folder, shape_of
from embed.media import open_picture, pixels_of
from embed.quantizer import Quantised, Quantizer
from embed.towers import AudioTower, FrozenTower, ImageTower, TextTower, grams_of, words_of
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from udr.types import Demonstration, Encoder, FloatArray, Query

__all__ = [
    "KIND",
    "MODALITIES",
    "CrossModalEncoder",
    "CrossModalNet",
    "Encoded",
    "Modality",
    "build_net",
    "load_cross_modal",
    "modality_of",
    "open_frozen",
    "padded",
    "save_cross_modal",
]

KIND = "cross_modal"  # of an encoder folder
AT_ONCE = 64  # queries in one forward pass
Modality = Literal["image", "text", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


class Encoded(NamedTuple):
    """What a modality's tower makes of n things."""

    features: Tensor  # (n, l, dim) of cells, words or frames
    valid: Tensor  # (n, l) places that hold one
    whole: Tensor  # (n, out) the high-level vector, before codes are added


class CrossModalNet(nn.Module):
    """Fine features of each modality, a high-level vector over them, and codes that all modalities share.

    Source: Liu et al. 2021, "Cross-Modal Discrete Representation Learning", arXiv 2106.05438.

    Args:
        towers: of each modality, from its inputs to features (n, l, dim) and the places that hold one.
        dim: of features and codes.
        out: of vectors.
        codes: how many there are; 0: vectors are continuous alone.
        patience: steps after which a code that is not used becomes a copy of one that is.
    """

    def __init__(
        self, towers: Mapping[Modality, nn.Module], dim: int, out: int, codes: int, patience: int = 300
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({str(name): tower for name, tower in towers.items()})
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, out), nn.GELU(), nn.Linear(out, out))
                for name in towers
            }
        )
        self.dim, self.out, self.codes = dim, out, codes
        if codes:
            self.quantizer = Quantizer(codes, dim, patience=patience)
            self.discrete = nn.Linear(dim, out)

    def encode(self, modality: Modality, inputs: tuple[Tensor, ...]) -> Encoded:
        """Features and the high-level vector of n things of one modality."""
        features, valid = self.towers[modality](*inputs)
        mean = mean_over(features, valid)
        most = features.masked_fill(~valid[..., None], float("-inf")).amax(1)
        return Encoded(features, valid, self.heads[modality](torch.cat([mean, most], 1)))

    def vectors(self, encoded: Encoded, quantised: Quantised | None) -> Tensor:
        """Vectors of length 1, (n, out): the high-level one, and beside it the mean of the codes, by a linear map."""
        whole = encoded.whole
        if quantised is not None:
            whole = whole + self.discrete(mean_over(quantised.codes, encoded.valid))
        return F.normalize(whole.float(), dim=1)


def mean_over(features: Tensor, valid: Tensor) -> Tensor:
    """The mean over places that hold something, (n, l, d) and (n, l) -> (n, d)."""
    weights = valid.to(features.dtype)[..., None]
    found: Tensor = (features * weights).sum(1) / weights.sum(1).clamp_min(1)
    return found


def modality_of(query: Query) -> Modality:
    """By what a query is read: its first picture or sound, else its text."""
    for media in query.media:
        if media.kind in ("image", "audio"):
            return "image" if media.kind == "image" else "audio"
    return "text"


class CrossModalEncoder:
    """Vectors of length 1 of whatever a query holds: a picture, a sound, or text; all in one space.

    A demonstration is its picture or sound, and its input where it has none.

    Args:
        net: the trained networks.
        size: pixels of a side that pictures are brought to.
        frozen: encoders of modalities whose vectors are adapted; the others are read here.
        fingerprint: of all of them.
    """

    def __init__(self, net: CrossModalNet, size: int, frozen: Mapping[Modality, Encoder], fingerprint: str) -> None:
        self.net, self.size, self.frozen, self.fingerprint = net.eval(), size, dict(frozen), fingerprint

    @property
    def dim(self) -> int:
        return self.net.out

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(name for name in MODALITIES if name in self.net.towers)

    @property
    def side(self) -> int:
        """Cells of a side of a picture, row by row; 1 where another encoder reads pictures."""
        if "image" in self.frozen or "image" not in self.net.towers:
            return 1
        with torch.inference_mode():
            device = next(self.net.parameters()).device
            cells, _ = self.net.towers["image"](torch.zeros(1, 3, self.size, self.size, device=device))
        count: int = cells.shape[1]
        return math.isqrt(count)

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries, float32 (n, d).

        Raises:
            DataError: a query of a modality that was not learnt, an empty text, or a file that cannot be opened.
        """
        found = np.empty((len(queries), self.dim), np.float32)
        for rows, encoded in self._encoded(queries):
            found[rows] = self._vectors(encoded)
        return found

    @torch.inference_mode()
    def encode_inputs(self, modality: Modality, inputs: tuple[Tensor, ...]) -> FloatArray:
        """Vectors of what `inputs` gave, float32 (n, d)."""
        return self._vectors(self.net.encode(modality, inputs))

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations' inputs, float32 (m, d)."""
        return self.encode_queries([d.query for d in demonstrations])

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Not counted: captions are short."""
        return [0] * len(texts)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """Words of each query that is a text (n,), or the tokens of the encoder that reads texts; 0 of others."""
        found = [0] * len(queries)
        told = [i for i, query in enumerate(queries) if modality_of(query) == "text"]
        texts = [queries[i] for i in told]
        reader = self.frozen.get("text")
        read = reader.tokens_read(texts) if reader else [len(words_of(query.input)) for query in texts]
        for i, count in zip(told, read, strict=True):
            found[i] = count
        return found

    @torch.inference_mode()
    def code_probabilities(self, queries: Sequence[Query], blank: bool = False) -> list[FloatArray]:
        """P(e_v|h_l) of each cell, word or frame of queries that holds something, each float32 (l, codes).

        With `blank` all cells of a picture, row by row; those of blank ground as zeros.

        Raises:
            DataError: as `encode_queries`.
            ConfigError: the encoder has no codes.
        """
        if not self.net.codes:
            raise ConfigError("the encoder was trained without codes (cross_modal.codes=0)")
        found: list[FloatArray] = [np.empty((0, self.net.codes), np.float32)] * len(queries)
        for rows, encoded in self._encoded(queries):
            probabilities = self.net.quantizer.probabilities(encoded.features)
            for row, own, valid in zip(rows, probabilities, encoded.valid, strict=True):
                found[row] = (own * valid[:, None] if blank else own[valid]).cpu().numpy()
        return found

    def inputs(self, modality: Modality, queries: Sequence[Query]) -> tuple[Tensor, ...]:
        """What a modality's tower reads of queries that are all of it.

        Raises:
            DataError: an empty text, or a file that cannot be opened.
        """
        device = next(self.net.parameters()).device
        if modality in self.frozen:
            return (torch.from_numpy(self.frozen[modality].encode_queries(queries)).to(device),)
        if modality == "text":
            for query in queries:
                if not query.input.strip():
                    raise DataError(f"{query.id}: nothing to read; give a text, a picture or a sound")
            return (grams_of([query.input for query in queries]).to(device),)
        if modality == "image":
            media = [next(m for m in q.media if m.kind == "image") for q in queries]
            pixels = [pixels_of(open_picture(m, q.id), self.size) for m, q in zip(media, queries, strict=True)]
            return (torch.from_numpy(np.stack(pixels)).to(device).float() / 255,)
        media = [next(m for m in q.media if m.kind == "audio") for q in queries]
        frames, lengths = padded([frames_of(open_sound(m, q.id)) for m, q in zip(media, queries, strict=True)])
        return frames.to(device), lengths.to(device)

    def _encoded(self, queries: Sequence[Query]) -> list[tuple[list[int], Encoded]]:
        """Queries by modality, some at a time: their rows and what the tower makes of them."""
        known = [modality_of(query) for query in queries]
        for query, modality in zip(queries, known, strict=True):
            if modality not in self.net.towers:
                raise DataError(f"{query.id}: the encoder reads {', '.join(self.modalities)}, and this is {modality}")
        found = []
        for modality in self.modalities:
            own = [row for row, name in enumerate(known) if name == modality]
            for start in range(0, len(own), AT_ONCE):
                rows = own[start : start + AT_ONCE]
                inputs = self.inputs(modality, [queries[row] for row in rows])
                found.append((rows, self.net.encode(modality, inputs)))
        return found

    def _vectors(self, encoded: Encoded) -> FloatArray:
        quantised = None
        if self.net.codes and self.net.quantizer.begun:
            (quantised,) = self.net.quantizer.together([(encoded.features, encoded.valid)])
        vectors: FloatArray = self.net.vectors(encoded, quantised).cpu().numpy()
        return vectors


def padded(frames: Sequence[NDArray[np.floating[Any]]]) -> tuple[Tensor, Tensor]:
    """Sounds of several lengths as one batch: (n, t, mels) with zeros behind, and lengths (n,)."""
    lengths = torch.tensor([len(f) for f in frames], dtype=torch.long)
    longest, mels = (int(lengths.max()), frames[0].shape[1]) if len(frames) else (1, MELS)
    found = torch.zeros(len(frames), longest, mels)
    for i, one in enumerate(frames):
        found[i, : len(one)] = torch.from_numpy(one.astype(np.float32))
    return found, lengths


def build_net(
    modalities: Sequence[Modality],
    backbone: str,
    size: int,
    *,
    dim: int,
    out: int,
    codes: int,
    width: int,
    slots: int,
    frozen: Mapping[Modality, int],
    patience: int = 300,
) -> CrossModalNet:
    """Untrained networks; `frozen` gives the width of vectors of modalities that another encoder reads.

    Raises:
        UnknownNameError: no such backbone.
    """
    towers: dict[Modality, nn.Module] = {}
    for modality in MODALITIES:
        if modality not in modalities:
            continue
        if modality in frozen:
            towers[modality] = FrozenTower(frozen[modality], dim, slots)
        elif modality == "image":
            towers[modality] = ImageTower(build_backbone(backbone, size), dim)
        elif modality == "text":
            towers[modality] = TextTower(width, dim)
        else:
            towers[modality] = AudioTower(MELS, width, dim)
    return CrossModalNet(towers, dim, out, codes, patience)


def open_frozen(addresses: Mapping[Modality, str], device: str = "auto") -> dict[Modality, Encoder]:
    """The encoders that do not change, by address (`embed.registry`)."""
    from embed.registry import open_encoder

    return {modality: open_encoder(address, device) for modality, address in addresses.items()}


def save_cross_modal(net: CrossModalNet, folder: Path, shape: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write an encoder folder; `shape` is what `build_net` was given and the frozen encoders' addresses and
    fingerprints (`frozen_encoders`), `facts` say how it was made.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    known = {"kind": KIND, "shape": dict(shape), **facts}
    save_folder(net, folder, known, "encoder.json", _fingerprint)


def load_cross_modal(folder: Path, device: str = "auto") -> CrossModalEncoder:
    """Open what `save_cross_modal` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
        FingerprintMismatch: an encoder that it builds on is another one by now.
    """
    saved = read_json(folder / "encoder.json")
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no cross-modal encoder")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the encoder's files differ from what was saved; restore or train it again")
    try:
        shape = dict(saved["shape"])
        known = shape.pop("frozen_encoders")
        net = build_net(**shape)
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError, LookupError) as error:
        raise ArtifactError(f"{folder}: not the weights of such an encoder ({str(error).splitlines()[0]})") from None
    frozen = open_frozen({modality: one["address"] for modality, one in known.items()}, device)
    for modality, encoder in frozen.items():
        if encoder.fingerprint != known[modality]["fingerprint"]:
            raise FingerprintMismatch(
                f"{folder}: {known[modality]['address']} is another model than the one this was trained on"
            )
    return CrossModalEncoder(net.to(choose_device(device)), int(shape["size"]), frozen, str(saved["fingerprint"]))


def _fingerprint(folder: Path, saved: Mapping[str, Any]) -> str:
    shape = shape_of(saved)
    others = "".join(f"-{one.get('fingerprint')}" for _, one in sorted(shape.get("frozen_encoders", {}).items()))
    return f"{fingerprint_files(folder, ('.safetensors',))}-{shape.get('backbone')}-{shape.get('size')}{others}"
