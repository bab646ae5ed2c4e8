"""What an encoder is worth on labelled pictures, beside raw pixels and its own untrained network: `udr probe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from embed.backbones import Backbone, build_backbone
from embed.image import ImageEncoder
from training.dense_probe import canvases, cells_of, dense_accuracy, pixels_of_cells
from training.embed_pictures import encode_rows, open_picture_encoder, whole_pictures
from training.finetune import balanced, finetuned_accuracy
from training.pictures import most_pictures, picture_rows, prepare_pictures
from training.probes import Rows, features, knn_accuracy, linear_accuracy
from training.run import Report, silent
from udr.errors import ConfigError, DataError
from udr.types import Encoder

__all__ = ["PROBES", "Kind", "as_table", "probe_encoder"]

Kind = Literal["knn", "linear", "finetune", "dense"]
PROBES: tuple[Kind, ...] = ("knn", "linear", "finetune", "dense")
SHARES = {"finetune 1 %": 0.01, "finetune 10 %": 0.1}
PIXELS = 32  # of a side, of raw pixels beside an encoder that has no size of its own
Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Labelled:
    """What is known and what is asked, in one form, with classes as numbers."""

    known: Rows
    classes: NDArray[np.int64]
    asked: Rows
    answers: NDArray[np.int64]


def probe_encoder(
    data: Path,
    address: str,
    probes: Sequence[Kind] = ("knn", "linear"),
    *,
    split: str = "train",
    asked: str = "test",
    k: int = 20,
    untrained: bool | None = None,
    seed: int = 0,
    cache: Path = Path("runs/pictures"),
    report: Report = silent,
) -> Table:
    """Accuracies by row (`pixels`, `untrained`, `encoder`) and probe.

    Fine-tuning trains the whole network on 1 % and 10 % of the known pictures, class-balanced and drawn by the seed;
    the row `untrained` begins with random weights of the same seed. The dense probe asks each cell of canvases of four
    pictures which class lies there (`training.dense_probe`).

    Args:
        untrained: a row for the same network without training; `None`: where the network is ours.

    Raises:
        ConfigError: a probe that the encoder has no network for.
        DataError: pictures without labels, or too few.
    """
    encoder = open_picture_encoder(address)
    backbone = encoder.backbone if isinstance(encoder, ImageEncoder) else None
    if backbone is None and (untrained or {"finetune", "dense"} & set(probes)):
        raise ConfigError(
            f"--encoder {address}: fine-tuning, the dense probe and the untrained row need a network of ours "
            "(artifact:FOLDER); knn and linear take any encoder"
        )
    size = backbone.size if backbone else PIXELS
    pictures = _labelled(data, size, cache, split, asked, report)
    rows: Table = {"pixels": _frozen(pictures, probes, k, "pixels", report)}
    if "dense" in probes and backbone is not None:
        rows["pixels"]["dense"] = _dense_pixels(pictures, backbone, seed, report)
    networks: dict[str, Backbone] = {}
    if backbone is not None and untrained is not False:
        torch.manual_seed(seed)
        networks["untrained"] = build_backbone(backbone.name, backbone.size).to(backbone.device)
    if backbone is not None:
        networks["encoder"] = backbone
    for title, network in networks.items():
        rows[title] = _of_network(pictures, network, probes, k, seed, title, report)
    if backbone is None:
        rows["encoder"] = _frozen(_encoded(data, encoder, split, asked, report), probes, k, "encoder", report)
    return {title: {probe: round(value, 4) for probe, value in row.items()} for title, row in rows.items()}


def _labelled(data: Path, size: int, cache: Path, split: str, asked: str, report: Report) -> _Labelled:
    known, queries = (
        prepare_pictures(data, size, cache, part, progress=report(f"reading {part}")) for part in (split, asked)
    )
    _ = known.classes, queries.classes  # pictures without labels are told here
    classes, answers = _as_numbers(known.labels or (), queries.labels or ())
    return _Labelled(known.pixels, classes, queries.pixels, answers)


def _as_numbers(*labels: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    names = {label: i for i, label in enumerate(sorted({name for part in labels for name in part}))}
    first, second = (np.array([names[label] for label in part], np.int64) for part in labels)
    return first, second


def _frozen(pictures: _Labelled, probes: Sequence[Kind], k: int, title: str, report: Report) -> dict[str, float]:
    found: dict[str, float] = {}
    words = pictures.known, pictures.classes, pictures.asked, pictures.answers
    if "knn" in probes:
        found["knn"] = knn_accuracy(*words, k, progress=report(f"kNN of {title}"))
    if "linear" in probes:
        found["linear"] = linear_accuracy(*words, progress=report(f"linear classifiers of {title}"))
    return found


def _of_network(
    pictures: _Labelled, network: Backbone, probes: Sequence[Kind], k: int, seed: int, title: str, report: Report
) -> dict[str, float]:
    known, asked = (np.asarray(part, np.uint8) for part in (pictures.known, pictures.asked))
    found: dict[str, float] = {}
    if {"knn", "linear"} & set(probes):
        own = _Labelled(features(network, known), pictures.classes, features(network, asked), pictures.answers)
        found |= _frozen(own, probes, k, title, report)
    if "finetune" in probes:
        for name, share in SHARES.items():
            rows = balanced(pictures.classes, share, seed)
            few, of = known[rows], pictures.classes[rows]
            tell = report(f"{name} of {title}, {len(rows)} pictures")
            found[name] = finetuned_accuracy(network, few, of, asked, pictures.answers, seed, tell)
    if "dense" in probes:
        (bank, truth), (queries, answers) = _canvases(pictures, seed)
        cells = cells_of(network, bank), cells_of(network, queries)
        found["dense"] = dense_accuracy(cells[0], truth, cells[1], answers, report(f"cells of {title}"))
    return found


def _canvases(pictures: _Labelled, seed: int) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    sides = ((pictures.known, pictures.classes), (pictures.asked, pictures.answers))
    return [canvases(np.asarray(part, np.uint8), labels, seed=seed) for part, labels in sides]


def _dense_pixels(pictures: _Labelled, backbone: Backbone, seed: int, report: Report) -> float:
    """A classifier of the pixels that lie in each cell of the backbone's grid."""
    (bank, truth), (queries, answers) = _canvases(pictures, seed)
    side = cells_of(backbone, bank[:1]).shape[1]
    cells = pixels_of_cells(bank, side), pixels_of_cells(queries, side)
    return dense_accuracy(cells[0], truth, cells[1], answers, report("cells of pixels"))


def _encoded(data: Path, encoder: Encoder, split: str, asked: str, report: Report) -> _Labelled:
    """Vectors of any encoder, of pictures in their own sizes."""
    sides = []
    for part in (split, asked):
        labels: list[str] = []
        vectors = []
        tell = report(f"encoding {part}")
        for found in encode_rows(picture_rows(data, part), whole_pictures(encoder), tell, most_pictures(data)):
            labels += [row[2] or "" for row in found.rows]
            vectors += [found.vectors] if found.rows else []
        if not labels or "" in labels:
            raise DataError(f"{data}: no pictures of split {part} with labels")
        sides.append((labels, np.concatenate(vectors)))
    classes, answers = _as_numbers(sides[0][0], sides[1][0])
    return _Labelled(sides[0][1], classes, sides[1][1], answers)


def as_table(rows: Table) -> str:
    """The rows as lines of text."""
    columns = list(dict.fromkeys(probe for row in rows.values() for probe in row))
    lines = [" ".join([f"{'':10}", *(f"{column:>13}" for column in columns)])]
    for title, row in rows.items():
        cells = (f"{row[column]:13.4f}" if column in row else f"{'':13}" for column in columns)
        lines.append(" ".join([f"{title:10}", *cells]).rstrip())
    return "\n".join(lines)
