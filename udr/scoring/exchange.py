"""The score cache as Parquet files, so that teams can share and publish the feedback they paid for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udr.artifacts import replacing
from udr.errors import DataError, MissingDependencyError
from udr.scoring.cache import ScoreCache, StoredScore

__all__ = ["Imported", "export_scores", "import_scores"]

COLUMNS = ("key", "nats", "tokens", "model", "day")
KEY_BYTES = 16
APART = 0.5  # nats by which two scores of one key may differ for rounding alone


class Imported(NamedTuple):
    """What became of a file's scores."""

    new: int
    known: int  # were there already and stay as they were
    apart: int  # of those, how many say something else by more than rounding


def export_scores(cache: ScoreCache, path: Path, fingerprint: str | None = None) -> int:
    """Write all scores, or those of one LM, to a Parquet file; gives their number.

    Columns: key (16 bytes: hash of LM, context and continuation), nats, tokens, model (the LM's fingerprint), day.

    Raises:
        ArtifactError: the file cannot be written; what stood there before still does.
    """
    pyarrow, parquet = _load()
    schema = pyarrow.schema(
        [
            ("key", pyarrow.binary(KEY_BYTES)),
            ("nats", pyarrow.float64()),
            ("tokens", pyarrow.int32()),
            ("model", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
            ("day", pyarrow.date32()),
        ]
    )
    written = 0
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for rows in cache.read(fingerprint):
            columns = [
                pyarrow.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
            written += len(rows)
    return written


def import_scores(cache: ScoreCache, path: Path) -> Imported:
    """Add a Parquet file's scores; those that are known already stay as they are.

    Raises:
        DataError: the file is not what `export_scores` writes, or holds a score that cannot be one; the rows before
            that one are kept.
    """
    new = known = apart = 0
    for rows in _read(path):
        held = cache.get([row[0] for row in rows])
        known += len(held)
        apart += sum(abs(held[key][0] - nats) > APART for key, nats, *_ in rows if key in held)
        fresh = sorted((row for row in rows if row[0] not in held), key=lambda row: row[3:])
        for (model, day), group in groupby(fresh, key=lambda row: row[3:]):
            new += cache.add([row[:3] for row in group], model, day)
    return Imported(new, known, apart)


def _read(path: Path, batch: int = 50_000) -> Iterator[list[StoredScore]]:
    pyarrow, parquet = _load()
    start = 0
    try:
        with parquet.ParquetFile(path) as file:
            missing = [c for c in COLUMNS if c not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path}: has no column {missing[0]!r}; export one with: udr scores export")
            for part in file.iter_batches(batch, columns=list(COLUMNS)):
                rows = list(zip(*(part.column(c).to_pylist() for c in COLUMNS), strict=True))
                for i, row in enumerate(rows, start):
                    _check(path, i, row)
                start += len(rows)
                yield rows
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: is no Parquet file of scores ({str(error).splitlines()[0]})") from None


def _check(path: Path, number: int, row: tuple[Any, ...]) -> None:
    key, nats, tokens, model, day = row
    wrong = None
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        wrong = f"the key is not {KEY_BYTES} bytes"
    elif not isinstance(nats, float) or not np.isfinite(nats) or nats > 0:
        wrong = f"{nats} is no log-probability"
    elif not isinstance(tokens, int) or tokens < 1:
        wrong = f"{tokens} is no number of tokens"
    elif not isinstance(model, str) or not isinstance(day, date):
        wrong = "the model or the day is missing"
    if wrong:
        raise DataError(f"{path}: row {number}: {wrong}")


def _load() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError("pyarrow", "train") from None
    return pyarrow, pyarrow.parquet
