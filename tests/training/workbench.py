"""A workbench for the offline job: two tiny tasks, their tables, settings, and what a command leaves behind."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from training.settings import RunConfig
from udr.config import load_config

FILLERS = [f"filler{i}" for i in range(16)]
MOODS = {"up": ["bright", "merry", "glad"], "down": ["bleak", "gloomy", "sour"]}
COLOURS = ["red", "blue", "green"]
MANIFEST = [
    {"name": "mood", "family": "sentiment", "labels": ["up", "down"], "instruction": "the mood of the words"},
    {"name": "paint", "family": "craft", "metric": "exact_match", "max_new_tokens": 8, "instruction": "what to paint"},
]
SETTINGS: dict[str, Any] = {
    "tasks": ["mood", "paint"],
    "lm": {"name": "fake"},
    "encoder": {"max_tokens": 32, "instruction_tokens": 4},
    "mining": {"rounds": 1, "queries": 24, "candidates": 8, "scored": 6, "max_tokens": 128},
    "train": {
        "epochs": 3,
        "round_epochs": 2,
        "batch": 8,
        "list_size": 4,
        "lr": 0.003,
        "warmup": 2,
        "checkpoint_every": 3,
    },
    "evaluation": {"budget": 96, "k": 4, "k_generation": 4, "draws": 100, "queries": 8},
}


def mood_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Words without meaning and one that tells the mood."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = ("up", "down")[i % 2]
        words = [*rng.choice(FILLERS, 4), rng.choice(MOODS[label])]
        rows.append({"input": " ".join(rng.permutation(words)), "output": label})
    return rows


def paint_rows(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Words without meaning and a colour that the answer repeats."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = [*rng.choice(FILLERS, 4), COLOURS[i % 3]]
        rows.append({"input": " ".join(rng.permutation(words)), "output": f"paint it {COLOURS[i % 3]}"})
    return rows


def write_table(path: Path, rows: list[dict[str, str]], test: int = 0) -> Path:
    """Write JSONL whose last `test` rows are the test split."""
    marked = [{"id": f"{path.stem}-{i}", "split": "test" if i >= len(rows) - test else "train", **row}
              for i, row in enumerate(rows)]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in marked))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Bench:
    """Data, a run file beside them, and the run folder that it names."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def retriever(self) -> Path:
        return self.out / "retriever"

    def settings(self, *overrides: str) -> RunConfig:
        return load_config(RunConfig, self.config, overrides)


def lay_out(folder: Path, encoder: Path) -> Bench:
    """Write tables, manifest and settings into an empty folder."""
    bench = Bench(folder)
    write_table(bench.data / "mood.jsonl", mood_rows(52), test=12)
    write_table(bench.data / "paint.jsonl", paint_rows(52), test=12)
    (bench.data / "manifest.json").write_text(json.dumps(MANIFEST))
    settings = SETTINGS | {"out": str(bench.out), "data": str(bench.data)}
    settings["encoder"] = SETTINGS["encoder"] | {"name": str(encoder)}
    bench.config.write_text(yaml.safe_dump(settings))
    return bench


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of an error that the user can mend; anything else is a failure of the command line."""
        assert self.code == 2, f"exit code {self.code}: {self.out}{self.err}"
        assert self.err.startswith("udr: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err.removeprefix("udr: ").rstrip("\n")
