"""What came of prompts, as the service records and exports it, and what a retriever can learn from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from udr.data import read_rows
from udr.errors import DataError
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, Query

__all__ = ["STATES", "Outcome", "RecordedOutcome", "State", "learnt_queries", "read_outcomes", "signals"]

State = Literal["recorded", "waiting", "accepted", "rejected"]
STATES: tuple[State, ...] = get_args(State)
NEIGHBOURS = 16  # outcomes of the queries most alike that speak of a demonstration
PRIOR = 2.0  # outcomes that the mean of the neighbours counts for, beside a demonstration's own
CELLS = 1 << 23  # similarities at a time


class Outcome(NamedTuple):
    """What came of one prompt.

    Args:
        input: of the query.
        choices: of the query, where it had some.
        shown: ids of the demonstrations in the prompt.
        output: what the LM answered.
        score: from 0, wrong, to 1, right.
        corrected: what it should have answered.
    """

    input: str
    choices: tuple[str, ...]
    shown: tuple[str, ...]
    output: str | None
    score: float | None
    corrected: str | None


class RecordedOutcome(NamedTuple):
    """An outcome under its number: `recorded`, or with a correction `waiting` until it is accepted or rejected."""

    id: int
    state: State
    outcome: Outcome

    @property
    def query(self) -> Query:
        """What was asked."""
        return Query(f"outcome-{self.id}", self.outcome.input, self.outcome.choices)

    def solved(self, output: str) -> Demonstration:
        """What was asked with its right answer, under the id that the service gives to an accepted correction."""
        return Demonstration(f"feedback-{self.id}", self.outcome.input, output, self.outcome.choices)

    @property
    def quality(self) -> float | None:
        """How right the answer was, from 0 to 1; one that a reviewer agreed to correct was wrong.

        None: not told, or told beside a correction to which no reviewer has agreed.
        """
        if self.state == "accepted":
            return 0.0
        return self.outcome.score if self.state == "recorded" else None


def read_outcomes(path: Path) -> list[RecordedOutcome]:
    """Read what the service exports as NDJSON, in the order it came.

    Raises:
        DataError: no such file, or a line that is no outcome (file:line).
    """
    return [_outcome(row, f"{path}:{line}") for line, row in read_rows(path)]


def _outcome(row: dict[str, object], where: str) -> RecordedOutcome:
    number, state, score = row.get("id"), row.get("state"), row.get("score")
    if not isinstance(number, int) or state not in STATES:
        raise DataError(f"{where}: no outcome of the service's export (it has an `id` and a `state`)")
    if score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
        raise DataError(f"{where}: score must be from 0 to 1, not {score!r}")
    texts = {name: row.get(name) for name in ("input", "output", "corrected_output")}
    lists = {name: row.get(name, []) for name in ("choices", "demonstrations")}
    for name, text in texts.items():
        if not (isinstance(text, str) or (text is None and name != "input")):
            raise DataError(f"{where}: {name} must be text")
    for name, texts_of in lists.items():
        if not isinstance(texts_of, list) or not all(isinstance(text, str) for text in texts_of):
            raise DataError(f"{where}: {name} must be a list of texts")
    outcome = Outcome(
        texts["input"],  # type: ignore[arg-type]
        tuple(lists["choices"]),  # type: ignore[arg-type]
        tuple(lists["demonstrations"]),  # type: ignore[arg-type]
        texts["output"],  # type: ignore[arg-type]
        score,
        texts["corrected_output"],  # type: ignore[arg-type]
    )
    return RecordedOutcome(number, state, outcome)


def learnt_queries(spec: TaskSpec, outcomes: Sequence[RecordedOutcome]) -> list[Demonstration]:
    """The queries whose right output is known: accepted corrections, and answers that were wholly right.

    Each input once: a reviewed correction before an answer that was called right, of equals the latest. An answer that
    the task cannot have is left out.
    """
    known: dict[str, tuple[bool, Demonstration]] = {}
    for one in outcomes:
        o, reviewed = one.outcome, one.state == "accepted" and one.outcome.corrected is not None
        right = o.corrected if reviewed else o.output if o.score == 1 and o.corrected is None else None
        output = None if right is None else as_output(spec, right, o.choices)
        if output is not None:
            found = one.solved(output)
            before = known.get(found.query.content_hash)
            if before is None or reviewed or not before[0]:
                known[found.query.content_hash] = reviewed, found
    return [found for _, found in known.values()]


def as_output(spec: TaskSpec, answer: str, choices: tuple[str, ...]) -> str | None:
    """An LM's answer as an output of the task: a label for its word, a choice, or the text; None where it is none."""
    answer = answer.strip()
    if spec.kind == "generation":
        return answer or None
    if spec.kind == "multichoice":
        return answer if answer in choices else None
    words = {word.strip().casefold(): label for label, word in spec.verbaliser.items()}
    return answer if answer in spec.verbaliser else words.get(answer.casefold())


def signals(vectors: FloatArray, outcomes: Sequence[RecordedOutcome]) -> Iterator[list[tuple[str, float]]]:
    """For each query, demonstrations and how well prompts with them went: stand-ins for LM scores, best first.

    One outcome says nothing of its demonstrations apart, for they were shown together. But over the `NEIGHBOURS` most
    similar queries some demonstrations were in the prompts that went well and others in those that did not:

        v(z) = (Σ_{i: z shown} s_i + m · b) / (n_z + m),   b = (Σ_i s_i + m · mean(s)) / (n + m)

    with n_z the neighbours that saw z and m = `PRIOR`, so that a single outcome, perhaps a wrong one, moves little. Of
    demonstrations with equal values the one shown nearest is kept: an order among them would be noise.

    Args:
        vectors: of the queries, of one length (n, d).
        outcomes: n, each with a quality.
    """
    quality = np.array([one.quality for one in outcomes], float)
    shown = [one.outcome.shown for one in outcomes]
    everywhere, count = float(quality.mean()) if len(quality) else 0.0, min(NEIGHBOURS, len(outcomes))
    step = max(1, CELLS // max(1, len(outcomes)))
    for start in range(0, len(outcomes), step):
        likeness = vectors[start : start + step] @ vectors.T
        for own in np.argsort(-likeness, axis=1, kind="stable")[:, :count]:
            base = (quality[own].sum() + PRIOR * everywhere) / (count + PRIOR)
            told: dict[str, list[float]] = {}
            for i in own:  # the nearest first
                for name in shown[i]:
                    told.setdefault(name, []).append(quality[i])
            values: dict[float, str] = {}
            for name, qualities in told.items():
                values.setdefault(round(float((sum(qualities) + PRIOR * base) / (len(qualities) + PRIOR)), 9), name)
            yield [(values[value], value) for value in sorted(values, reverse=True)]
