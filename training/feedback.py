"""A mining round on what came of prompts: `udr train --feedback`, after the rounds on the pools.

::

    OUT/round-N/feedback.json            which outcomes the round learns from (N goes on from mining.rounds)
    OUT/round-N/TASK.feedback.jsonl      queries whose right output is known now
    OUT/round-N/TASK.proposed.jsonl      their candidates, and TASK.scored.jsonl with the LM's scores
    OUT/round-N/TASK.outcomes.jsonl      lists of the other queries, ranked by how prompts went
    OUT/round-N/encoder/                 the bi-encoder after this round
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from training.meter import Meter
from training.run import (
    FEEDBACK,
    Run,
    encoder_folder,
    final_round,
    fit_and_save,
    ranked_tasks,
    rounds_of,
    trained_encoder,
)
from udr.artifacts import read_json, write_json
from udr.candidates import read_candidates, with_ranks, write_candidates
from udr.data import TaskData, write_demonstrations
from udr.encoder import BiEncoder, load_encoder
from udr.errors import ConfigError, UnknownNameError
from udr.mining import choose_queries, drop_long, propose_dense, sample, score_lists
from udr.outcomes import RecordedOutcome, learnt_queries, read_outcomes, signals
from udr.train import RankedTask
from udr.types import Candidate, CandidateList, Demonstration

__all__ = ["train_on_feedback"]


@dataclass(frozen=True)
class TaskFeedback:
    """What one task's outcomes give to a round.

    Args:
        data: the task as the run knows it.
        outcomes: all of the export.
    """

    data: TaskData
    outcomes: Sequence[RecordedOutcome]

    @cached_property
    def queries(self) -> list[Demonstration]:
        """Whose right output is known, and whose input the pool does not hold with its output already."""
        known = {d.query.content_hash for d in self.data.train}
        return [d for d in learnt_queries(self.data.spec, self.outcomes) if d.query.content_hash not in known]

    @cached_property
    def corrections(self) -> list[Demonstration]:
        """Those of the queries that the service's pool holds too."""
        accepted = {one.solved("").id for one in self.outcomes if one.state == "accepted"}
        return [d for d in self.queries if d.id in accepted]

    @cached_property
    def told(self) -> list[RecordedOutcome]:
        """Outcomes that tell how well demonstrations did."""
        return [one for one in self.outcomes if one.quality is not None and one.outcome.shown]

    @cached_property
    def unknown(self) -> list[RecordedOutcome]:
        """Those of them whose right output is not known."""
        known = {d.query.content_hash for d in (*self.queries, *self.data.train)}
        return [one for one in self.told if one.query.content_hash not in known]

    @cached_property
    def by_id(self) -> dict[str, Demonstration]:
        """The pool, the new queries, and those of which no output is known."""
        asked = [Demonstration(one.query.id, one.outcome.input, "", one.outcome.choices) for one in self.unknown]
        return {d.id: d for d in (*self.data.train, *self.queries, *asked)}


def train_on_feedback(run: Run, files: Mapping[str, Path]) -> list[str]:
    """Mine and train one more round on exported outcomes of some tasks; tell in a line each what was learnt from.

    Queries whose right output came to be known are mined as those of the pool are: the encoder proposes, the LM scores.
    The others are ranked by `udr.outcomes.signals`. Training goes on from the last round's encoder, over these lists
    and those of the last round on the pools, so that no task is forgotten. The same outcomes are not learnt twice.

    Raises:
        UnknownNameError: a task that the run does not train.
        ConfigError: an unfinished round was begun with other outcomes, or the run trains one encoder a task.
        ArtifactError: the rounds on the pools are not finished.
        DataError: a file that is no export.
    """
    if not run.config.train.multi_task:
        raise ConfigError("train.multi_task: --feedback goes on from the encoder that all tasks share")
    given = {}
    for name, path in files.items():
        if name not in run.tasks:
            raise UnknownNameError("task of this run", name, run.tasks)
        given[name] = TaskFeedback(run.tasks[name], read_outcomes(path))
    last = final_round(run)
    trained = trained_encoder(run, last, "")
    stamp = {name: _digest(own.outcomes) for name, own in given.items()}
    if last > run.config.mining.rounds and read_json(run.round_folder(last) / FEEDBACK) == stamp:
        return [f"round {last} has learnt from these outcomes already"]
    number = last + 1
    marked = run.round_folder(number) / FEEDBACK
    if not marked.is_file() and any(marked.parent.glob("*.jsonl")):
        raise ConfigError(f"{marked.parent}: begun by another command than --feedback; delete it")
    if marked.is_file() and read_json(marked) != stamp:
        raise ConfigError(f"{marked}: round {number} was begun with other outcomes; finish it with those or delete it")
    encoder = load_encoder(trained)
    lines = []
    for name, own in given.items():
        if not (own.queries or own.unknown):
            lines.append(f"{name}: {len(own.outcomes)} outcomes, nothing to learn from")
            continue
        write_json(marked, stamp)
        _mine(run, number, name, own, encoder)
        lines.append(_summary(run, number, name, own))
    if not marked.is_file():
        return lines
    lists = [_with_feedback(run, number, task, given.get(task.spec.name)) for task in _replayed(run)]
    folder = encoder_folder(run, number, "")
    title = f"round {number}: training with feedback"
    fit_and_save(run, encoder, lists, folder, run.config.train.round_epochs, "udr", number, title)
    return lines


def _digest(outcomes: Sequence[RecordedOutcome]) -> str:
    return hashlib.blake2b(repr([tuple(one) for one in outcomes]).encode(), digest_size=8).hexdigest()


def _mine(run: Run, number: int, name: str, own: TaskFeedback, encoder: BiEncoder) -> None:
    """Write the lists of one task's round, where they do not stand yet."""
    folder, mining = run.round_folder(number), run.config.mining
    proposed, scored, told = (folder / f"{name}.{part}.jsonl" for part in ("proposed", "scored", "outcomes"))
    spec, pool = own.data.spec, [*own.data.train, *own.corrections]
    if own.queries and not proposed.is_file():
        write_demonstrations(folder / f"{name}.feedback.jsonl", own.queries)
        fitting = choose_queries(
            drop_long(spec, pool, run.lm, mining.max_tokens), mining.pool, run.config.seed + number
        )
        queries = drop_long(spec, own.queries, run.lm, mining.max_tokens)
        lists = propose_dense(spec, fitting, queries, mining.candidates, encoder)
        balanced = mining.balanced and spec.kind == "classification"
        outputs = {d.id: d.output for d in fitting} if balanced else None
        write_candidates(proposed, sample(lists, mining.scored, run.config.seed + number, outputs))
    if own.queries and not scored.is_file():
        meter = Meter(run.scorer)
        progress = meter.counting(run.report(f"round {number}: LM scores of {name}'s feedback", meter.note))
        data = TaskData(spec, tuple(own.by_id.values()), ())
        lists = read_candidates(proposed)
        write_candidates(scored, score_lists(data, lists, run.scorer, progress, mining.gold_only, mining.shortcut))
    if own.unknown and not told.is_file():
        write_candidates(told, _lists_by_outcome(name, own, encoder))


def _lists_by_outcome(name: str, own: TaskFeedback, encoder: BiEncoder) -> list[CandidateList]:
    """All outcomes speak, those of known queries too: without them there would be failures alone to compare."""
    vectors = encoder.encode_queries([one.query for one in own.told], own.data.spec.retrieval_instruction)
    unknown, lists = {one.id for one in own.unknown}, []
    for one, values in zip(own.told, signals(vectors, own.told), strict=True):
        if one.id not in unknown:
            continue
        found = [Candidate(i, 0.0, value) for i, value in values if i in own.by_id]
        lists.append(CandidateList(name, one.query.id, with_ranks(found)))
    return [one for one in lists if len(one.candidates) > 1]


def _replayed(run: Run) -> list[RankedTask]:
    rounds = run.config.mining.rounds
    return ranked_tasks(run, list(run.tasks), rounds_of(run, rounds))


def _with_feedback(run: Run, number: int, task: RankedTask, own: TaskFeedback | None) -> RankedTask:
    if own is None:
        return task
    paths = [run.round_folder(number) / f"{task.spec.name}.{part}.jsonl" for part in ("scored", "outcomes")]
    added = [one for path in paths if path.is_file() for one in read_candidates(path)]
    return replace(task, by_id=own.by_id, lists=[*task.lists, *added])


def _summary(run: Run, number: int, name: str, own: TaskFeedback) -> str:
    path = run.round_folder(number) / f"{name}.outcomes.jsonl"
    lists = len(read_candidates(path)) if path.is_file() else 0
    waiting = sum(one.state == "waiting" for one in own.outcomes)
    told = f"{name}: {len(own.outcomes)} outcomes, {len(own.queries)} queries with known outputs "
    told += f"({len(own.corrections)} of them corrections), {lists} ranked by how prompts went"
    return told + (f"; {waiting} corrections wait for a reviewer and teach nothing yet" if waiting else "")
