"""One mining round: what is proposed, what never is, and what the LM makes of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.bm25 import BM25
from udr.data import TaskData
from udr.draw import seeded
from udr.errors import DataError, UDRWarning
from udr.fakes import FakeEncoder, FakeLM
from udr.mining import choose_queries, drop_long, propose_bm25, propose_dense, sample, score_lists
from udr.prompt import for_encoder, render, render_demonstration
from udr.scoring.feedback import score_pairs
from udr.tasks.spec import TaskSpec
from udr.types import Candidate, CandidateList, Demonstration

WORDS = ["joy", "bore", "film", "plot", "bank"]
inputs = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
pools = st.lists(st.tuples(inputs, st.sampled_from("01")), min_size=1, max_size=12).map(
    lambda rows: [Demonstration(f"{i:02d}", x, y) for i, (x, y) in enumerate(rows)]
)


def plain_lists(pool: list[Demonstration], scores: np.ndarray, k: int) -> list[list[str]]:
    """Best first, ties by position; neither the query nor another row of its input."""
    return [
        [
            pool[j].id
            for j in sorted(range(len(pool)), key=lambda j: (-scores[i, j], j))
            if pool[j].id != query.id and pool[j].input != query.input
        ][:k]
        for i, query in enumerate(pool)
    ]


@given(pools, st.integers(1, 6))
def test_dense_candidates_are_the_most_similar_ones_without_the_query_and_its_copies(
    pool: list[Demonstration], k: int
) -> None:
    spec = TaskSpec(
        name="t", family="f", kind="classification", metric="accuracy", verbaliser={"0": "bad", "1": "good"}
    )
    encoder = FakeEncoder(16)
    queries = encoder.encode_queries([d.query for d in pool]).astype(np.float64)
    demonstrations = encoder.encode_demonstrations(for_encoder(spec, pool, encoder)).astype(np.float64)
    scores = (queries @ demonstrations.T).astype(np.float32)
    lists = propose_dense(spec, pool, pool, k, encoder)
    for one, query, row in zip(lists, pool, scores, strict=True):
        assert (one.task, one.query_id) == ("t", query.id)
        found = {d.id: (d, s) for d, s in zip(pool, row, strict=True)}
        assert all(found[c.demonstration_id][0].input != query.input for c in one.candidates)
        for candidate in one.candidates:
            assert candidate.retrieval_score == pytest.approx(float(found[candidate.demonstration_id][1]), abs=1e-6)
    assert [[c.demonstration_id for c in one.candidates] for one in lists] == plain_lists(pool, scores.round(5), k)


@given(pools, st.integers(1, 6))
def test_lexical_candidates_are_the_best_by_bm25_without_the_query_and_its_copies(
    pool: list[Demonstration], k: int
) -> None:
    spec = TaskSpec(
        name="t", family="f", kind="classification", metric="accuracy", verbaliser={"0": "bad", "1": "good"}
    )
    rows, scores = BM25(pool).search([d.input for d in pool], len(pool))
    table = np.zeros((len(pool), len(pool)))
    np.put_along_axis(table, rows, scores, axis=1)
    lists = propose_bm25(spec, pool, pool, k)
    assert [[c.demonstration_id for c in one.candidates] for one in lists] == plain_lists(pool, table, k)
    for one, query in zip(lists, pool, strict=True):
        names = [c.demonstration_id for c in one.candidates]
        assert len(set(names)) == len(names) <= k
        assert query.id not in names
        assert all(d.input != query.input for d in pool if d.id in names)


def test_queries_need_not_stand_in_the_pool(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    query = Demonstration("new", "a joy from first to last", "1")  # another id, the input of row c
    for lists in (
        propose_bm25(sentiment, reviews, [query], 10),
        propose_dense(sentiment, reviews, [query], 10, FakeEncoder()),
    ):
        assert {c.demonstration_id for c in lists[0].candidates} == {"a", "b", "d", "e", "f"}


def test_the_row_of_the_querys_own_id_is_left_out_even_if_its_text_was_mended_since(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    query = Demonstration("a", "the film was a great joy", "1")
    for lists in (
        propose_bm25(sentiment, reviews, [query], 10),
        propose_dense(sentiment, reviews, [query], 10, FakeEncoder()),
    ):
        assert {c.demonstration_id for c in lists[0].candidates} == {"b", "c", "d", "e", "f"}


def test_many_copies_of_the_query_do_not_shorten_its_list(sentiment: TaskSpec) -> None:
    copies = [Demonstration(f"copy {i}", "joy film", "1") for i in range(30)]
    others = [Demonstration(f"other {i}", f"joy {w}", "0") for i, w in enumerate(["bore", "plot", "bank", "cup"])]
    for lists in (
        propose_bm25(sentiment, copies + others, copies[:1], 3),
        propose_dense(sentiment, copies + others, copies[:1], 3, FakeEncoder()),
    ):
        assert len(lists[0].candidates) == 3
        assert all(c.demonstration_id.startswith("other") for c in lists[0].candidates)


def test_generation_is_searched_by_outputs_and_choices_by_inputs(copying: TaskSpec, choosing: TaskSpec) -> None:
    pool = [
        Demonstration("query", "joy", "bank", ("bank", "plot")),
        Demonstration("like input", "joy film", "plot", ("bank", "plot")),
        Demonstration("like output", "bore", "bank", ("bank", "plot")),
    ]
    best = {}
    for spec in (copying, choosing):
        (one,) = propose_bm25(spec, pool, pool[:1], 1)
        best[spec.kind] = one.candidates[0].demonstration_id
    assert best == {"generation": "like output", "multichoice": "like input"}


def test_more_queries_hold_those_of_fewer(reviews: list[Demonstration]) -> None:
    three, five, everything = (choose_queries(reviews, n, seed=1) for n in (3, 5, 0))
    assert five[:3] == three
    assert everything[:5] == five
    assert sorted(d.id for d in everything) == sorted(d.id for d in reviews)
    assert len(choose_queries(reviews, 99, seed=1)) == len(reviews)
    assert choose_queries(reviews, 0, seed=2) != everything


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 3))
def test_a_larger_sample_holds_the_smaller_one_and_keeps_the_order(size: int, few: int, many: int, seed: int) -> None:
    one = CandidateList("t", "q", tuple(Candidate(str(i)) for i in range(size)))
    few, many = sorted((few, many))
    names = [[c.demonstration_id for c in sample([one], n, seed)[0].candidates] for n in (few, many)]
    assert len(names[1]) == min(many or size, size)
    assert names[1] == sorted(names[1])
    if few:
        assert set(names[0]) <= set(names[1])


def test_samples_differ_between_queries_and_seeds() -> None:
    lists = [CandidateList("t", q, tuple(Candidate(f"{i:02d}") for i in range(30))) for q in "ab"]
    drawn = {one.candidates for seed in (0, 1) for one in sample(lists, 10, seed)}
    assert len(drawn) == 4


def test_draws_depend_on_words_alone() -> None:
    assert seeded("queries", 0).integers(1000, size=3).tolist() == [156, 739, 123]
    assert seeded("ab", "c").integers(1 << 30) != seeded("a", "bc").integers(1 << 30)


def test_long_demonstrations_are_dropped_before_mining(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    lm = FakeLM()
    sizes = {d.id: len(lm.encode(render_demonstration(sentiment, d))) for d in reviews}
    limit = 2 * sorted(sizes.values())[2] + 4
    with pytest.warns(
        UDRWarning, match=rf"task {sentiment.name}: \d of {len(reviews)} demonstrations left out of mining"
    ):
        kept = drop_long(sentiment, reviews, lm, limit)
    assert {i for i, n in sizes.items() if 2 * n + 4 <= limit} == {d.id for d in kept}
    assert 3 <= len(kept) < len(reviews)
    for z, x in itertools.product(kept, kept):
        answer = sentiment.verbalise(x.output)
        assert len(lm.encode(render(sentiment, [z], x.query) + answer)) <= limit
    with pytest.raises(DataError, match=r"no two demonstrations fit 5 tokens; raise mining\.max_tokens"):
        drop_long(sentiment, reviews, lm, 5)


def test_a_row_whose_wrong_option_is_too_long_is_left_out(choosing: TaskSpec) -> None:
    lm = FakeLM()
    short = Demonstration("short", "which", "a", ("a", "b"))
    long = Demonstration("long", "which", "a", ("a", "b " * 30))
    limit = 2 * (len(lm.encode(render_demonstration(choosing, short))) + 4)
    with pytest.warns(UDRWarning, match="1 of 2 demonstrations left out of mining"):
        assert [d.id for d in drop_long(choosing, [short, long], lm, limit)] == ["short"]
    assert [d.id for d in drop_long(choosing, [short, long], lm, limit + 140)] == ["short", "long"]


def test_every_candidate_is_scored_as_if_alone_and_each_list_is_ranked(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    data = TaskData(sentiment, tuple(reviews), ())
    told: list[tuple[int, int]] = []
    lists = score_lists(
        data, propose_bm25(sentiment, reviews, reviews, 4), FakeLM(), lambda done, of: told.append((done, of))
    )
    assert told[-1][0] == told[-1][1] == sum(len(one.candidates) for one in lists)
    for one in lists:
        assert [c.rank for c in one.candidates] == list(range(1, len(one.candidates) + 1))
        for c in one.candidates:
            pair = (data.by_id[c.demonstration_id], data.by_id[one.query_id])
            assert c.lm_score == score_pairs(sentiment, FakeLM(), [pair])[0]
        keys = [(-(c.lm_score or 0), c.demonstration_id) for c in one.candidates]
        assert keys == sorted(keys)


def test_feedback_puts_demonstrations_of_the_right_label_first(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    data = TaskData(sentiment, tuple(reviews), ())
    for one in score_lists(data, propose_bm25(sentiment, reviews, reviews, 5), FakeLM()):
        label = data.by_id[one.query_id].output
        right = [data.by_id[c.demonstration_id].output == label for c in one.candidates]
        assert right == sorted(right, reverse=True)


def test_lists_over_another_pool_are_refused(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    data = TaskData(sentiment, tuple(reviews), ())
    for one in (CandidateList("t", "a", (Candidate("zz"),)), CandidateList("t", "zz", (Candidate("a"),))):
        with pytest.raises(DataError, match="the candidate lists name zz, which the pool does not hold"):
            score_lists(data, [one], FakeLM())


def test_balanced_draws_take_labels_in_turn(sentiment: TaskSpec) -> None:
    rows = [Demonstration(f"{i:03d}", f"film {i}", "1" if i % 10 == 0 else "0") for i in range(100)]
    queries = choose_queries(rows, 20, seed=3, balanced=True)
    assert sorted(q.output for q in queries) == ["0"] * 10 + ["1"] * 10
    assert choose_queries(rows, 8, seed=3, balanced=True) == queries[:8]
    lists = [CandidateList("t", "q", tuple(Candidate(r.id) for r in rows[1:]))]
    (drawn,) = sample(lists, 6, seed=3, outputs={r.id: r.output for r in rows})
    outputs = [rows[int(c.demonstration_id)].output for c in drawn.candidates]
    assert sorted(outputs) == ["0"] * 3 + ["1"] * 3
