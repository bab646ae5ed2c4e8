"""Two indexes from one network: the same thing in any style, and the same style; and pictures in another style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from embed.image import encode_pictures
from embed.media import pixels_of
from embed.translation_nets import STYLES, TranslationNet
from udr.artifacts import fingerprint_files, read_json, replacing, write_json
from udr.devices import choose_device
from udr.errors import ArtifactError, UnknownNameError
from udr.types import Demonstration, FloatArray, Query

__all__ = ["KIND", "Translator", "TranslatorEncoder", "calibrate", "load_translator", "save_translator"]

KIND = "translation"  # of an encoder folder
WEIGHTS = "model.safetensors"
AT_ONCE = 64  # pictures in one forward pass
RIDGE = 1e-3  # share of the mean variance that is added to every feature's
Reads = Literal["content", "attribute"]


class Translator:
    """A trained `TranslationNet` with the names of its styles; pictures are uint8 (n, 3, size, size)."""

    def __init__(self, net: TranslationNet, styles: Sequence[str], fingerprint: str) -> None:
        self.net = net.eval()
        self.styles = tuple(styles)
        self.fingerprint = fingerprint

    @property
    def size(self) -> int:
        return self.net.size

    def number_of(self, style: str) -> int:
        """0 or 1.

        Raises:
            UnknownNameError: no such style.
        """
        if style not in self.styles:
            raise UnknownNameError("style", style, self.styles)
        return self.styles.index(style)

    def styles_of(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Of which style each picture looks to be, (n,)."""
        found = [_styles_of(self.net, part).cpu().numpy() for part in self._parts(pixels)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def contents(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """What pictures show whatever their style, of length 1, float32 (n, d): what is not its style's mean."""
        return self._vectors(pixels, _content_vectors, self.net.content_mean.shape[1])

    def attributes(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """What both encoders read of pictures' styles, standardised and of length 1, float32 (n, d)."""
        return self._vectors(pixels, _attribute_vectors, self.net.attribute_mean.numel())

    def attributes_in(self, pixels: NDArray[np.uint8], style: int) -> FloatArray:
        """The attribute of each picture as the encoder of a style reads it, float32 (n, a): what a generator takes."""
        found = [self.net.attribute_of(part, style)[0].float().cpu().numpy() for part in self._parts(pixels)]
        return np.concatenate(found) if found else np.empty((0, self.net.attributes), np.float32)

    def translate(self, pixels: NDArray[np.uint8], style: int, attributes: FloatArray) -> NDArray[np.uint8]:
        """The same contents in a style with attributes (n, a), pixels as they were given."""
        made = [np.empty((0, 3, self.size, self.size), np.uint8)]
        for start, part in zip(range(0, len(pixels), AT_ONCE), self._parts(pixels), strict=True):
            own = torch.from_numpy(np.asarray(attributes[start : start + AT_ONCE], np.float32)).to(part.device)
            pictures = self.net.pictures(_by_style(self.net, part, self.net.contents), own, style)
            made.append(((pictures.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy())
        return np.concatenate(made)

    def _vectors(self, pixels: NDArray[np.uint8], read: Any, dim: int) -> FloatArray:
        found = [F.normalize(read(self.net, part).float(), dim=1).cpu().numpy() for part in self._parts(pixels)]
        return np.concatenate(found) if found else np.empty((0, dim), np.float32)

    def _parts(self, pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
        with torch.inference_mode():
            for start in range(0, len(pixels), AT_ONCE):
                part = torch.from_numpy(np.array(pixels[start : start + AT_ONCE])).to(self.net.device)
                yield part.float() / 127.5 - 1


def _styles_of(net: TranslationNet, pictures: Tensor) -> Tensor:
    told: Tensor = net.features(pictures) @ net.style_weight + net.style_bias
    return (told > 0).long()


def _by_style(net: TranslationNet, pictures: Tensor, read: Callable[[Tensor, int], Tensor]) -> Tensor:
    """What `read` gives of each picture by the encoder of the style that it looks to be of."""
    styles = _styles_of(net, pictures)
    rows = [torch.nonzero(styles == style)[:, 0] for style in range(STYLES)]
    found = [read(pictures[own], style).float() for style, own in enumerate(rows) if len(own)]
    return torch.cat(found)[torch.cat(rows).argsort()]


def _content_vectors(net: TranslationNet, pictures: Tensor) -> Tensor:
    return _by_style(net, pictures, lambda own, style: net.pooled(own, style) - net.content_mean[style])


def _attribute_vectors(net: TranslationNet, pictures: Tensor) -> Tensor:
    read = torch.cat([net.attribute_of(pictures, style)[0] for style in range(STYLES)], 1)
    return (read - net.attribute_mean) / net.attribute_spread


@torch.no_grad()
def calibrate(net: TranslationNet, pixels: Sequence[NDArray[np.uint8]]) -> None:
    """Set what indexes need, from pictures (n, 3, s, s) of each style: means, and a line between the styles.

    Each style's mean is taken off contents: a linear classifier cannot tell two classes of the same mean (Belrose et
    al. 2023, "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819), so nothing linear is left of
    the style in the pictures that it is taken from. The line is Fisher's discriminant of what attribute encoders see.
    """
    was_training = net.training
    net.eval()
    contents, attributes, features = [], [], []
    for style, own in enumerate(pixels):
        parts = [own[start : start + AT_ONCE] for start in range(0, len(own), AT_ONCE)]
        pictures = [torch.from_numpy(np.array(part)).to(net.device).float() / 127.5 - 1 for part in parts]
        total = torch.stack([net.pooled(part, style).sum(0) for part in pictures]).sum(0)
        contents.append(total / len(own))
        attributes += [torch.cat([net.attribute_of(p, s)[0] for s in range(STYLES)], 1).float() for p in pictures]
        features.append(torch.cat([net.features(part).float() for part in pictures]))
    read = torch.cat(attributes)
    net.content_mean.copy_(torch.stack(contents))
    net.attribute_mean.copy_(read.mean(0))
    net.attribute_spread.copy_(read.std(0) + 1e-6)
    means = [x.mean(0) for x in features]
    within = torch.stack([(x - m).T @ (x - m) / len(x) for x, m in zip(features, means, strict=True)]).mean(0)
    within += RIDGE * within.diagonal().mean() * torch.eye(len(within), device=within.device)
    net.style_weight.copy_(torch.linalg.solve(within, means[1] - means[0]))
    net.style_bias.fill_(float(-(means[0] + means[1]) @ net.style_weight / 2))
    net.train(was_training)


class TranslatorEncoder:
    """Vectors of length 1 of pictures, by their content or by their attribute; a text beside them is not read."""

    def __init__(self, translator: Translator, reads: Reads) -> None:
        self.translator, self.reads = translator, reads
        self.fingerprint = f"{translator.fingerprint}-{reads}"

    @property
    def dim(self) -> int:
        net = self.translator.net
        return net.content_mean.shape[1] if self.reads == "content" else net.attribute_mean.numel()

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries' pictures, float32 (n, d).

        Raises:
            DataError: a query without a picture, or one that cannot be opened.
        """
        size = self.translator.size
        return encode_pictures(
            queries, self.dim, lambda p: self.encode_pixels(np.stack([pixels_of(x, size) for x in p]))
        )

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations' pictures, float32 (m, d)."""
        return self.encode_queries([d.query for d in demonstrations])

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Nothing of a picture is left out."""
        return [0] * len(texts)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """Vectors of pictures (n, 3, size, size), float32 (n, d)."""
        if self.reads == "content":
            return self.translator.contents(pixels)
        return self.translator.attributes(pixels)


def save_translator(
    net: TranslationNet, styles: Sequence[str], shape: Mapping[str, int], folder: Path, facts: Mapping[str, Any]
) -> None:
    """Write an encoder folder; `shape` is what `TranslationNet` was given, `facts` say how it was made.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    known = {"kind": KIND, "styles": list(styles), "shape": dict(shape), **facts}
    write_json(folder / "encoder.json", {**known, "fingerprint": _fingerprint(folder, known)})


def load_translator(folder: Path, device: str = "auto") -> Translator:
    """Open what `save_translator` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    path = folder / "encoder.json"
    saved = read_json(path) if path.is_file() else {}
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no translator; udr pretrain with method=drit makes one (OUT/encoder)")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the translator's files differ from what was saved; restore or train it again")
    try:
        net = TranslationNet(**saved["shape"])
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError, LookupError) as error:
        raise ArtifactError(f"{folder}: not the weights of such a translator ({str(error).splitlines()[0]})") from None
    return Translator(net.to(choose_device(device)), saved["styles"], str(saved["fingerprint"]))


def _fingerprint(folder: Path, saved: Mapping[str, Any]) -> str:
    shape = "-".join(str(value) for _, value in sorted(dict(saved.get("shape") or {}).items()))
    return f"{fingerprint_files(folder, ('.safetensors',))}-{shape}-{'-'.join(saved.get('styles') or ())}"
