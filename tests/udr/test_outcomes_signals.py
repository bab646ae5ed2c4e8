"""What is learnt from exported outcomes: queries whose right output is known, and signals of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from udr.errors import DataError
from udr.outcomes import NEIGHBOURS, PRIOR, Outcome, RecordedOutcome, State, learnt_queries, read_outcomes, signals
from udr.tasks.spec import TaskSpec

MOOD = TaskSpec(
    name="mood", family="f", kind="classification", metric="accuracy", verbaliser={"up": "Bright", "down": "Bleak"}
)
CHOICE = TaskSpec(name="choice", family="f", kind="multichoice", metric="accuracy")
TEXT = TaskSpec(name="text", family="f", kind="generation", metric="exact_match")


def recorded(
    number: int,
    text: str,
    output: str | None = None,
    score: float | None = None,
    corrected: str | None = None,
    state: State = "recorded",
    choices: tuple[str, ...] = (),
    shown: tuple[str, ...] = (),
) -> RecordedOutcome:
    return RecordedOutcome(number, state, Outcome(text, choices, shown, output, score, corrected))


def test_a_query_is_learnt_from_an_accepted_correction_or_a_right_answer_alone() -> None:
    outcomes = [
        recorded(1, "a", "Bright", 1.0),
        recorded(2, "b", "Bleak", 0.0),
        recorded(3, "c", "Bright", 0.9),
        recorded(4, "d", "Bright", corrected="down", state="waiting"),
        recorded(5, "e", "Bright", corrected="down", state="accepted"),
        recorded(6, "f", "Bright", corrected="down", state="rejected"),
        recorded(7, "g", " bleak ", 1.0),
        recorded(8, "h", "purple", 1.0),
        recorded(9, "i", None, 1.0),
    ]
    found = {d.id: (d.input, d.output) for d in learnt_queries(MOOD, outcomes)}
    assert found == {"feedback-1": ("a", "up"), "feedback-5": ("e", "down"), "feedback-7": ("g", "down")}


def test_of_one_input_the_reviewed_output_wins_and_then_the_latest() -> None:
    accepted = recorded(2, "a", "Bleak", corrected="up", state="accepted")
    rest = [recorded(1, "a", "Bleak", 1.0), recorded(3, "a", "Bleak", 1.0)]
    assert [d.output for d in learnt_queries(MOOD, [rest[0], accepted, rest[1]])] == ["up"]
    later = recorded(4, "a", "Bleak", corrected="down", state="accepted")
    assert [d.output for d in learnt_queries(MOOD, [accepted, later])] == ["down"]
    assert [d.id for d in learnt_queries(MOOD, rest)] == ["feedback-3"]


def test_outputs_are_choices_or_texts_where_there_are_no_labels() -> None:
    outcomes = [recorded(1, "a", "tea", 1.0, choices=("tea", "milk")), recorded(2, "b", "ale", 1.0, choices=("tea",))]
    assert [d.id for d in learnt_queries(CHOICE, outcomes)] == ["feedback-1"]
    assert [d.output for d in learnt_queries(TEXT, [recorded(1, "a", " went\n", 1.0), recorded(2, "b", " ", 1.0)])] == [
        "went"
    ]


def test_an_answer_that_is_corrected_was_wrong_if_a_reviewer_agreed_and_is_not_judged_before() -> None:
    for score in (None, 0.0, 1.0):
        assert recorded(1, "a", "x", score, "y", "accepted").quality == 0.0
        assert recorded(1, "a", "x", score, "y", "rejected").quality is None
        assert recorded(1, "a", "x", score, "y", "waiting").quality is None
        assert recorded(1, "a", "x", score).quality == score


def test_signals_are_the_formula_in_plain_loops() -> None:
    rng = np.random.default_rng(0)
    count = NEIGHBOURS + 9
    vectors = rng.normal(size=(count, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"z{i}" for i in range(7)]
    outcomes = [
        recorded(i, f"q{i}", score=float(rng.integers(0, 5)) / 4, shown=tuple(rng.choice(names, 3, replace=False)))
        for i in range(count)
    ]
    everywhere = sum(one.outcome.score or 0 for one in outcomes) / count
    for i, found in enumerate(signals(vectors, outcomes)):
        near = sorted(range(count), key=lambda j: -float(vectors[i] @ vectors[j]))[:NEIGHBOURS]
        base = (sum(outcomes[j].outcome.score or 0 for j in near) + PRIOR * everywhere) / (NEIGHBOURS + PRIOR)
        expected: dict[str, float] = {}
        for name in names:
            own = [outcomes[j].outcome.score or 0 for j in near if name in outcomes[j].outcome.shown]
            if own:
                expected[name] = (sum(own) + PRIOR * base) / (len(own) + PRIOR)
        assert found
        assert [value for _, value in found] == sorted({round(v, 9) for v in expected.values()}, reverse=True)
        assert all(expected[name] == pytest.approx(value) for name, value in found)


def test_a_demonstration_that_misleads_ends_behind_one_that_helps_even_if_a_fifth_of_the_outcomes_lie() -> None:
    rng = np.random.default_rng(1)
    outcomes = []
    for i in range(200):
        shown = ("good", "other") if i % 2 else ("bad", "other")
        right = (i % 2 == 1) != (rng.random() < 0.2)
        outcomes.append(recorded(i, f"q{i}", score=float(right), shown=shown))
    vectors = np.ones((200, 1), np.float32)
    led = [dict(found) for found in signals(vectors, outcomes)]
    assert all(one["good"] > one["bad"] for one in led)


def test_every_line_that_is_no_outcome_is_named(tmp_path: Path) -> None:
    good = {"id": 1, "state": "recorded", "input": "a", "demonstrations": ["x"], "output": "b", "score": 1}
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(good) + "\n")
    assert read_outcomes(path) == [recorded(1, "a", "b", 1.0, shown=("x",))]
    for change, words in (
        ({"id": "one"}, "`id`"),
        ({"state": "lost"}, "`state`"),
        ({"score": 2}, "score"),
        ({"input": None}, "input must be text"),
        ({"output": 3}, "output must be text"),
        ({"demonstrations": [1]}, "demonstrations must be a list"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
        with pytest.raises(DataError, match=words) as caught:
            read_outcomes(path)
        assert f"{path}:2" in str(caught.value)
