"""Labels with confidences for tables of pictures or texts, in memory that does not grow with them: `udr label`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from warnings import warn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embed.labeller import Label, Labeller, as_metadata
from embed.media import open_picture, picture_bytes, pixels_of
from training.pictures import batches, most_pictures, picture_rows
from training.sheets import SIDE, draw_captioned
from udr.artifacts import replacing
from udr.data import read_rows
from udr.errors import ConfigError, DataError, UDRWarning
from udr.types import Media, Progress, Query

__all__ = ["Labelling", "attention_picture", "draw_labels", "label_things"]

AT_ONCE = 256  # things between two writes
SHOWN = 8  # labels of a picture on a sheet
POOLS = (".jsonl", ".ndjson", ".csv")
TABLE = pa.schema([("id", pa.string()), ("labels", pa.list_(pa.string())), ("confidences", pa.list_(pa.float32()))])


@dataclass
class Labelling:
    """What was labelled.

    Args:
        things: how many.
        left_out: how many could not be read.
        counts: of each label.
        shown: the first ones, for a sheet: the query and its labels.
        rows: of all, id and labels, where they are wanted.
    """

    things: int = 0
    left_out: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[Query, tuple[Label, ...]]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Thing:
    """What is labelled, and the row that it comes from."""

    query: Query
    row: Mapping[str, Any]


class _Write(Protocol):
    def __call__(self, things: Sequence[_Thing], labels: Sequence[tuple[Label, ...]]) -> None: ...


def label_things(
    source: Path,
    labeller: Labeller,
    out: Path,
    *,
    split: str | None = None,
    beam: int = 3,
    threshold: float = 0.0,
    show: int = 0,
    keep: bool = False,
    progress: Progress | None = None,
) -> Labelling:
    """Label what a source holds and write FILE.jsonl or FILE.parquet.

    A .jsonl holds the source's rows with `metadata` of their labels and confidences (see `embed.labeller.as_metadata`),
    as a pool that a service loads and filters; a .parquet holds ids and lists of labels and confidences.

    Args:
        source: pictures as a folder or a .parquet with `image`; or rows with `input` or `text`, or with `media` or an
            `image` that is a path beside the table, as .jsonl or .csv; texts also as .parquet.
        labeller: what labels them.
        out: the file.
        split: of a table.
        beam: paths that are followed at once.
        threshold: labels of a smaller confidence are left out.
        show: things that are remembered for a sheet.
        keep: remember all labels.
        progress: told after each group.

    Raises:
        DataError: no such source, or nothing in it can be read.
        ConfigError: another ending of `out`.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out}: expected FILE.jsonl or FILE.parquet")
    done, seen = Labelling(), 0
    with _writing(out) as write:
        for group in batches(_things(source, labeller, split), AT_ONCE):
            things, labels = _labelled(group, labeller, beam, threshold)
            write(things, labels)
            seen += len(group)
            done.things += len(things)
            done.left_out = seen - done.things
            done.counts.update(label.name for found in labels for label in found)
            pairs = [(thing.query, found) for thing, found in zip(things, labels, strict=True)]
            done.shown += pairs[: show - len(done.shown)]
            if keep:
                done.rows += [{"id": query.id, "labels": _plain(found)} for query, found in pairs]
            if progress:
                progress(seen, 0 if source.suffix in POOLS else most_pictures(source))
        if not done.things:
            raise DataError(f"{source}: " + (f"none of {seen} things can be read" if seen else "no rows"))
    return done


def _plain(labels: Sequence[Label]) -> list[dict[str, Any]]:
    return [{"label": label.name, "confidence": round(label.confidence, 4)} for label in labels]


def _things(source: Path, labeller: Labeller, split: str | None) -> Iterator[_Thing]:
    if labeller.reads == "image" and source.suffix not in POOLS:
        for name, picture, label in picture_rows(source, split):
            row = {"id": name} if label is None else {"id": name, "label": label}
            # a path is opened when its turn comes; a table's bytes are there
            media = Media("image", data=picture) if isinstance(picture, bytes) else Media("image", uri=str(picture))
            yield _Thing(Query(name, "", media=(media,)), row)
        return
    for line, row in read_rows(source):
        if split is not None and str(row.get("split") or "train") != split:
            continue
        where = f"{source}:{line}"
        name = str(row.get("id") or f"{source.name}:{line}")
        if labeller.reads == "text":
            text = next((str(row[key]) for key in ("input", "text") if row.get(key)), "")
            if not text:
                raise DataError(f"{where}: no column input or text")
            yield _Thing(Query(name, text), {k: v for k, v in row.items() if not isinstance(v, bytes)} | {"id": name})
        else:
            yield _Thing(Query(name, "", media=(_picture(row, source, where),)), {**row, "id": name})


def _picture(row: Mapping[str, Any], source: Path, where: str) -> Media:
    for one in row.get("media") or ():
        if isinstance(one, Mapping) and one.get("kind") == "image" and isinstance(one.get("uri"), str):
            return Media("image", uri=one["uri"])
    if isinstance(row.get("image"), str) and row["image"]:
        return Media("image", uri=str(source.parent / row["image"]))
    raise DataError(f"{where}: no media of kind image, and no column image")


def _labelled(
    group: Sequence[_Thing], labeller: Labeller, beam: int, threshold: float
) -> tuple[list[_Thing], list[tuple[Label, ...]]]:
    """Those of a group that can be read, and their labels."""
    if labeller.reads == "text":
        return list(group), labeller.label([thing.query for thing in group], beam, threshold)
    things, pixels = [], []
    for thing in group:
        try:
            pixels.append(_pixels(thing.query, labeller.size))
            things.append(thing)
        except DataError as error:
            warn(f"left out: {error}", UDRWarning, stacklevel=2)
    return things, labeller.label_pixels(np.stack(pixels), beam, threshold) if things else []


def _pixels(query: Query, size: int) -> NDArray[np.uint8]:
    media = query.media[0]
    local = media.uri and not media.uri.startswith("data:")
    return pixels_of(open_picture(Path(media.uri) if local else picture_bytes(media, query.id), query.id), size)


@contextmanager
def _writing(out: Path) -> Iterator[_Write]:
    with replacing(out) as temporary:
        if out.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as file:

                def write_lines(things: Sequence[_Thing], labels: Sequence[tuple[Label, ...]]) -> None:
                    for thing, found in zip(things, labels, strict=True):
                        stated = thing.row.get("metadata") or {}
                        row = {**thing.row, "metadata": {**stated, **as_metadata(found)}}
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")

                yield write_lines
            return
        with pq.ParquetWriter(temporary, TABLE) as writer:

            def write_table(things: Sequence[_Thing], labels: Sequence[tuple[Label, ...]]) -> None:
                ids = [thing.query.id for thing in things]
                names = [[label.name for label in found] for found in labels]
                sure = [[label.confidence for label in found] for found in labels]
                writer.write_table(pa.table([ids, names, sure], schema=TABLE))

            yield write_table


def attention_picture(pixels: NDArray[np.uint8], attention: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A picture (3, s, s) as it is where the attention (h, w) is highest, and paler the lower it is; the same shape."""
    side = pixels.shape[1]
    rows, columns = (np.minimum(np.arange(side) * n // side, n - 1) for n in attention.shape)
    weights = (attention / max(float(attention.max()), 1e-12))[rows][:, columns]
    kept = 0.12 + 0.88 * weights
    found: NDArray[np.uint8] = (pixels * kept + 225 * (1 - kept)).round().astype(np.uint8)
    return found


def draw_labels(shown: Sequence[tuple[Query, tuple[Label, ...]]], out: Path, title: str) -> None:
    """Draw each picture, and beside it where each of its labels was looked for.

    Raises:
        ArtifactError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    rows = []
    for query, labels in shown:
        pixels = _pixels(query, SIDE)
        row = [(pixels, query.id)]
        for label in labels[:SHOWN]:
            seen = pixels if label.attention is None else attention_picture(pixels, label.attention)
            row.append((seen, f"{label.name} {label.confidence:.2f}"))
        rows.append(row)
    draw_captioned(rows, out, title)
