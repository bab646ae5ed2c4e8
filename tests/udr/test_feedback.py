"""LM feedback: normalised over the options, sorted for sharing, and the rules for options of different length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.errors import DataError, PromptTooLong
from udr.fakes import FakeLM
from udr.prompt import render
from udr.scoring.cache import CachedScorer, ScoreCache
from udr.scoring.feedback import Shortcut, choose_options, normalise, score_pairs
from udr.tasks.spec import Normalisation, TaskSpec, Template
from udr.types import Demonstration, LogLikelihoods, Query

HOWS: list[Normalisation] = ["sum", "mean", "pmi"]


class Table:
    """A scorer of made-up numbers: one for each (context, continuation), tokens = words."""

    fingerprint = "table"
    context_length = 10**6

    def __init__(self, prompts_per_call: int = 64) -> None:
        self.prompts_per_call = prompts_per_call
        self.calls: list[list[tuple[str, str]]] = []
        self.tokens_computed = 0

    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int:
        return len(contexts)

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        return tuple(o.split()[0] for o in options)

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        asked = list(zip(contexts, continuations, strict=True))
        self.calls.append(asked)
        nats = np.array([plain_nats(*pair) for pair in asked], dtype=np.float32)
        return LogLikelihoods(nats, np.array([len(c.split()) for c in continuations], dtype=np.int64))


def plain_nats(context: str, continuation: str) -> float:
    seed = int.from_bytes(f"{context}|{continuation}".encode()[-200:], "little")
    return float(np.float32(-np.random.default_rng(seed % 2**32).exponential(3) - 0.1))


def classification(how: Normalisation) -> TaskSpec:
    return TaskSpec(
        name="t",
        family="f",
        kind="classification",
        metric="accuracy",
        template=Template(answer="It is %s ."),
        verbaliser={"0": "not grammatical at all", "1": "grammatical"},
        normalisation=how,
    )


def choice(how: Normalisation) -> TaskSpec:
    return TaskSpec(name="t", family="f", kind="multichoice", metric="accuracy", normalisation=how)


ROWS = [
    Demonstration("1", "a b", "0", ("0", "1")),
    Demonstration("2", "c d e", "1", ("1", "0")),
    Demonstration("3", "f", "1", ("0", "1", "one more choice")),
]


def plain_scores(spec: TaskSpec, context: str, query: Query) -> list[float]:
    scores = []
    for option in spec.options(query.choices):
        nats, tokens = plain_nats(context, option), len(option.split())
        if spec.normalisation == "mean":
            nats /= tokens
        elif spec.normalisation == "pmi":
            nats -= plain_nats(spec.template.answer_prefix, option)
        scores.append(nats)
    return scores


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("make", [classification, choice])
def test_scores_are_the_gold_options_share_of_all_options(make: object, how: Normalisation) -> None:
    spec: TaskSpec = make(how)  # type: ignore[operator]
    pairs = [(z, x) for z in ROWS for x in ROWS if z is not x]
    found = score_pairs(spec, Table(), pairs)
    for (z, x), score in zip(pairs, found, strict=True):
        values = plain_scores(spec, render(spec, [z], x.query), x.query)
        gold = spec.options(x.choices).index(spec.verbalise(x.output))
        assert score == pytest.approx(values[gold] - math.log(sum(map(math.exp, values))), abs=1e-6)
        assert score < 0


@pytest.mark.parametrize("how", HOWS)
def test_shares_of_all_options_sum_to_one(how: Normalisation) -> None:
    spec = classification(how)
    pairs = [(ROWS[0], Demonstration("9", "the query", label)) for label in spec.verbaliser]
    for scorer in (Table(), FakeLM()):
        assert np.exp(score_pairs(spec, scorer, pairs)).sum() == pytest.approx(1, abs=1e-6)


def test_shares_stay_finite_when_an_option_is_hopeless() -> None:
    class Certain(Table):
        def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
            nats = np.array([-1e6 if "not" in c else -2000.0 for c in continuations], dtype=np.float32)
            return LogLikelihoods(nats, np.ones(len(continuations), dtype=np.int64))

    scores = score_pairs(classification("sum"), Certain(), [(ROWS[1], ROWS[0]), (ROWS[0], ROWS[1])])
    assert scores[0] == pytest.approx(2000 - 1e6)
    assert scores[1] == 0


def test_generation_is_scored_by_the_whole_log_probability_of_the_output(copying: TaskSpec) -> None:
    pairs = [(ROWS[0], ROWS[1]), (ROWS[2], Demonstration("q", "x", "three words here"))]
    expected = [plain_nats("a b\t0\nc d e\t", "1"), plain_nats("f\t1\nx\t", "three words here")]
    assert score_pairs(copying, Table(), pairs) == pytest.approx(expected)


def test_the_released_codes_variant_is_the_mean_log_probability_of_the_gold_alone(copying: TaskSpec) -> None:
    spec = classification("sum")
    pairs = [(ROWS[1], ROWS[0])]
    table = Table()
    expected = plain_nats(render(spec, [ROWS[1]], ROWS[0].query), "not grammatical at all") / 4
    assert score_pairs(spec, table, pairs, gold_only=True) == pytest.approx([expected])
    assert len(table.calls[0]) == 1
    generated = [(ROWS[0], Demonstration("q", "x", "three words here"))]
    expected = plain_nats("a b\t0\nx\t", "three words here") / 3
    assert score_pairs(copying, Table(), generated, gold_only=True) == pytest.approx([expected])


@given(st.permutations([(z, x) for z in ROWS for x in ROWS]), st.integers(1, 5))
def test_pairs_are_visited_by_demonstration_in_chunks_and_answered_in_place(
    pairs: list[tuple[Demonstration, Demonstration]], size: int
) -> None:
    spec, table = classification("mean"), Table(prompts_per_call=size)
    told: list[tuple[int, int]] = []
    found = score_pairs(spec, table, pairs, lambda done, of: told.append((done, of)))
    asked = [context for call in table.calls for context, _ in call][::2]
    assert asked == [render(spec, [z], x.query) for z, x in sorted(pairs, key=lambda p: (p[0].id, p[1].id))]
    assert all(len(call) <= 2 * size for call in table.calls)
    assert told == [(0, 9), *((min(n + size, 9), 9) for n in range(0, 9, size))]
    assert found.tolist() == [score_pairs(spec, Table(), [pair])[0] for pair in pairs]


@pytest.mark.parametrize("how", HOWS)
def test_the_first_token_shortcut_is_the_share_among_the_options_beginnings(how: Normalisation) -> None:
    spec, table = classification(how), Table()
    pairs = [(z, x) for z in ROWS for x in ROWS if z is not x]
    found = score_pairs(spec, table, pairs, shortcut="first_token")
    assert {continuation for call in table.calls for _, continuation in call} == {"not", "grammatical"}
    short = spec.model_copy(update={"verbaliser": {"0": "not", "1": "grammatical"}})
    expected = []
    for z, x in pairs:
        values = plain_scores(short, render(spec, [z], x.query), x.query)
        gold = ["0", "1"].index(x.output)
        expected.append(values[gold] - math.log(sum(map(math.exp, values))))
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("how", HOWS)
@given(order=st.permutations([(z, x) for z in ROWS for x in ROWS]), size=st.integers(1, 9))
def test_halving_asks_the_better_half_in_full_and_keeps_the_order_of_the_rest_below(
    how: Normalisation, order: list[tuple[Demonstration, Demonstration]], size: int
) -> None:
    spec, table, pairs = choice(how), Table(), order[:size]
    told: list[tuple[int, int]] = []
    found = score_pairs(spec, table, pairs, lambda *now: told.append(now), shortcut="halving")
    exact = score_pairs(spec, Table(), pairs)
    gold = [plain_nats(render(spec, [z], x.query), x.output) for z, x in pairs]
    asked = 0
    for query in {x.id for _, x in pairs}:
        own = sorted((i for i, (_, x) in enumerate(pairs) if x.id == query), key=lambda i: (-gold[i], pairs[i][0].id))
        kept, dropped = own[: (len(own) + 1) // 2], own[(len(own) + 1) // 2 :]
        asked += len(kept)
        assert found[kept] == pytest.approx(exact[kept])
        scores = [found[i] for i in dropped]
        assert scores == sorted(scores, reverse=True)
        assert all(score <= found[kept].min() for score in scores)
    assert told[0] == (0, size + asked)
    assert told[-1] == (size + asked, size + asked)


@pytest.mark.parametrize("shortcut", ["first_token", "halving"])
def test_shortcuts_are_of_options_and_leave_generation_alone(copying: TaskSpec, shortcut: Shortcut) -> None:
    pairs = [(z, x) for z in ROWS for x in ROWS]
    np.testing.assert_array_equal(
        score_pairs(copying, Table(), pairs, shortcut=shortcut), score_pairs(copying, Table(), pairs)
    )


@pytest.mark.parametrize("how", HOWS)
def test_the_option_of_the_highest_score_is_chosen(how: Normalisation) -> None:
    spec = choice(how)
    queries = [row.query for row in ROWS] * 30
    contexts = [f"{i}\t" for i in range(len(queries))]
    expected = [int(np.argmax(plain_scores(spec, c, q))) for c, q in zip(contexts, queries, strict=True)]
    told: list[tuple[int, int]] = []
    assert choose_options(spec, Table(), contexts, queries, lambda *now: told.append(now)) == expected
    assert len(set(expected)) == 3
    assert told == [(0, 90), (64, 90), (90, 90)]


def test_mean_and_pmi_do_not_punish_an_option_for_its_length() -> None:
    found = LogLikelihoods(np.array([-3.0, -8.0], dtype=np.float32), np.array([1, 4]))
    prior = LogLikelihoods(np.array([-2.0, -9.0], dtype=np.float32), np.array([1, 4]))
    assert normalise(found, "sum").tolist() == [-3, -8]
    assert normalise(found, "mean").tolist() == [-3, -2]
    assert normalise(found, "pmi", prior).tolist() == [-1, 1]
    assert normalise(found, "mean").dtype == np.float64


def test_pmi_needs_a_prior() -> None:
    with pytest.raises(DataError, match="pmi normalisation needs the options' prior"):
        normalise(LogLikelihoods(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.int64)), "pmi")


def test_the_prior_of_each_option_is_asked_once_a_call() -> None:
    table = Table()
    score_pairs(classification("pmi"), table, [(z, x) for z in ROWS for x in ROWS])
    assert [len(call) for call in table.calls] == [18, 2]
    assert {context for context, _ in table.calls[1]} == {"It is "}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("make", [classification, choice])
def test_a_pair_too_long_for_the_lm_is_named(make: object, cached: bool, tmp_path: Path) -> None:
    spec: TaskSpec = make("sum")  # type: ignore[operator]
    long = Demonstration("long", "word " * 50, "1", ("0", "1"))
    pairs = [(z, x) for z in (*ROWS, long) for x in ROWS[:2]]
    lm = FakeLM(context_length=60)
    cache = ScoreCache(tmp_path / "scores.sqlite")
    scorer = CachedScorer(lm, cache) if cached else lm
    score_pairs(spec, scorer, [pair for pair in pairs if pair[0] is not long])
    with pytest.raises(
        PromptTooLong, match=r"task t: demonstration long with query 1: \d+ \+ \d+ tokens, the LM reads"
    ):
        score_pairs(spec, scorer, pairs)
    cache.close()


def test_no_pairs_and_no_contexts_ask_nothing() -> None:
    table = Table()
    assert score_pairs(classification("mean"), table, []).shape == (0,)
    assert choose_options(classification("mean"), table, [], []) == []
    assert table.calls == []
