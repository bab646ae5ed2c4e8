"""One loop for every pre-training method: steps, checkpoints, an online probe; a killed run goes on bit by bit.

::

    OUT/metrics.jsonl     losses of steps, and of epochs the online probe
    OUT/checkpoint        weights, optimiser and schedule, while training is not finished
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from embed.backbones import Backbone
from training.lars import LARS, weight_groups
from training.pictures import Pictures
from training.pretrain_settings import LoopSettings
from training.probes import features, knn_accuracy, spread
from udr.artifacts import fsync_folder
from udr.devices import choose_device, fast_dtype
from udr.encoder import autocast
from udr.errors import ArtifactError, ConfigError, TrainingStopped
from udr.types import Progress

__all__ = ["PROBED", "Examples", "Method", "Probe", "fit"]

TOLD_EVERY = 10  # steps between two lines of metrics
PROBED = 5000  # pictures of the online probe's bank at most, and a fifth as many queries


class Method(Protocol):
    """A way to learn a backbone from pictures alone; a `torch.nn.Module` whose state is all that it needs to go on."""

    @property
    def backbone(self) -> Backbone: ...

    def __call__(self, pictures: Tensor, progress: float) -> dict[str, Tensor]:
        """Losses of pictures (n, 3, s, s) from 0 to 1, `loss` the one to be made less; `progress` from 0 to 1.

        Examples that are no pictures come as they are, such as the numbers of things that the method holds itself.
        """
        ...

    def after_step(self, progress: float) -> None:
        """What follows each step of the optimiser: a teacher that follows, a queue that moves on."""
        ...


class Examples(Protocol):
    """What is learnt from: `pixels` by rows, pictures as uint8 or whatever else the method reads."""

    def __len__(self) -> int: ...
    @property
    def pixels(self) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Probe:
    """What the online probe asks: the classes of some pictures, by those of others."""

    bank: Pictures
    queries: Pictures

    def __call__(self, backbone: Backbone, k: int) -> dict[str, float]:
        """kNN accuracy of the pictures' own labels where there are some, and how far features spread."""
        bank = features(backbone, self.bank.pixels[:PROBED])
        found = {"spread": spread(bank)}
        if self.bank.labels is not None and self.queries.labels is not None and len(self.queries):
            known = {name: i for i, name in enumerate(sorted({*self.bank.labels, *self.queries.labels}))}
            classes, answers = (
                np.array([known[name] for name in labels], np.int64)
                for labels in (self.bank.labels[:PROBED], self.queries.labels[: PROBED // 5])
            )
            asked = features(backbone, self.queries.pixels[: PROBED // 5])
            found["knn"] = knn_accuracy(bank, classes, asked, answers, k)
        return found


def build_optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW, SGD or LARS; biases and normalisations do not decay."""
    groups = weight_groups(module, settings.weight_decay)
    if settings.optimizer == "lars":
        return LARS(groups, settings.lr, settings.momentum)
    for group in groups:
        group.pop("adapt", None)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, settings.momentum)
    return torch.optim.AdamW(groups, settings.lr)


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Share of the height of the learning rate: a linear rise, then a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def order_of(epoch: int, count: int, seed: int) -> NDArray[np.int64]:
    """In which order an epoch takes its pictures, (n,); a function of the two numbers alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def fit(
    method: nn.Module,
    pictures: Examples,
    settings: LoopSettings,
    out: Path,
    seed: int = 0,
    probe: Callable[[Any, int], dict[str, float]] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train a `Method` in place; give the lines of its metrics, those of an interrupted call included.

    Pictures, views and dropout of a step depend on (seed, step) alone, so a run that was killed ends with the same
    weights as one that was not. On one device: several processes are refused.

    Raises:
        ConfigError: fewer pictures than a batch, a device that is not there, or one of several processes.
        TrainingStopped: a loss that is no number, or features that have become one.
        ArtifactError: the checkpoint is damaged or cannot be written.
    """
    if len(pictures) < settings.batch:
        raise ConfigError(f"loop.batch: {settings.batch} pictures in a step, and there are {len(pictures)}")
    where = choose_device(device)
    if where.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: there is no GPU here")
    precision = fast_dtype(where) if settings.precision == "auto" else settings.precision
    accelerator = Accelerator(cpu=where == "cpu")  # its own mixed precision is one for the whole process
    steps = max(1, round(settings.epochs * (len(pictures) // settings.batch)))
    method = method.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if accelerator.num_processes > 1:
        raise ConfigError(f"pre-training goes on one device, and this is one of {accelerator.num_processes} processes")
    optimizer = build_optimizer(method, settings)
    trained, optimizer = accelerator.prepare(method, optimizer)
    facts = {"pictures": len(pictures), "steps": steps, "seed": seed}
    lines = _restore(out, method, optimizer, accelerator.device, facts)
    first = lines[-1]["step"] + 1 if lines else 0
    log = _Log(out, lines)
    method.train()
    for step in range(first, steps):
        began = time.perf_counter()
        torch.manual_seed(seed * 1_000_003 + step)
        rate = settings.lr * rate_at(step, steps, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels = _batch(pictures, settings.batch, step, seed)
        forward = partial(_forward, trained, accelerator.device, precision == "bfloat16", step / steps)
        told = _step(forward, trained, optimizer, accelerator, pixels, settings)
        method.after_step((step + 1) / steps)  # type: ignore[operator]
        _check_losses(told, step)
        ends_epoch = (step + 1) % (len(pictures) // settings.batch) == 0 or step + 1 == steps
        if step % TOLD_EVERY == 0 or ends_epoch or (step + 1) % settings.checkpoint_every == 0:
            speed = settings.batch / (time.perf_counter() - began)
            line: dict[str, Any] = {"step": step, "lr": rate, **told, "pictures_per_s": round(speed, 1)}
            if ends_epoch and probe:
                line |= probe(method.backbone, settings.knn)
                _check_spread(line["spread"], settings, step / steps)
            log.add(line)
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < steps:
            _store(out, method, optimizer, log.lines, facts)
        if progress:
            progress(step + 1, steps)
    method.eval()
    return log.lines


def _batch(pictures: Examples, batch: int, step: int, seed: int) -> NDArray[Any]:
    a_epoch = len(pictures) // batch
    epoch, place = divmod(step, a_epoch)
    rows = np.sort(order_of(epoch, len(pictures), seed)[place * batch : (place + 1) * batch])  # sorted: read in order
    return np.asarray(pictures.pixels[rows])


def _forward(
    trained: nn.Module, device: torch.device, mixed: bool, progress: float, pixels: Tensor
) -> dict[str, Tensor]:
    with autocast(device, mixed):
        read = pixels.to(device)
        losses: dict[str, Tensor] = trained(read.float() / 255 if read.dtype == torch.uint8 else read, progress)
        return losses


def _step(
    forward: Callable[[Tensor], dict[str, Tensor]],
    trained: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    pixels: NDArray[Any],
    settings: LoopSettings,
) -> dict[str, float]:
    """One step over a batch, in parts where it is accumulated; give its losses."""
    parts = np.array_split(pixels, settings.accumulate)
    told: dict[str, float] = {}
    for part in parts:
        losses = forward(torch.from_numpy(part))
        accelerator.backward(losses["loss"] / len(parts))
        for name, value in losses.items():
            told[name] = told.get(name, 0.0) + float(value.detach()) / len(parts)
    if settings.clip:
        accelerator.clip_grad_norm_(trained.parameters(), settings.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return told


def _check_losses(told: dict[str, float], step: int) -> None:
    for name, value in told.items():
        if not math.isfinite(value):
            raise TrainingStopped(
                f"step {step}: {name} is {value}; make loop.lr smaller, loop.warmup longer, or set loop.clip=1"
            )


def _check_spread(found: float, settings: LoopSettings, progress: float) -> None:
    if progress > settings.warmup and not found >= settings.least_spread:  # not a number is no spread either
        raise TrainingStopped(
            f"features have collapsed: their spread is {found:.3f} where 1 is even (loop.least_spread is "
            f"{settings.least_spread}); make loop.lr smaller or loop.batch larger, or choose stronger views"
        )


class _Log:
    """Metrics in memory and as lines of a file, which holds those of the steps that count and no others."""

    def __init__(self, out: Path, lines: list[dict[str, Any]]) -> None:
        self.lines = list(lines)
        self._path = out / "metrics.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _store(out: Path, method: nn.Module, optimizer: Any, lines: list[dict[str, Any]], facts: dict[str, int]) -> None:
    path = out / "checkpoint"
    temporary = out / ".checkpoint.tmp"
    state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "lines": json.dumps(lines)} | facts
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(out)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise ArtifactError(f"{path}: the checkpoint cannot be written ({str(error).partition(chr(10))[0]})") from None


def _restore(
    out: Path, method: nn.Module, optimizer: Any, device: torch.device, facts: dict[str, int]
) -> list[dict[str, Any]]:
    """Load a checkpoint if there is one; give the metrics until then."""
    path = out / "checkpoint"
    if not path.is_file():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if {name: state[name] for name in facts} != facts:
            raise ArtifactError(f"{path}: of other pictures or settings; delete it to begin anew")
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        lines: list[dict[str, Any]] = json.loads(state["lines"])
        return lines
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError, UnpicklingError):
        raise ArtifactError(
            f"{path}: the checkpoint is damaged or of other settings; delete it to begin anew"
        ) from None
