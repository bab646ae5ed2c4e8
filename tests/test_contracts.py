"""One contract for every Encoder, LMScorer, Generator and Index there is, ours and those to come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udr.encoder import build_encoder
from udr.errors import ConfigError, DataError, FingerprintMismatch, IndexNotReady, PromptTooLong, UDRError
from udr.fakes import FakeEncoder, FakeLM
from udr.index import FlatIndex, load_index
from udr.mixture import MixedEncoder
from udr.scoring.cache import CachedScorer, ScoreCache
from udr.types import Demonstration, Encoder, Generator, Index, LMScorer, Query, Tokenizer

# encoders

TEXTS = ["the film was a joy", "a", "", "shares of the bank fell " * 40, "é\n\t!?", "the film was a joy"]
QUERIES = [Query(str(i), t) for i, t in enumerate(TEXTS)]
DEMONSTRATIONS = [Demonstration(str(i), t, "great", ("great", "bad")) for i, t in enumerate(TEXTS)]
ENCODERS: dict[str, Callable[[Path], Encoder]] = {
    "fake": lambda folder: FakeEncoder(),
    "fake_reading_instructions": lambda folder: FakeEncoder(32, reads_instruction=True),
    "bi_encoder_shared": lambda folder: build_encoder(str(folder), device="cpu"),
    "mixed": lambda folder: MixedEncoder(build_encoder(str(folder), device="cpu"), FakeEncoder(), 3.0, 0.5),
    "bi_encoder_two_towers": lambda folder: build_encoder(str(folder), shared=False, unit_norm=False, device="cpu"),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, bert_folder: Path) -> Encoder:
    return ENCODERS[request.param](bert_folder)


@pytest.mark.parametrize("instruction", ["", "Sentiment of the sentence:"])
def test_an_encoder_gives_a_finite_float32_vector_a_text(encoder: Encoder, instruction: str) -> None:
    assert isinstance(encoder, Encoder)
    for vectors in (
        encoder.encode_queries(QUERIES, instruction),
        encoder.encode_demonstrations(DEMONSTRATIONS, instruction),
    ):
        assert vectors.shape == (len(TEXTS), encoder.dim)
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        assert np.linalg.norm(vectors, axis=1).min() > 0
        np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-6)
        assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


@pytest.mark.parametrize("instruction", ["", "Sentiment of the sentence:"])
def test_an_encoder_counts_the_tokens_that_it_reads(encoder: Encoder, instruction: str) -> None:
    found = encoder.tokens_read(QUERIES, instruction)
    assert found == [encoder.tokens_read([query], instruction)[0] for query in QUERIES]
    nothing = found[2]  # what is read of an empty text: its frame, and the instruction
    assert nothing <= found[1] < found[0] < found[3]
    assert encoder.tokens_read([]) == []


def test_an_encoder_gives_the_same_vector_alone_in_a_batch_and_again(encoder: Encoder) -> None:
    queries = encoder.encode_queries(QUERIES, "Topic:")
    demonstrations = encoder.encode_demonstrations(DEMONSTRATIONS, "Topic:")
    np.testing.assert_array_equal(encoder.encode_queries(QUERIES, "Topic:"), queries)
    np.testing.assert_array_equal(encoder.encode_demonstrations(DEMONSTRATIONS, "Topic:"), demonstrations)
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(encoder.encode_queries([QUERIES[i]], "Topic:")[0], queries[i], atol=1e-5)
        alone = encoder.encode_demonstrations([DEMONSTRATIONS[i]], "Topic:")[0]
        np.testing.assert_allclose(alone, demonstrations[i], atol=1e-5)
    backwards = encoder.encode_queries(QUERIES[::-1], "Topic:")
    np.testing.assert_allclose(backwards[::-1], queries, atol=1e-5)


def test_an_encoder_reads_the_answer_of_a_demonstration_but_neither_its_id_nor_its_choices(encoder: Encoder) -> None:
    base, other, renamed = encoder.encode_demonstrations(
        [
            Demonstration("1", "the film", "great"),
            Demonstration("1", "the film", "terrible"),
            Demonstration("2", "the film", "great", ("great", "bad"), ("great", "fine")),
        ]
    )
    np.testing.assert_allclose(base, renamed, atol=1e-6)
    assert not np.allclose(base, other, atol=1e-3)


def test_an_encoder_takes_no_texts(encoder: Encoder) -> None:
    assert encoder.encode_queries([]).shape == encoder.encode_demonstrations([]).shape == (0, encoder.dim)
    assert encoder.encode_queries([]).dtype == np.float32


def test_an_encoder_has_a_fingerprint_of_its_own(bert_folder: Path) -> None:
    names = [make(bert_folder).fingerprint for make in ENCODERS.values()]
    assert all(isinstance(name, str) and name for name in names)
    assert len(set(names)) == len(names)
    assert [make(bert_folder).fingerprint for make in ENCODERS.values()] == names


# scorers

CONTEXTS = ["the film was a joy\tIt was great .\na joy\tIt was ", "a\tb\n", "", "the film was", "a\tb\n"]
CONTINUATIONS = ["great", "b", "yes", " terrible", "b"]
MakeLM = Callable[..., Any]
SCORERS: dict[str, Callable[[MakeLM, ScoreCache], LMScorer]] = {
    "fake": lambda make_lm, cache: FakeLM(),
    "gemma3": lambda make_lm, cache: make_lm("gemma3", row_tokens=24),
    "gpt2_without_tree": lambda make_lm, cache: make_lm("gpt2", tree=False),
    "cached_fake": lambda make_lm, cache: CachedScorer(FakeLM(), cache),
    "cached_llama": lambda make_lm, cache: CachedScorer(make_lm("llama"), cache),
}


@pytest.fixture(params=SCORERS)
def scorer(request: pytest.FixtureRequest, make_lm: MakeLM, tmp_path: Path) -> Iterator[LMScorer]:
    cache = ScoreCache(tmp_path / "scores.sqlite")
    yield SCORERS[request.param](make_lm, cache)
    cache.close()


def test_a_scorer_gives_a_finite_log_probability_and_a_count_a_request(scorer: LMScorer) -> None:
    assert isinstance(scorer, LMScorer)
    found = scorer.loglikelihood(CONTEXTS, CONTINUATIONS)
    assert found.nats.shape == found.tokens.shape == (5,)
    assert found.nats.dtype == np.float32
    assert found.tokens.dtype == np.int64
    assert np.isfinite(found.nats).all()
    assert (found.nats < 0).all()
    assert (found.tokens >= 1).all()
    assert found.nats[1] == found.nats[4]


def test_a_scorer_answers_alone_as_among_others_and_again(scorer: LMScorer) -> None:
    found = scorer.loglikelihood(CONTEXTS, CONTINUATIONS)
    np.testing.assert_array_equal(scorer.loglikelihood(CONTEXTS, CONTINUATIONS).nats, found.nats)
    for i, pair in enumerate(zip(CONTEXTS, CONTINUATIONS, strict=True)):
        alone = scorer.loglikelihood([pair[0]], [pair[1]])
        np.testing.assert_allclose(alone.nats, found.nats[i : i + 1], atol=1e-4)
        assert alone.tokens[0] == found.tokens[i]
    backwards = scorer.loglikelihood(CONTEXTS[::-1], CONTINUATIONS[::-1])
    np.testing.assert_allclose(backwards.nats[::-1], found.nats, atol=1e-4)


def test_a_scorer_takes_no_requests_and_refuses_bad_ones(scorer: LMScorer) -> None:
    assert scorer.loglikelihood([], []).nats.shape == (0,)
    with pytest.raises(ConfigError, match="request 1"):
        scorer.loglikelihood(["a", "b"], ["x", ""])
    with pytest.raises(PromptTooLong, match="request 0"):
        scorer.loglikelihood(["joy " * scorer.context_length], ["x"])
    with pytest.raises(ValueError, match="zip"):
        scorer.loglikelihood(["a", "b"], ["x"])


def test_a_scorer_counts_beforehand_the_tokens_that_it_computes(scorer: LMScorer) -> None:
    before = scorer.tokens_computed
    counted = scorer.count_tokens(CONTEXTS, CONTINUATIONS)
    assert counted > 0
    scorer.loglikelihood(CONTEXTS, CONTINUATIONS)
    assert scorer.tokens_computed - before == counted
    assert scorer.count_tokens([], []) == 0


OPTIONS = ["great", "terrible", "not so bad", "not so good", "not", "a joy", "a joy"]


@pytest.mark.parametrize("before", ["It was ", "It was", "Answer:\t", ""])
def test_beginnings_are_shorter_options_that_still_differ(scorer: LMScorer, before: str) -> None:
    found = scorer.beginnings(before, OPTIONS)
    assert len(found) == len(OPTIONS)
    assert all(short and option.startswith(short) for short, option in zip(found, OPTIONS, strict=True))
    assert len(set(found)) == len(set(OPTIONS))
    assert sum(map(len, found)) < sum(map(len, OPTIONS))
    counts = [scorer.loglikelihood([before] * len(OPTIONS), texts).tokens for texts in (found, OPTIONS)]
    assert (counts[0] <= counts[1]).all()


def test_a_scorer_has_a_fingerprint_and_a_context_length(scorer: LMScorer) -> None:
    assert isinstance(scorer.fingerprint, str)
    assert scorer.fingerprint
    assert scorer.context_length > 0


# generators and tokenizers

PROMPTS = ["the film was a joy\tIt was great .\na joy\tIt was ", "a\tb\nc\t", "", "one fish\ttwo fish\nred fish\t"]


@pytest.fixture(params=["fake", "gemma3", "llama", "gpt2"])
def generator(request: pytest.FixtureRequest, make_lm: MakeLM) -> Any:
    return FakeLM() if request.param == "fake" else make_lm(request.param, generation_batch=3)


def test_a_generator_gives_one_line_a_prompt_alone_as_among_others(generator: Any) -> None:
    assert isinstance(generator, Generator)
    answers = generator.generate(PROMPTS, 6)
    assert len(answers) == len(PROMPTS)
    assert all(isinstance(a, str) and "\n" not in a and a == a.strip() for a in answers)
    assert generator.generate(PROMPTS, 6) == answers
    assert [generator.generate([p], 6)[0] for p in PROMPTS] == answers
    assert generator.generate([], 6) == []
    with pytest.raises(PromptTooLong, match="prompt 1"):
        generator.generate(["a", "joy " * generator.context_length], 6)


def test_a_language_models_tokenizer_counts_without_marks(generator: Any) -> None:
    assert isinstance(generator, Tokenizer)
    for text in PROMPTS:
        ids = generator.encode(text)
        assert all(isinstance(i, int) for i in ids)
        assert ids == generator.encode(text)
        assert (len(ids) == 0) == (text == "")
    assert generator.encode("a joy")[:1] != generator.encode("the film")[:1]  # nothing is put in front


# indexes

INDEXES: dict[str, tuple[Callable[[int, str], Index], Callable[[Path], Index]]] = {"flat": (FlatIndex, load_index)}


@pytest.fixture(params=INDEXES)
def make_index(request: pytest.FixtureRequest) -> Callable[[int, str], Index]:
    return INDEXES[request.param][0]


def random_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_an_index_finds_what_was_added_alone_as_in_a_batch_and_again(make_index: Callable[[int, str], Index]) -> None:
    index, vectors, queries = make_index(16, "encoder-1"), random_vectors(50, 16, 0), random_vectors(7, 16, 1)
    assert isinstance(index, Index)
    assert (index.dim, index.fingerprint, len(index)) == (16, "encoder-1", 0)
    ids = np.arange(100, 150)
    index.add(ids, vectors, "encoder-1")
    assert len(index) == 50
    hits = index.search(queries, 5, "encoder-1")
    assert hits.rows.shape == hits.scores.shape == (7, 5)
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    assert np.isfinite(hits.scores).all()
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_array_equal(hits.rows, ids[np.argsort(-exact, axis=1)[:, :5]])
    np.testing.assert_allclose(hits.scores, np.sort(exact, axis=1)[:, ::-1][:, :5], rtol=1e-5)
    for i in range(7):
        alone = index.search(queries[i : i + 1], 5, "encoder-1")
        np.testing.assert_array_equal(alone.rows[0], hits.rows[i])
        np.testing.assert_array_equal(alone.scores[0], hits.scores[i])
    np.testing.assert_array_equal(index.vectors(ids[[3, 1]]), vectors[[3, 1]])


def test_an_index_forgets_what_was_removed_and_marks_empty_places(make_index: Callable[[int, str], Index]) -> None:
    index, vectors = make_index(8, "e"), random_vectors(4, 8, 0)
    index.add(np.arange(4), vectors, "e")
    assert index.remove(np.array([1, 3, 99])) == 2
    hits = index.search(vectors[:1], 4, "e")
    assert set(hits.rows[0, :2]) == {0, 2}
    assert hits.rows[0, 2:].tolist() == [-1, -1]


def test_an_index_refuses_vectors_of_another_encoder_and_other_misuse(make_index: Callable[[int, str], Index]) -> None:
    index, vectors = make_index(8, "e"), random_vectors(2, 8, 0)
    with pytest.raises(IndexNotReady):
        index.search(vectors, 1, "e")
    with pytest.raises(FingerprintMismatch):
        index.add(np.arange(2), vectors, "another")
    index.add(np.arange(2), vectors, "e")
    with pytest.raises(FingerprintMismatch):
        index.search(vectors, 1, "another")
    for ids, rows in [(np.arange(2), vectors), (np.arange(3), vectors), (np.array([8, 9]), vectors * np.nan)]:
        with pytest.raises(UDRError):
            index.add(ids, rows, "e")
    with pytest.raises(DataError):
        index.vectors(np.array([77]))
    assert len(index) == 2


@pytest.mark.parametrize("name", INDEXES)
def test_a_saved_index_finds_the_same(name: str, tmp_path: Path) -> None:
    make, load = INDEXES[name]
    index, vectors = make(8, "e"), random_vectors(30, 8, 0)
    index.add(np.arange(30), vectors, "e")
    index.save(tmp_path / "index")
    loaded = load(tmp_path / "index")
    assert (loaded.dim, loaded.fingerprint, len(loaded)) == (8, "e", 30)
    before, after = index.search(vectors, 4, "e"), loaded.search(vectors, 4, "e")
    np.testing.assert_array_equal(after.rows, before.rows)
    np.testing.assert_array_equal(after.scores, before.scores)
