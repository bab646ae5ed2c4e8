"""Tasks without training: the sum of two encoders, and the share of each that a pool's own outputs advise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from udr.draw import seeded
from udr.fakes import FakeEncoder
from udr.mixture import ASKED, NEIGHBOURS, SHARES, MixedEncoder, mix
from udr.prompt import for_encoder
from udr.retriever import Retriever, build_dense_ranker, build_input_ranker
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, Query

PARTING = TaskSpec(name="t", family="f", kind="generation", metric="exact_match")
LABELLING = TaskSpec(
    name="t", family="f", kind="classification", metric="accuracy", verbaliser={"0": "zero", "1": "one", "2": "two"}
)


class WordEncoder:
    """Reads one word of a text, the first or the last, and with it nothing else."""

    dim = 64

    def __init__(self, place: int) -> None:
        self.place = place
        self.fingerprint = f"word {place}"

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        return FakeEncoder(self.dim).encode_queries([Query(q.id, q.input.split()[self.place]) for q in queries])

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        return self.encode_queries([d.query for d in demonstrations])


class NoiseEncoder:
    """A random direction for each text."""

    dim = 16

    def __init__(self, name: str) -> None:
        self.fingerprint = name

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        rows = [seeded(self.fingerprint, q.input).normal(size=self.dim) for q in queries]
        return np.array(rows, dtype=np.float32)

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        return self.encode_queries([Query(d.id, f"{d.input}\t{d.output}") for d in demonstrations])


def pool_of(count: int, telling: int, seed: int = 0) -> list[Demonstration]:
    """Inputs of three words, the `telling`-th of which decides the label."""
    rng = np.random.default_rng(seed)
    words = rng.choice(["ash", "birch", "cedar"], (count, 3))
    words[:, 1] = [f"word{i}" for i in range(count)]
    labels = {"ash": "0", "birch": "1", "cedar": "2"}
    return [Demonstration(f"d{i}", " ".join(row), labels[row[telling]]) for i, row in enumerate(words)]


def test_the_similarity_is_the_weighted_sum_of_the_two_and_one_index_serves_it(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    trained, untrained = FakeEncoder(48, reads_instruction=True), FakeEncoder(32)
    mixed = MixedEncoder(trained, untrained, 2.0, 0.25)
    queries = [Query("q", "a film of joy"), Query("p", "dull")]
    demonstrations = for_encoder(sentiment, reviews, trained)
    instruction = sentiment.retrieval_instruction
    wanted = 2.0 * (
        trained.encode_queries(queries, instruction) @ trained.encode_demonstrations(demonstrations, instruction).T
    ) + 0.25 * (untrained.encode_queries(queries) @ untrained.encode_queries([d.query for d in reviews]).T)
    got = mixed.encode_queries(queries, instruction) @ mixed.encode_demonstrations(demonstrations, instruction).T
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    rows, scores = build_dense_ranker(sentiment, reviews, mixed).rank(queries, len(reviews))
    np.testing.assert_allclose(scores, np.take_along_axis(wanted, rows, axis=1), atol=1e-5)
    assert mixed.fingerprint != MixedEncoder(trained, untrained, 2.0, 0.5).fingerprint


@pytest.mark.parametrize(("telling", "share"), [(0, 0.0), (2, 1.0)])
def test_the_encoder_that_misses_what_decides_the_output_does_not_decide(telling: int, share: float) -> None:
    pool = pool_of(90, telling)
    mixture = mix(LABELLING, pool, WordEncoder(0), WordEncoder(2))
    assert mixture.likeness[share] == 1.0
    assert mixture.likeness[1 - share] < 0.6
    assert mixture.likeness[mixture.share] == 1.0
    assert mixture.share != 1 - share
    (found,) = Retriever(LABELLING, pool, mixture.ranker).retrieve([Query("q", "birch unseen birch")], 8)
    assert {f.demonstration.output for f in found} == {"1"}


def test_both_have_a_say_where_either_reads_half_of_what_decides() -> None:
    pool = [
        Demonstration(d.id, d.input, f"{d.input.split()[0]} {d.input.split()[2]}s") for d in pool_of(200, 0, seed=3)
    ]
    mixture = mix(PARTING, pool, WordEncoder(0), WordEncoder(2))
    assert mixture.share == 0.5
    assert mixture.likeness[0.5] > max(mixture.likeness[0.0], mixture.likeness[1.0]) + 0.2


@pytest.mark.parametrize("spec", [PARTING, LABELLING])
def test_likeness_is_that_of_the_nearest_others_by_plain_loops(spec: TaskSpec) -> None:
    rng = np.random.default_rng(5)
    inputs = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(40)]
    inputs[7] = inputs[3]  # a copy is no neighbour
    pool = [Demonstration(f"d{i}", x, str(i % 3) if spec is LABELLING else x[:5]) for i, x in enumerate(inputs)]
    trained, untrained = NoiseEncoder("trained"), NoiseEncoder("untrained")  # no two similarities are equal
    z = trained.encode_demonstrations(for_encoder(spec, pool, trained))
    u = trained.encode_queries([d.query for d in pool]) @ z.T
    b = (v := untrained.encode_queries([d.query for d in pool])) @ v.T
    u, b = u / u.std(1).mean(), b / b.std(1).mean()
    mixture = mix(spec, pool, trained, untrained)
    for share in SHARES:
        likenesses = []
        for i, d in enumerate(pool):
            sims = (1 - share) * u[i] + share * b[i]
            others = sorted((j for j in range(len(pool)) if pool[j].input != d.input), key=lambda j: -sims[j])
            for j in others[:NEIGHBOURS]:
                if spec is LABELLING:
                    likenesses.append(float(d.output == pool[j].output))
                else:
                    own, other = d.output.split(), pool[j].output.split()
                    shared = sum((Counter(own) & Counter(other)).values())
                    likenesses.append(2 * shared / (len(own) + len(other)))
        assert mixture.likeness[share] == pytest.approx(np.mean(likenesses))
    assert mixture.likeness[mixture.share] == max(mixture.likeness.values())


def test_a_large_pool_is_asked_in_part_and_the_same_part_again() -> None:
    pool = pool_of(2 * ASKED, 0)
    first, again = (mix(LABELLING, pool, WordEncoder(0), WordEncoder(2)) for _ in range(2))
    assert first.likeness == again.likeness
    assert first.ranker.encoder.fingerprint == again.ranker.encoder.fingerprint
    asked = seeded("mixture", 0).permutation(len(pool))[:ASKED]
    wanted = np.mean([[pool[i].output == pool[j].output for j in asked] for i in asked])  # chance, by the blind one
    assert first.likeness[1.0] == pytest.approx(wanted, abs=0.08)


@pytest.mark.parametrize("count", [1, 2])
def test_a_pool_that_cannot_tell_gives_both_an_equal_say(count: int) -> None:
    pool = [Demonstration(str(i), "the same words", str(i)) for i in range(count)]
    mixture = mix(LABELLING, pool, FakeEncoder(), FakeEncoder(32))
    assert mixture.share == 0.5
    assert set(mixture.likeness.values()) == {0.0}
    (found,) = Retriever(LABELLING, pool, mixture.ranker).retrieve([Query("q", "other words")], 3)
    assert len(found) == count


def test_an_encoder_without_a_weight_has_no_say() -> None:
    pool = pool_of(60, 2)
    queries = [Query(str(i), f"ash new{i} {w}") for i, w in enumerate(["ash", "birch", "cedar"])]
    first, last = WordEncoder(0), WordEncoder(2)
    alone = build_dense_ranker(LABELLING, pool, MixedEncoder(first, last, 0.0, 2.0)).rank(queries, 12)[0]
    np.testing.assert_array_equal(alone, build_input_ranker(pool, last).rank(queries, 12)[0])
    alone = build_dense_ranker(LABELLING, pool, MixedEncoder(first, last, 2.0, 0.0)).rank(queries, 12)[0]
    np.testing.assert_array_equal(alone, build_dense_ranker(LABELLING, pool, first).rank(queries, 12)[0])
