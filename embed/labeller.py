"""The labeller that is learnt here: labels with confidences of pictures or of texts, and its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embed.backbones import Backbone
from embed.folders import WEIGHTS, save_folder
from embed.label_search import Path, beam_search
from embed.labelling import LabelNet, Reads, Seen, build_label_net
from embed.media import media_of, open_picture, pixels_of
from embed.registry import open_encoder
from embed.towers import grams_of
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.encoder import BiEncoder, build_encoder
from udr.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from udr.selection import TAG
from udr.types import FloatArray, Query

__all__ = [
    "Label",
    "Labeller",
    "as_metadata",
    "backbone_of",
    "load_labeller",
    "open_text_encoder",
    "save_labeller",
    "text_inputs",
]

KIND, FILE = "labeller", "labeller.json"
AT_ONCE = 64  # things in one forward pass
SHAPE = ("backbone", "size", "width", "token_dim", "hidden", "attention", "embedding")  # what a net is made by
READ_AT_ONCE = 1024  # texts that an encoder is given at once
MOST_BYTES = 8 * 10**9  # of an encoder's features, which are held together


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a thing.

    Args:
        name: the label.
        confidence: from 0 to 1: √(the share of the search's path probability that holds the label · its preliminary
            probability); of a labeller without an order the latter alone.
        preliminary: its probability by itself, before anything was said.
        attention: (h, w) over the cells of a picture, or (words,); sums to 1. None: of a labeller without attention.
    """

    name: str
    confidence: float
    preliminary: float
    attention: FloatArray | None


def as_metadata(labels: Sequence[Label]) -> dict[str, str]:
    """Labels as metadata of a demonstration: `label:NAME` is the confidence, for filters such as
    `{"label:cat": {"gte": 0.5}}` or `{"label:cat": {"exists": true}}`."""
    return {f"{TAG}{label.name}": f"{label.confidence:.3f}" for label in labels}


class Labeller:
    """Labels of pictures or texts, by beam search or, where the net was learnt without an order, each by itself.

    Args:
        net: learnt.
        reads: image or text.
        names: of the labels.
        size: pixels of a side of pictures.
        most: labels of a thing at most.
        ordered: labels are said one by one; else those of probability 0.5 are taken.
        encoder: reads texts for the net; None: it reads them itself.
        fingerprint: of the weights.
    """

    def __init__(
        self,
        net: LabelNet,
        reads: Reads,
        names: Sequence[str],
        *,
        size: int = 0,
        most: int = 0,
        ordered: bool = True,
        encoder: BiEncoder | None = None,
        fingerprint: str = "unsaved",
    ) -> None:
        self.net, self.reads, self.names = net.eval(), reads, tuple(names)
        self.size, self.most, self.ordered, self.fingerprint = size, most, ordered, fingerprint
        self.encoder = encoder

    def label(self, queries: Sequence[Query], beam: int = 3, threshold: float = 0.0) -> list[tuple[Label, ...]]:
        """Labels of the pictures, or of the texts, of queries; the order is that in which they were said.

        Args:
            queries: with media of kind image, or with an input.
            beam: paths that are followed at once.
            threshold: labels of a smaller confidence are left out.

        Raises:
            DataError: a query without a picture, or one that cannot be opened.
        """
        found: list[tuple[Label, ...]] = []
        for start in range(0, len(queries), AT_ONCE):
            part = queries[start : start + AT_ONCE]
            if self.reads == "text":
                found += self.label_inputs(text_inputs([q.input for q in part], self.encoder), beam, threshold)
            else:
                pixels = [pixels_of(open_picture(media_of(q, "image"), q.id), self.size) for q in part]
                found += self.label_pixels(np.stack(pixels), beam, threshold)
        return found

    def label_pixels(self, pixels: NDArray[np.uint8], beam: int = 3, threshold: float = 0.0) -> list[tuple[Label, ...]]:
        """Labels of pictures (n, 3, size, size)."""
        return self.label_inputs(torch.from_numpy(pixels), beam, threshold)

    @torch.inference_mode()
    def label_inputs(self, inputs: Tensor, beam: int = 3, threshold: float = 0.0) -> list[tuple[Label, ...]]:
        """Labels of pixels (n, 3, size, size), uint8, or of `text_inputs`."""
        found: list[tuple[Label, ...]] = []
        for seen in self._seen(inputs):
            preliminary = seen.preliminary.sigmoid().cpu().numpy()
            if self.ordered:
                searched = beam_search(self.net, seen, beam, self.most)
                parts = seen.valid.sum(1).tolist()
                found += [
                    self._of_paths(*one, threshold=threshold) for one in zip(searched, preliminary, parts, strict=True)
                ]
            else:
                found += [self._by_themselves(row, max(threshold, 0.5)) for row in preliminary]
        return found

    @torch.inference_mode()
    def preliminary(self, inputs: Tensor) -> FloatArray:
        """Probabilities of all labels by themselves, (n, c), of such inputs."""
        return np.concatenate([seen.preliminary.sigmoid().cpu().numpy() for seen in self._seen(inputs)])

    @torch.inference_mode()
    def pooled(self, inputs: Tensor) -> FloatArray:
        """Mean features of such inputs, (n, d)."""
        self.net.eval()
        return np.concatenate([self.net.pooled(part).float().cpu().numpy() for part in self._parts(inputs)])

    def _seen(self, inputs: Tensor) -> Iterator[Seen]:
        self.net.eval()
        return (self.net.see(part) for part in self._parts(inputs))

    def _parts(self, inputs: Tensor) -> Iterator[Tensor]:
        """Some at a time, as the net reads them."""
        for start in range(0, len(inputs), AT_ONCE):
            part = inputs[start : start + AT_ONCE].to(self.net.device)
            yield part.float() / 255 if part.dtype == torch.uint8 else part

    def _by_themselves(self, probabilities: FloatArray, threshold: float) -> tuple[Label, ...]:
        order = np.argsort(-probabilities, kind="stable")
        chosen = [int(i) for i in order if probabilities[i] >= threshold]
        return tuple(Label(self.names[i], float(probabilities[i]), float(probabilities[i]), None) for i in chosen)

    def _of_paths(
        self, paths: Sequence[Path], preliminary: FloatArray, parts: int, threshold: float
    ) -> tuple[Label, ...]:
        """The labels of the best path; the others say how sure they are."""
        found = []
        weights = np.exp([path.log_p - paths[0].log_p for path in paths])
        for i, attention in zip(paths[0].labels, paths[0].attention, strict=True):
            agreed = weights[[i in path.labels for path in paths]].sum() / weights.sum()
            confidence = float(np.sqrt(agreed * preliminary[i]))
            if confidence >= threshold:
                found.append(Label(self.names[i], confidence, float(preliminary[i]), self._laid_out(attention, parts)))
        return tuple(found)

    def _laid_out(self, attention: Tensor, parts: int) -> FloatArray:
        weights: FloatArray = attention.cpu().numpy()
        if self.reads == "text":
            return weights[:parts]  # the batch may hold longer texts
        side = round(len(weights) ** 0.5)
        return weights.reshape(side, side)


def text_inputs(texts: Sequence[str], encoder: BiEncoder | None = None) -> Tensor:
    """What a net reads of texts: letter groups (n, words, groups), or an encoder's features of tokens (n, t, d).

    Raises:
        DataError: features that would take more memory than `MOST_BYTES`.
    """
    if encoder is None:
        return grams_of(texts)
    found: list[FloatArray] = []
    longest = 1
    for start in range(0, len(texts), READ_AT_ONCE):
        some = texts[start : start + READ_AT_ONCE]
        part = encoder.encode_tokens([Query(str(i), text) for i, text in enumerate(some, start)])
        longest = max(longest, *map(len, part))
        if (needed := len(texts) * longest * encoder.dim * 4) > MOST_BYTES:  # told before all of them are read
            raise DataError(
                f"{len(texts)} texts of up to {longest} tokens take {needed / 1e9:.1f} GB as features of "
                f"labels.encoder, at most {MOST_BYTES / 1e9:.0f} GB are held; give fewer or shorter texts, or another "
                "encoder, or none"
            )
        found += part
    padded = torch.zeros(len(found), longest, encoder.dim)
    for i, one in enumerate(found):
        padded[i, : len(one)] = torch.from_numpy(one)
    return padded


def open_text_encoder(address: str, device: str = "auto") -> BiEncoder:
    """An encoder of texts whose tokens can be read: artifact:FOLDER of ours, or a folder or hub name of BERT's kind.

    Raises:
        ConfigError: it reads no texts, or cannot be loaded.
    """
    encoder = (
        open_encoder(address, device) if address.startswith("artifact:") else build_encoder(address, device=device)
    )
    if not isinstance(encoder, BiEncoder):
        raise ConfigError(f"{address}: no encoder of texts")
    return encoder


def save_labeller(
    labeller: Labeller, folder: FilePath, shape: Mapping[str, Any], facts: Mapping[str, Any], address: str = ""
) -> None:
    """Write a labeller's folder.

    Args:
        labeller: learnt.
        folder: where it is written.
        shape: what `build_label_net` made its net by.
        facts: how it was learnt.
        address: of the encoder that reads texts for it, if one does.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    known = {
        "kind": KIND,
        "reads": labeller.reads,
        "labels": list(labeller.names),
        "most": labeller.most,
        "ordered": labeller.ordered,
        "shape": {name: shape[name] for name in SHAPE},
        "encoder": {"address": address, "fingerprint": labeller.encoder.fingerprint} if labeller.encoder else None,
        **facts,
    }
    save_folder(labeller.net, folder, known, FILE, _fingerprint)


def load_labeller(folder: FilePath, device: str = "auto") -> Labeller:
    """Open what `save_labeller` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
        FingerprintMismatch: the encoder that reads texts for it is another one by now.
    """
    saved = read_json(folder / FILE)
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no labeller")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the labeller's files differ from what was saved; restore or train it again")
    try:
        net = build_label_net(saved["reads"], len(saved["labels"]), **saved["shape"])
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ArtifactError(f"{folder}: not the weights of this net ({str(error).splitlines()[0]})") from None
    stated = saved.get("encoder")
    encoder = open_text_encoder(stated["address"], device) if stated else None
    if stated and encoder and encoder.fingerprint != stated["fingerprint"]:
        raise FingerprintMismatch(f"{folder}: learnt with another encoder than {stated['address']} is now")
    return Labeller(
        net.to(choose_device(device)),
        saved["reads"],
        saved["labels"],
        size=int(saved["shape"]["size"]),
        most=int(saved["most"]),
        ordered=bool(saved["ordered"]),
        encoder=encoder,
        fingerprint=str(saved["fingerprint"]),
    )


def _fingerprint(folder: FilePath, saved: Mapping[str, Any]) -> str:
    said = json.dumps(
        [saved.get(name) for name in ("reads", "labels", "most", "ordered", "shape", "encoder")], sort_keys=True
    )
    short = hashlib.blake2b(said.encode(), digest_size=4).hexdigest()
    return f"{fingerprint_files(folder, ('.safetensors',))}-{short}"


def backbone_of(labeller: Labeller) -> Backbone | None:
    """The network of pictures inside, for use as an image encoder; None where texts are read."""
    return labeller.net.features if isinstance(labeller.net.features, Backbone) else None
