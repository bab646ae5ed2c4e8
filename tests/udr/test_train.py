"""Training: what a batch holds, that a killed run goes on exactly, and that it learns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import write_encoder

from udr.data import TaskData
from udr.encoder import BiEncoder, build_encoder, load_encoder
from udr.errors import ArtifactError, DataError, TrainingStopped, UnknownNameError
from udr.fakes import FakeLM
from udr.losses import udr_loss
from udr.mining import propose_bm25, propose_dense, score_lists
from udr.prompt import for_encoder
from udr.retriever import BM25Ranker, Ranker, build_dense_ranker
from udr.tasks.spec import TaskSpec, Template
from udr.train import RankedTask, Step, _Sampler, draw, draw_extremes, fit, forgotten
from udr.types import Candidate, CandidateList, Demonstration

TOPICS = {topic: [f"{topic}{i}" for i in range(14)] for topic in ("sport", "money", "space")}
NOISE = ["today", "again", "people", "said", "many", "new", "report", "early", "while", "after", "the", "of", "more"]


def topic_rows(count: int, seed: int) -> list[Demonstration]:
    """One word of the topic among many that say nothing: lexical overlap misleads, the label is all in one word."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = list(TOPICS)[i % 3]
        words = [str(rng.choice(TOPICS[label])), *rng.choice(NOISE, size=4, replace=False).tolist()]
        rows.append(Demonstration(f"{seed}-{i:03d}", " ".join(rng.permutation(words)), label))
    return rows


@pytest.fixture(scope="module")
def topics() -> TaskSpec:
    return TaskSpec(
        name="topics",
        family="topic",
        kind="classification",
        metric="accuracy",
        instruction="Topic:",
        template=Template(answer="It is %s ."),
        verbaliser={t: t for t in TOPICS},
    )


@pytest.fixture(scope="module")
def pool() -> list[Demonstration]:
    return topic_rows(240, seed=1)


@pytest.fixture(scope="module")
def ranked(topics: TaskSpec, pool: list[Demonstration]) -> RankedTask:
    """Lists as the first mining round makes them."""
    data = TaskData(topics, tuple(pool), ())
    return RankedTask(topics, data.by_id, score_lists(data, propose_bm25(topics, pool, pool, 20), FakeLM()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pool: list[Demonstration]) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"), [*(d.input for d in pool), "Topic: It is", *TOPICS])


@pytest.fixture
def make(folder: Path) -> Callable[..., BiEncoder]:
    return lambda **settings: build_encoder(str(folder), device="cpu", **settings)


def ranked_list(size: int, shuffled: int = 0) -> list[Candidate]:
    candidates = [Candidate(f"{r:02d}", 0.0, -float(r), r) for r in range(1, size + 1)]
    return [candidates[i] for i in np.random.default_rng(shuffled).permutation(size)]


# what is drawn


@given(st.integers(2, 30), st.integers(1, 12), st.sampled_from(["uniform", "stratified"]), st.integers(0, 10**6))
def test_a_draw_never_repeats_and_stands_best_first(size: int, count: int, how: str, seed: int) -> None:
    drawn = draw(ranked_list(size, seed), count, how, np.random.default_rng(seed))  # type: ignore[arg-type]
    ranks = [c.rank or 0 for c in drawn]
    assert len(drawn) == min(size, count)
    assert ranks == sorted(set(ranks))
    if how == "stratified" and 2 <= count < size:
        assert ranks[0] <= 5
        assert ranks[-1] > size - 5


def test_a_uniform_draw_takes_every_candidate_equally_often() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(c.rank for _ in range(4000) for c in draw(ranked_list(10), 4, "uniform", rng))
    assert set(counts) == set(range(1, 11))
    assert all(abs(n - 1600) < 150 for n in counts.values())


@pytest.mark.parametrize(("size", "edge"), [(6, 1), (16, 2), (50, 5), (90, 5)])
def test_epr_draws_from_the_best_and_the_worst_tenth_of_a_list_five_at_most(size: int, edge: int) -> None:
    rng = np.random.default_rng(0)
    pairs = [draw_extremes(ranked_list(size, i), rng) for i in range(300)]
    assert {p.rank for p, _ in pairs} == set(range(1, edge + 1))
    assert {n.rank for _, n in pairs} == set(range(size - edge + 1, size + 1))


@given(st.integers(2, 12), st.integers(0, 10**6))
def test_epr_never_takes_a_positive_that_is_no_better_than_its_negative(size: int, seed: int) -> None:
    positive, negative = draw_extremes(ranked_list(size, seed), np.random.default_rng(seed))
    assert (positive.rank or 0) < (negative.rank or 0)


def sampler(encoder: BiEncoder, tasks: list[RankedTask], **settings: object) -> _Sampler:
    defaults = {"tasks_per_step": 1, "list_sampling": "uniform", "objective": "udr", "false_negatives": "text"}
    chosen = {"batch": 6, "list_size": 5, "seed": 3, **defaults, **settings}
    return _Sampler(encoder, tasks, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("false_negatives", ["text", "output"])
@pytest.mark.parametrize("objective", ["udr", "epr"])
def test_a_batch_holds_each_demonstration_once_and_ranks_and_masks_as_said(
    make: Callable[..., BiEncoder], ranked: RankedTask, objective: str, false_negatives: str
) -> None:
    encoder = make()
    texts = {tuple(encoder.query_ids([d.query], "Topic:")[0]): d for d in ranked.by_id.values()}
    lists = {one.query_id: {c.demonstration_id: c.rank for c in one.candidates} for one in ranked.lists}
    pool = for_encoder(ranked.spec, list(ranked.by_id.values()), encoder)
    names = {tuple(ids): d.id for ids, d in zip(encoder.demonstration_ids(pool, "Topic:"), pool, strict=True)}
    assert len(names) == len(pool)
    for step in range(5):
        (batch,) = sampler(encoder, [ranked], objective=objective, false_negatives=false_negatives)(step)
        columns = [names[tuple(ids)] for ids in batch.demonstrations]
        queries = [texts[tuple(ids)] for ids in batch.queries]
        assert len(set(columns)) == len(columns)
        assert len({q.id for q in queries}) == 6
        assert batch.own.shape == batch.ranks.shape == (6, 2 if objective == "epr" else 5)
        for query, own, ranks, masked in zip(queries, batch.own, batch.ranks, batch.masked, strict=True):
            drawn = [lists[query.id][columns[c]] or 0 for c in own.tolist()]
            assert drawn == sorted(set(drawn))  # best first, so the rank among those drawn is the place
            assert ranks.tolist() == list(range(1, len(drawn) + 1))
            if objective == "epr":
                assert drawn[0] <= 5
                assert drawn[1] > 15
            demonstrations = [ranked.by_id[name] for name in columns]
            right = {query.output, demonstrations[own[0]].output} if false_negatives == "output" else set()
            assert masked.tolist() == [
                d.id == query.id or d.input == query.input or d.output in right for d in demonstrations
            ]


def test_false_negatives_of_other_queries_are_masked(make: Callable[..., BiEncoder], topics: TaskSpec) -> None:
    rows = [("a", "goal", "sport"), ("b", "goal", "money"), ("c", "bank", "money"), ("d", "orbit", "space")]
    by_id = {i: Demonstration(i, x, y) for i, x, y in rows}
    lists = [
        CandidateList("topics", "a", (Candidate("c", 0, -1, 1), Candidate("d", 0, -2, 2))),
        CandidateList("topics", "c", (Candidate("b", 0, -1, 1), Candidate("a", 0, -2, 2))),
    ]
    (batch,) = sampler(make(), [RankedTask(topics, by_id, lists)])(0)
    masked = sorted(sorted(row) for row in batch.masked.tolist())
    # query a must not be pushed away from itself (a) nor from another row of its input (b); query c not from c
    assert masked == [[False, False, False, True], [False, False, True, True]]


def test_batches_depend_on_seed_and_step_alone(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    encoder = make()
    first = sampler(encoder, [ranked])
    batches = [first(s)[0].queries for s in range(4)]
    other = sampler(encoder, [ranked])
    assert [other(s)[0].queries for s in (3, 1)] == [batches[3], batches[1]]
    assert len({str(b) for b in batches}) == 4
    assert sampler(encoder, [ranked], seed=4)(0)[0].queries != batches[0]


def test_one_task_stands_in_a_batch_and_large_ones_come_by_the_root_of_their_size(
    make: Callable[..., BiEncoder], ranked: RankedTask
) -> None:
    small = RankedTask(TaskSpec(**{**ranked.spec.model_dump(), "name": "small"}), ranked.by_id, ranked.lists[:24])
    large = RankedTask(ranked.spec, ranked.by_id, ranked.lists[:216])
    draws = sampler(make(), [large, small], batch=1)
    np.testing.assert_allclose(draws.weights, [0.75, 0.25])  # √216 : √24


def test_lists_of_one_candidate_teach_nothing(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    lists = [CandidateList("topics", one.query_id, one.candidates[:1]) for one in ranked.lists]
    with pytest.raises(DataError, match="nothing to train on: no list holds two scored candidates"):
        fit(make(), [RankedTask(ranked.spec, ranked.by_id, lists)], steps=1)
    mixed = RankedTask(ranked.spec, ranked.by_id, [*lists[1:], ranked.lists[0]])
    (batch,) = sampler(make(), [mixed])(0)
    assert len(batch.queries) == 1


def test_a_short_list_leaves_the_others_of_its_batch_as_long_as_they_are(
    make: Callable[..., BiEncoder], ranked: RankedTask
) -> None:
    first, *others = ranked.lists[:6]
    short = CandidateList("topics", first.query_id, first.candidates[:2])
    (batch,) = sampler(make(), [RankedTask(ranked.spec, ranked.by_id, [short, *others])])(0)
    assert batch.own.shape == (6, 5)
    assert sorted(batch.ranks.tolist()) == [[1, 2, 0, 0, 0], *[[1, 2, 3, 4, 5]] * 5]


# a step


def test_the_loss_of_a_step_is_that_of_the_formula(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    encoder = make(dropout=0.0, shared=False)
    (batch,) = sampler(encoder, [ranked])(0)
    with torch.no_grad():
        queries = encoder.embed(batch.queries, encoder.query_tower).double()
        demonstrations = encoder.embed(batch.demonstrations, encoder.demonstration_tower).double()
    sims = queries @ demonstrations.T / 0.05
    expected = udr_loss(sims, batch.own, batch.ranks, batch.masked, 0.8).item()
    ((task, loss),) = fit(encoder, [ranked], steps=1, batch=6, list_size=5, temperature=0.05, seed=3)
    assert task == ranked.spec.name
    assert loss == pytest.approx(expected, rel=1e-4)


def test_each_step_names_the_task_whose_batch_it_took(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    """The other task's queries are one list over and over, which its batches show."""
    other = RankedTask(TaskSpec(**{**ranked.spec.model_dump(), "name": "other"}), ranked.by_id, ranked.lists[:1])
    encoder = make()
    draws = sampler(encoder, [ranked, other], batch=3, seed=0)
    steps = fit(encoder, [ranked, other], steps=60, batch=3, list_size=2, lr=1e-5)
    assert [step.task == "other" for step in steps] == [len(draws(i)[0].queries) == 1 for i in range(60)]
    assert 0 < sum(step.task == "other" for step in steps) < 60


def several(ranked: RankedTask, count: int) -> list[RankedTask]:
    """Tasks of unlike sizes."""
    spec = ranked.spec.model_dump()
    return [
        RankedTask(TaskSpec(**{**spec, "name": f"t{n}"}), ranked.by_id, ranked.lists[: 4 * (n + 1) ** 2])
        for n in range(count)
    ]


def test_a_step_of_several_tasks_shares_the_queries_among_tasks_that_differ(
    make: Callable[..., BiEncoder], ranked: RankedTask
) -> None:
    draws = sampler(make(), several(ranked, 4), batch=9, tasks_per_step=2)
    seen = Counter()
    for step in range(60):
        tasks = draws.tasks_of(step)
        assert len(set(tasks)) == 2
        assert [len(b.queries) for b in draws(step)] == [4, 4]
        seen.update(tasks)
    assert seen[3] > 2 * seen[0] > 0  # the largest has four times the weight
    assert sampler(make(), several(ranked, 2), tasks_per_step=5).tasks_per_step == 2


def test_equal_weights_go_down_the_sum_of_the_losses_of_a_step(
    make: Callable[..., BiEncoder], ranked: RankedTask
) -> None:
    tasks, encoder = several(ranked, 3), make(dropout=0.0, shared=False)
    draws = sampler(encoder, tasks, tasks_per_step=2)
    losses = []
    for batch in draws(0):
        sims = (
            encoder.embed(batch.queries, encoder.query_tower)
            @ encoder.embed(batch.demonstrations, encoder.demonstration_tower).T
        )
        losses.append(udr_loss(sims / 0.05, batch.own, batch.ranks, batch.masked, 0.8))
    torch.stack(losses).sum().backward()
    expected = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    length = float(torch.stack([g.norm() for g in expected.values()]).norm())
    trained = make(dropout=0.0, shared=False)
    steps = fit(trained, tasks, steps=1, batch=6, tasks_per_step=2, list_size=5, temperature=0.05, seed=3)
    assert [s.task for s in steps] == [tasks[t].spec.name for t in draws.tasks_of(0)]
    np.testing.assert_allclose([s.loss for s in steps], [float(loss.detach()) for loss in losses], rtol=1e-4)
    for name, p in trained.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name] * min(1.0, 1 / length), rtol=1e-3, atol=1e-6)


def test_training_that_diverges_stops(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    encoder = make()
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingStopped, match=r"step 0: the loss is nan; .* a lower train\.lr"):
        fit(encoder, [ranked], steps=2, batch=2, list_size=2)


def test_an_unknown_weighting_is_refused(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    with pytest.raises(UnknownNameError, match="did you mean gradnorm"):
        fit(make(), [ranked], steps=1, weighting="grad_norm")


def test_a_task_that_is_learnt_and_lost_again_is_found() -> None:
    learnt, lost, short = np.linspace(2, 1, 60), [*np.linspace(2, 1.2, 30), *np.linspace(2.1, 1.8, 30)], [1.0, 9.0]
    steps = [Step(name, loss) for name, own in (("a", learnt), ("b", lost), ("c", short)) for loss in own]
    np.random.default_rng(0).shuffle(order := np.arange(60))  # noise about a level is no loss
    steps += [Step("d", 1.5 + 0.3 * (i % 2)) for i in order]
    found = forgotten(steps)
    assert list(found) == ["b"]
    best, last = found["b"]
    assert best == pytest.approx(np.mean(lost[20:30]))
    assert last == pytest.approx(np.mean(lost[50:]))


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_to_the_end(
    make: Callable[..., BiEncoder], ranked: RankedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(make(), [ranked], steps=20, batch=2, list_size=2, lr=1.0e-3, warmup=500)
    expected = [0.5, 1.0] + [(20 - n) / 18 for n in range(2, 20)]
    np.testing.assert_allclose(rates, np.array(expected) * 1e-3, rtol=1e-9)


def test_frozen_word_vectors_stay_and_all_else_moves(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    encoder = make()
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    fit(encoder, [ranked], steps=2, batch=4, list_size=4, freeze_embeddings=True)
    stayed = [name for name, p in encoder.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in stayed if "pooler" not in name] == ["query_tower.embeddings.word_embeddings.weight"]


def test_word_vectors_stay_frozen_in_a_later_round_from_a_saved_encoder(
    make: Callable[..., BiEncoder], ranked: RankedTask, tmp_path: Path
) -> None:
    first = make()
    fit(first, [ranked], steps=1, batch=4, list_size=4, freeze_embeddings=True)
    first.save(tmp_path / "encoder")
    second = load_encoder(tmp_path / "encoder", device="cpu")
    fit(second, [ranked], steps=2, batch=4, list_size=4, freeze_embeddings=True)
    words = [encoder.query_tower.get_input_embeddings().weight for encoder in (first, second)]
    assert torch.equal(*words)


def test_a_trained_encoder_goes_by_another_fingerprint(make: Callable[..., BiEncoder], ranked: RankedTask) -> None:
    encoder = make()
    before = encoder.fingerprint
    fit(encoder, [ranked], steps=1, batch=2, list_size=2)
    assert encoder.fingerprint != before
    assert not encoder.training


# going on


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("shared", "kills", "weighting"),
    [
        (True, [3], "equal"),
        (False, [5, 9], "equal"),
        (False, [4], "dwa"),
        (True, [5, 9], "gradnorm"),
        (True, [3], "rlw"),
    ],
)
def test_a_killed_run_ends_with_the_very_weights_of_one_that_was_not(
    make: Callable[..., BiEncoder], ranked: RankedTask, tmp_path: Path, kills: list[int], shared: bool, weighting: str
) -> None:
    tasks = [ranked] if weighting == "equal" else several(ranked, 3)

    def train(
        checkpoint: Path | None, progress: Callable[[int, int], None] | None = None
    ) -> tuple[BiEncoder, list[Step]]:
        encoder = make(shared=shared)  # with dropout, as it stands
        assert any(m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout))
        losses = fit(
            encoder,
            tasks,
            steps=12,
            batch=4,
            tasks_per_step=2,
            weighting=weighting,
            list_size=4,
            lr=3e-3,
            temperature=0.05,
            seed=5,
            checkpoint=checkpoint,
            checkpoint_every=2,
            progress=progress,
        )
        return encoder, losses

    whole, losses = train(None)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    for step in kills:
        with pytest.raises(Killed):
            train(checkpoint, kill_at(step))
    torch.manual_seed(99)  # another process has another state
    resumed, all_losses = train(checkpoint)
    assert all_losses == losses
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.fingerprint == whole.fingerprint
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint.pt"]


def test_a_damaged_checkpoint_or_one_of_another_encoder_is_refused(
    make: Callable[..., BiEncoder], ranked: RankedTask, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    settings = {"steps": 4, "batch": 2, "list_size": 2, "checkpoint": checkpoint, "checkpoint_every": 2}
    fit(make(shared=False), [ranked], **settings)  # type: ignore[arg-type]
    content = checkpoint.read_bytes()
    with pytest.raises(ArtifactError, match=r"checkpoint\.pt: .*delete it to begin anew"):
        fit(make(), [ranked], freeze_embeddings=True, **settings)  # type: ignore[arg-type]
    for broken in (content[: len(content) // 2], b"", b"nonsense"):
        checkpoint.write_bytes(broken)
        with pytest.raises(ArtifactError, match="delete it to begin anew"):
            fit(make(shared=False), [ranked], **settings)  # type: ignore[arg-type]


def test_a_full_disk_gives_an_artifact_error_and_keeps_the_former_checkpoint(
    make: Callable[..., BiEncoder], ranked: RankedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    settings = {"steps": 6, "batch": 2, "list_size": 2, "checkpoint": checkpoint, "checkpoint_every": 2}
    with pytest.raises(Killed):
        fit(make(), [ranked], progress=kill_at(2), **settings)  # type: ignore[arg-type]
    content = checkpoint.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="the checkpoint cannot be written"):
        fit(make(), [ranked], **settings)  # type: ignore[arg-type]
    assert checkpoint.read_bytes() == content


# learning


def same_label(ranker: Ranker, pool: list[Demonstration], queries: list[Demonstration]) -> float:
    """Share of the 16 nearest demonstrations that hold the query's label."""
    rows, _ = ranker.rank([q.query for q in queries], 16)
    return float(np.mean([[pool[r].output == q.output for r in own] for q, own in zip(queries, rows, strict=True)]))


@pytest.fixture(scope="module")
def queries(pool: list[Demonstration]) -> list[Demonstration]:
    """New texts of the same words."""
    known = {d.input for d in pool}
    return [q for q in topic_rows(90, seed=2) if q.input not in known]


SETTINGS: dict[str, Any] = {"batch": 16, "list_size": 6, "lr": 3e-3, "temperature": 0.05}


def test_training_on_the_lms_feedback_beats_the_untrained_encoder_and_bm25(
    make: Callable[..., BiEncoder],
    topics: TaskSpec,
    pool: list[Demonstration],
    ranked: RankedTask,
    queries: list[Demonstration],
) -> None:
    encoder = make(shared=False, dropout=0.0)
    untrained = same_label(build_dense_ranker(topics, pool, encoder), pool, queries)
    lexical = same_label(BM25Ranker(pool), pool, queries)
    losses = [step.loss for step in fit(encoder, [ranked], steps=200, **SETTINGS)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    first = same_label(build_dense_ranker(topics, pool, encoder), pool, queries)
    assert first > untrained + 0.35
    assert first > lexical + 0.2
    # and a second round, mined by the encoder itself, does not unlearn it
    data = TaskData(topics, tuple(pool), ())
    again = RankedTask(topics, data.by_id, score_lists(data, propose_dense(topics, pool, pool, 20, encoder), FakeLM()))
    fit(encoder, [again], steps=40, seed=1, **{**SETTINGS, "lr": 1e-3})
    assert same_label(build_dense_ranker(topics, pool, encoder), pool, queries) > first - 0.05


def test_epr_learns_too(
    make: Callable[..., BiEncoder],
    topics: TaskSpec,
    pool: list[Demonstration],
    ranked: RankedTask,
    queries: list[Demonstration],
) -> None:
    encoder = make(shared=False, dropout=0.0)
    untrained = same_label(build_dense_ranker(topics, pool, encoder), pool, queries)
    fit(encoder, [ranked], steps=150, objective="epr", **SETTINGS)
    assert same_label(build_dense_ranker(topics, pool, encoder), pool, queries) > untrained + 0.2
