"""What folders of pre-trainings hold: how far they are, their losses and probes, as lines and as a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.pretrain_settings import PretrainConfig
from udr.config import load_config
from udr.errors import ArtifactError

__all__ = ["PretrainState", "find_pretrainings", "finished_folder", "read_pretraining", "result_folder"]

PLOTS = {"metrics.png": "losses and the online probe", "samples.png": "held-out pictures"}
KINDS = {"labels": "labeller", "diffusion": "model"}  # what a method learns, where it is no encoder


@dataclass(frozen=True, slots=True)
class PretrainState:
    """A folder of a pre-training.

    Args:
        folder: where it is.
        settings: of it.
        metrics: lines of losses and probes, in the order of steps.
        finished: True when its encoder, or its model, is there.
        plots: pictures, by what they show.
        changed: when a file was last written, in seconds since 1970.
    """

    folder: Path
    settings: PretrainConfig
    metrics: tuple[dict[str, Any], ...]
    finished: bool
    plots: dict[str, Path]
    changed: float

    @property
    def stage(self) -> str:
        """How far it is, in a few words."""
        if self.finished:
            return "trained"
        return f"step {self.metrics[-1]['step']}" if self.metrics else "not begun"

    @property
    def last(self) -> dict[str, float]:
        """The last loss, and what the online probe said last."""
        return {key: line[key] for line in self.metrics for key in ("loss", "knn", "spread") if key in line}

    @property
    def summary(self) -> str:
        """What it is, how far, and how well, in a line."""
        told = "  ".join(f"{name} {value:.3f}" for name, value in self.last.items())
        own = self.settings
        what = own.method if own.method in ("drit", "diffusion") else f"{own.method} of {own.backbone}"
        return f"{what}  {self.stage}  {told}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "folder": str(self.folder),
            "stage": self.stage,
            "changed": self.changed,
            "settings": self.settings.model_dump(mode="json"),
            "metrics": list(self.metrics),
        }


def result_folder(config: PretrainConfig) -> Path:
    """Where what is learnt will lie."""
    return config.out / KINDS.get(config.method, "encoder")


def finished_folder(out: Path) -> Path | None:
    """Where what was learnt lies in the folder of a pre-training; none while it is not finished."""
    kinds = ("encoder", *KINDS.values())  # the file of that name is written last
    return next((out / kind for kind in kinds if (out / kind / f"{kind}.json").is_file()), None)


def find_pretrainings(folder: Path) -> list[Path]:
    """Folders of pre-trainings: this one, or those in it, the last one changed first; perhaps none."""
    found = [path.parent for path in (folder / "config.yaml", *folder.glob("*/config.yaml")) if path.is_file()]
    return sorted((path for path in found if _is_pretraining(path)), key=_changed, reverse=True)


def read_pretraining(folder: Path) -> PretrainState:
    """Read what the folder of a pre-training holds; it may be at work meanwhile.

    Raises:
        ArtifactError: a damaged file of metrics.
        ConfigError: damaged settings.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    try:
        metrics = tuple(json.loads(line) for line in lines if line.endswith("\n"))  # the last may be half written
    except ValueError:
        raise ArtifactError(f"{path}: damaged (not JSON)") from None
    return PretrainState(
        folder=folder,
        settings=load_config(PretrainConfig, folder / "config.yaml"),
        metrics=metrics,
        finished=finished_folder(folder) is not None,
        plots={title: folder / name for name, title in PLOTS.items() if (folder / name).is_file()},
        changed=_changed(folder),
    )


def _is_pretraining(folder: Path) -> bool:
    """By the settings alone, which are written first; those of other runs have no method."""
    return any(line.startswith("method:") for line in (folder / "config.yaml").read_text().splitlines())


def _changed(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)
