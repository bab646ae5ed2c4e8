"""The registry of tasks: bundled YAML files, manifests of a data folder, and specs inferred from a bare table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from udr.config import load_config
from udr.errors import DataError, UDRError, UnknownNameError
from udr.tasks.spec import Kind, Metric, Normalisation, Source, TaskSpec, Template
from udr.types import Demonstration

__all__ = [
    "Kind",
    "Metric",
    "Normalisation",
    "Source",
    "TaskSpec",
    "Template",
    "check_specs",
    "infer_spec",
    "known_tasks",
    "load_spec",
    "read_manifest",
]

SPECS = Path(__file__).parent / "specs"
MANIFEST = "manifest.json"
CUSTOM = "custom"  # the family of a task that names none

MAX_LABELS = 50  # a table with more distinct outputs is not a classification task
MIN_ROWS_PER_LABEL = 5  # on average
MAX_LABEL_LENGTH = 40  # characters
MAX_EXACT_WORDS = 5  # median output up to here is compared exactly, longer ones by ROUGE-L


def known_tasks() -> dict[str, Path]:
    """Map the name of each bundled task to its YAML file."""
    return {path.stem: path for path in sorted(SPECS.glob("*.yaml"))}


def load_spec(name_or_path: str, data_dir: Path | None = None) -> TaskSpec:
    """Find a task: a .yaml file, a bundled name, or an entry of `data_dir/manifest.json`, in this order.

    Raises:
        UnknownNameError: none of them; lists the near names of both registries.
        ConfigError: the YAML file or the manifest entry does not describe a task.
        DataError: the manifest cannot be read.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return load_config(TaskSpec, Path(name_or_path))
    bundled = known_tasks()
    if name_or_path in bundled:
        return load_config(TaskSpec, bundled[name_or_path])
    manifest = read_manifest(data_dir) if data_dir is not None else {}
    if name_or_path in manifest:
        return _spec_of_entry(manifest[name_or_path], f"{data_dir}/{MANIFEST}: {name_or_path}")
    raise UnknownNameError("task", name_or_path, {*bundled, *manifest})


def read_manifest(data_dir: Path) -> dict[str, dict[str, Any]]:
    """Read the entries of `data_dir/manifest.json` by task name; none where there is no such file.

    Raises:
        DataError: not JSON, or not a list of entries with a `name`.
    """
    path = data_dir / MANIFEST
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder of data")
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON manifest ({error})") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of tasks")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DataError(f"{path}: entry {number}: expected an object with a `name`")
    return {entry["name"]: entry for entry in entries}


def _spec_of_entry(entry: Mapping[str, Any], where: str) -> TaskSpec:
    """Build a spec from a manifest entry; sizes and other keys that are no settings of a task are passed over."""
    labels = entry.get("labels") or entry.get("options") or []
    kind = entry.get("kind") or ("classification" if labels else "generation")
    values: dict[str, Any] = {
        "name": entry["name"],
        "family": entry.get("family") or CUSTOM,
        "kind": kind,
        "metric": entry.get("metric") or ("rouge_l" if kind == "generation" else "accuracy"),
        "instruction": entry.get("instruction") or "",
    }
    if kind == "classification" and isinstance(labels, list):
        values["verbaliser"] = {str(label): str(label) for label in labels}
    for key in ("template", "verbaliser", "normalisation", "max_new_tokens", "train_cap"):
        if entry.get(key):
            values[key] = entry[key]
    return TaskSpec.parse(values, where)


def infer_spec(
    name: str,
    demonstrations: Sequence[Demonstration],
    kind: Kind | None = None,
    metric: Metric | None = None,
    instruction: str = "",
) -> TaskSpec:
    """Guess what a bare table of inputs and outputs asks for.

    Rows that all list choices make a multiple-choice task; 2 to 50 distinct short outputs that repeat (5 rows each
    on average) make a classification task with the outputs as labels; anything else is generation, compared exactly
    when the median output has at most 5 words and by ROUGE-L otherwise. `kind` and `metric` overrule the guess.

    Raises:
        DataError: no rows.
        ConfigError: the table does not fit the `kind` asked for, or the name is not one a task may have.
    """
    if not demonstrations:
        raise DataError(f"task {name}: no rows to infer the task from")
    kind = kind or _infer_kind(demonstrations)
    labels = sorted({d.output for d in demonstrations}) if kind == "classification" else []
    values = {
        "name": name,
        "family": CUSTOM,
        "kind": kind,
        "metric": metric or ("accuracy" if kind != "generation" else _infer_metric(demonstrations)),
        "instruction": instruction,
        "verbaliser": {label: label for label in labels},
    }
    return TaskSpec.parse(values, f"task {name}")


def _infer_kind(demonstrations: Sequence[Demonstration]) -> Kind:
    if all(d.choices for d in demonstrations):
        return "multichoice"
    counts = Counter(d.output for d in demonstrations)
    few = 2 <= len(counts) <= MAX_LABELS
    repeated = len(demonstrations) >= MIN_ROWS_PER_LABEL * len(counts)
    short = all(len(output) <= MAX_LABEL_LENGTH for output in counts)
    return "classification" if few and repeated and short else "generation"


def _infer_metric(demonstrations: Sequence[Demonstration]) -> Metric:
    words = median(len(d.output.split()) for d in demonstrations)
    return "exact_match" if words <= MAX_EXACT_WORDS else "rouge_l"


def check_specs() -> list[str]:
    """List what is wrong with the bundled YAML files; lines that begin with `warning:` are not errors.

    A hub revision that is a branch and not a commit is a warning: the rows may change under the results.
    """
    problems: list[str] = []
    for stem, path in known_tasks().items():
        try:
            spec = load_config(TaskSpec, path)
        except UDRError as error:
            problems.append(str(error))
            continue
        problems += [f"{path.name}: {problem}" for problem in _check_source(spec.source)]
        if spec.name != stem:
            problems.append(f"{path.name}: name {spec.name!r} differs from the file's")
        if spec.source.hub and not _is_commit(spec.source.revision):
            problems.append(f"warning: {path.name}: {spec.source.hub} is not pinned (revision {spec.source.revision})")
    return problems


def _check_source(source: Source) -> list[str]:
    if bool(source.hub) == bool(source.bigbench):
        return ["source must name either hub or bigbench"]
    if not source.hub:
        return []
    problems = [f"source.columns lacks {column}" for column in ("input", "output") if column not in source.columns]
    return problems + [f"source.splits lacks {split}" for split in ("train", "test") if split not in source.splits]


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")
