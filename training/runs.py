"""What a run folder holds: how far each mining round is, what the LM's scores are like, losses, and the table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from training.pretrain_runs import PretrainState, find_pretrainings, read_pretraining
from training.settings import RunConfig
from udr.artifacts import read_json
from udr.candidates import read_candidates
from udr.config import load_config
from udr.errors import ArtifactError, UDRError, UDRWarning

__all__ = ["RoundState", "RunState", "Scores", "find_runs", "read_run", "read_runs"]

_BINS = 20  # of the histogram of a task's LM scores
_CURVE = 60  # points of a loss curve


@dataclass(frozen=True, slots=True)
class Scores:
    """The LM's scores of one task's candidates in one round.

    Args:
        lists: queries.
        pairs: candidates of all of them.
        quantiles: at 0, .25, .5, .75 and 1, in nats.
        counts: of the pairs, in equal steps from the least score to the greatest.
        spread: the mean over queries of the best candidate's score less the worst's, in nats: what there is to learn.
    """

    lists: int
    pairs: int
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]
    spread: float


@dataclass(frozen=True, slots=True)
class RoundState:
    """One mining round.

    Args:
        number: 0 is the lexical one.
        proposed: tasks whose candidates are there.
        scored: tasks whose candidates have LM scores, and those.
        steps: of training; 0: not trained yet.
        losses: running means at equal distances.
        training: True while a checkpoint stands for an encoder that is not finished.
    """

    number: int
    proposed: tuple[str, ...]
    scored: dict[str, Scores]
    steps: int
    losses: tuple[float, ...]
    training: bool


@dataclass(frozen=True, slots=True)
class RunState:
    """A run folder.

    Args:
        folder: where it is.
        settings: of the run.
        rounds: those that were begun.
        indexed: True when a retriever folder is there.
        tables: of evaluations, by the names of their files.
        plots: pictures, by what they show.
        changed: when a file was last written, in seconds since 1970.
    """

    folder: Path
    settings: RunConfig
    rounds: tuple[RoundState, ...]
    indexed: bool
    tables: dict[str, dict[str, Any]]
    plots: dict[str, Path]
    changed: float

    @property
    def stage(self) -> str:
        """How far it is, in a few words."""
        if "table" in self.tables:
            return "evaluated"
        if self.indexed:
            return "indexed"
        if not self.rounds:
            return "not begun"
        last, tasks = self.rounds[-1], len(self.settings.tasks)
        rounds = self.settings.mining.rounds
        of = f"round {last.number} of {rounds}" if last.number <= rounds else f"round {last.number}, on feedback"
        if last.steps:
            return f"{of}: trained"
        if last.training:
            return f"{of}: training"
        if last.scored:
            return f"{of}: {len(last.scored)} of {tasks} tasks scored"
        return f"{of}: {len(last.proposed)} of {tasks} tasks proposed"

    @property
    def summary(self) -> str:
        """How many tasks, how far, and the methods' averages, in a line."""
        averages = {m: rows["average"] for m, rows in self.tables.get("table", {"scores": {}})["scores"].items()}
        told = "  ".join(f"{m} {value:.1f}" for m, value in averages.items())
        return f"{len(self.settings.tasks)} tasks  {self.stage}  {told}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "folder": str(self.folder),
            "stage": self.stage,
            "changed": self.changed,
            "settings": self.settings.model_dump(mode="json"),
            "rounds": [asdict(r) for r in self.rounds],
            "tables": self.tables,
        }


def read_runs(folder: Path) -> list[RunState | PretrainState]:
    """Read this folder, or those in it, of runs and of pre-trainings; the last one changed first.

    One that is damaged is warned of and hides no other.

    Raises:
        ArtifactError: there is none, or only damaged ones.
    """
    found: list[RunState | PretrainState] = []
    damaged: list[UDRError] = []
    readers: list[tuple[Callable[[Path], RunState | PretrainState], list[Path]]] = [
        (read_run, find_runs(folder)),
        (read_pretraining, find_pretrainings(folder)),
    ]
    for read, paths in readers:
        for path in paths:
            try:
                found.append(read(path))
            except UDRError as error:
                damaged.append(error)
    if not found and damaged:
        raise damaged[0]
    if not found:
        raise ArtifactError(f"{folder}: no run folder, and none in it; udr run CONFIG out=FOLDER makes one")
    for problem in damaged:
        warn(f"left out: {problem}", UDRWarning, stacklevel=2)
    return sorted(found, key=lambda one: one.changed, reverse=True)


def find_runs(folder: Path) -> list[Path]:
    """Run folders: this one, or those in it, the last one changed first; perhaps none."""
    found = [path.parent for path in (folder / "config.yaml", *folder.glob("*/config.yaml")) if path.is_file()]
    return sorted((path for path in found if (path / "run.json").is_file()), key=_changed, reverse=True)


def read_run(folder: Path) -> RunState:
    """Read what a run folder holds; the run may be at work meanwhile.

    Raises:
        ArtifactError: no run folder, or damaged losses or tables.
        DataError: a damaged file of candidates.
    """
    if not (folder / "config.yaml").is_file():
        raise ArtifactError(f"{folder}: no run folder; udr run CONFIG out=FOLDER makes one")
    numbers = sorted(
        int(path.name.removeprefix("round-"))
        for path in folder.glob("round-*")
        if path.name.removeprefix("round-").isdecimal()
    )
    tables = {path.stem: read_json(path) for path in sorted((folder / "evaluation").glob("table*.json"))}
    plots = {f"evaluation: {path.stem}": path for path in sorted((folder / "evaluation").glob("table*.png"))}
    plots |= {
        f"round {number}: losses" + path.parent.name.removeprefix("encoder").replace("-", " of ", 1): path
        for number in numbers
        for path in sorted((folder / f"round-{number}").glob("encoder*/losses.png"))
    }
    return RunState(
        folder=folder,
        settings=load_config(RunConfig, folder / "config.yaml"),
        rounds=tuple(_round(folder / f"round-{number}", number) for number in numbers),
        indexed=(folder / "retriever" / "encoder" / "encoder.json").is_file(),
        tables=tables,
        plots=plots,
        changed=_changed(folder),
    )


def _round(folder: Path, number: int) -> RoundState:
    losses = [loss for path in sorted(folder.glob("encoder*/losses.json")) for loss in _losses(path)]
    return RoundState(
        number=number,
        proposed=tuple(_tasks(folder, "proposed")),
        scored={task: _scores(folder / f"{task}.scored.jsonl") for task in _tasks(folder, "scored")},
        steps=len(losses),
        losses=_curve(losses),
        training=any(folder.glob("encoder*.checkpoint")),
    )


def _losses(path: Path) -> list[float]:
    try:
        return [float(step["loss"]) for step in json.loads(path.read_bytes())]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactError(f"{path}: damaged (not a list of losses); remove it to see the rest") from None


def _tasks(folder: Path, stage: str) -> Iterator[str]:
    for path in sorted(folder.glob(f"*.{stage}.jsonl")):
        yield path.name.removesuffix(f".{stage}.jsonl")


def _scores(path: Path) -> Scores:
    own = [[c.lm_score for c in one.candidates if c.lm_score is not None] for one in read_candidates(path)]
    values = np.array([score for scores in own for score in scores if math.isfinite(score)])
    if not len(values):
        return Scores(len(own), 0, (), (), 0.0)
    counts, _ = np.histogram(values, bins=_BINS)
    quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    spread = float(np.mean([max(scores) - min(scores) for scores in own if scores]))
    return Scores(len(own), len(values), tuple(map(float, quantiles)), tuple(map(int, counts)), spread)


def _curve(losses: Sequence[float]) -> tuple[float, ...]:
    """Means of equal parts."""
    parts = np.array_split(np.array(losses), min(_CURVE, len(losses))) if losses else []
    return tuple(float(part.mean()) for part in parts)


def _changed(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)
