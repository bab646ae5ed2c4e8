"""Pictures of a run: the evaluation table as bars with their intervals, and training losses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from udr.artifacts import write_atomically
from udr.errors import MissingDependencyError
from udr.evaluation import EvaluationTable
from udr.train import Step

__all__ = ["open_pyplot", "plot_losses", "plot_metrics", "plot_table", "save_plot"]


def open_pyplot() -> Any:
    """matplotlib's pyplot, without a display.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("matplotlib", "eval") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_table(table: EvaluationTable, path: Path) -> None:
    """Bars by task and method, with 95 % intervals; the average stands last."""
    plt = open_pyplot()
    rows = [*table.tasks, "average"]
    width = 0.8 / len(table.methods)
    figure, axes = plt.subplots(figsize=(max(6.0, 1.0 + 0.9 * len(rows)), 4.5), layout="constrained")
    for i, method in enumerate(table.methods):
        values = np.array([table.scores[method][r] for r in rows])
        bounds = np.array([table.intervals[method][r] for r in rows]).T  # (2, rows)
        axes.bar(
            np.arange(len(rows)) + i * width,
            values,
            width,
            label=method,
            yerr=np.abs(bounds - values),
            error_kw={"elinewidth": 0.7},
        )
    axes.set_xticks(np.arange(len(rows)) + 0.4 - width / 2, rows, rotation=35, ha="right")
    axes.set_ylabel("score (0–100)")
    axes.legend(ncols=len(table.methods), fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.12))
    save_plot(figure, path)


def plot_losses(steps: Sequence[Step], path: Path) -> None:
    """The running mean loss of all steps, and of each task's own."""
    plt = open_pyplot()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")

    def draw(at: np.ndarray, losses: np.ndarray, label: str, **style: Any) -> None:
        window = max(1, len(losses) // 10)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(at[window - 1 :], smooth, label=label, **style)

    tasks, losses = np.array([step.task for step in steps]), np.array([step.loss for step in steps])
    names = sorted(set(tasks.tolist()))
    for i, name in enumerate(names if len(names) > 1 else ()):
        own = np.flatnonzero(tasks == name)
        style = ("-", "--", ":")[i // 20 % 3]  # twenty colours can be told apart
        draw(own, losses[own], name, linewidth=0.9, color=plt.get_cmap("tab20")(i % 20), linestyle=style)
    draw(np.arange(len(losses)), losses, "all steps", color="black", linewidth=2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, mean of a tenth")
    figure.legend(loc="outside right upper", fontsize="small")
    save_plot(figure, path)


def plot_metrics(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses of a pre-training by step, and under them what the online probe said."""
    plt = open_pyplot()
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    told, asked = dict[str, None](), dict.fromkeys(("knn", "spread"))
    for line in lines:
        keys = list(line)
        cut = keys.index("pictures_per_s") if "pictures_per_s" in line else len(keys)
        told |= dict.fromkeys(keys[:cut])
        asked |= dict.fromkeys(keys[cut + 1 :])  # what the probe said stands behind
    for i, name in enumerate(name for name in told if name not in {"step", "lr", *asked}):
        own = [(line["step"], line[name]) for line in lines if name in line]
        broken = name.startswith("weight_") or i >= 10  # there are ten colours
        above.plot(*zip(*own, strict=True), "--" if broken else "-", label=name)
    for name in (name for name in asked if name != "distance"):  # which has another scale
        if own := [(line["step"], line[name]) for line in lines if name in line]:
            below.plot(*zip(*own, strict=True), marker="o", label=name)
    above.set_ylabel("loss")
    below.set_ylabel("online probe")
    below.set_ylim(0, max(1.0, below.get_ylim()[1]))
    below.set_xlabel("step")
    for axes in (above, below):
        if axes.lines:  # not every training is probed
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save_plot(figure, path)


def save_plot(figure: Any, path: Path) -> None:
    """Write a figure as PNG and close it.

    Raises:
        ArtifactError: the file cannot be written.
    """
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for the letter
        figure.savefig(buffer, format="png", dpi=120)
    open_pyplot().close(figure)
    write_atomically(path, buffer.getvalue())
