"""A kill at any moment, or a full disk, and the run that goes on ends as one that was never stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import start
from workbench import Bench, digest

from training.run import open_run, propose, score


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
