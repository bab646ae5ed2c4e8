"""The main claim, small: a retriever trained on the LM's feedback makes the LM answer better than what it began as.

Three tasks of one made-up world. A few words of each input tell the answer (any two inputs of one answer seldom share
them), the rest are words without meaning that every answer shares. The LM follows demonstrations that look like the
query, so what helps it is a demonstration with the same answer; that is told nowhere but in its scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoder import write_encoder

from training.evaluate import evaluate, index
from training.run import mine_and_train, open_run
from training.settings import RunConfig
from udr.evaluation import EvaluationTable
from udr.retriever import load_retriever
from udr.types import Query

FILLERS = [f"filler{i}" for i in range(24)]
ANSWERS = {  # task -> answer -> words that tell it
    "tone": {a: [f"{a}{i}" for i in range(6)] for a in ("warm", "cold", "dry")},
    "topic": {a: [f"{a}{i}" for i in range(6)] for a in ("sport", "law", "art", "farm")},
    "order": {f"bring the {a}": [f"{a}{i}" for i in range(6)] for a in ("lamp", "rope", "boat", "coin")},
}
MANIFEST = [
    {"name": "tone", "family": "style", "labels": list(ANSWERS["tone"]), "instruction": "tone of the text"},
    {"name": "topic", "family": "subject", "labels": list(ANSWERS["topic"]), "instruction": "topic of the text"},
    {"name": "order", "family": "command", "metric": "exact_match", "max_new_tokens": 8, "instruction": "what to do"},
]
MARGIN = 30.0  # points of the average over the tasks, of 100


def write_task(path: Path, answers: dict[str, list[str]], train: int, test: int) -> list[str]:
    rng = np.random.default_rng(len(path.stem))
    rows = []
    for i in range(train + test):
        answer = list(answers)[i % len(answers)]
        words = [*rng.choice(FILLERS, 6), *rng.choice(answers[answer], 2, replace=False)]
        split = "train" if i < train else "test"
        rows.append({"id": f"{i}", "split": split, "input": " ".join(rng.permutation(words)), "output": answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"{row['input']} {row['output']}" for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationTable, Path]:
    folder = tmp_path_factory.mktemp("world")
    texts = [entry["instruction"] for entry in MANIFEST]
    for name, answers in ANSWERS.items():
        texts += write_task(folder / f"{name}.jsonl", answers, train=120, test=48)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    settings: dict[str, Any] = {
        "out": folder / "run",
        "data": folder,
        "tasks": list(ANSWERS),
        "lm": {"name": "fake"},
        "encoder": {"name": str(write_encoder(folder / "encoder", texts)), "shared": True, "max_tokens": 32},
        "mining": {"rounds": 1, "queries": 96, "candidates": 40, "scored": 12, "accumulate": True},
        "train": {"epochs": 10, "round_epochs": 5, "batch": 16, "list_size": 6, "lr": 4e-3, "warmup": 10},
        "evaluation": {"methods": ["random", "encoder", "udr"], "k": 4, "k_generation": 4, "draws": 200},
    }
    run = open_run(RunConfig.parse(settings, "test"))
    mine_and_train(run)
    return evaluate(run), index(run)


def test_the_trained_retriever_beats_random_and_the_untrained_encoder(trained: tuple[EvaluationTable, Path]) -> None:
    table, _ = trained
    print(table.markdown())
    ours = table.scores["udr"]["average"]
    assert ours > table.scores["random"]["average"] + MARGIN
    assert ours > table.scores["encoder"]["average"] + MARGIN
    assert table.p_values["average"] < 0.01
    for task in table.tasks:
        assert table.scores["udr"][task] > max(table.scores[m][task] for m in ("random", "encoder"))


def test_one_encoder_serves_all_the_tasks_with_demonstrations_of_the_right_answer(
    trained: tuple[EvaluationTable, Path],
) -> None:
    _, retriever_folder = trained
    rng = np.random.default_rng(0)
    for task, answers in ANSWERS.items():
        retriever = load_retriever(retriever_folder, task)
        wanted = [answer for answer in answers for _ in range(20)]
        inputs = [" ".join([*rng.choice(FILLERS, 6), *rng.choice(answers[a], 2, replace=False)]) for a in wanted]
        found = retriever.retrieve([Query(f"new-{i}", text) for i, text in enumerate(inputs)], 5)
        right = [hit.demonstration.output == a for hits, a in zip(found, wanted, strict=True) for hit in hits]
        assert np.mean(right) > 0.8, task
