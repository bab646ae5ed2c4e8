"""Two indexes from one network: the same thing in any style, and the same style; and pictures in another style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from embed.folders import WEIGHTS, save_folder, shape_of
from embed.image import PictureEncoder
from embed.translation_nets import AXES, TranslationNet
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.errors import ArtifactError, UnknownNameError
from udr.types import FloatArray

__all__ = ["KIND", "Translator", "TranslatorEncoder", "calibrate", "load_translator", "save_translator"]

KIND = "translation"  # of an encoder folder
AT_ONCE = 64  # pictures in one forward pass
FITTED = 5000  # pictures of a style that calibration looks at
LEAST = 1e-3  # deviation along an axis of contents, a share of the greatest
RIDGE = 1e-3  # share of its variance that is added to every statistic's
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

    def contents(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """What pictures show whatever their style, of length 1, float32 (n, d)."""
        return self._vectors(pixels, _content_vectors, AXES)

    def attributes(self, pixels: NDArray[np.uint8]) -> FloatArray:
        """The style that pictures look to be of and, as much again, their attributes; of length 1, float32 (n, d)."""
        return self._vectors(pixels, _attribute_vectors, self.net.attribute_mean.numel() + 1)

    @torch.inference_mode()
    def attributes_in(self, pixels: NDArray[np.uint8], style: int) -> FloatArray:
        """The attribute of each picture as the encoder of a style reads it, float32 (n, a): what a generator takes."""
        found = [self.net.attribute_of(part, style)[0].float().cpu().numpy() for part in _parts(self.net, pixels)]
        return np.concatenate(found) if found else np.empty((0, self.net.attributes), np.float32)

    @torch.inference_mode()
    def translate(self, pixels: NDArray[np.uint8], style: int, attributes: FloatArray) -> NDArray[np.uint8]:
        """Pictures of the other style in this one, with attributes (n, a); uint8, as they were given."""
        made = [np.empty((0, 3, self.size, self.size), np.uint8)]
        for start, part in zip(range(0, len(pixels), AT_ONCE), _parts(self.net, pixels), strict=True):
            own = torch.from_numpy(np.asarray(attributes[start : start + AT_ONCE], np.float32)).to(part.device)
            pictures = self.net.pictures(self.net.contents(part, 1 - style), own, style)
            made.append(((pictures.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy())
        return np.concatenate(made)

    @torch.inference_mode()
    def _vectors(self, pixels: NDArray[np.uint8], read: Any, dim: int) -> FloatArray:
        found = [F.normalize(read(self.net, part), dim=1).cpu().numpy() for part in _parts(self.net, pixels)]
        return np.concatenate(found) if found else np.empty((0, dim), np.float32)


def _parts(net: TranslationNet, pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    """Pictures from -1 to 1, as many as go through the networks at once."""
    for start in range(0, len(pixels), AT_ONCE):
        yield torch.from_numpy(np.array(pixels[start : start + AT_ONCE])).to(net.device).float() / 127.5 - 1


def _content_vectors(net: TranslationNet, pictures: Tensor) -> Tensor:
    return (net.pooled(pictures) - net.content_mean) @ net.content_axes


def _attribute_vectors(net: TranslationNet, pictures: Tensor) -> Tensor:
    read = F.normalize((net.attributes_of(pictures) - net.attribute_mean) / net.attribute_spread, dim=1)
    side = (net.statistics(pictures) @ net.style_weight + net.style_bias).clamp(-1, 1)
    return torch.cat([read, side[:, None]], 1)


@torch.no_grad()
def calibrate(net: TranslationNet, pixels: Sequence[NDArray[np.uint8]]) -> None:
    """Set what indexes need, from pictures (n, 3, s, s) of each style, of which the first `FITTED` count.

    Contents: the line between the two styles' means is taken away, for a linear classifier cannot tell two classes of
    the same mean (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819), so
    that nothing linear is left of the style where it was learnt. What is left is seen along its principal axes, each
    divided by the root of its deviation, so that a few strong ones do not decide alone.
    Attributes: means and deviations, and between the styles Fisher's line, over the layers' statistics.
    """
    was_training = net.training
    net.eval()

    def read(what: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [torch.cat([what(part).float() for part in _parts(net, own[:FITTED])]) for own in pixels]

    _set_contents(net, read(net.pooled))
    attributes = torch.cat(read(net.attributes_of))
    net.attribute_mean.copy_(attributes.mean(0))
    net.attribute_spread.copy_(attributes.std(0) + 1e-6)
    _set_styles(net, read(net.statistics))
    net.train(was_training)


def _set_contents(net: TranslationNet, contents: Sequence[Tensor]) -> None:
    means = [x.mean(0) for x in contents]
    between = F.normalize(means[1] - means[0], dim=0)
    middle = (means[0] + means[1]) / 2
    left = torch.cat(list(contents)) - middle
    left = left - (left @ between)[:, None] * between
    with torch.random.fork_rng(devices=[left.device] if left.is_cuda else []):
        torch.manual_seed(0)
        _, scales, axes = torch.svd_lowrank(left, q=min(AXES, *left.shape), niter=4)
    net.content_mean.copy_(middle)
    net.content_axes.zero_()
    kept = scales > LEAST * scales[0]  # behind the last real axis there is nothing but rounding
    net.content_axes[:, : int(kept.sum())] = axes[:, kept] / (scales[kept] / scales[0]).sqrt()


def _set_styles(net: TranslationNet, statistics: Sequence[Tensor]) -> None:
    means = [x.mean(0) for x in statistics]
    within = torch.stack([(x - m).T @ (x - m) / len(x) for x, m in zip(statistics, means, strict=True)]).mean(0)
    within += torch.diag(RIDGE * within.diagonal() + 1e-8)
    weight = torch.linalg.solve(within, means[1] - means[0])
    apart = ((means[1] - means[0]) @ weight).clamp(min=1e-12)
    net.style_weight.copy_(2 * weight / apart)
    net.style_bias.copy_(-(means[0] + means[1]) @ weight / apart)


class TranslatorEncoder(PictureEncoder):
    """Vectors of length 1 of pictures, by their content or by their attribute; a text beside them is not read."""

    def __init__(self, translator: Translator, reads: Reads) -> None:
        self.translator, self.reads = translator, reads
        self.fingerprint = f"{translator.fingerprint}-{reads}"

    @property
    def dim(self) -> int:
        return AXES if self.reads == "content" else self.translator.net.attribute_mean.numel() + 1

    @property
    def size(self) -> int:
        return self.translator.size

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
    known = {"kind": KIND, "styles": list(styles), "shape": dict(shape), **facts}
    save_folder(net, folder, known, "encoder.json", _fingerprint)


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
    shape = "-".join(str(value) for _, value in sorted(shape_of(saved).items()))
    return f"{fingerprint_files(folder, ('.safetensors',))}-{shape}-{'-'.join(saved.get('styles') or ())}"
