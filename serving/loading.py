"""Demonstrations from a payload: NDJSON lines or Parquet rows, in batches, each bad line by its number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from serving.schemas import DemonstrationBody
from serving.sql.jobs import LineError
from udr.errors import DataError, UDRError
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

__all__ = ["FORMATS", "Batch", "Format", "batches", "check_demonstration", "check_text", "rows_of"]

Format = Literal["ndjson", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ROWS = 1000  # of a batch: one transaction
_BYTES = 4 << 20  # of a batch's lines
_LINE = 16 << 20  # bytes of one line
_GROUP = 1 << 30  # bytes of a Parquet row group when it is unpacked


class Batch(NamedTuple):
    """Demonstrations with differing ids, and where the next batch begins."""

    demonstrations: list[Demonstration]
    lines: dict[str, int]  # of each, by its id
    refused: list[LineError]
    position: int  # bytes (NDJSON) or rows (Parquet) behind this batch
    line: int  # lines or rows behind this batch


def rows_of(file: IO[bytes], form: Format) -> int | None:
    """How many there are, where a payload says so.

    Raises:
        DataError: it is no Parquet file.
    """
    return int(_open_parquet(file).metadata.num_rows) if form == "parquet" else None


def batches(file: IO[bytes], form: Format, position: int, line: int, spec: TaskSpec, max_text: int) -> Iterator[Batch]:
    """Read a payload from a place that an earlier batch stated.

    Raises:
        DataError: it is no Parquet file, or a line never ends.
    """
    read = _ndjson(file, position) if form == "ndjson" else _parquet(file, position)
    batch, size, behind = Batch([], {}, [], position, line), 0, position
    for raw, after in read:
        line = batch.line + 1
        try:
            found = None if raw is None else _demonstration(raw, spec, max_text)
        except UDRError as error:
            batch.refused.append(LineError(line, str(error)))
            found = None
        if found is not None:
            if found.id in batch.lines:  # the second of one id meets the first in the store
                yield batch
                batch, size, behind = Batch([], {}, [], batch.position, batch.line), 0, batch.position
            batch.demonstrations.append(found)
            batch.lines[found.id] = line
            size += len(found.input) + len(found.output)
        batch = batch._replace(position=after, line=line)
        if len(batch.demonstrations) + len(batch.refused) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size, behind = Batch([], {}, [], batch.position, batch.line), 0, batch.position
    if batch.position > behind:
        yield batch


def _ndjson(file: IO[bytes], position: int) -> Iterator[tuple[bytes | None, int]]:
    """Lines and the byte after each; None for an empty one."""
    file.seek(position)
    while raw := file.readline(_LINE):
        if len(raw) == _LINE:
            raise DataError(f"byte {position}: a line of more than {_LINE} bytes")
        position += len(raw)
        yield raw.strip() or None, position


def _parquet(file: IO[bytes], position: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows and the number of those behind each."""
    import pyarrow as pa

    table, number = _open_parquet(file), 0
    try:
        for records in table.iter_batches(batch_size=_ROWS):
            if number + len(records) <= position:
                number += len(records)
                continue
            for row in records.to_pylist():
                number += 1
                if number > position:
                    yield {key: value for key, value in row.items() if value is not None}, number
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _open_parquet(file: IO[bytes]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.seek(0)
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    groups = (table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
    if (largest := max(groups, default=0)) > _GROUP:
        raise DataError(f"a row group of {largest} bytes; write the file with smaller ones (at most {_GROUP})")
    return table


def _demonstration(raw: bytes | dict[str, Any], spec: TaskSpec, max_text: int) -> Demonstration:
    try:
        body = (
            DemonstrationBody.model_validate_json(raw)
            if isinstance(raw, bytes)
            else DemonstrationBody.model_validate(_plain(raw))
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None
    found = body.demonstration()
    check_demonstration(found, "", max_text)
    spec.verbalise(found.output)
    return found


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A Parquet row as JSON would give it; columns that are no field of a demonstration are its metadata."""
    stated = row.get("metadata") or {}
    if isinstance(stated, list):  # a map comes as pairs
        stated = dict(stated)
    fields = DemonstrationBody.model_fields.keys()
    others = {key: value for key, value in row.items() if key not in fields}
    if others or isinstance(stated, dict):  # absent fields of a struct come as None
        stated = {key: value for key, value in {**stated, **others}.items() if value is not None}
    return {key: value for key, value in row.items() if key in fields} | {"metadata": stated}


def check_demonstration(d: Demonstration, where: str, limit: int) -> None:
    """Refuse texts that are too long."""
    for text in (d.id, d.input, d.output, *d.choices, *d.references, *d.metadata, *d.metadata.values()):
        check_text(text, where, limit)


def check_text(text: str, where: str, limit: int) -> None:
    """Refuse a text that is too long.

    Raises:
        DataError: it is (names the place in the request).
    """
    if len(text) > limit:
        at = f"{where}: " if where else ""
        raise DataError(f"{at}a text of {len(text)} characters; the limit is {limit}")
