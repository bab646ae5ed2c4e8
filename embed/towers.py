"""What turns pictures, words and sounds into features of their parts: cells, words, frames, all of one width."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.backbones import Backbone
from udr.errors import ConfigError

__all__ = ["AudioTower", "FrozenTower", "ImageTower", "TextTower", "grams_of", "words_of"]

BUCKETS = 1 << 13  # of hashed letter groups
GROUPS = (3, 5)  # letters of a group, least and most
MOST_GROUPS = 40  # of a word
MOST_WORDS = 24  # of a caption; what follows is not read
BLANK = 0.04  # of 1, that pixels of blank ground differ by at most

Parts = tuple[Tensor, Tensor]  # features (n, l, d), and the places (n, l) that hold one


class ImageTower(nn.Module):
    """Pixels (n, 3, s, s) from 0 to 1 -> a feature a cell, row by row; larger pictures give more cells.

    A cell of blank ground holds nothing, like the silence behind a sound, unless the whole picture is blank.
    """

    def __init__(self, backbone: Backbone, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.last = nn.Conv2d(backbone.dim, dim, 1)

    def forward(self, pixels: Tensor) -> Parts:
        cells = self.last(self.backbone(pixels))
        return cells.flatten(2).transpose(1, 2), _drawn_on(pixels, cells.shape[2:]).flatten(1)


def _drawn_on(pixels: Tensor, grid: torch.Size) -> Tensor:
    """Which cells of a grid hold more than one colour, (n, h, w); all where none does."""
    highest = F.adaptive_max_pool2d(pixels.float(), list(grid))
    lowest = -F.adaptive_max_pool2d(-pixels.float(), list(grid))
    drawn = (highest - lowest).amax(1) > BLANK
    return drawn | ~drawn.any(2, keepdim=True).any(1, keepdim=True)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, at most `MOST_WORDS`; signs alone are one word."""
    found = re.findall(r"\w+", text.lower()) or [text.strip().lower()]
    return found[:MOST_WORDS]


def _groups(word: str) -> list[int]:
    """A word and its groups of letters as numbers from 1: the same in every process and for ever."""
    framed = f"<{word}>"
    parts = [framed] + [framed[i : i + n] for n in range(GROUPS[0], GROUPS[1] + 1) for i in range(len(framed) - n + 1)]
    return [1 + zlib.crc32(p.encode("utf-8", "surrogatepass")) % BUCKETS for p in parts[:MOST_GROUPS]]


def grams_of(texts: Sequence[str]) -> Tensor:
    """Texts as letter groups of words, (n, words, MOST_GROUPS), long; 0 where there is none.

    Hashed letter groups need no vocabulary and read any language (Bojanowski et al. 2017, arXiv 1607.04606).
    """
    split = [[_groups(word) for word in words_of(text)] for text in texts]
    found = torch.zeros(len(texts), max((len(s) for s in split), default=1), MOST_GROUPS, dtype=torch.long)
    for i, words in enumerate(split):
        for j, groups in enumerate(words):
            found[i, j, : len(groups)] = torch.tensor(groups)
    return found


class TextTower(nn.Module):
    """Letter groups (n, w, g) -> a feature a word, which knows its neighbours."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        start = 0.05 * torch.randn(BUCKETS + 1, width)  # small, so that training soon outweighs the draw
        start[0] = 0
        self.groups = nn.Embedding(BUCKETS + 1, width, padding_idx=0, _weight=start)
        self.norm = nn.LayerNorm(width)
        self.beside = nn.Conv1d(width, width, 3, padding=1)
        self.last = nn.Linear(width, dim)

    def forward(self, grams: Tensor) -> Parts:
        there = grams > 0
        valid = there.any(2)
        words = self.groups(grams).sum(2) / there.sum(2, keepdim=True).clamp_min(1).sqrt()
        words = self.norm(words) * valid[..., None]
        words = words + F.gelu(self.beside(words.transpose(1, 2)).transpose(1, 2))
        return self.last(words), valid


class AudioTower(nn.Module):
    """Log-mel frames (n, t, mels) and how many of each are sound (n,) -> a feature each 80 ms."""

    def __init__(self, mels: int, width: int, dim: int) -> None:
        super().__init__()
        widths, self.strides = (mels, *[width] * 4), (4, 2, 1, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, 5, stride, 2, bias=False)
            for before, after, stride in zip(widths, widths[1:], self.strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in self.strides)
        self.last = nn.Linear(width, dim)

    def forward(self, frames: Tensor, lengths: Tensor) -> Parts:
        sound = frames.transpose(1, 2)
        for layer, norm, stride in zip(self.layers, self.norms, self.strides, strict=True):
            out = F.relu(norm(layer(sound)))
            lengths = (lengths + stride - 1) // stride
            valid = torch.arange(out.shape[2], device=out.device)[None] < lengths[:, None]
            # silence behind a sound is nothing, or a sound in a batch would differ from the same one alone
            sound = (out + sound if out.shape == sound.shape else out) * valid[:, None]
        return self.last(sound.transpose(1, 2)), valid


class FrozenTower(nn.Module):
    """Vectors (n, width) of an encoder that does not change -> some features, each of which may get a code."""

    def __init__(self, width: int, dim: int, slots: int) -> None:
        super().__init__()
        if slots < 1:
            raise ConfigError("slots: expected one at least")
        self.slots = slots
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, slots * dim)
        )

    def forward(self, vectors: Tensor) -> Parts:
        features = self.layers(vectors).view(len(vectors), self.slots, -1)
        return features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
