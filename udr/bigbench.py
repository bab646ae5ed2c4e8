"""BIG-bench tasks as tables: fetch the source package once, turn its task.json files into Parquet.

BIG-bench (Srivastava et al. 2022, arXiv 2206.04615) is Apache-2.0; its tasks lie as JSON in the source package
bigbench 1.0.0. Which of them we take, and under which name, stands in the bundled task files (`source.bigbench`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from udr.artifacts import write_atomically
from udr.errors import DataError, MissingDependencyError
from udr.tasks import MANIFEST, known_tasks, load_spec, read_manifest
from udr.tasks.spec import TaskSpec

__all__ = ["Row", "convert_bigbench", "fetch_bigbench", "read_tasks", "task_rows"]

VERSION = "1.0.0"
ARCHIVE = f"bigbench-{VERSION}.tar.gz"  # 358 MB
SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
TASKS = "bigbench/benchmark_tasks"

TEST_SHARE = 4  # a quarter of the rows is for testing ...
TEST_CAP = 500  # ... but not more than this many
TRAIN_CAP = 4000


class Row(TypedDict):
    """One line of a task's table."""

    id: str
    input: str
    output: str
    choices: list[str]
    references: list[str]
    split: Literal["train", "test"]


def fetch_bigbench(cache: Path) -> Path:
    """Download the source package (358 MB) into `cache`, once, and return its path.

    pip does the download, so its mirrors and proxies hold; it is given the file's SHA-256 and refuses another file
    before it looks inside.

    Raises:
        DataError: the download failed (says how to place the file by hand), or `cache` cannot be written.
    """
    path = cache / ARCHIVE
    try:
        if path.is_file() and _sha256(path) == SHA256:
            return path
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".bigbench-") as scratch:
            _pip_download(Path(scratch), path)
            os.replace(Path(scratch) / ARCHIVE, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read or written ({error.strerror or error})") from None
    return path


def _pip_download(folder: Path, path: Path) -> None:
    pinned = folder / "requirements.txt"
    pinned.write_text(f"bigbench=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # one package from source only: with `:all:` pip would also build its build tools from source
    options = ["--no-deps", "--no-binary", "bigbench", "--require-hashes"]
    command = [*pip, *options, "--dest", str(folder), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    fetched = folder / ARCHIVE
    if done.returncode or not fetched.is_file() or _sha256(fetched) != SHA256:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no such file")
        raise DataError(
            f"{path}: pip could not download it ({reason}); fetch {ARCHIVE} by other means and put it there"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert_bigbench(archive: Path, out: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Write `out/NAME.parquet` for each task (all of BIG-bench's by default) and `out/manifest.json`.

    The archive is read once, front to back, and only the task.json files asked for are unpacked, in memory. Entries
    that the manifest already holds for other tasks stay. See `task_rows` for what becomes of the examples.

    Returns the manifest entries of the tasks written, in the order of `names`.

    Raises:
        UnknownNameError: a name that is no bundled task.
        DataError: the archive is damaged or misses a task, or a name is not a BIG-bench task.
        MissingDependencyError: pyarrow is absent.
    """
    specs = _bigbench_specs(names)
    entries: dict[str, dict[str, Any]] = {}
    for folder, task in read_tasks(archive, {spec.source.bigbench for spec in specs}):
        for spec in specs:
            if spec.source.bigbench == folder:
                rows = task_rows(task, tuple(spec.verbaliser), f"{archive}: {folder}")
                write_atomically(out / f"{spec.name}.parquet", _parquet(rows))
                entries[spec.name] = _entry(spec, rows)
    written = [entries[spec.name] for spec in specs]
    manifest = list((read_manifest(out) | entries).values())
    write_atomically(out / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return written


def _bigbench_specs(names: Sequence[str]) -> list[TaskSpec]:
    specs = [load_spec(name) for name in dict.fromkeys(names or known_tasks())]
    if names:
        for spec in specs:
            if not spec.source.bigbench:
                raise DataError(f"task {spec.name} does not come from BIG-bench (its source is {spec.source.hub})")
    return [spec for spec in specs if spec.source.bigbench]


def read_tasks(archive: Path, folders: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (folder, task.json) for each wanted folder, in the order of the archive."""
    missing = set(folders)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            while missing and (member := tar.next()) is not None:
                folder = _task_folder(member.name)
                if folder in missing and (file := tar.extractfile(member)) is not None:
                    missing.remove(folder)
                    yield folder, _task(json.load(file), f"{archive}: {member.name}")
    except FileNotFoundError:
        raise DataError(f"{archive}: no such file") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{archive}: damaged ({type(error).__name__}: {error}); delete it and fetch it again") from None
    if missing:
        raise DataError(f"{archive}: holds no {TASKS}/{min(missing)}/task.json; is it {ARCHIVE}, and whole?")


def _task_folder(member: str) -> str:
    """The folder below `bigbench/benchmark_tasks` whose task.json this is; empty for every other member."""
    _, _, path = member.partition("/")  # the first part is the package's name and version
    below, _, file = path.removeprefix(f"{TASKS}/").rpartition("/")
    return below if file == "task.json" and path.startswith(f"{TASKS}/") else ""


def _task(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("examples"), list):
        raise DataError(f"{where}: holds no list of examples")
    return value


def task_rows(task: Mapping[str, Any], labels: Sequence[str] = (), where: str = "task.json") -> list[Row]:
    """Turn a task.json into rows: the test rows first, then the train rows.

    An example with `target_scores` becomes a choice among its options, the best-scored ones being the references; one
    with `target` is free text, or a choice among `labels`. The first reference is the output. Texts are stripped, an
    example without input or answer is left out, and of those with the same input and options the first stays. The
    rows are then shuffled (Python's `random.Random(0)`, the same everywhere): the first quarter, at most 500, is the
    test split, and of the rest, without the rows whose input is also a test input, at most 4,000 are the train split.

    The id is the head of the SHA-1 of input and sorted options.

    Raises:
        DataError: an example of another shape, or an answer outside `labels` (names the example, counting from 1).
    """
    unique: dict[str, Row] = {}
    for number, example in enumerate(task["examples"], 1):
        row = _row(example, labels, f"{where}: example {number}")
        if row is not None:
            unique.setdefault(row["id"], row)
    rows = list(unique.values())
    random.Random(0).shuffle(rows)
    size = min(TEST_CAP, len(rows) // TEST_SHARE)
    test = [_in_split(row, "test") for row in rows[:size]]
    seen = {row["input"] for row in test}
    train = [_in_split(row, "train") for row in rows[size:] if row["input"] not in seen]
    return test + train[:TRAIN_CAP]


def _in_split(row: Row, split: Literal["train", "test"]) -> Row:
    return {**row, "split": split}


def _row(example: object, labels: Sequence[str], where: str) -> Row | None:
    if not isinstance(example, dict) or not isinstance(example.get("input"), str):
        raise DataError(f"{where}: no input")
    text = example["input"].strip()
    options, answers = _answers(example, where)
    if not text or not answers or not answers[0]:
        return None
    if labels and answers[0] not in labels:
        raise DataError(f"{where}: {answers[0]!r} is not among the labels {', '.join(labels)}")
    digest = hashlib.sha1("\0".join([text, *sorted(options)]).encode(), usedforsecurity=False).hexdigest()
    choices = [option.strip() for option in options] or list(labels)
    return {
        "id": digest[:16],
        "input": text,
        "output": answers[0],
        "choices": choices,
        "references": answers,
        "split": "train",
    }


def _answers(example: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """The (options, right answers) of an example; the options are as they stand, unstripped."""
    scores, target = example.get("target_scores"), example.get("target")
    if isinstance(scores, dict) and scores and all(isinstance(score, int | float) for score in scores.values()):
        best = max(scores.values())
        return list(scores), [option.strip() for option, score in scores.items() if score == best]
    targets = [target] if isinstance(target, str) else target
    if not isinstance(targets, list) or not all(isinstance(answer, str) for answer in targets):
        raise DataError(f"{where}: neither target nor target_scores")
    return [], [answer.strip() for answer in targets]


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError("pyarrow", "train") from None
    text, texts = pa.string(), pa.list_(pa.string())
    types = {"id": text, "input": text, "output": text, "choices": texts, "references": texts, "split": text}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=pa.schema(types)), buffer, compression="zstd")
    return buffer.getvalue()


def _entry(spec: TaskSpec, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "family": spec.family,
        "kind": spec.kind,
        "metric": spec.metric,
        "instruction": spec.instruction,
        "source": f"BIG-bench {spec.source.bigbench}",
        "train": sum(row["split"] == "train" for row in rows),
        "test": sum(row["split"] == "test" for row in rows),
        "labels": list(spec.verbaliser) or None,
    }
