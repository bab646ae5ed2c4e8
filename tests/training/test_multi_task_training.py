"""Multi-task training: every network and weighting steps, resumes bit by bit, learns; and its commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scenes import png

import training.loop
from embed.multi_task import load_multi_task
from training.annotated import read_annotated
from training.loop import OF_WEIGHTING, build_optimizer, fit
from training.multi_task_metrics import evaluate_tasks
from training.pretrain import pretrain
from training.pretrain_multi_task import build_multi_task, read_tasks
from training.pretrain_settings import PretrainConfig
from training.run import silent
from training.scenes import scenes_table
from training.task_samples import task_rows
from udr.errors import ConfigError, UnknownNameError
from udr.filters import Codebook, parse_filter
from udr.weighting import WEIGHTINGS

DENSE: Any = {"semseg": "segmentation", "depth": "depth", "edges": "edges", "saliency": "saliency"}
TASKS = (*DENSE, "ground")
BRANCHING = [[list(TASKS)], [["semseg", "ground"], ["depth", "edges", "saliency"]]]
BRANCHING = [*BRANCHING, *[[["semseg", "ground"], ["depth", "edges"], ["saliency"]]] * 2]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("scenes") / "scenes.parquet"
    scenes_table(file, 40, size=32)
    return file


def config(out: Path, table: Path, **own: Any) -> PretrainConfig:
    loop = {"epochs": 2, "batch": 8, "lr": 1e-3, "checkpoint_every": 3, "precision": "float32", **own.pop("loop", {})}
    return PretrainConfig.parse(
        {
            "out": out,
            "method": "multi_task",
            "data": table,
            "split": "train",
            "held_out": "test",
            "backbone": "pyramid_small",
            "size": 32,
            "loop": loop,
            "multi_task": {"dense": DENSE, "attributes": ["ground"], "width": 8, **own},
        },
        "test",
    )


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# -- training


@pytest.mark.parametrize("network", ["shared", "branched", "mti"])
def test_a_network_trains_and_leaves_an_encoder_with_its_words(tmp_path: Path, table: Path, network: str) -> None:
    branching = BRANCHING if network == "branched" else []
    own = config(tmp_path / "run", table, network=network, branching=branching)
    folder = pretrain(own, "cpu")
    encoder = load_multi_task(folder, "cpu")
    assert encoder.kinds == DENSE
    assert set(encoder.classes) == {"ground"}
    untrained = build_multi_task(own, read_tasks(own, silent)[0]).net.state_dict()
    trained = encoder.net.state_dict()
    still = [n for n, w in trained.items() if w.equal(untrained[n]) and "num_batches" not in n]
    assert still == []
    last = lines_of(own.out)[-1]
    assert last["step"] == 7
    assert {"loss", *TASKS, "spread", "semseg_miou", "depth_rmse", "edges_f", "ground_accuracy"} <= set(last)
    assert last["loss"] == pytest.approx(sum(last[task] for task in TASKS), rel=1e-4)
    assert {path.name for path in own.out.glob("*.png")} == {"metrics.png", "samples.png"}
    asked = read_tasks(own, silent)[1]
    rows = task_rows(encoder, asked)
    assert [len(row) for row in rows] == [1 + 2 * len(DENSE)] * 6
    assert np.array_equal(rows[2][0], asked.pixels[2])
    assert np.array_equal(rows[1][5][0] > 0, asked.dense["edges"][1] > 0)
    seen = encoder.maps(asked.pixels[:2])["saliency"]
    assert np.array_equal(rows[1][8][2], (seen[1] * 255).round().astype(np.uint8))
    saved = json.loads((folder / "encoder.json").read_text())
    assert saved["depth_rmse"] == pytest.approx(last["depth_rmse"], abs=1e-3)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_moves_every_weight_and_tells_its_own(tmp_path: Path, table: Path, name: str) -> None:
    own = config(tmp_path, table, weighting=name, loop={"epochs": 0.5})
    known, _ = read_tasks(own, silent)
    method = build_multi_task(own, known)
    before = {n: w.clone() for n, w in method.net.named_parameters()}
    lines = fit(method, known, own.loop, tmp_path, device="cpu")
    assert [n for n, w in method.net.named_parameters() if w.equal(before[n])] == []
    told = [lines[0][f"weight_{task}"] for task in TASKS]
    assert all(np.isfinite(told))
    assert (len(set(told)) > 1) == (name in ("mgda", "cagrad", "pcgrad", "gls", "rlw", "imtl"))  # in the first step


def test_equal_weights_are_the_sum_of_the_losses(tmp_path: Path, table: Path) -> None:
    own = config(tmp_path, table, flip=False, weights={"depth": 3.0})
    known, _ = read_tasks(own, silent)
    method, plain = build_multi_task(own, known), build_multi_task(own, known)
    rows = torch.arange(8)
    losses = method(rows, 0.0)
    method.weighting.backward([losses[task] for task in TASKS], method.shared())
    again = plain(rows, 0.0)
    sum(again[task] for task in TASKS).backward()  # type: ignore[union-attr]
    for a, b in zip(method.net.parameters(), plain.net.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad)
    unweighed = build_multi_task(own.model_copy(update={"multi_task": config(tmp_path, table).multi_task}), known)
    unweighed.flip = False
    assert losses["depth"].item() == pytest.approx(3 * unweighed(rows, 0.0)["depth"].item(), rel=1e-5)


def test_a_mirrored_picture_has_mirrored_maps(tmp_path: Path, table: Path) -> None:
    own = config(tmp_path, table)
    known, _ = read_tasks(own, silent)
    method = build_multi_task(own, known)
    torch.manual_seed(0)
    pixels, maps, classes = method._drawn(torch.arange(32))
    whole = torch.from_numpy(known.pixels).float() / 255
    kept = [bool((pixels[i] == whole[i]).all()) for i in range(32)]
    assert 5 < sum(kept) < 27
    for i, as_it_was in enumerate(kept):
        assert as_it_was or (pixels[i] == whole[i].flip(-1)).all()
        for task in DENSE:
            map_ = torch.from_numpy(known.dense[task][i])
            assert maps[task][i].equal(map_ if as_it_was else map_.flip(-1))
    assert classes["ground"].tolist() == known.attributes["ground"].tolist()
    assert whole.equal(torch.from_numpy(known.pixels).float() / 255)  # nothing of the material is changed


@pytest.mark.parametrize("weighting", ["dwa", "gradnorm"])  # buffers; both and weights
def test_a_killed_training_ends_with_the_same_weights_of_network_and_tasks(
    tmp_path: Path, table: Path, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"weighting_settings": {"period": 2}} if weighting == "dwa" else {}
    whole = pretrain(config(tmp_path / "whole", table, weighting=weighting, **more), "cpu")
    own = config(tmp_path / "killed", table, weighting=weighting, **more)
    step, taken = training.loop._step, iter(range(100))

    def dying(*words: Any) -> Any:
        if next(taken) == 5:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(training.loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(own, "cpu")
    assert (own.out / "checkpoint").is_file()
    monkeypatch.undo()
    again = load_multi_task(pretrain(own, "cpu"), "cpu").net.state_dict()
    for name, weights in load_multi_task(whole, "cpu").net.state_dict().items():
        assert weights.equal(again[name]), name
    kept = [
        [{k: v for k, v in line.items() if k != "pictures_per_s"} for line in lines_of(tmp_path / folder)]
        for folder in ("whole", "killed")
    ]
    assert kept[0] == kept[1]


def test_weights_of_tasks_learn_at_their_own_rate_and_do_not_decay(tmp_path: Path, table: Path) -> None:
    own = config(tmp_path, table, weighting="uncertainty")
    known, _ = read_tasks(own, silent)
    method = build_multi_task(own, known)
    optimizer = build_optimizer(method, own.loop)
    (group,) = [g for g in optimizer.param_groups if g.get("scale")]
    assert [id(p) for p in group["params"]] == [id(p) for p in method.weighting.parameters()]
    assert (group["scale"], group["weight_decay"]) == (OF_WEIGHTING, 0.0)
    counted = sum(len(g["params"]) for g in optimizer.param_groups)
    assert counted == len(list(method.parameters()))
    lines = fit(method, known, own.loop, tmp_path, device="cpu")
    rate = lines[-2]["lr"]
    assert 0 < rate < own.loop.lr * 1.0001


def test_edges_and_places_are_learnt_beyond_a_constant_answer(tmp_path: Path) -> None:
    file = tmp_path / "scenes.parquet"
    scenes_table(file, 250, size=32)
    own = config(tmp_path / "run", file, loop={"epochs": 5, "batch": 8, "lr": 6e-3})
    encoder = load_multi_task(pretrain(own, "cpu"), "cpu")
    asked = read_annotated(file, DENSE, ["ground"], 32, "test", encoder.classes)
    found = evaluate_tasks(encoder.net, asked, DENSE)
    depth = asked.dense["depth"].astype(np.float32)
    share = float(asked.dense["edges"].mean())
    assert found["depth"]["rmse"] < 0.7 * float(depth.std())  # of the mean depth as the answer
    assert found["edges"]["f"] > 2 * share / (1 + share) + 0.1  # of edges everywhere
    share = float(asked.dense["saliency"].mean())
    assert found["saliency"]["f"] > 1.3 * share / (0.3 * share + 1) + 0.2
    assert found["ground"]["accuracy"] > 0.6


# -- what is refused


def test_settings_that_cannot_be_are_one_line(tmp_path: Path, table: Path) -> None:
    for changed, error, words in (
        ({"dense": {}, "attributes": []}, ConfigError, "name the columns of tasks"),
        ({"dense": {"ground": "depth"}}, ConfigError, "each task has a column of its own"),
        ({"weights": {"sky": 1.0}}, ConfigError, "weights: sky among no tasks"),
        ({"weighting_settings": {"warmth": 1}}, ConfigError, "equal takes no warmth"),
        ({"network": "branched"}, ConfigError, "give the branching"),
        ({"loop": {"accumulate": 2}}, ConfigError, r"loop\.accumulate"),
        ({"attributes": ["type"]}, ConfigError, "a task cannot be called 'type'"),
        ({"attributes": ["step"]}, ConfigError, "a task cannot be called 'step'"),
        ({"attributes": ["sky.colour"]}, ConfigError, "a task cannot be called 'sky.colour'"),
        ({"dense": {}, "weighting": "mgda"}, ConfigError, "these share nothing"),
    ):
        with pytest.raises(error, match=words):
            pretrain(config(tmp_path / "bad", table, **changed), "cpu")  # type: ignore[arg-type]
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
    with pytest.raises(UnknownNameError, match="backbone of several scales 'conv'"):
        pretrain(config(tmp_path / "bad", table).model_copy(update={"backbone": "conv"}), "cpu")


def test_several_processes_are_refused(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config(tmp_path, table)
    known, _ = read_tasks(own, silent)
    method = build_multi_task(own, known)
    monkeypatch.setattr(training.loop, "processes", lambda: 2)
    with pytest.raises(ConfigError, match="MultiTask: its batches cannot be shared"):
        fit(method, known, own.loop, tmp_path / "out", device="cpu")


# -- commands


def trained_alone(folder: Path, table: Path, task: str) -> str:
    own = {"dense": {task: DENSE[task]}, "attributes": []} if task in DENSE else {"dense": {}}
    return f"artifact:{pretrain(config(folder / task, table, **own, loop={'epochs': 0.5}), 'cpu')}"


@pytest.mark.filterwarnings("default:not described")
def test_pictures_are_described_and_filtered_through_the_commands(tmp_path: Path, udr: Any) -> None:
    file = tmp_path / "scenes.parquet"
    assert udr("data", "scenes", "--out", file, "--count", 40, "--size", 32).out.strip() == f"{file}: 32 train, 8 test"
    settings = tmp_path / "multi_task.yaml"
    settings.write_text(yaml.safe_dump(config(tmp_path / "run", file).model_dump(mode="json")))
    done = udr("pretrain", settings, "--device", "cpu")
    assert done.code == 0, done.err
    address = f"artifact:{done.out.strip()}"

    probed = json.loads(udr("probe", file, "--encoder", address, "--probes", "tasks", "--json").out)
    assert set(probed) == {*TASKS, "embedding"}
    alone = [part for task in TASKS for part in ("--alone", trained_alone(tmp_path, file, task))]
    words = ("probe", file, "--encoder", address, "--probes", "tasks")
    beside = json.loads(udr(*words, *alone, "--json").out)
    singles = [json.loads(udr("probe", file, "--encoder", a, "--probes", "tasks", "--json").out) for a in alone[1::2]]
    gains = []
    for task, single in zip(TASKS, singles, strict=True):
        (name,) = {"miou", "rmse", "f", "accuracy"} & set(single[task])
        change = (probed[task][name] - single[task][name]) / single[task][name]
        gains.append(-change if name == "rmse" else change)
    assert beside["delta_mtl"]["share"] == pytest.approx(sum(gains) / len(gains))
    assert {task: beside[task] for task in probed} == probed
    assert "no encoder of " in udr(*words, *alone[:2]).complaint
    assert "trained on one task" in udr(*words, "--alone", address).complaint
    assert "--k: says nothing of an encoder of many tasks" in udr(*words, "--k", 3).complaint
    plain = json.loads(udr("probe", file, "--encoder", address, "--cache", tmp_path / "c", "--json").out)
    assert set(plain["encoder"]) == {"knn", "linear"}

    vectors = tmp_path / "vectors.parquet"
    told = udr("embed", file, "--split", "test", "--encoder", address, "--out", vectors, "--attributes")
    assert told.out.strip() == f"{vectors}: 8 pictures"
    table = pq.read_table(vectors)
    assert table.column_names == ["name", "label", "vector", "ground", "ground_probability"]

    pool = tmp_path / "pool.jsonl"
    told = udr("describe", file, "--split", "test", "--encoder", address, "--out", pool)
    assert told.out.strip() == f"{pool}: 8 described"
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    assert [row["metadata"]["ground"] for row in rows] == table["ground"].to_pylist()
    assert [row["output"] for row in rows] == table["label"].to_pylist()
    codes = Codebook()
    columns = codes.encode([row["metadata"] for row in rows])
    wanted = rows[0]["metadata"]["ground"]
    admitted = codes.admitted(parse_filter({"ground": wanted}), columns, 8)
    assert admitted.tolist() == [row["metadata"]["ground"] == wanted for row in rows]

    # a pool's own rows keep what they know; those without a picture go through as they are
    rows[0]["metadata"] = {"lang": "en"}
    rows[1] = {"id": "words", "input": "no picture", "output": "yes"}
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = tmp_path / "again.jsonl"
    told = udr("describe", pool, "--encoder", address, "--out", again)
    assert told.out.strip() == f"{again}: 7 described; 1 without a picture that can be read"
    kept = [json.loads(line) for line in again.read_text().splitlines()]
    assert kept[0]["metadata"] == {"lang": "en", "ground": wanted}
    assert kept[1] == rows[1] | {"metadata": {}}
    sure = tmp_path / "sure.jsonl"
    least = float(np.median(table["ground_probability"]))
    udr("describe", file, "--split", "test", "--encoder", address, "--out", sure, "--least", least)
    told_of = ["ground" in json.loads(line)["metadata"] for line in sure.read_text().splitlines()]
    assert told_of == [p >= least for p in table["ground_probability"].to_pylist()]
    assert 0 < sum(told_of) < 8

    # pictures that cannot be read are left out of what pools load, and counted
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "good.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "empty.png").write_bytes(b"")
    told = udr("describe", tmp_path / "pictures", "--encoder", address, "--out", again)
    assert told.out.strip() == f"{again}: 1 described; 2 without a picture that can be read"
    assert [json.loads(line)["id"] for line in again.read_text().splitlines()] == ["good.png"]
    assert "not described: empty.png: empty" in told.err
    assert "not described: bad.png: no picture" in told.err

    for words in (
        ("describe", pool, "--encoder", address, "--out", tmp_path / "pool.csv"),
        ("describe", tmp_path / "none", "--encoder", address, "--out", again),
        ("embed", file, "--encoder", "artifact:none", "--out", vectors, "--attributes"),
    ):
        assert udr(*words).complaint


def test_a_branching_is_found_by_encoders_of_one_task_each(tmp_path: Path, table: Path, udr: Any) -> None:
    folders = {}
    for task in ("depth", "edges", "saliency"):
        own = config(tmp_path / task, table, dense={task: DENSE[task]}, attributes=[], loop={"epochs": 1})
        folders[task] = f"artifact:{pretrain(own, 'cpu')}"
    words = [word for folder in folders.values() for word in ("--encoder", folder)]
    found = json.loads(udr("branch", table, *words, "--budget", 2, "--pictures", 20, "--json").out)
    assert found["tasks"] == ["depth", "edges", "saliency"]
    assert np.shape(found["affinities"]) == (4, 3, 3)
    told = udr("branch", table, *words, "--pictures", 20)
    assert told.out.strip().splitlines()[-1] == f"multi_task.branching={json.dumps(found['branching'])}"
    own = config(
        tmp_path / "branched",
        table,
        dense={task: DENSE[task] for task in found["tasks"]},
        attributes=[],
        network="branched",
        branching=found["branching"],
    )
    assert (pretrain(own, "cpu") / "encoder.json").is_file()
    assert "two different tasks at least" in udr("branch", table, *words[:2], *words[:2]).complaint
    assert "0 pictures of split trian" in udr("branch", table, *words, "--split", "trian").complaint
