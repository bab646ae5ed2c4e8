"""Labels with confidences for tables of pictures or texts, in memory that does not grow with them: `udr label`."""

from __future__ import annotations

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
from training.pictures import batches, most_pictures, of_split, picture_rows
from training.pool_lines import picture_entry, pool_line
from training.sheets import SIDE, draw_captioned
from udr.artifacts import replacing
from udr.data import read_rows
from udr.errors import ConfigError, DataError, UDRWarning
from udr.selection import TAG
from udr.types import Media, Progress, Query

__all__ = ["Labelling", "attention_picture", "draw_labels", "label_things"]

AT_ONCE = 64  # things between two writes, with their files where rows hold them
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
    """What is labelled, and the row that it comes from; `bare`: the row lacks the picture, which is to stand in it."""

    query: Query
    row: Mapping[str, Any]
    bare: bool = False


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

    A .jsonl holds the source's rows with `metadata` of their labels and confidences (see `embed.labeller.as_metadata`)
    instead of earlier ones, as a pool that a service loads and filters: pictures stand in their demonstrations, other
    columns among the metadata. A .parquet holds ids and lists of labels and confidences.

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
        DataError: no such source, a row of another form, or nothing in it can be read.
        ConfigError: another ending of `out`.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out}: expected FILE.jsonl or FILE.parquet")
    done, seen = Labelling(), 0
    most = 0 if source.suffix in POOLS else most_pictures(source)
    with _writing(out) as write:
        for group in batches(_things(source, labeller, split), AT_ONCE):
            things, labels = _labelled(group, labeller, beam, threshold, out.suffix == ".jsonl")
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
                progress(seen, most)
        if not done.things:
            why = f"none of {seen} things can be read" if seen else "no rows"
            raise DataError(f"{source}: {why}{of_split(split)}")
    return done


def _plain(labels: Sequence[Label]) -> list[dict[str, Any]]:
    return [{"label": label.name, "confidence": round(label.confidence, 4)} for label in labels]


def _things(source: Path, labeller: Labeller, split: str | None) -> Iterator[_Thing]:
    if labeller.reads == "image" and source.suffix not in POOLS:
        for name, picture, label in picture_rows(source, split, ids=True):
            row = {"id": _encodable(name, str(source)), "input": "", "output": label or ""}
            # a path is opened when its turn comes; a table's bytes are there
            media = Media("image", data=picture) if isinstance(picture, bytes) else Media("image", uri=str(picture))
            yield _Thing(Query(name, "", media=(media,)), row, bare=True)
        return
    for line, row in read_rows(source):
        if split is not None and str(row.get("split") or "train") != split:
            continue
        where = f"{source}:{line}"
        name = _encodable(str(row.get("id") or f"{source.name}:{line}"), where)
        if not isinstance(row.get("metadata") or {}, Mapping) or not isinstance(row.get("media") or [], list):
            raise DataError(f"{where}: `media` must be a list and `metadata` an object")
        if labeller.reads == "text":
            text = next((row[key] for key in ("input", "text") if row.get(key)), None)
            if not isinstance(text, str):
                raise DataError(f"{where}: no column input or text that holds a text")
            _encodable(text, where)
            yield _Thing(Query(name, text), {k: v for k, v in row.items() if not isinstance(v, bytes)} | {"id": name})
        else:
            media = _picture(row, source, where)
            bare = not _holds_bytes(media.uri)
            kept: dict[str, Any] = dict(row)
            if bare:  # a pool keeps pictures, and no addresses of files
                kept.pop("image", None)
                shown = row.get("media") or ()
                kept["media"] = [one for one in shown if _address(one, source) not in (None, media.uri)]
            yield _Thing(Query(name, "", media=(media,)), {**kept, "id": name}, bare)


def _address(one: object, source: Path) -> str | None:
    """Where an entry of `media` lies; None: nowhere."""
    uri = one.get("uri") if isinstance(one, Mapping) else None
    if not isinstance(uri, str) or not uri:
        return None
    return uri if _holds_bytes(uri) else str(source.parent / uri)


def _encodable(text: str, where: str) -> str:
    """The same text, where a file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of a pair, which JSON can escape
        raise DataError(f"{where}: {text[:40]!r} holds half a character") from None
    return text


def _picture(row: Mapping[str, Any], source: Path, where: str) -> Media:
    for one in row.get("media") or ():
        address = _address(one, source)
        if address and one.get("kind") == "image":
            return Media("image", uri=address)
    if isinstance(row.get("image"), str) and row["image"]:
        return Media("image", uri=str(source.parent / row["image"]))
    raise DataError(f"{where}: no media of kind image, and no column image")


def _labelled(
    group: Sequence[_Thing], labeller: Labeller, beam: int, threshold: float, as_lines: bool
) -> tuple[list[_Thing], list[tuple[Label, ...]]]:
    """Those of a group that can be read, and their labels; `as_lines`: rows are to hold what a pool needs."""
    if labeller.reads == "text":
        return list(group), labeller.label([thing.query for thing in group], beam, threshold)
    things, pixels = [], []
    for thing in group:
        try:
            raw = _bytes(thing.query)
            pixels.append(pixels_of(open_picture(raw, thing.query.id), labeller.size))
            if as_lines and thing.bare:
                media = [picture_entry(raw, thing.query.id), *thing.row.get("media", ())]
                thing = _Thing(thing.query, {**thing.row, "media": media})
            things.append(thing)
        except DataError as error:
            warn(f"left out: {error}", UDRWarning, stacklevel=2)
    return things, labeller.label_pixels(np.stack(pixels), beam, threshold) if things else []


def _bytes(query: Query) -> bytes:
    media = query.media[0]
    return picture_bytes(Path(media.uri) if media.uri and not _holds_bytes(media.uri) else media, query.id)


def _holds_bytes(uri: str) -> bool:
    return uri[:5].lower() == "data:"


def _line(thing: _Thing, labels: Sequence[Label]) -> bytes:
    """A row of a pool; labels that it had before are not its own any more."""
    stated = {k: v for k, v in (thing.row.get("metadata") or {}).items() if not k.startswith(TAG)}
    return pool_line({**thing.row, "metadata": {**stated, **as_metadata(labels)}}, thing.query.id)


@contextmanager
def _writing(out: Path) -> Iterator[_Write]:
    with replacing(out) as temporary:
        if out.suffix == ".jsonl":
            with temporary.open("wb") as file:

                def write_lines(things: Sequence[_Thing], labels: Sequence[tuple[Label, ...]]) -> None:
                    file.writelines(_line(thing, found) for thing, found in zip(things, labels, strict=True))

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
        pixels = pixels_of(open_picture(_bytes(query), query.id), SIDE)
        row = [(pixels, query.id)]
        for label in labels[:SHOWN]:
            seen = pixels if label.attention is None else attention_picture(pixels, label.attention)
            row.append((seen, f"{label.name} {label.confidence:.2f}"))
        rows.append(row)
    draw_captioned(rows, out, title)
