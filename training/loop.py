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
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ahead import ahead, keeping_memory
from training.augment import Views
from training.lars import LARS, weight_groups
from training.pictures import Pictures
from training.pretrain_settings import LoopSettings
from training.probes import FeatureNetwork, features, knn_accuracy, spread
from training.turns import TakesTurns, Turns
from udr.artifacts import fsync_folder
from udr.devices import choose_device, fast_dtype
from udr.distributed import own_rows, processes, sync_normalisation
from udr.encoder import autocast
from udr.errors import ArtifactError, ConfigError, TrainingStopped
from udr.types import Progress
from udr.weighting import Weighting

__all__ = ["PROBED", "Material", "Method", "Probe", "fit"]

TOLD_EVERY = 10  # steps between two lines of metrics
OF_WEIGHTING = 10.0  # times the learning rate: weights of tasks, which are few, learn quicker than a network
PROBED = 5000  # pictures of the online probe's bank at most, and a fifth as many queries


class Material(Protocol):
    """What is learnt from: pictures, or whatever else a step takes some of by their numbers."""

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """What the method is given of rows (n,): uint8 pixels, which become 0 to 1, or numbers as they are."""
        ...


class Method(Protocol):
    """A way to learn a backbone from pictures alone; a `torch.nn.Module` whose state is all that it needs to go on.

    One with `views`, a `training.augment.Views`, is called with the views of pictures, made ahead of its step. One with
    `shares_batches` may be called in several processes, each with its rows: the mean of their losses is that of the
    whole batch (see `udr.distributed`). One whose networks learn by turns is a `training.turns.TakesTurns`. One with
    `weighting`, a `udr.weighting.Weighting`, is moved not by `loss` but by the losses that its `tasks` name, as the
    weighting combines them over the parameters that `shared()` gives.
    """

    @property
    def backbone(self) -> FeatureNetwork: ...

    def __call__(self, pictures: Any, progress: float) -> dict[str, Tensor]:
        """Losses of pictures (n, 3, s, s) from 0 to 1, or of their views, a tuple of the same shape each.

        What a method is given of other material, its `batch` says. `loss` is the one to be made less; `progress` goes
        from 0 to 1.
        """
        ...

    def after_step(self, progress: float) -> None:
        """What follows each step of the optimiser: a teacher that follows, a queue that moves on."""
        ...


@dataclass(frozen=True)
class Probe:
    """What the online probe asks: the classes of some pictures, by those of others."""

    bank: Pictures
    queries: Pictures

    def __call__(self, backbone: FeatureNetwork, k: int) -> dict[str, float]:
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


def build_optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer | Turns:
    """AdamW, SGD or LARS; biases and normalisations do not decay. A method that takes turns brings its own."""
    if isinstance(module, TakesTurns):
        if settings.accumulate > 1:
            raise ConfigError(f"loop.accumulate: {type(module).__name__} takes its turns on whole batches; set it to 1")
        if settings.optimizer != "adamw":
            raise ConfigError(f"loop.optimizer: {type(module).__name__} brings its own; leave it at adamw")
        return Turns(module.optimizers(settings.lr, settings.weight_decay))
    groups = weight_groups(module, settings.weight_decay)
    learnt = {id(weights) for weights in _weighting_parameters(module)}
    for group in groups:
        group["params"] = [weights for weights in group["params"] if id(weights) not in learnt]
    if learnt:
        own = _weighting_parameters(module)
        groups.append({"params": own, "weight_decay": 0.0, "adapt": False, "scale": OF_WEIGHTING})
    if settings.optimizer == "lars":
        return LARS(groups, settings.lr, settings.momentum)
    for group in groups:
        group.pop("adapt", None)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, settings.momentum)
    return torch.optim.AdamW(groups, settings.lr)


def _weighting_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What a weighting learns beside the network."""
    weighting = getattr(module, "weighting", None)
    return list(weighting.parameters()) if isinstance(weighting, Weighting) else []


def rate_at(step: int, steps: int, warmup: float, schedule: str = "cosine") -> float:
    """Share of the height of the learning rate: a linear rise, then a cosine to 0, or a line to 0 from half way on."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    if schedule == "late":
        return min(1.0, 2 * (1 - step / steps))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def order_of(epoch: int, count: int, seed: int) -> NDArray[np.int64]:
    """In which order an epoch takes its pictures, (n,); a function of the two numbers alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def fit(
    method: nn.Module,
    pictures: Material,
    settings: LoopSettings,
    out: Path,
    seed: int = 0,
    probe: Callable[[Any, int], dict[str, float]] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train a `Method` in place; give the lines of its metrics, those of an interrupted call included.

    Pictures, views and dropout of a step depend on (seed, step) alone, so a run that was killed ends with the same
    weights as one that was not. Of several processes (`accelerate launch`) each takes its share of every batch, and the
    weights become those of one process, but for rounding; only the first one writes.

    Raises:
        ConfigError: fewer pictures than a batch, a batch or method that processes cannot share, or no such device.
        TrainingStopped: a loss that is no number, or features that have become one.
        ArtifactError: the checkpoint is damaged or cannot be written.
    """
    if len(pictures) < settings.batch:
        raise ConfigError(f"loop.batch: {settings.batch} pictures in a step, and there are {len(pictures)}")
    where = choose_device(device)
    precision = fast_dtype(where) if settings.precision == "auto" else settings.precision
    steps = max(1, round(settings.epochs * (len(pictures) // settings.batch)))
    accelerator = _accelerator(where == "cpu")
    method = _placed(method, accelerator.device)
    if isinstance(getattr(method, "weighting", None), Weighting) and settings.accumulate > 1:
        raise ConfigError("loop.accumulate: losses of several tasks are weighed over a whole batch; set it to 1")
    if processes() > 1:
        _check_shares(method, settings)
        sync_normalisation(method)
    optimizer = build_optimizer(method, settings)
    trained, optimizer = accelerator.prepare(method, optimizer)
    facts = {"pictures": len(pictures), "steps": steps, "seed": seed}
    lines = _restore(out, method, optimizer, accelerator.device, facts)
    first = lines[-1]["step"] + 1 if lines else 0
    accelerator.wait_for_everyone()  # all have read what the first one is about to write
    log = _Log(out, lines, accelerator.is_main_process)
    method.train()
    make = partial(_parts, pictures, method, settings, accelerator.device, seed)
    with keeping_memory(), closing(ahead(make, first, steps)) as batches:
        for step, parts in enumerate(batches, first):
            torch.manual_seed(seed * 1_000_003 + step)
            rate = settings.lr * rate_at(step, steps, settings.warmup, settings.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            if isinstance(optimizer, Turns):
                mixed = partial(autocast, accelerator.device, precision == "bfloat16")
                told = optimizer.take(method.turns(parts[0], step), mixed, settings.clip)  # type: ignore[operator]
            else:
                forward = partial(_forward, trained, accelerator.device, precision == "bfloat16", step / steps)
                told = _step(forward, trained, optimizer, accelerator, parts, settings)
            method.after_step((step + 1) / steps)  # type: ignore[operator]
            _check_losses(told, step)
            ends_epoch = (step + 1) % (len(pictures) // settings.batch) == 0 or step + 1 == steps
            stores = (step + 1) % settings.checkpoint_every == 0
            if step % TOLD_EVERY == 0 or ends_epoch or stores:
                line: dict[str, Any] = {"step": step, "lr": rate, **told, "pictures_per_s": log.speed(settings, step)}
                if ends_epoch and probe:
                    line |= _probed(probe, method, settings, accelerator)
                    _check_spread(line["spread"], settings, step / steps)
                log.add(line)
            if stores and step + 1 < steps and accelerator.is_main_process:
                _store(out, method, optimizer, log.lines, facts)
                log.begin(step)
            if progress and accelerator.is_main_process:
                progress(step + 1, steps)
    method.eval()
    return log.lines


def _accelerator(cpu: bool) -> Accelerator:
    """Without mixed precision of its own, which is one for the whole process; networks may have weights without use."""
    wrapped = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    return Accelerator(cpu=cpu, kwargs_handlers=[wrapped])


def _placed(method: nn.Module, device: torch.device) -> nn.Module:
    """On the device, its convolutions laid out as they are quickest."""
    method = method.to(device)
    for weights in method.parameters():
        if weights.dim() in (4, 5):
            layout = torch.channels_last if weights.dim() == 4 else torch.channels_last_3d
            weights.data = weights.data.to(memory_format=layout)
    return method


def _check_shares(method: nn.Module, settings: LoopSettings) -> None:
    if not getattr(method, "shares_batches", False):
        raise ConfigError(
            f"{type(method).__name__}: its batches cannot be shared, and this is one of {processes()} processes"
        )
    if settings.batch // settings.accumulate % processes():
        raise ConfigError(
            f"loop.batch: {settings.batch} pictures in {settings.accumulate} parts are no equal shares of "
            f"{processes()} processes"
        )


def _probed(
    probe: Callable[[Any, int], dict[str, float]], method: nn.Module, settings: LoopSettings, accelerator: Accelerator
) -> dict[str, float]:
    """What the first process finds, in all of them."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        found = [probe(method.backbone, settings.knn)]
    answer: dict[str, float] = broadcast_object_list(found)[0]
    return answer


def _parts(
    pictures: Material, method: nn.Module, settings: LoopSettings, device: torch.device, seed: int, step: int
) -> list[Any]:
    """The parts of a step's batch, of this process's rows: views where the method has some, else pixels from 0 to 1.

    Views are drawn for the whole batch, by numbers of (seed, step) alone, so they are the same however it is shared.
    """
    epoch, place = divmod(step, len(pictures) // settings.batch)
    order = order_of(epoch, len(pictures), seed)[place * settings.batch : (place + 1) * settings.batch]
    order = np.sort(order)  # read in order
    views = getattr(method, "views", None)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step, 1]).generate_state(1)[0]))
    drawn = views.draw(settings.batch, generator) if isinstance(views, Views) else []
    share = settings.batch // settings.accumulate
    parts: list[Any] = []
    for start in range(0, settings.batch, share):
        mine = own_rows(share)
        rows = slice(start + mine.start, start + mine.stop)
        read = torch.from_numpy(pictures.batch(order[rows])).to(device)
        own = [{name: value[rows] for name, value in table.items()} for table in drawn]
        whole = read.float() / 255 if read.dtype == torch.uint8 and not drawn else read
        parts.append(views.see(read, own) if isinstance(views, Views) else whole)
    return parts


def _forward(trained: nn.Module, device: torch.device, mixed: bool, progress: float, part: Any) -> dict[str, Tensor]:
    with autocast(device, mixed):
        losses: dict[str, Tensor] = trained(part, progress)
        return losses


def _step(
    forward: Callable[[Any], dict[str, Tensor]],
    trained: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    parts: list[Any],
    settings: LoopSettings,
) -> dict[str, float]:
    """One step over a batch, in parts where it is accumulated; give its losses, those of all processes."""
    summed: dict[str, Tensor] = {}
    for part in parts:
        losses = forward(part)
        losses |= _backward(trained, losses, accelerator, len(parts))
        for name, value in losses.items():
            summed[name] = summed.get(name, 0.0) + value.detach().float() / len(parts)
    values = accelerator.reduce(torch.stack(list(summed.values())), "mean").tolist()
    told: dict[str, float] = dict(zip(summed, values, strict=True))
    if settings.clip:
        own = {id(p) for p in _weighting_parameters(trained)}  # which are no part of the network
        accelerator.clip_grad_norm_([p for p in trained.parameters() if id(p) not in own], settings.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return told


def _backward(trained: nn.Module, losses: dict[str, Tensor], accelerator: Accelerator, parts: int) -> dict[str, Tensor]:
    """Add the gradients of a part; give the weights of its tasks where a weighting has made some."""
    weighting = getattr(trained, "weighting", None)
    if not isinstance(weighting, Weighting):
        accelerator.backward(losses["loss"] / parts)
        return {}
    tasks: tuple[str, ...] = trained.tasks  # type: ignore[assignment]
    weights = weighting.backward([losses[task] for task in tasks], trained.shared())  # type: ignore[operator]
    return {f"weight_{task}": weight for task, weight in zip(tasks, weights, strict=True)}


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

    def __init__(self, out: Path, lines: list[dict[str, Any]], writes: bool) -> None:
        self.lines = list(lines)
        self._path, self._writes = out / "metrics.jsonl", writes
        if writes:
            out.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.begin(lines[-1]["step"] if lines else -1)

    def begin(self, step: int) -> None:
        """Time counts from here, after a step."""
        self._told, self._since = step, time.perf_counter()

    def speed(self, settings: LoopSettings, step: int) -> float:
        """Pictures a second since the last line, the time of probes and checkpoints left out."""
        return round((step - self._told) * settings.batch / (time.perf_counter() - self._since), 1)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.begin(line["step"])


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
