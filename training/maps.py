"""A map of a pool: pictures that an encoder finds alike lie close together; `udr map`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.media import open_picture, pixels_of
from training.embed_pictures import encode_rows, whole_pictures
from training.pictures import Row
from training.plots import open_pyplot, save_plot
from udr.errors import DataError, MissingDependencyError
from udr.types import Encoder, FloatArray, Progress

__all__ = ["draw_map", "encode_sample", "plane"]

LEAST = 5  # pictures of a map
NEIGHBOURS = 30  # that t-SNE looks at of each picture: its perplexity
NAMED = 20  # labels with a colour and a sign of their own, the commonest
MARKS = "osD^vP*Xph"
TILES = (8, 26)  # of a side of the map at least and at most, each with the picture nearest to its middle
TILE = 48  # pixels of a picture
DOTS = (16.0, 90.0)  # of a point's size, for many and for few


def encode_sample(
    rows: Sequence[Row], encoder: Encoder, progress: Progress | None = None
) -> tuple[list[Row], FloatArray]:
    """Those of the rows that can be read, and their vectors.

    Raises:
        DataError: too few for a map.
    """
    found = [part for part in encode_rows(rows, whole_pictures(encoder), progress, len(rows)) if part.rows]
    kept = [row for part in found for row in part.rows]
    if len(kept) < LEAST:
        raise DataError(f"{len(kept)} pictures that can be read; a map has {LEAST} at least")
    return kept, np.concatenate([part.vectors for part in found])


def plane(vectors: FloatArray, seed: int = 0) -> NDArray[np.float64]:
    """Places (n, 2) at which near vectors (n, d) lie near: t-SNE (van der Maaten and Hinton 2008), begun from PCA.

    Only nearness has a meaning; sizes of groups and distances between them have none.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        manifold = import_module("sklearn.manifold")
    except ImportError:
        raise MissingDependencyError("scikit-learn", "pretrain") from None
    perplexity = min(NEIGHBOURS, (len(vectors) - 1) / 3)
    found = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return np.asarray(found, np.float64)


def draw_map(rows: Sequence[Row], places: NDArray[np.float64], path: Path, title: str) -> None:
    """Draw the map twice: as points by their labels, and as the pictures themselves.

    Raises:
        ArtifactError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    plt = open_pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 8.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    _points(plt, left, [row[2] for row in rows], places)
    _pictures(right, rows, places)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    save_plot(figure, path)


def _points(plt: Any, axes: Any, labels: Sequence[str | None], places: NDArray[np.float64]) -> None:
    """Each label by its colour and its sign; the rarer ones together."""
    counts = Counter(label for label in labels if label is not None)
    named = sorted(name for name, _ in counts.most_common(NAMED))
    groups = [(name, np.array([label == name for label in labels])) for name in named]
    size = float(np.clip(20_000 / len(labels), *DOTS))
    rest = ~np.any([held for _, held in groups], axis=0) if groups else np.ones(len(labels), bool)
    if rest.any():
        others = f"{len(counts) - len(named)} other labels" if counts else "pictures"
        axes.scatter(*places[rest].T, s=size / 2, color="0.7", label=others)
    colours = plt.get_cmap("tab10" if len(named) <= 10 else "tab20")
    for i, (name, held) in enumerate(groups):
        style = {"color": colours(i), "marker": MARKS[i % len(MARKS)]}
        axes.scatter(*places[held].T, s=size, linewidths=0, label=name, **style)
    axes.margins(0.02)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=5, markerscale=(DOTS[1] / size) ** 0.5, frameon=False
    )
    axes.set_title("labels", fontsize="medium")


def _pictures(axes: Any, rows: Sequence[Row], places: NDArray[np.float64]) -> None:
    """In each tile of the map the picture that lies nearest to its middle."""
    low, high = places.min(0), places.max(0)
    span = np.maximum(high - low, 1e-9)
    count = int(np.clip(0.6 * len(rows) ** 0.5, *TILES))
    at = (places - low) / span * count
    tiles = np.minimum(at.astype(int), count - 1)
    nearest: dict[tuple[int, int], tuple[float, int]] = {}
    for i, (x, y) in enumerate(tiles.tolist()):
        off = float(((at[i] - (x + 0.5, y + 0.5)) ** 2).sum())
        nearest[x, y] = min(nearest.get((x, y), (np.inf, -1)), (off, i))
    side = span / count
    for (x, y), (_, i) in nearest.items():
        corner = low + np.array([x, y]) * side
        pixels = pixels_of(open_picture(rows[i][1], rows[i][0]), TILE).transpose(1, 2, 0)
        axes.imshow(pixels, extent=(corner[0], corner[0] + side[0], corner[1], corner[1] + side[1]), aspect="auto")
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_title("pictures", fontsize="medium")
