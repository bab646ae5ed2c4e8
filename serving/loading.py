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
_BYTES = 4 << 20  # of a batch's lines, and of rows that are unpacked together
_LINE = 16 << 20  # bytes of one line or row
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
            size += sum(map(len, _texts(found))) + sum(len(m.uri) for m in found.media)
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
        for i in range(table.num_row_groups):
            group = table.metadata.row_group(i)
            if number + group.num_rows <= position:
                number += group.num_rows
                continue
            some = max(1, min(_ROWS, _BYTES * group.num_rows // max(1, group.total_byte_size)))
            for records in table.iter_batches(batch_size=some, row_groups=[i]):
                for part in _parts(records):
                    if len(part) == 1 and (size := _unpacked(part.to_struct_array())) > _LINE:
                        raise DataError(f"row {number + 1}: {size} bytes; a row has at most {_LINE}")
                    for row in part.to_pylist():
                        number += 1
                        if number > position:
                            yield {key: value for key, value in row.items() if value is not None}, number
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _parts(records: Any) -> Iterator[Any]:
    """The rows of a record batch in parts of few bytes, or of one row."""
    if len(records) == 1 or _unpacked(records.to_struct_array()) <= _BYTES:
        yield records
        return
    half = len(records) // 2
    for part in (records.slice(0, half), records.slice(half)):
        yield from _parts(part)


def _unpacked(array: Any) -> int:
    """Bytes of an Arrow array once each row has a value of its own: a dictionary holds one for all rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_map(array.type):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return _unpacked(array.values.slice(first, last - first))
    if pa.types.is_nested(array.type):
        inner = array.flatten()
        return sum(map(_unpacked, inner)) if isinstance(inner, list) else _unpacked(inner)
    return int(array.nbytes)


def _open_parquet(file: IO[bytes]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.seek(0)
    try:
        table = pq.ParquetFile(file)
        columns = [table.schema.column(i) for i in range(len(table.schema))]
        # a text that many rows share is kept once, as in the file, and not as often as it is named
        texts = [c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.converted_type in ("UTF8", "NONE")]
        table = pq.ParquetFile(file, metadata=table.metadata, read_dictionary=texts)
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
    """A Parquet row as JSON would give it; columns that are no field of a demonstration are its metadata.

    Raises:
        DataError: its column `metadata` holds something else than a map or a struct.
    """
    stated = row.get("metadata", {})
    if isinstance(stated, list) and all(isinstance(pair, tuple) for pair in stated):  # a map comes as pairs
        stated = dict(stated)
    if not isinstance(stated, dict):
        raise DataError("metadata: expected a map or a struct")
    fields = DemonstrationBody.model_fields.keys()
    others = {key: value for key, value in row.items() if key not in fields}
    known = {key: value for key, value in {**stated, **others}.items() if value is not None}  # of a struct
    return {key: value for key, value in row.items() if key in fields} | {"metadata": known}


def check_demonstration(d: Demonstration, where: str, limit: int) -> None:
    """Refuse texts that are too long."""
    for text in _texts(d):
        check_text(text, where, limit)


def _texts(d: Demonstration) -> Iterator[str]:
    """All that a demonstration says; what it shows and plays has limits of its own."""
    yield from (d.id, d.input, d.output, *d.choices, *d.references, *d.metadata, *d.metadata.values())


def check_text(text: str, where: str, limit: int) -> None:
    """Refuse a text that is too long.

    Raises:
        DataError: it is (names the place in the request).
    """
    if len(text) > limit:
        at = f"{where}: " if where else ""
        raise DataError(f"{at}a text of {len(text)} characters; the limit is {limit}")
