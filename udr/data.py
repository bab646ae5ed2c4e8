"""Demonstrations from JSONL, CSV and Parquet tables, and from the hub; every bad row is named by file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from udr.errors import DataError, MissingDependencyError
from udr.tasks.spec import Source, TaskSpec
from udr.types import Demonstration

__all__ = ["TaskData", "load_task_data", "read_demonstrations", "read_rows"]

FORMATS = (".parquet", ".jsonl", ".csv")


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task with its pool (the train split) and its test split."""

    spec: TaskSpec
    train: tuple[Demonstration, ...]
    test: tuple[Demonstration, ...]

    @property
    def by_id(self) -> dict[str, Demonstration]:
        return {d.id: d for d in self.train}


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a .jsonl, .csv or .parquet table; lines count from 1, the CSV header included.

    Raises:
        DataError: no such file, an unknown format, or a line that does not parse.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".csv":
        yield from _read_csv(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise DataError(f"{path}: unknown format {path.suffix or '(none)'}; expected {', '.join(FORMATS)}")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 at byte {error.start}") from None
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON ({getattr(error, 'msg', 'nested too deep')})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected an object with `input` and `output`")
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}:{reader.line_num}: the row's length differs from the header's")
                yield reader.line_num, dict(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not CSV in UTF-8 ({error})") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError("pyarrow", "train") from None
    try:
        with pq.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from None


def read_demonstrations(path: Path, split: str | None = None) -> list[Demonstration]:
    """Read solved examples; columns `input` and `output`, optionally id, choices, references, split.

    A row without an id gets its content hash, so ids survive reordering. Exact duplicates are kept once.

    Raises:
        DataError: a missing column, a value of the wrong type, two rows under one id (file:line), or no rows at all.
    """
    demonstrations: list[Demonstration] = []
    seen: dict[str, tuple[int, str]] = {}
    rows = 0
    for line, row in read_rows(path):
        rows += 1
        if split is not None and str(row.get("split") or "train") != split:
            continue
        demonstration = _demonstration(row, f"{path}:{line}")
        content = demonstration.content_hash
        if demonstration.id in seen:
            first, same = seen[demonstration.id]
            if same != content:
                raise DataError(f"{path}:{line}: id {demonstration.id!r} stands already at line {first}")
            continue
        seen[demonstration.id] = (line, content)
        demonstrations.append(demonstration)
    if not rows:
        raise DataError(f"{path}: no rows")
    return demonstrations


def _demonstration(row: Mapping[str, Any], where: str) -> Demonstration:
    values: dict[str, str] = {}
    for column in ("input", "output"):
        value = row.get(column)
        if column not in row:
            raise DataError(f"{where}: no column {column!r}; the row has {', '.join(map(str, row)) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{where}: {column} must be text, not {type(value).__name__}")
        text = str(value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{where}: {column} holds half a surrogate pair, which is no Unicode text")
        values[column] = text
    if not values["input"].strip():
        raise DataError(f"{where}: input is empty")
    choices = tuple(c.strip() for c in _strings(row.get("choices"), where, "choices"))
    output = values["output"].strip() if choices else values["output"]  # blanks at the ends never decide a choice
    if choices and output not in choices:
        raise DataError(f"{where}: output {output[:60]!r} is not among the choices")
    references = _strings(row.get("references"), where, "references")
    demonstration = Demonstration(str(row.get("id") or ""), values["input"], output, choices, references)
    return demonstration if demonstration.id else replace(demonstration, id=demonstration.content_hash[:16])


def _strings(value: object, where: str, column: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):  # CSV has no lists: a JSON list in a cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise DataError(f"{where}: {column} must be a list (in CSV: a JSON list)") from None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise DataError(f"{where}: {column} must be a list of texts")
    return tuple(value)


def load_task_data(spec: TaskSpec, data_dir: Path | None = None, pool: Path | None = None) -> TaskData:
    """Find a task's rows: an explicit table, `data_dir/NAME.{parquet,jsonl,csv}`, or the hub source of its YAML file.

    Test rows whose input also stands in the train split are left out, so that no score measures memory.

    Raises:
        DataError: nothing found (says what to run), a bad row, an empty pool, or a label outside the verbaliser.
    """
    path = pool or _table_of(spec.name, data_dir)
    if path is not None:
        train, test = read_demonstrations(path, "train"), read_demonstrations(path, "test")
        where = str(path)
    elif spec.source.hub:
        train, test = load_hub(spec.source)
        where = spec.source.hub
    else:
        raise DataError(
            f"task {spec.name}: no table {spec.name}{{{','.join(FORMATS)}}} in {data_dir or 'any data folder'}"
            + ("; run: udr data bigbench --out DIR, then pass --data DIR" if spec.source.bigbench else "")
        )
    if not train:
        raise DataError(f"{where}: the pool of task {spec.name} is empty (no row of split train)")
    if spec.kind == "classification":
        # the options are the verbaliser's; a table may list them in each row too, in any order
        train, test = [replace(d, choices=()) for d in train], [replace(d, choices=()) for d in test]
    known = {d.query.content_hash for d in train}
    test = [d for d in test if d.query.content_hash not in known]
    _check_labels(spec, [*train, *test], where)
    return TaskData(spec, tuple(train), tuple(test))


def _table_of(name: str, data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return None
    return next((p for f in FORMATS if (p := data_dir / f"{name}{f}").is_file()), None)


def _check_labels(spec: TaskSpec, demonstrations: Iterable[Demonstration], where: str) -> None:
    for d in demonstrations:
        if spec.kind == "classification" and d.output not in spec.verbaliser:
            raise DataError(
                f"{where}: row {d.id}: label {d.output!r} is not in the verbaliser of task {spec.name} "
                f"({', '.join(spec.verbaliser)})"
            )
        if spec.kind == "multichoice" and len(d.choices) < 2:
            raise DataError(f"{where}: row {d.id}: a multichoice task needs at least two choices in each row")


def load_hub(source: Source) -> tuple[list[Demonstration], list[Demonstration]]:
    """Load (train, test) of a hub data set at its pinned revision through `datasets`.

    `source.columns` maps our columns to theirs; a value with braces is a format over the row, such as
    `"{premise} {hypothesis}"`. Rows without an input, which published tables hold now and then, are left out.

    Raises:
        MissingDependencyError: `datasets` is absent.
        DataError: the data set cannot be had, or lacks a column.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError("datasets", "train") from None
    splits: dict[str, list[Demonstration]] = {}
    for ours, theirs in source.splits.items():
        where = f"{source.hub} ({theirs})"
        try:
            table = datasets.load_dataset(source.hub, source.config or None, split=theirs, revision=source.revision)
        except Exception as error:  # the hub's client raises many unrelated types; the user needs one line
            raise DataError(f"{where}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})") from None
        rows = (_map_columns(row, source.columns, f"{where} row {i}") for i, row in enumerate(table))
        splits[ours] = [
            _demonstration(row, f"{where} row {i}") for i, row in enumerate(rows) if str(row.get("input") or "").strip()
        ]
    return splits.get("train", []), splits.get("test", [])


def _map_columns(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    mapped = {k: row[k] for k in ("id", "input", "output", "choices", "references") if k in row}
    for ours, theirs in columns.items():
        try:
            mapped[ours] = theirs.format_map(row) if "{" in theirs else row[theirs]
        except (KeyError, IndexError, AttributeError):
            raise DataError(f"{where}: no column {theirs!r}; the row has {', '.join(row)}") from None
    for column, value in mapped.items():
        if column in ("choices", "references"):
            if isinstance(value, str):  # the published tables join lists by newlines
                mapped[column] = value.split("\n")
        elif isinstance(value, list):  # and some hold texts as token lists
            mapped[column] = " ".join(map(str, value))
    return mapped


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows so that a reader never sees half a file."""
    from udr.artifacts import write_atomically

    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
