"""Train a multi-task encoder from pictures with labels: the stages of `udr pretrain` for method multi_task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from embed.multi_task import MultiTaskEncoder, save_multi_task
from embed.multi_task_nets import DenseKind, MultiTaskNet, build_multi_task_net
from embed.pyramids import build_stages
from training.annotated import UNKNOWN, Annotated, read_annotated
from training.loop import PROBED, fit
from training.methods.multi_task import MultiTask
from training.multi_task_metrics import PRIMARY, evaluate_tasks
from training.pictures import tell_left_out
from training.plots import plot_metrics
from training.pretrain_settings import PretrainConfig
from training.run import Report
from training.task_samples import draw_task_samples
from udr.errors import ConfigError, DataError, MissingDependencyError
from udr.weighting import GradientWeighting, Weighting, build_weighting

__all__ = ["TaskProbe", "build_multi_task", "net_shape", "read_tasks", "train_multi_task"]

RESERVED = {"loss", "lr", "step", "pictures_per_s", "spread", "knn", "embedding"}  # in the log of a training


class TaskProbe:
    """The online probe: each task's measure on some pictures, under the names TASK_MEASURE, and the vectors' spread.

    Args:
        data: the pictures.
        kinds: of the dense tasks.
    """

    def __init__(self, data: Annotated, kinds: Mapping[str, DenseKind]) -> None:
        self._data, self._kinds = data, dict(kinds)

    def __call__(self, net: MultiTaskNet, k: int) -> dict[str, float]:
        """Ask the network; `k` is of other probes."""
        found = evaluate_tasks(net, self._data, self._kinds)
        told = {"spread": found["embedding"]["spread"]}
        for task in net.tasks:
            measure = PRIMARY[self._kinds[task]] if task in self._kinds else "accuracy"
            told[f"{task}_{measure}"] = found[task][measure]
        return told


def read_tasks(config: PretrainConfig, report: Report) -> tuple[Annotated, Annotated]:
    """Pictures that are learnt from, and those that the online probe asks about: the held-out split, or a tenth.

    Raises:
        DataError: no such table or column, or nothing that can be read.
    """
    own, told = config.multi_task, report(f"reading {config.data.name}")
    words = (config.data, own.dense, own.attributes, config.size)
    known = read_annotated(*words, config.split, progress=told)
    tell_left_out(known.unread, "pictures", known.left_out)
    if config.held_out:
        asked = read_annotated(*words, config.held_out, known.classes)
    else:
        order = np.random.default_rng(config.seed).permutation(len(known))
        asked = known.some(order[: max(1, len(order) // 10)])
    return known, asked.some(np.arange(min(len(asked), PROBED // 5)))


def net_shape(config: PretrainConfig, data: Annotated) -> dict[str, Any]:
    """What the network is made by (`build_multi_task_net`)."""
    own, dense = config.multi_task, dict[str, int]()
    for task, kind in own.dense.items():
        maps = data.dense[task]
        if kind != "segmentation":
            dense[task] = 1
            continue
        known = maps[maps != UNKNOWN]
        if not known.size:
            raise DataError(f"{config.data}: no pixel of {task} has a class")
        dense[task] = int(known.max()) + 1
    return {
        "network": own.network,
        "backbone": config.backbone,
        "size": config.size,
        "dense": dense,
        "attributes": {name: len(words) for name, words in data.classes.items()},
        "branching": own.branching or None,
        "width": own.width,
    }


def build_multi_task(config: PretrainConfig, data: Annotated) -> MultiTask:
    """The method with its untrained network, drawn from the seed.

    Raises:
        UnknownNameError: no such backbone.
        ConfigError: tasks, a branching, or a weighting's settings that do not fit.
    """
    own = config.multi_task
    torch.manual_seed(config.seed)
    net = build_multi_task_net(**net_shape(config, data))
    weighting = _weighting(own.weighting, len(net.tasks), own.weighting_settings)
    if isinstance(weighting, GradientWeighting) and not net.shared():
        raise ConfigError(
            f"multi_task.weighting: {own.weighting} compares gradients over what tasks share, and these share nothing; "
            "set it to equal"
        )
    return MultiTask(net, data, own.dense, weighting, weights=own.weights, early=own.early, flip=own.flip)


def _weighting(name: str, tasks: int, settings: Mapping[str, float]) -> Weighting:
    try:
        return build_weighting(name, tasks, **settings)
    except TypeError:
        raise ConfigError(
            f"multi_task.weighting_settings: {name} takes no {', '.join(settings)} (see udr.weighting)"
        ) from None


def _check_names(tasks: Sequence[str]) -> None:
    """Tasks name parts of the network and columns of the log, which have names of their own.

    Raises:
        ConfigError: a name that is taken there.
    """
    taken = nn.ModuleDict()
    for task in tasks:
        if not task or "." in task or task in RESERVED or hasattr(taken, task):
            raise ConfigError(f"multi_task: a task cannot be called {task!r}; give its column another name")


def train_multi_task(config: PretrainConfig, folder: Path, device: str, report: Report) -> None:
    """Train, and save the encoder in `folder`.

    Raises:
        ConfigError: settings that do not fit.
        DataError: no labelled pictures.
        TrainingStopped: training diverged or collapsed.
    """
    own = config.multi_task
    build_stages(config.backbone, config.size)  # what cannot be built is told before pictures are read
    if not own.dense and not own.attributes:
        raise ConfigError(
            "multi_task: name the columns of tasks, as multi_task.attributes=[ground] or multi_task.dense"
        )
    _check_names([*own.dense, *own.attributes])
    known, asked = read_tasks(config, report)
    method, probe = build_multi_task(config, known), TaskProbe(asked, own.dense)
    progress = report(f"multi_task on {len(known)} pictures")
    lines = fit(method, known, config.loop, config.out, config.seed, probe, device, progress)
    with suppress(MissingDependencyError):  # pictures are worth no extra
        plot_metrics(lines, config.out / "metrics.png")
        if own.dense:
            seeing = MultiTaskEncoder(method.net, own.dense, known.classes, "in training")
            draw_task_samples(seeing, asked, config.out / "samples.png")
    facts: dict[str, Any] = {"method": "multi_task", "pictures": len(known), "seed": config.seed}
    facts |= {name: round(value, 4) for name, value in probe(method.net, config.loop.knn).items()}
    kept = {"kinds": dict(own.dense), "classes": {name: list(words) for name, words in known.classes.items()}}
    save_multi_task(method.net, folder, net_shape(config, known) | kept, facts)
