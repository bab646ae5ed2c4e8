"""The facade: who is retrieved, who never is, the finished prompt, and the saved folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.errors import ArtifactError, DataError, FingerprintMismatch, PromptTooLong, UnknownNameError
from udr.fakes import FakeEncoder, FakeLM
from udr.prompt import for_encoder, render
from udr.retriever import (
    BM25Ranker,
    NoRanker,
    RandomRanker,
    Ranker,
    Retriever,
    build_dense_ranker,
    build_input_ranker,
    load_retriever,
    save_task,
)
from udr.selection import select
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, IntArray, Query

ENCODER = FakeEncoder(128)
LM = FakeLM()
SELECTIONS = ["top_k", "mmr", "dpp", "coverage", "balanced", "balanced_tags"]


def rankers(spec: TaskSpec, pool: list[Demonstration]) -> dict[str, Ranker]:
    return {
        "none": NoRanker(),
        "random": RandomRanker(len(pool)),
        "bm25": BM25Ranker(pool),
        "dense": build_dense_ranker(spec, pool, ENCODER),
    }


words = st.sampled_from(["joy", "bore", "film", "plot"])
pools = st.lists(st.tuples(st.lists(words, min_size=1, max_size=3).map(" ".join), st.sampled_from("01")), min_size=1)
SENTIMENT = TaskSpec(
    name="t", family="f", kind="classification", metric="accuracy", verbaliser={"0": "bad", "1": "good"}
)


@given(pools, st.lists(words, min_size=1, max_size=2).map(" ".join), st.integers(1, 5), st.data())
def test_neither_the_query_nor_a_copy_of_it_is_ever_retrieved(
    rows: list[tuple[str, str]], text: str, k: int, data: st.DataObject
) -> None:
    pool = [Demonstration(f"{i:02d}", x, y) for i, (x, y) in enumerate(rows)]
    query = data.draw(st.sampled_from([*(d.query for d in pool), Query("new", text)]))
    name = data.draw(st.sampled_from(["random", "bm25", "dense"]))
    selection = data.draw(st.sampled_from(SELECTIONS if name == "dense" else ["top_k", "coverage", "balanced"]))
    (found,) = Retriever(SENTIMENT, pool, rankers(SENTIMENT, pool)[name]).retrieve([query], k, selection=selection)
    names = [f.demonstration.id for f in found]
    assert len(set(names)) == len(names) <= k
    assert query.id not in names
    assert all(f.demonstration.input != query.input for f in found)
    others = [d for d in pool if d.id != query.id and d.input != query.input]
    if len(pool) <= 8:  # then copies cannot push others out of the search
        assert len(found) == min(k, len(others))


def test_the_row_of_the_querys_own_id_is_left_out_even_if_its_text_was_mended_since(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    for name, ranker in rankers(sentiment, reviews).items():
        (found,) = Retriever(sentiment, reviews, ranker).retrieve([Query("a", "the film was a great joy")], 9)
        assert sorted(f.demonstration.id for f in found) == ([] if name == "none" else ["b", "c", "d", "e", "f"])


def test_the_most_similar_stand_first_with_their_similarity_and_rank(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    query = Query("q", "a film of joy")
    (found,) = Retriever(sentiment, reviews, build_dense_ranker(sentiment, reviews, ENCODER)).retrieve([query], 4)
    instruction = sentiment.retrieval_instruction
    pool = ENCODER.encode_demonstrations(for_encoder(sentiment, reviews, ENCODER), instruction)
    sims = pool.astype(np.float64) @ ENCODER.encode_queries([query], instruction)[0].astype(np.float64)
    best = sorted(range(len(reviews)), key=lambda i: (-sims[i].round(9), i))[:4]
    assert [f.demonstration for f in found] == [reviews[i] for i in best]
    assert [f.rank for f in found] == [1, 2, 3, 4]
    np.testing.assert_allclose([f.similarity for f in found], sims[best], rtol=1e-6)


def test_equally_similar_demonstrations_stand_in_the_order_of_the_pool(sentiment: TaskSpec) -> None:
    pool = [Demonstration(i, f"joy {i}{i}", "1") for i in "cab"]
    for name, ranker in rankers(sentiment, pool).items():
        if name in ("bm25", "dense"):
            (found,) = Retriever(sentiment, pool, ranker).retrieve([Query("q", "joy")], 3)
            assert [f.demonstration.id for f in found] == ["c", "a", "b"]


def test_many_queries_are_answered_as_each_alone(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    queries = [d.query for d in reviews]
    for ranker in rankers(sentiment, reviews).values():
        retriever = Retriever(sentiment, reviews, ranker)
        together = retriever.retrieve(queries, 3)
        assert together == [retriever.retrieve([q], 3)[0] for q in queries]
        assert retriever.retrieve([], 3) == []


def test_the_encoder_is_told_the_instruction(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    reading = FakeEncoder(128, reads_instruction=True)
    queries = [Query("q", "a film of joy")]
    plain, told = (
        Retriever(sentiment, reviews, build_dense_ranker(sentiment, reviews, e)).retrieve(queries, 1)[0][0].similarity
        for e in (ENCODER, reading)
    )
    assert told > plain  # both sides hold the instruction's words


@pytest.mark.parametrize("selection", SELECTIONS[1:])
def test_a_selection_chooses_among_the_most_similar_ones(
    sentiment: TaskSpec, reviews: list[Demonstration], selection: str
) -> None:
    retriever = Retriever(sentiment, reviews, build_dense_ranker(sentiment, reviews, ENCODER))
    query = [Query("q", "the film was a joy to see")]
    near = {f.demonstration.id: f for f in retriever.retrieve(query, 4)[0]}
    (found,) = retriever.retrieve(query, 2, selection=selection, considered=4)
    assert len(found) == 2
    assert all(near[f.demonstration.id] == f for f in found)
    if selection == "balanced":
        assert {f.demonstration.output for f in found} == {"0", "1"}


@pytest.mark.parametrize("selection", ["mmr", "dpp"])
def test_a_selection_weighs_each_candidate_by_its_own_vector(
    sentiment: TaskSpec, reviews: list[Demonstration], selection: str
) -> None:
    ranker = build_dense_ranker(sentiment, reviews, ENCODER)
    retriever = Retriever(sentiment, reviews, ranker)
    places = {d.id: i for i, d in enumerate(reviews)}
    for text in ("the film was a joy to see", "shares of a bank", "built from a plot of the cast"):
        (near,) = retriever.retrieve([Query("q", text)], 6)
        vectors = ranker.vectors(np.array([places[f.demonstration.id] for f in near]))
        chosen = select(selection, np.array([f.similarity for f in near], dtype=np.float32), 4, vectors=vectors)
        assert retriever.retrieve([Query("q", text)], 4, selection=selection)[0] == [near[i] for i in chosen]


def test_nothing_is_retrieved_without_a_ranking(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    retriever = Retriever(sentiment, reviews, NoRanker())
    assert retriever.retrieve([Query("1", "x"), Query("2", "y")], 3, selection="mmr") == [[], []]
    assert retriever.prompt(Query("1", "x"), [], LM, 50).text == render(sentiment, [], Query("1", "x"))


def test_a_random_ranking_depends_on_seed_and_query_alone() -> None:
    queries = [Query(str(i), "x") for i in range(20)]
    rows, scores = RandomRanker(30, seed=1).rank(queries, 5)
    assert rows.shape == scores.shape == (20, 5)
    assert np.array_equal(RandomRanker(30, seed=1).rank(queries[::-1], 5)[0], rows[::-1])
    assert not np.array_equal(RandomRanker(30, seed=2).rank(queries, 5)[0], rows)
    assert len({tuple(r) for r in rows.tolist()}) > 15
    assert RandomRanker(3).rank(queries, 5)[0].shape == (20, 3)
    assert RandomRanker(3).rank([], 5)[0].shape == (0, 3)


def test_an_empty_pool_is_refused(sentiment: TaskSpec) -> None:
    with pytest.raises(DataError, match="task toy_sentiment: the pool is empty"):
        Retriever(sentiment, [], NoRanker())


# prompts


def test_the_most_similar_demonstration_stands_next_to_the_query(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    retriever = Retriever(sentiment, reviews, BM25Ranker(reviews))
    query = Query("q", "the film was a joy and a bore")
    (found,) = retriever.retrieve([query], 3)
    best_first = [f.demonstration for f in found]
    prompts = {
        how: retriever.prompt(query, found, LM, 500, arrange=how) for how in ("ascending", "descending", "random")
    }
    assert prompts["ascending"].demonstrations == tuple(best_first[::-1])
    assert prompts["descending"].demonstrations == tuple(best_first)
    assert prompts["descending"].text == render(sentiment, best_first, query)
    assert sorted(d.id for d in prompts["random"].demonstrations) == sorted(d.id for d in best_first)
    for prompt in prompts.values():
        assert prompt.tokens == len(LM.encode(prompt.text)) <= 500


def test_a_prompt_takes_what_fits_and_a_long_query_is_refused(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    retriever = Retriever(sentiment, reviews, BM25Ranker(reviews))
    query = Query("q", "the film was a joy")
    (found,) = retriever.retrieve([query], 6)
    for arrange in ("ascending", "descending"):
        prompt = retriever.prompt(query, found, LM, 60, reserve=4, arrange=arrange)
        assert prompt.tokens <= 56
        assert prompt.truncated
        assert 1 <= len(prompt.demonstrations) < 6
    assert len(retriever.prompt(query, found, LM, 500, k=2).demonstrations) == 2
    with pytest.raises(PromptTooLong):
        retriever.prompt(query, found, LM, 5)


# files


def test_a_saved_task_retrieves_as_before(tmp_path: Path, sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    save_task(tmp_path, sentiment, reviews, ENCODER)
    loaded = load_retriever(tmp_path, sentiment.name, ENCODER, seed=3)
    before = Retriever(sentiment, reviews, build_dense_ranker(sentiment, reviews, ENCODER))
    queries = [Query("q", "a film of joy"), reviews[0].query]
    assert loaded.spec == sentiment
    assert loaded.pool == tuple(reviews)
    assert loaded.seed == 3
    for selection in SELECTIONS:
        found = loaded.retrieve(queries, 3, selection=selection)
        assert found == before.retrieve(queries, 3, selection=selection)


def test_a_pool_with_choices_references_and_odd_text_is_saved_as_it_is(tmp_path: Path, choosing: TaskSpec) -> None:
    pool = [
        Demonstration("1", "line\u2028break\x85 and\ttab", "b", ("a", "b"), ("b", "B")),
        Demonstration("2", "é" * 3, "a", ("a", "b")),
    ]
    save_task(tmp_path, choosing, pool, ENCODER)
    assert load_retriever(tmp_path, choosing.name, ENCODER).pool == tuple(pool)


def test_an_unknown_task_lists_the_near_ones_and_an_empty_folder_says_what_to_run(
    tmp_path: Path, sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    with pytest.raises(ArtifactError, match=r"not a retriever folder \(no tasks/\); run: udr run CONFIG"):
        load_retriever(tmp_path, "toy_sentiment", ENCODER)
    save_task(tmp_path, sentiment, reviews, ENCODER)
    with pytest.raises(UnknownNameError, match="did you mean toy_sentiment"):
        load_retriever(tmp_path, "toy_sentimant", ENCODER)


def test_an_index_of_another_encoder_is_refused(
    tmp_path: Path, sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    save_task(tmp_path, sentiment, reviews, ENCODER)
    with pytest.raises(FingerprintMismatch, match="indexed with encoder fake-encoder-128, in hand is fake-encoder-64"):
        load_retriever(tmp_path, sentiment.name, FakeEncoder(64))


def test_a_pool_that_does_not_fit_its_index_is_refused(
    tmp_path: Path, sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    save_task(tmp_path, sentiment, reviews, ENCODER)
    pool = tmp_path / "tasks" / sentiment.name / "pool.jsonl"
    pool.write_text("".join(pool.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ArtifactError, match="the index holds 6 vectors, the pool 5; run: udr index"):
        load_retriever(tmp_path, sentiment.name, ENCODER)
    pool.unlink()
    with pytest.raises(DataError, match=r"pool\.jsonl: no such file"):
        load_retriever(tmp_path, sentiment.name, ENCODER)


class Greedy:
    """Counts a text's words, and one more for each mark after the first: another order may need more."""

    def encode(self, text: str) -> list[int]:
        first = text.split("\n")[0]
        return [0] * (len(text.split()) + 3 * ("!" in first))


def test_an_order_that_needs_a_token_too_many_drops_the_least_similar_one(sentiment: TaskSpec) -> None:
    pool = [Demonstration("near", "a joy !", "1"), Demonstration("mid", "a b", "0"), Demonstration("far", "c d", "0")]
    query = Query("q", "a joy")

    class Fixed:
        def rank(self, queries: Sequence[Query], k: int) -> tuple[IntArray, FloatArray]:
            return np.arange(3)[None, :k], np.array([[0.9, 0.5, 0.1]], dtype=np.float32)[:, :k]

    retriever = Retriever(sentiment, pool, Fixed())
    (found,) = retriever.retrieve([query], 3)
    budget = len(Greedy().encode(retriever.prompt(query, found, Greedy(), 1000).text))
    ascending = retriever.prompt(query, found, Greedy(), budget)
    assert [d.id for d in ascending.demonstrations] == ["far", "mid", "near"]
    turned = retriever.prompt(query, found, Greedy(), budget, arrange="descending")
    assert [d.id for d in turned.demonstrations] == ["near", "mid"]
    assert turned.tokens == len(Greedy().encode(turned.text)) <= budget
    assert [d.demonstration_id for d in turned.dropped] == ["far"]
    none = retriever.prompt(query, found[:1], Greedy(), budget - 11, arrange="descending")
    assert none.demonstrations == ()


def test_the_untrained_baseline_compares_inputs_alone(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    encoder = FakeEncoder()
    rows, similarities = build_input_ranker(reviews, encoder).rank([reviews[2].query], 6)
    plain = encoder.encode_queries([d.query for d in reviews]) @ encoder.encode_queries([reviews[2].query])[0]
    np.testing.assert_allclose(similarities[0], plain[rows[0]], atol=1e-6)
    assert rows[0, 0] == 2
    assert similarities[0, 0] == pytest.approx(1)
