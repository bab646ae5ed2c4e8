"""What frozen features are worth: neighbours, a linear classifier, and whether they have collapsed.

The loop's online numbers differ from those of `udr probe` for these reasons: its bank is at most 5,000 pictures, and
neighbours get better with more of them; it asks at most 1,000, one of which is a tenth of a point; without a held-out
split it asks about pictures that are learnt from; and it looks at weights in the midst of training. Numbers to quote
are those of `udr probe`: whole splits, the finished encoder.
"""

from __future__ import annotations

import copy
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from udr.types import FloatArray, Progress

__all__ = ["FeatureNetwork", "features", "knn_accuracy", "linear_accuracy", "spread"]

AT_ONCE = 512  # pictures in one forward pass, fewer of large ones and of clips
VALUES = 1 << 25  # of pixels in one forward pass
CHUNK = 4096  # rows at a time
NUMBERS = 1 << 28  # of a linear probe's bank at most
STEPS = 200  # of L-BFGS at most
Rows = NDArray[np.float32] | NDArray[np.uint8]  # features (n, d), or pictures as they are (n, 3, s, s)


class FeatureNetwork(Protocol):
    """A backbone of pictures or of clips."""

    dim: int
    training: bool

    @property
    def device(self) -> torch.device: ...
    def pooled(self, pixels: torch.Tensor) -> torch.Tensor: ...  # (n, dim)
    def train(self, mode: bool = True) -> object: ...
    def eval(self) -> object: ...


def features(backbone: FeatureNetwork, pixels: NDArray[np.uint8]) -> FloatArray:
    """Pooled features without augmentation, float32 (n, d); training mode is kept.

    Shape: pictures (n, 3, size, size), or clips (n, t, 3, size, size) for a backbone of clips.
    """
    device, was_training = backbone.device, backbone.training
    backbone.eval()
    found = np.empty((len(pixels), backbone.dim), np.float32)
    at_once = max(1, min(AT_ONCE, VALUES // int(np.prod(pixels.shape[1:]))))
    with torch.inference_mode():
        for start in range(0, len(pixels), at_once):
            part = torch.from_numpy(np.array(pixels[start : start + at_once])).to(device).float() / 255
            found[start : start + len(part)] = backbone.pooled(part).float().cpu().numpy()
    backbone.train(was_training)
    return found


def knn_accuracy(
    bank: Rows,
    classes: NDArray[np.int64],
    queries: Rows,
    answers: NDArray[np.int64],
    k: int = 20,
    temperature: float = 0.1,
    progress: Progress | None = None,
) -> float:
    """Share of queries whose class the `k` nearest of the bank vote for, each with weight exp(cosine / temperature).

    Both are read some thousand rows at a time, so memory does not grow with them. Source: Wu et al. 2018, "Unsupervised
    Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978, section 3.4.

    Shape: bank (m, …), classes (m,), queries (n, …), answers (n,).
    """
    k, right = min(k, len(bank)), 0
    count = int(max(classes.max(), answers.max())) + 1
    for start in range(0, len(queries), CHUNK):
        asked = _unit(_flat(queries[start : start + CHUNK]))
        best, voters = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)
        for begin in range(0, len(bank), CHUNK):
            sims = asked @ _unit(_flat(bank[begin : begin + CHUNK])).T
            best = np.concatenate([best, sims], 1)
            voters = np.concatenate([voters, np.broadcast_to(classes[begin : begin + CHUNK], sims.shape)], 1)
            if best.shape[1] > k:
                near = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, voters = np.take_along_axis(best, near, 1), np.take_along_axis(voters, near, 1)
        votes = np.zeros((len(asked), count))
        np.add.at(votes, (np.arange(len(asked))[:, None], voters), np.exp(best / temperature))
        right += int((votes.argmax(1) == answers[start : start + CHUNK]).sum())
        if progress:
            progress(min(len(queries), start + CHUNK), len(queries))
    return right / len(queries)


def linear_accuracy(
    bank: Rows,
    classes: NDArray[np.int64],
    queries: Rows,
    answers: NDArray[np.int64],
    penalties: tuple[float, ...] = (1e-5, 1e-3),
    together: int = 1,
    progress: Progress | None = None,
) -> float:
    """Share of queries that a logistic regression on standardised features classifies right.

    The penalty (of the squared weights) is chosen on a tenth of the bank that is held back, of which `together` rows in
    a row stay on one side. Bounded in memory, by a gigabyte, and in time, by the steps of L-BFGS: where the bank has
    more numbers than `NUMBERS`, rows evenly spread over it are learnt from (60,000 pictures of 32 pixels fit whole).

    Shape: as `knn_accuracy`.
    """
    width = int(np.prod(bank.shape[1:]))
    if len(bank) * width > NUMBERS:
        kept = np.linspace(0, len(bank) - 1, NUMBERS // width).round().astype(np.int64)
        bank, classes = bank[kept], classes[kept]
    x, mean, deviation = _standardised(bank)
    y = torch.from_numpy(classes)
    count = int(max(classes.max(), answers.max())) + 1
    held = (torch.arange(len(x)) // together) % 10 == 9
    fits = len(penalties) + 1
    best, model = -1.0, nn.Linear(width, count)
    for i, penalty in enumerate(penalties):
        tried = _fitted(x, y, ~held, _zeros(width, count), penalty)
        score = _share_right(tried, x[held], y[held]) if bool(held.any()) else 0.0
        if score > best:
            best, model, chosen = score, tried, penalty
        if progress:
            progress(i + 1, fits)
    model = _fitted(x, y, torch.ones_like(held), model, chosen)  # begins where the tried one ended
    right = 0
    for start in range(0, len(queries), CHUNK):
        part = torch.from_numpy((_flat(queries[start : start + CHUNK]) - mean) / deviation)
        right += int((model(part).argmax(1).numpy() == answers[start : start + CHUNK]).sum())
    if progress:
        progress(fits, fits)
    return right / len(queries)


def _standardised(rows: Rows) -> tuple[torch.Tensor, FloatArray, FloatArray]:
    """One matrix, its means and its deviations, read some thousand rows at a time."""
    parts = range(0, len(rows), CHUNK)
    mean = sum(_flat(rows[s : s + CHUNK]).sum(0, dtype=np.float64) for s in parts) / len(rows)
    squares = sum(np.square(_flat(rows[s : s + CHUNK]) - mean).sum(0) for s in parts) / len(rows)
    found = np.empty((len(rows), len(mean)), np.float32)
    center, deviation = mean.astype(np.float32), (np.sqrt(squares) + 1e-6).astype(np.float32)
    for s in parts:
        found[s : s + CHUNK] = (_flat(rows[s : s + CHUNK]) - center) / deviation
    return torch.from_numpy(found), center, deviation


def _zeros(width: int, count: int) -> nn.Linear:
    model = nn.Linear(width, count)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def _fitted(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, begin: nn.Linear, penalty: float) -> nn.Linear:
    """Minimise over the marked rows, in parts, so that nothing is copied."""
    model = copy.deepcopy(begin).requires_grad_()
    share = rows.float() / rows.sum()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=STEPS, max_eval=STEPS * 5 // 4, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = penalty * model.weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        total = total.detach()
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            losses = nn.functional.cross_entropy(model(x[part]), y[part], reduction="none")
            loss = (losses * share[part]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return model.requires_grad_(False)


def _share_right(model: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def spread(vectors: FloatArray) -> float:
    """How far features fill their space: 1 when spread evenly over the sphere, 0 when all are one.

    √d times the mean standard deviation of the coordinates of normalised vectors (n, d).
    """
    return float(_unit(vectors).std(0).mean() * vectors.shape[1] ** 0.5)


def _flat(rows: Rows) -> FloatArray:
    flat: FloatArray = np.asarray(rows, np.float32).reshape(len(rows), -1)
    return flat


def _unit(vectors: FloatArray) -> FloatArray:
    normed: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return normed
