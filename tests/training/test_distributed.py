"""Two processes that share every batch end with the weights of one that has it whole."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scenes import scenes
from torch import nn

from embed.image import load_image_encoder
from training.loop import fit
from training.methods.densecl import DenseCL
from training.pretrain import build_method
from training.pretrain_settings import PretrainConfig
from training.tokenizer import PictureTokenizer
from udr.distributed import SyncedBatchNorm
from udr.errors import ConfigError

METHODS = ("simclr", "densecl", "mec", "cim")


def config(method: str, **loop: Any) -> PretrainConfig:
    settings = {"epochs": 1, "batch": 16, "optimizer": "sgd", "lr": 0.05, "precision": "float32", "warmup": 0}
    values: dict[str, Any] = {
        "out": "unused",
        "method": method,
        "data": "unused",
        "size": 16,
        "loop": settings | {"accumulate": 2, "checkpoint_every": 2} | loop,
        "densecl": {"queue": 64, "momentum": 0.9},
        "mec": {"hidden": 32, "out": 32, "predictor": 16, "momentum": 0.9},
        "cim": {"codes": 16, "generator_dim": 32, "generator_layers": 1},
    }
    return PretrainConfig.parse(values, "test")


def trained(out: Path, place: int = 0) -> None:
    """Train every method, and a tokenizer; keep what each process ends with."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    for name in METHODS:
        own = config(name)
        method = cast(nn.Module, build_method(own, PictureTokenizer(16)))
        lines = fit(method, scenes(50), own.loop, out / name, device="cpu")
        torch.save({"state": method.state_dict(), "loss": lines[-1]["loss"]}, out / f"{name}.{place}")
    tokenizer = _Tokenizer()
    fit(tokenizer, scenes(50), config("cim").loop, out / "tokenizer", device="cpu")
    torch.save({"state": tokenizer.state_dict(), "loss": 0.0}, out / f"tokenizer.{place}")


class _Tokenizer(nn.Module):
    shares_batches = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.tokenizer = PictureTokenizer(16)

    def forward(self, pictures: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.tokenizer(pictures)
        return found

    def after_step(self, progress: float) -> None:
        pass


class Alone(_Tokenizer):
    """A method that says nothing of processes."""

    shares_batches = False


def process(place: int, port: int, out: Path) -> None:
    os.environ |= {
        "RANK": str(place),
        "LOCAL_RANK": str(place),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    trained(out, place)
    for title, batch, method in (("odd", 18, cast(nn.Module, build_method(config("simclr")))), ("alone", 16, Alone())):
        try:
            fit(method, scenes(50), config("simclr", batch=batch).loop, out / title, device="cpu")
        except ConfigError as error:
            (out / f"{title}.{place}").write_text(str(error))


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forks = multiprocessing.get_context("spawn")
    started = [forks.Process(target=process, args=(place, port, two)) for place in range(2)]
    for each in started:
        each.start()
    trained(one)
    for each in started:
        each.join(120)
        assert each.exitcode == 0
    return one, two


@pytest.mark.parametrize("name", [*METHODS, "tokenizer"])
def test_processes_that_share_batches_learn_what_one_learns(ends: tuple[Path, Path], name: str) -> None:
    one, two = ends
    whole, first, second = (torch.load(p) for p in (one / f"{name}.0", two / f"{name}.0", two / f"{name}.1"))
    untrained = cast(nn.Module, build_method(config(name), PictureTokenizer(16)) if name in METHODS else _Tokenizer())
    moved = 0.0
    for key, value in whole["state"].items():
        torch.testing.assert_close(first["state"][key], value, atol=2e-4, rtol=2e-4, msg=lambda m, k=key: f"{k}: {m}")
        if "running" not in key:  # statistics of frozen networks may round apart
            assert second["state"][key].equal(first["state"][key]), key
        if value.is_floating_point():
            moved = max(moved, float((value - untrained.state_dict()[key]).abs().max()))
    assert moved > 0.01  # far more than what the ends may differ by
    assert first["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_the_first_process_alone_writes_and_odd_shares_are_refused(ends: tuple[Path, Path]) -> None:
    one, two = ends
    for name in METHODS:
        assert sorted(p.name for p in (two / name).iterdir()) == sorted(p.name for p in (one / name).iterdir())
        assert len((two / name / "metrics.jsonl").read_text().splitlines()) == len(
            (one / name / "metrics.jsonl").read_text().splitlines()
        )
    for place in range(2):
        assert "18 pictures in 2 parts are no equal shares of 2 processes" in (two / f"odd.{place}").read_text()
        assert "Alone: its batches cannot be shared" in (two / f"alone.{place}").read_text()


def test_normalisation_over_one_process_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain, synced = nn.BatchNorm2d(4), SyncedBatchNorm(4)
    monkeypatch.setattr("udr.distributed.dist.all_reduce", lambda tensor: None)
    given = torch.randn(6, 4, 3, 3)
    ends = []
    for module in (plain, synced):
        pictures = given.clone().requires_grad_()
        out = module(pictures)
        (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
        ends.append(
            (out, pictures.grad, module.weight.grad, module.running_mean, module.running_var, module.eval()(given))
        )
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_keys_of_all_processes_enter_the_queue(ends: tuple[Path, Path]) -> None:
    method = cast(DenseCL, build_method(config("densecl")))
    states = [torch.load(folder / "densecl.0")["state"] for folder in ends]
    assert int(states[0]["place"]) == int(states[1]["place"]) == 48
    assert not states[1]["queue"][:48].equal(method.queue[:48])


@pytest.mark.slow
def test_accelerate_starts_two_processes_of_the_command(tmp_path: Path) -> None:
    from test_pretraining import config as whole_config

    own = whole_config(tmp_path, "cim")
    file = tmp_path / "pretrain.yaml"
    file.write_text(own.dump_yaml())
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m"]
    words = ["training.cli", "pretrain", str(file), "--device", "cpu"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(own.out / "encoder")]  # one of them speaks
    alone = subprocess.run(
        [sys.executable, "-m", *words, f"out={tmp_path / 'alone'}"], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    both, one = (load_image_encoder(Path(p.stdout.strip()), "cpu").backbone.state_dict() for p in (done, alone))
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, atol=2e-3, rtol=2e-3)
