"""The pipeline end to end: its files, its stages, what it refuses, and that a kill at any moment changes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import start
from workbench import MANIFEST, Bench, Outcome, mood_rows, write_table

import training.run
from training.evaluate import evaluate, index, train_epr
from training.run import encoder_folder, mine_and_train, open_run, propose, score, train
from udr.candidates import read_candidates
from udr.encoder import load_encoder
from udr.errors import ArtifactError, ConfigError, FingerprintMismatch
from udr.fakes import FakeLM
from udr.mining import propose_bm25, propose_dense
from udr.train import RankedTask

METHODS = ("zero_shot", "random", "bm25", "encoder", "epr", "udr")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of writing and content of every file."""
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, digest(p)) for p in folder.rglob("*") if p.is_file()}


def outcome(bench: Bench) -> dict[str, object]:
    """All that a run leaves and that two runs of the same settings must share.

    Left out are the settings (they name their folder) and what a killed process had not yet put into place.
    """
    found: dict[str, object] = {}
    for path in sorted(p for p in bench.out.rglob("*") if p.is_file()):
        parts = path.relative_to(bench.out)
        if path.name == "config.yaml" or any(p.startswith(".") for p in parts.parts):
            continue
        found[str(parts)] = digest(path)
    table = json.loads((bench.out / "evaluation" / "table.json").read_text())
    table["facts"].pop("seconds")
    return found | {"evaluation/table.json": table}


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


def test_epr_learns_from_the_lexical_lists_and_only_when_told_from_the_mined_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(bench.settings("train.epochs=1", "train.round_epochs=3", "train.batch=4"))
    mine_and_train(run)
    seen: list[tuple[RankedTask, int]] = []
    fit = training.run.fit

    def spy(encoder: Any, tasks: list[RankedTask], steps: int, **settings: Any) -> list[float]:
        seen.extend((task, steps) for task in tasks)
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


def test_a_process_killed_at_random_moments_ends_as_one_that_never_was(
    bench: Bench, finished: Bench, tmp_path: Path
) -> None:
    start(tmp_path / "errors", "--help").join()  # the server of processes may have to start first
    began = time.monotonic()
    whole = start(tmp_path / "errors", "run", bench.config, f"out={tmp_path / 'timed' / 'run'}")
    whole.join()
    seconds = time.monotonic() - began
    draw = random.Random(0)
    kills = 0
    while kills < 6:
        process = start(tmp_path / "errors", "run", bench.config)
        process.join(seconds * draw.uniform(0.05, 0.25))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 3, "the run is too short to be killed"
    last = start(tmp_path / "errors", "run", bench.config)
    last.join()
    assert last.exitcode == 0, (tmp_path / "errors").read_text()
    assert outcome(bench) == outcome(finished)


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_process_that_dies_at_its_next_files_ends_as_one_that_never_did(
    bench: Bench, finished: Bench, tmp_path: Path, after: bool
) -> None:
    """Each process puts a few files into place and dies: between any two stages, and amid each of them."""
    deaths = 0
    while True:
        process = start(tmp_path / "errors", "run", bench.config, moves=4 + deaths % 4, after=after)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, (tmp_path / "errors").read_text()
        deaths += 1
        assert deaths < 60, "no progress from one process to the next"
    assert deaths >= 6
    assert outcome(bench) == outcome(finished)


def test_training_killed_again_and_again_goes_on_from_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    words = ("mining.rounds=0", "train.epochs=20", "train.checkpoint_every=4")  # 120 steps
    run = open_run(bench.settings(*words))
    propose(run, 0)
    score(run, 0)
    whole = Bench(bench.folder / "whole")
    shutil.copytree(bench.out, whole.out)
    process = start(tmp_path / "whole", "train", bench.config, *words, f"out={whole.out}")
    checkpoint = bench.out / "round-0" / "encoder.checkpoint"
    reached = [0]

    def goes_on() -> bool:
        step = step_of(checkpoint) if checkpoint.is_file() else 0
        assert step >= reached[-1], "training began anew"
        return step > reached[-1]

    while len(reached) < 4:
        killed = start(tmp_path / "killed", "train", bench.config, *words)
        wait_for(goes_on, killed)
        killed.kill()
        killed.join()
        reached.append(step_of(checkpoint))
    last = start(tmp_path / "last", "train", bench.config, *words)
    for one, errors in ((process, "whole"), (last, "last")):
        one.join()
        assert one.exitcode == 0, (tmp_path / errors).read_text()
    assert not checkpoint.exists()
    towers = [Path("round-0/encoder") / tower / "model.safetensors" for tower in ("query", "demonstration")]
    assert [digest(bench.out / t) for t in towers] == [digest(whole.out / t) for t in towers]


def step_of(checkpoint: Path) -> int:
    return len(torch.load(checkpoint, weights_only=True)["losses"])


def wait_for(condition: Any, process: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "the process ended before it could be killed"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_the_command_itself_killed_while_it_works_ends_as_one_that_never_was(bench: Bench, finished: Bench) -> None:
    command = [sys.executable, "-m", "training.cli", "run", str(bench.config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for((bench.out / "round-0" / "paint.scored.jsonl").is_file, Alive(process))
        process.kill()
    assert not (bench.out / "evaluation" / "table.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(bench) == outcome(finished)


class Alive:
    """A subprocess with the question that multiprocessing's processes answer."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def is_alive(self) -> bool:
        return self.process.poll() is None


FULL_AT_FIRST = [
    (1, "config.yaml"),  # kilobytes that a file may have, and the one that needs more
    (4, "mood.proposed.jsonl"),
    (16, "scores.sqlite"),
    (48, "scores.sqlite"),
    (140, "encoder.checkpoint"),
]


@pytest.mark.parametrize(
    ("done", "checkpoint_every", "tries"),
    [((), 3, FULL_AT_FIRST), (("propose", "score"), 1000, [(90, ".encoder.building")])],
    ids=["from the first file", "at saving the encoder"],
)
def test_a_disk_that_fills_up_costs_one_line_and_with_room_again_the_run_ends_the_same(
    bench: Bench,
    finished: Bench,
    tmp_path: Path,
    done: tuple[str, ...],
    checkpoint_every: int,
    tries: list[tuple[int, str]],
) -> None:
    errors, words = tmp_path / "errors", (bench.config, f"train.checkpoint_every={checkpoint_every}")

    def run(stage: str, limit: int = 0) -> int | None:
        process = start(errors, stage, *words, file_limit=limit << 10)
        process.join()
        return process.exitcode

    for stage in done:
        assert run(stage) == 0
    for limit, name in tries:
        code, lines = run("run", limit), errors.read_text().splitlines()
        assert code == 2, (limit, lines)
        assert [line for line in lines if line.startswith("udr: ")] == lines[-1:], lines
        assert f"/{name}: " in lines[-1]
        assert not any("Traceback" in line for line in lines)
    assert run("run") == 0, errors.read_text()
    assert outcome(bench) == outcome(finished)


def test_a_full_disk_is_named_in_the_complaint(bench: Bench, udr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert udr("run", bench.config).complaint == (
            f"{bench.out}/config.yaml: cannot be written (No space left on device)"
        )
    assert not list(bench.out.iterdir())
    assert udr("propose", bench.config).code == 0


@pytest.mark.parametrize(
    ("stage", "gone", "limit", "name"),
    [("index", "retriever", 90, "retriever/encoder"), ("evaluate", "evaluation", 16, "evaluation/table.png")],
)
def test_a_disk_that_fills_up_in_the_last_stages_costs_one_line_too(
    copy: Bench, finished: Bench, tmp_path: Path, stage: str, gone: str, limit: int, name: str
) -> None:
    shutil.rmtree(copy.out / gone)
    for own_limit, code in ((limit << 10, 2), (0, 0)):
        process = start(tmp_path / str(code), stage, copy.config, file_limit=own_limit)
        process.join()
        assert process.exitcode == code, (tmp_path / str(code)).read_text()
    (line,) = [line for line in (tmp_path / "2").read_text().splitlines() if line.startswith("udr: ")]
    assert line.startswith(f"udr: {copy.out}/{name}: cannot be written (")
    assert outcome(copy) == outcome(finished)
