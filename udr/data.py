"""Demonstrations from JSONL, CSV and Parquet tables, and from the hub; every bad row is named by file and line."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import warn

from udr.artifacts import write_atomically
from udr.errors import DataError, MissingDependencyError, UDRWarning, UnknownNameError
from udr.tasks import Source, TaskSpec, infer_spec, load_spec
from udr.tasks.spec import NAME
from udr.types import Demonstration

__all__ = ["TaskData", "load_task_data", "open_task", "read_demonstrations", "read_rows", "write_demonstrations"]

FORMATS = (".parquet", ".jsonl", ".ndjson", ".csv")
COLUMNS = ("id", "input", "output", "choices", "references", "split")
LONGEST_FIELD = 100_000_000  # characters of a field of CSV, as of any text: what they mean is checked elsewhere
SPEC_FORMATS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task with its pool (the train split) and its test split."""

    spec: TaskSpec
    train: tuple[Demonstration, ...]
    test: tuple[Demonstration, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the task's words and of the pool's rows, in their order."""
        h = hashlib.blake2b(self.spec.dump_yaml().encode(), digest_size=8)
        for d in self.train:
            h.update(f"{d.id}\0{d.content_hash}\0".encode())
        return h.hexdigest()

    @property
    def by_id(self) -> dict[str, Demonstration]:
        return {d.id: d for d in self.train}


def read_rows(path: Path, wanted: Collection[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a .jsonl (or .ndjson), .csv or .parquet table; lines count from 1, the CSV header included.

    Args:
        path: of the table.
        wanted: other columns of Parquet are not read, if there are any of these; none: all are.

    Raises:
        DataError: no such file, an unknown format, a column twice, or a line that does not parse.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path)
    elif ending == ".csv":
        yield from _read_csv(path)
    elif ending == ".parquet":
        yield from _read_parquet(path, wanted)
    else:
        raise _unknown_format(path)


def _unknown_format(path: Path) -> DataError:
    return DataError(f"{path}: unknown format {path.suffix or '(none)'}; expected {', '.join(FORMATS)}")


def _check_columns(path: Path, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: column {twice!r} stands twice; give one of them another name")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 at byte {error.start}") from None
            except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
                raise DataError(f"{path}:{number}: not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected an object with `input` and `output`")
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.DictReader(file, strict=True)
        try:
            _check_columns(path, list(reader.fieldnames or ()))
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}:{reader.line_num}: the row's length differs from the header's")
                if any(map(_has_surrogates, (*row, *row.values()))):
                    raise DataError(f"{path}:{reader.line_num}: not UTF-8")
                yield reader.line_num, dict(row)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.reader.line_num}: not CSV ({error})") from None


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_parquet(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError("pyarrow", "train") from None
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            _check_columns(path, names)
            columns = [name for name in names if name in wanted] or None
            for batch in table.iter_batches(batch_size=4096, columns=columns):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from None
    except _NoPython as error:
        raise DataError(f"{path}:{number + 1}: a value that cannot be read ({error})") from None


_UNREADABLE = (OverflowError, ValueError, LookupError)  # numbers and times, bytes that are no text, unknown time zones


class _NoPython(Exception):
    """A value that Arrow holds and Python does not."""


def _python_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a record batch, one by one where it cannot be had whole, so that the bad row is known."""
    try:
        yield from batch.to_pylist()
        return
    except _UNREADABLE:
        pass
    for i in range(len(batch)):
        try:
            (row,) = batch.slice(i, 1).to_pylist()
        except _UNREADABLE as error:
            raise _NoPython(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        yield row


def read_demonstrations(path: Path, split: str | None = None) -> list[Demonstration]:
    """Read solved examples; columns `input` and `output`, optionally id, choices, references, split.

    A row without an id gets its content hash, so ids survive reordering. Exact duplicates are kept once.

    Raises:
        DataError: a missing column, a value of the wrong type, two rows under one id (file:line), or no rows at all.
    """
    found: dict[str, Demonstration] = {}
    for own, demonstration in _read_splits(path):
        if split is None or own == split:
            found.setdefault(demonstration.id, demonstration)
    return list(found.values())


def _read_splits(path: Path) -> list[tuple[str, Demonstration]]:
    """All rows of a table with their splits; a row that names none is of train."""
    rows: list[tuple[str, Demonstration]] = []
    seen: dict[str, tuple[int, str]] = {}  # over all splits: a query is never shown the demonstration of its own id
    for line, row in read_rows(path, COLUMNS):
        demonstration = _demonstration(row, f"{path}:{line}")
        first, content = seen.setdefault(demonstration.id, (line, demonstration.content_hash))
        if content != demonstration.content_hash:
            raise DataError(f"{path}:{line}: id {demonstration.id!r} stands already at line {first}")
        rows.append((str(row.get("split") or "train").strip().lower(), demonstration))
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def _demonstration(row: Mapping[str, Any], where: str) -> Demonstration:
    values: dict[str, str] = {}
    for column in ("input", "output"):
        value = row.get(column)
        if column not in row:
            raise DataError(f"{where}: no column {column!r}; the row has {', '.join(map(str, row)) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
            kind = "a missing number" if isinstance(value, float) else type(value).__name__
            raise DataError(f"{where}: {column} must be text, not {kind}")
        values[column] = _text(str(value), where, column)
        if not values[column].strip():
            raise DataError(f"{where}: {column} is empty")
    choices = tuple(dict.fromkeys(c.strip() for c in _strings(row.get("choices"), where, "choices")))
    if "" in choices:
        raise DataError(f"{where}: a choice is empty")
    output = values["output"].strip() if choices else values["output"]  # blanks at the ends never decide a choice
    if choices and output not in choices:
        raise DataError(f"{where}: output {output[:60]!r} is not among the choices")
    references = _strings(row.get("references"), where, "references")
    own_id = "" if row.get("id") is None else _text(str(row["id"]), where, "id")
    demonstration = Demonstration(own_id, values["input"], output, choices, references)
    return demonstration if demonstration.id else replace(demonstration, id=demonstration.content_hash[:16])


def _strings(value: object, where: str, column: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):  # CSV has no lists: a JSON list in a cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: {column} must be a list (in CSV: a JSON list)") from None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise DataError(f"{where}: {column} must be a list of texts")
    return tuple(_text(v, where, column) for v in value)


def _text(value: str, where: str, column: str) -> str:
    if _has_surrogates(value):
        raise DataError(f"{where}: {column} holds half a surrogate pair, which is no Unicode text")
    return value


def load_task_data(spec: TaskSpec, data_dir: Path | None = None, pool: Path | None = None) -> TaskData:
    """Find a task's rows: an explicit table, `data_dir/NAME` with an ending of `FORMATS`, or its hub source.

    Test rows whose input also stands in the train split are left out, so that no score measures memory.

    Raises:
        DataError: nothing found (says what to run), a bad row, an empty pool, or a label outside the verbaliser.
    """
    path = pool or _table_of(spec.name, data_dir)
    if path is not None:
        rows = _read_splits(path)
        train, test = ([*{d.id: d for own, d in rows if own == split}.values()] for split in ("train", "test"))
        others = Counter(own for own, _ in rows if own not in ("train", "test"))
        if others:
            named = ", ".join(f"{own} ({count})" for own, count in others.items())
            warn(f"{path}: rows of other splits than train and test are not read: {named}", UDRWarning, stacklevel=2)
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
    _check_labels(spec, [*train, *test], where, path)
    return TaskData(spec, tuple(train), tuple(test))


def open_task(name: str, data_dir: Path | None = None, hold_out: bool = True) -> TaskData:
    """Find a task by name (registry or manifest), by YAML file, or by a bare table of `input,output`.

    The rows of a YAML file that lie in no data folder are looked for beside it. A bare table needs no registration:
    its stem is its name and its kind is inferred, unless a YAML file of its name beside it says more. Where it has no
    test rows, one in five (at most 500), drawn by content, become the test split, unless `hold_out` is false.

    Raises:
        UnknownNameError: no such task (lists the near names).
        DataError: as `load_task_data`.
    """
    path = Path(name)
    if path.suffix.lower() not in FORMATS:
        try:
            spec = load_spec(name, data_dir)
        except UnknownNameError:
            if path.exists() and path.suffix.lower() not in SPEC_FORMATS:
                raise _unknown_format(path) from None
            raise
        beside = path.parent if path.suffix in SPEC_FORMATS else None
        return load_task_data(spec, data_dir, _table_of(spec.name, data_dir) or _table_of(spec.name, beside))
    described = next((p for f in SPEC_FORMATS if (p := path.with_suffix(f)).is_file()), None)
    if not described and not re.fullmatch(NAME, path.stem):
        raise DataError(f"{path}: a task goes by its file's name, of letters, digits, _, . and -; rename the file")
    spec = load_spec(str(described)) if described else infer_spec(path.stem, read_demonstrations(path))
    data = load_task_data(spec, pool=path)
    if data.test or len(data.train) < 2 or not hold_out:
        return data
    by_content = sorted(data.train, key=lambda d: d.query.content_hash)
    cut = min(500, max(1, len(by_content) // 5))
    known = {d.query.content_hash for d in by_content[cut:]}
    test = tuple(d for d in by_content[:cut] if d.query.content_hash not in known)
    return TaskData(spec, tuple(by_content[cut:]), test)


def _table_of(name: str, data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return None
    return next((p for f in FORMATS if (p := data_dir / f"{name}{f}").is_file()), None)


def _check_labels(spec: TaskSpec, demonstrations: Iterable[Demonstration], where: str, path: Path | None) -> None:
    for d in demonstrations:
        if spec.kind == "classification" and d.output not in spec.verbaliser:
            problem = f"label {d.output!r} is not in the verbaliser of task {spec.name} ({', '.join(spec.verbaliser)})"
        elif spec.kind == "multichoice" and len(d.choices) < 2:
            problem = "a multichoice task needs at least two choices in each row"
        else:
            continue
        raise DataError(f"{_place(path, d) if path else f'{where}: row {d.id}'}: {problem}")


def _place(path: Path, demonstration: Demonstration) -> str:
    """Find the file:line that a demonstration was read from."""
    lines = (line for line, row in read_rows(path) if _demonstration(row, str(path)).id == demonstration.id)
    return f"{path}:{next(lines)}"


def load_hub(source: Source) -> tuple[list[Demonstration], list[Demonstration]]:
    """Load (train, test) of a hub data set at its pinned revision through `datasets`.

    `source.columns` maps our columns to theirs; a value with braces is a format over the row, such as
    `"{premise} {hypothesis}"`. Rows of which input or output is empty, as published tables hold now and then,
    are left out, and exact duplicates are kept once. A row's id is its content hash: theirs often repeat between
    splits.

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
            reason = " ".join(str(error).split("\n")[0].split())
            raise DataError(f"{where}: cannot be loaded ({type(error).__name__}: {reason})") from None
        rows = (_map_columns(row, source.columns, f"{where} row {i}") for i, row in enumerate(table))
        found = [
            _demonstration(row, f"{where} row {i}")
            for i, row in enumerate(rows)
            if all(column not in row or _says_something(row[column]) for column in ("input", "output"))
        ]
        splits[ours] = list({d.id: d for d in found}.values())
    return splits.get("train", []), splits.get("test", [])


def _says_something(value: object) -> bool:
    return value is not None and bool(str(value).strip())


def _map_columns(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    mapped = {k: row[k] for k in ("input", "output", "choices", "references") if k in row}
    for ours, theirs in columns.items():
        try:
            mapped[ours] = theirs.format_map(row) if "{" in theirs else row[theirs]
        except (KeyError, IndexError, AttributeError, TypeError, ValueError):
            raise DataError(f"{where}: no column {theirs!r}; the row has {', '.join(row)}") from None
    for column, value in mapped.items():
        if column in ("choices", "references"):
            if isinstance(value, str):  # the published tables join lists by newlines
                mapped[column] = value.split("\n")
        elif isinstance(value, list):  # and some hold texts as token lists
            mapped[column] = " ".join(map(str, value))
    return mapped


def write_demonstrations(path: Path, demonstrations: Sequence[Demonstration]) -> None:
    """Write a pool as JSONL that `read_demonstrations` reads; the file appears whole or not at all."""
    lines = []
    for d in demonstrations:
        row: dict[str, Any] = {"id": d.id, "input": d.input, "output": d.output}
        if d.choices:
            row["choices"] = d.choices
        if d.references:
            row["references"] = d.references
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines).encode())
