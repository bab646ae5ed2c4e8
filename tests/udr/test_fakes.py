"""The fakes: readable, the same in every process, and good enough to learn from."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.errors import ConfigError, PromptTooLong
from udr.fakes import FakeEncoder, FakeLM
from udr.prompt import render
from udr.scoring.feedback import choose_options, score_pairs
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Media, Query

LM = FakeLM()


# the encoder


def test_a_vector_counts_the_words_of_its_text() -> None:
    encoder = FakeEncoder(1024)
    (vector,) = encoder.encode_queries([Query("1", "A joy, a JOY of a film")])
    counts = {encoder.axis(w): n for w, n in [("a", 3), ("joy", 2), ("of", 1), ("film", 1)]}
    expected = np.zeros(1024)
    expected[list(counts)] = list(counts.values())
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-6)


def test_a_demonstration_is_its_input_and_its_output() -> None:
    encoder = FakeEncoder()
    demonstration = Demonstration("1", "a joy", "great film")
    assert np.array_equal(
        encoder.encode_demonstrations([demonstration]), encoder.encode_queries([Query("2", "a joy great film")])
    )


def test_the_more_words_are_shared_the_larger_is_the_inner_product() -> None:
    encoder = FakeEncoder(512)
    query = encoder.encode_queries([Query("q", "the film was a joy")])[0]
    texts = ["the film was a joy", "the film was a bore", "the plot is dull now", "engineers built chips"]
    sims = encoder.encode_queries([Query(t, t) for t in texts]) @ query
    assert sims[0] == pytest.approx(1)
    assert sims[0] > sims[1] > sims[2] > sims[3] == 0


def test_the_instruction_is_read_only_if_asked_for() -> None:
    plain, reading = FakeEncoder(), FakeEncoder(reads_instruction=True)
    queries, demonstrations = [Query("1", "a joy")], [Demonstration("1", "a joy", "great")]
    for encode, items in [("encode_queries", queries), ("encode_demonstrations", demonstrations)]:
        assert np.array_equal(getattr(plain, encode)(items, "Sentiment:"), getattr(plain, encode)(items))
        assert not np.array_equal(getattr(reading, encode)(items, "Sentiment:"), getattr(reading, encode)(items))
    assert plain.fingerprint != reading.fingerprint


def test_media_count_as_words() -> None:
    encoder = FakeEncoder(512)
    one, other = (Query("q", "", media=(Media("image", data=data),)) for data in (b"1", b"2"))
    first, again, second = encoder.encode_queries([one, one, other])
    assert first @ again == 1
    assert first @ second == 0


@given(st.lists(st.text(max_size=8), max_size=5), st.integers(1, 70))
def test_vectors_have_length_one_whatever_the_text(texts: list[str], dim: int) -> None:
    vectors = FakeEncoder(dim).encode_queries([Query(str(i), t) for i, t in enumerate(texts)])
    assert vectors.shape == (len(texts), dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_an_encoder_without_dimensions_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        FakeEncoder(0)


# the language model


@given(st.text(), st.text(), st.sampled_from(["\n", "\t", ".", " "]))
def test_tokens_add_up_at_spaces_and_marks(a: str, b: str, border: str) -> None:
    assert LM.encode(a + border + b) == LM.encode(a) + LM.encode(border) + LM.encode(b)


def test_words_marks_and_single_spaces_are_tokens() -> None:
    assert len(LM.encode("It was  great.\n")) == 8
    assert LM.encode("great ") == [LM.encode("great")[0], LM.encode(" ")[0]]
    assert LM.encode("") == []


def score(context: str, continuation: str) -> float:
    return float(LM.loglikelihood([context], [continuation]).nats[0])


def test_a_demonstration_that_ends_in_the_continuation_raises_it_the_more_words_it_shares() -> None:
    query = "the film was a joy\tIt was "
    contexts = [
        query,
        f"shares fell\tIt was terrible .\n{query}",
        f"shares fell\tIt was great .\n{query}",
        f"the shares fell\tIt was great .\n{query}",
        f"the film was long\tIt was great .\n{query}",
        f"the film was long\tIt was great .\na film of joy\tIt was great .\n{query}",
    ]
    scores = [score(c, "great") for c in contexts]
    assert scores[0] == scores[1]
    assert all(a < b for a, b in pairwise(scores[1:]))


def test_a_label_is_not_raised_by_a_longer_label_that_ends_like_it_as_much_as_by_itself() -> None:
    query = "he go home\tIt is "
    wrong, right = f"he go out\tIt is not grammatical .\n{query}", f"he go out\tIt is grammatical .\n{query}"
    for continuation, better, worse in [("grammatical", right, wrong), ("not grammatical", wrong, right)]:
        assert score(better, continuation) > score(worse, continuation)


@given(st.lists(st.text(max_size=30), max_size=4), st.text(min_size=1, max_size=10))
def test_log_likelihoods_are_finite_and_negative_and_tokens_are_counted(lines: list[str], continuation: str) -> None:
    found = LM.loglikelihood(["\n".join(lines)], [continuation])
    assert np.isfinite(found.nats).all()
    assert found.nats[0] < 0
    assert found.tokens.tolist() == [len(LM.encode(continuation))]


def test_feedback_prefers_the_gold_label_with_shared_words(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    query = Demonstration("q", "the cast was a joy", "1")
    right, stranger, wrong = reviews[0], reviews[5], reviews[1]
    scores = score_pairs(sentiment, LM, [(z, query) for z in (right, stranger, wrong)])
    assert scores[0] > scores[1] > scores[2]


def test_feedback_on_outputs_prefers_the_output_most_like_the_gold_one(copying: TaskSpec) -> None:
    query = Demonstration("q", "book a table for two", "[IN:BOOK [SL:SIZE two]]")
    near = Demonstration("n", "book a table for six", "[IN:BOOK [SL:SIZE six]]")
    far = Demonstration("f", "book a flight for two", "[IN:FLY two]")
    stranger = Demonstration("s", "wake me at six", "[IN:BOOK [SL:SIZE six]]")
    scores = score_pairs(copying, LM, [(z, query) for z in (near, far, stranger)])
    assert scores.argmax() == 0
    assert scores[0] > scores[2]


def test_options_are_chosen_like_the_nearest_demonstrations(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    queries = [Query("1", "a joy from the last"), Query("2", "the plot was a bore")]
    contexts = [render(sentiment, reviews, q) for q in queries]
    assert choose_options(sentiment, LM, contexts, queries) == [1, 0]


def test_an_answer_is_copied_from_the_most_overlapping_demonstration(copying: TaskSpec) -> None:
    rows = [("book a table", "BOOK table"), ("book a flight to rome", "FLY rome"), ("play some jazz", "PLAY jazz")]
    pool = [Demonstration(x, x, y) for x, y in rows]
    queries = [Query(x, x) for x in ("book a flight", "a table", "jazz")]
    assert LM.generate([render(copying, pool, q) for q in queries], 8) == ["FLY rome", "BOOK table", "PLAY jazz"]


def test_of_equally_good_demonstrations_the_one_next_to_the_query_is_copied() -> None:
    assert LM.generate(["a b\tfirst\na c\tsecond\na\t", "x\tfirst\ny\tsecond\nz\t"], 4) == ["second", "second"]


def test_an_answer_leaves_out_the_prefix_and_is_cut_at_the_limit(sentiment: TaskSpec) -> None:
    prompt = render(sentiment, [Demonstration("1", "a joy", "1")], Query("2", "a joy"))
    assert LM.generate([prompt], 10) == ["great ."]
    assert LM.generate(["a\tone two three\na\t"], 3) == ["one two"]
    assert LM.generate(["a\t", "", "no demonstration"], 3) == ["", "", ""]


def test_separator_and_joiner_of_another_template_can_be_told() -> None:
    lm = FakeLM(separator="\nA: ", joiner="\n\n")
    assert lm.generate(["Q: one\nA: 1\n\nQ: two\nA: 2\nmore\n\nQ: two\nA: "], 5) == ["2"]
    assert lm.fingerprint != LM.fingerprint


def test_what_exceeds_the_context_is_refused() -> None:
    lm = FakeLM(context_length=5)
    assert lm.context_length == 5
    lm.loglikelihood(["a b"], ["c d"[:2]])
    with pytest.raises(PromptTooLong, match=r"request 1: 3 \+ 3 tokens, the LM reads 5"):
        lm.loglikelihood(["a", "a b"], ["c", "c d"])
    with pytest.raises(PromptTooLong, match=r"prompt 0: 3 \+ 3 tokens"):
        lm.generate(["a b"], 3)


def test_an_empty_continuation_is_refused() -> None:
    with pytest.raises(ConfigError, match="request 1: the continuation has no tokens"):
        LM.loglikelihood(["a", "b"], ["x", ""])


def test_all_is_the_same_in_another_process() -> None:
    code = """
from udr.fakes import FakeEncoder, FakeLM
from udr.types import Query
lm, vectors = FakeLM(), FakeEncoder(8).encode_queries([Query("1", "the film was a joy")])
print(lm.encode("a joy"), vectors.tolist(), lm.loglikelihood(["a\\tb\\nc\\t"], ["b"]).nats.tolist())
"""
    command = [sys.executable, "-c", code]
    told = {
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True, text=True).stdout
        for s in ("1", "2")
    }
    vectors = FakeEncoder(8).encode_queries([Query("1", "the film was a joy")])
    here = [LM.encode("a joy"), vectors.tolist(), LM.loglikelihood(["a\tb\nc\t"], ["b"]).nats.tolist()]
    assert told == {" ".join(map(str, here)) + "\n"}
