"""Pictures of a run: the evaluation table as bars with their intervals, and training losses."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from udr.artifacts import write_atomically
from udr.errors import MissingDependencyError
from udr.evaluation import EvaluationTable

__all__ = ["plot_losses", "plot_table"]


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("matplotlib", "eval") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_table(table: EvaluationTable, path: Path) -> None:
    """Bars by task and method, with 95 % intervals; the average stands last."""
    plt = _pyplot()
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
    _save(figure, path)


def plot_losses(losses: Sequence[float], path: Path) -> None:
    """The loss of each step and its running mean."""
    plt = _pyplot()
    window = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(losses, linewidth=0.5, alpha=0.4, label="step")
    axes.plot(np.arange(len(smooth)) + window - 1, smooth, label=f"mean of {window}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    _pyplot().close(figure)
    write_atomically(path, buffer.getvalue())
