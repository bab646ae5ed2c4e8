"""The pipeline end to end: its files, its stages, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from workbench import MANIFEST, Bench, Outcome, digest, mood_rows, write_table

import training.run
from training.evaluate import evaluate, index, train_epr
from training.run import encoder_folder, mine_and_train, open_run, propose, score, train
from udr.candidates import read_candidates
from udr.encoder import load_encoder
from udr.errors import ArtifactError, ConfigError, FingerprintMismatch, UDRWarning
from udr.fakes import FakeLM
from udr.mining import propose_bm25, propose_dense
from udr.train import RankedTask, Step

METHODS = ("zero_shot", "random", "bm25", "encoder", "epr", "udr")


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of writing and content of every file."""
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, digest(p)) for p in folder.rglob("*") if p.is_file()}


def test_every_stage_leaves_its_files(finished: Bench) -> None:
    tasks = ("mood", "paint")
    wanted = ["config.yaml", "run.json", "retriever/encoder/encoder.json"]
    wanted += [f"evaluation/table.{kind}" for kind in ("json", "md", "png")]
    for task in tasks:
        wanted += [f"round-{n}/{task}.{stage}.jsonl" for n in (0, 1) for stage in ("proposed", "scored")]
        wanted += [f"retriever/tasks/{task}/{file}" for file in ("task.yaml", "pool.jsonl", "index/manifest.json")]
        wanted += [f"evaluation/{method}/{task}.jsonl" for method in METHODS]
        wanted += [f"epr/{task}/{tower}/model.safetensors" for tower in ("query", "demonstration")]
    wanted += [f"round-{n}/encoder/{t}/model.safetensors" for n in (0, 1) for t in ("query", "demonstration")]
    assert [name for name in wanted if not (finished.out / name).is_file()] == []
    assert (finished.folder / "scores.sqlite").is_file()
    litter = [str(p) for p in finished.out.rglob("*") if p.name.startswith(".") or p.suffix in (".tmp", ".checkpoint")]
    assert litter == []


def test_scored_lists_hold_the_proposals_ranked_by_the_lm_and_never_the_query(finished: Bench) -> None:
    for number in (0, 1):
        for task in ("mood", "paint"):
            folder = finished.out / f"round-{number}"
            proposed = read_candidates(folder / f"{task}.proposed.jsonl")
            scored = read_candidates(folder / f"{task}.scored.jsonl")
            assert len(scored) == 24
            for before, after in zip(proposed, scored, strict=True):
                ids = [c.demonstration_id for c in after.candidates]
                assert before.query_id == after.query_id
                assert sorted(ids) == sorted(c.demonstration_id for c in before.candidates)
                assert len(ids) == 6
                assert after.query_id not in ids
                assert [c.rank for c in after.candidates] == list(range(1, 7))
                scores = [c.lm_score for c in after.candidates if c.lm_score is not None]
                assert scores == sorted(scores, reverse=True)
                assert len(scores) == 6


def test_a_second_run_writes_nothing_and_asks_the_lm_nothing(
    copy: Bench, udr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the LM was asked again")

    monkeypatch.setattr(FakeLM, "loglikelihood", refuse)
    monkeypatch.setattr(FakeLM, "generate", refuse)
    before = snapshot(copy.folder)
    again: Outcome = udr("run", copy.config)
    assert again.code == 0
    assert again.out.strip() == (copy.out / "evaluation" / "table.md").read_text().strip()
    assert snapshot(copy.folder) == before


def test_round_zero_is_lexical_and_later_rounds_ask_the_encoder_of_the_round_before(bench: Bench) -> None:
    run = open_run(bench.settings("mining.rounds=2", "mining.scored=0", "train.epochs=1", "train.round_epochs=1"))
    mine_and_train(run)
    for name, data in run.tasks.items():
        found = [read_candidates(run.round_folder(n) / f"{name}.proposed.jsonl") for n in range(3)]
        queries = [data.by_id[one.query_id] for one in found[0]]
        pool = [data.by_id[i] for i in sorted(data.by_id)]
        assert as_sets(found[0]) == as_sets(propose_bm25(data.spec, pool, queries, 8))
        for number in (1, 2):
            before = load_encoder(encoder_folder(run, number - 1, name))
            dense = propose_dense(data.spec, data.train, queries, 8, before)
            assert as_sets(found[number]) == as_sets(dense)
            assert as_sets(found[number]) != as_sets(found[number - 1])
    weights = {digest(encoder_folder(run, n, "mood") / "query" / "model.safetensors") for n in range(3)}
    assert len(weights) == 3


@pytest.mark.parametrize(("metric", "rare"), [("macro_f1", 6), ("accuracy", None)])
def test_balanced_mining_shows_the_lm_labels_evenly_and_queries_as_the_metric_counts_them(
    bench: Bench, metric: str, rare: int | None
) -> None:
    """One of ten rows is up: the candidates of a list are half up, queries only where labels count alike."""
    rows = [row | {"output": "up" if i % 10 == 0 else "down"} for i, row in enumerate(mood_rows(100))]
    write_table(bench.data / "mood.jsonl", rows, test=10)
    manifest = [MANIFEST[0] | {"metric": metric}, MANIFEST[1]]
    (bench.data / "manifest.json").write_text(json.dumps(manifest))
    run = open_run(bench.settings("mining.balanced=true", "mining.queries=12", "mining.candidates=90"))
    propose(run, 0)
    by_id = run.tasks["mood"].by_id
    lists = read_candidates(run.round_folder(0) / "mood.proposed.jsonl")
    asked = sum(by_id[one.query_id].output == "up" for one in lists)
    if rare is None:
        assert asked < 4
    else:
        assert asked == rare
    for one in lists:
        assert sum(by_id[c.demonstration_id].output == "up" for c in one.candidates) == 3  # of 6


def test_a_task_lost_in_training_is_told_and_each_step_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(bench.settings("train.epochs=1"))
    monkeypatch.setattr(training.run, "forgotten", lambda steps: {"mood": (1.0, 2.0)})
    propose(run, 0)
    score(run, 0)
    with pytest.warns(UDRWarning, match=r"^round 0: training: mood was learnt and lost again .* was 1.00 .* at 2.00\)"):
        train(run, 0)
    steps = json.loads((run.round_folder(0) / "encoder" / "losses.json").read_text())
    assert {step["task"] for step in steps} == set(run.tasks)
    assert all(step["loss"] > 0 for step in steps)


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_made_an_error_does_not_cost_the_encoder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(bench.settings("train.epochs=1"))
    monkeypatch.setattr(training.run, "forgotten", lambda steps: {"mood": (1.0, 2.0)})
    propose(run, 0)
    score(run, 0)
    with pytest.raises(UDRWarning):
        train(run, 0)
    assert (run.round_folder(0) / "encoder" / "encoder.json").is_file()


def test_epr_learns_from_the_lexical_lists_and_only_when_told_from_the_mined_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(
        bench.settings("train.epochs=1", "train.round_epochs=3", "train.batch=4", "train.false_negatives=output")
    )
    mine_and_train(run)
    seen: list[tuple[RankedTask, int]] = []
    fit = training.run.fit

    def spy(encoder: Any, tasks: list[RankedTask], steps: int, **settings: Any) -> list[Step]:
        seen.extend((task, steps) for task in tasks)
        assert settings["false_negatives"] == "text"  # as published, whatever the unified retriever is told
        return fit(encoder, tasks, steps=1, **settings)

    monkeypatch.setattr(training.run, "fit", spy)
    train_epr(run, "mood")
    train_epr(run, "mood", mined=True)
    (lexical, steps), (mined, mined_steps) = seen
    lists = [read_candidates(run.round_folder(n) / "mood.scored.jsonl") for n in (0, 1)]
    assert lexical.lists == lists[0]
    pairs = [
        {(one.query_id, c.demonstration_id) for one in many for c in one.candidates} for many in (*lists, mined.lists)
    ]
    assert pairs[2] == pairs[0] | pairs[1]
    assert pairs[1] - pairs[0]
    assert steps == mined_steps == (len(lists[0]) + 3 * len(lists[1])) / 4  # as the unified retriever


def test_a_round_never_draws_a_query_twice(bench: Bench) -> None:
    run = open_run(bench.settings("mining.queries=1000", "mining.rounds=0"))
    propose(run, 0)
    lists = read_candidates(run.round_folder(0) / "mood.proposed.jsonl")
    assert len(lists) == len({one.query_id for one in lists}) == len(run.tasks["mood"].train)


def as_sets(lists: Sequence[Any]) -> list[set[float]]:
    """Retrieval scores of each list: the candidates but for the order of ties."""
    return [{round(c.retrieval_score, 4) for c in one.candidates} for one in lists]


@pytest.mark.parametrize("accumulate", [True, False])
def test_later_rounds_train_on_the_union_of_all_lists_only_when_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, accumulate: bool
) -> None:
    trained: list[list[RankedTask]] = []
    fit = training.run.fit

    def spy(encoder: Any, tasks: list[RankedTask], **settings: Any) -> list[float]:
        trained.append(list(tasks))
        return fit(encoder, tasks, **settings)

    monkeypatch.setattr(training.run, "fit", spy)
    run = open_run(bench.settings(f"mining.accumulate={accumulate}", "train.epochs=1", "train.round_epochs=1"))
    mine_and_train(run)
    first, second = trained
    for name, task in zip(run.tasks, second, strict=True):
        rounds = [read_candidates(run.round_folder(n) / f"{name}.scored.jsonl") for n in (0, 1)]
        ids = [{one.query_id: {c.demonstration_id for c in one.candidates} for one in lists} for lists in rounds]
        for one in task.lists:
            own = {c.demonstration_id for c in one.candidates}
            assert own == (ids[0][one.query_id] | ids[1][one.query_id] if accumulate else ids[1][one.query_id])
            assert sorted(c.rank or 0 for c in one.candidates) == list(range(1, len(own) + 1))
    assert [t.lists for t in first] == [
        read_candidates(run.round_folder(0) / f"{name}.scored.jsonl") for name in run.tasks
    ]


def test_single_task_mode_trains_each_encoder_on_its_own_task_and_has_no_common_index(
    bench: Bench, udr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    fit = training.run.fit

    def spy(encoder: Any, tasks: list[RankedTask], **settings: Any) -> list[float]:
        trained.append([t.spec.name for t in tasks])
        return fit(encoder, tasks, **settings)

    monkeypatch.setattr(training.run, "fit", spy)
    words = ("train.multi_task=false", "evaluation.methods=[random, udr]")
    assert udr("run", bench.config, *words).code == 0
    assert trained == [["mood"], ["paint"], ["mood"], ["paint"]]
    weights = {digest(p) for p in bench.out.glob("round-1/encoder-*/query/model.safetensors")}
    assert len(weights) == 2
    assert not bench.retriever.exists()
    assert "multi_task" in udr("index", bench.config, *words).complaint


@pytest.mark.parametrize(
    "change",
    ["seed=1", "tasks=[mood]", "mining.candidates=9", "train.lr=0.001", "encoder.max_tokens=16", "mining.rounds=2"],
)
def test_an_old_folder_refuses_other_settings_and_stays_as_it_was(copy: Bench, change: str) -> None:
    before = snapshot(copy.folder)
    with pytest.raises(ConfigError, match=f"other settings under '{change.partition('=')[0].partition('.')[0]}'"):
        open_run(copy.settings(change))
    assert snapshot(copy.folder) == before


def test_an_old_folder_takes_other_settings_of_the_evaluation(copy: Bench) -> None:
    run = open_run(copy.settings("evaluation.methods=[bm25, udr]"))
    assert evaluate(run).methods == ("bm25", "udr")


def test_a_finished_run_refuses_another_lm_and_keeps_its_settings(copy: Bench, lm_folder: Path) -> None:
    before = snapshot(copy.folder)
    with pytest.raises(FingerprintMismatch, match="was begun with lm fake-lm-1"):
        open_run(copy.settings(f"lm.name={lm_folder}"))
    assert snapshot(copy.folder) == before


def test_a_run_refuses_the_same_lm_folder_with_other_weights(bench: Bench, lm_folder: Path) -> None:
    own = bench.folder / "lm"
    shutil.copytree(lm_folder, own)
    words = (f"lm.name={own}", "mining.queries=2", "mining.candidates=2", "lm.dtype=float32")
    propose(open_run(bench.settings(*words)), 0)
    (own / "config.json").write_text((own / "config.json").read_text() + "\n")
    with pytest.raises(FingerprintMismatch, match="was begun with lm"):
        score(open_run(bench.settings(*words)), 0)
    assert not list(bench.out.glob("*/*.scored.jsonl"))


def test_training_refuses_another_untrained_encoder_under_the_same_name(bench: Bench, encoder_folder: Path) -> None:
    own = bench.folder / "encoder"
    shutil.copytree(encoder_folder, own)
    run = open_run(bench.settings(f"encoder.name={own}"))
    propose(run, 0)
    score(run, 0)
    run.untrained_encoder()
    (own / "config.json").write_text((own / "config.json").read_text() + "\n")
    with pytest.raises(FingerprintMismatch, match="was begun with encoder"):
        train(open_run(bench.settings(f"encoder.name={own}")), 0)
    assert not (bench.out / "round-0" / "encoder").exists()


def test_runs_beside_each_other_share_the_lm_scores(copy: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("scored twice")

    monkeypatch.setattr(FakeLM, "loglikelihood", refuse)
    run = open_run(copy.settings(f"out={copy.folder / 'other'}"))
    propose(run, 0)
    score(run, 0)
    assert run.scorer.misses == 0
    assert run.scorer.hits > 0
    for task in ("mood", "paint"):
        name = f"round-0/{task}.scored.jsonl"
        assert (run.out / name).read_bytes() == (copy.out / name).read_bytes()


def test_stages_asked_too_early_say_what_is_missing(bench: Bench) -> None:
    run = open_run(bench.settings())
    with pytest.raises(ArtifactError, match="not trained yet; run: udr train"):
        index(run)
    with pytest.raises(ArtifactError, match="not proposed yet; run: udr propose --round 0"):
        score(run, 0)
    propose(run, 0)
    with pytest.raises(ArtifactError, match="not scored yet; run: udr score --round 0"):
        train(run, 0)
