"""What of the training recipe matters: the round-0 lists of main.yaml's classification tasks, every fifth held out.

    python tests/benchmarks/recipe.py [key=value ...]

Each variant trains on the rest and orders the candidates of the held-out queries. `order`: share of candidate pairs,
more than 0.1 nats apart under the LM, that it orders as the LM does. `pick`: mean p(gold | z, x) with its first
candidate, beside the best and the mean of the lists. The LM is asked nothing. Result: results/recipe.json.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result
from rich.console import Console

from training.progress import reporting
from training.run import Run, fit_and_save, is_trained, open_run, propose, ranked_tasks, score
from training.settings import RunConfig
from udr.config import load_config
from udr.encoder import BiEncoder, load_encoder
from udr.prompt import for_encoder
from udr.train import Objective, RankedTask

CONFIG = Path(__file__).parent / "main.yaml"
HOLD_OUT_EVERY = 5
APART = 0.1  # nats
EPOCHS = 3
VARIANTS: dict[str, tuple[str, ...]] = {
    "main.yaml": (),
    "temperature 0.05": ("train.temperature=0.05",),
    "temperature 0.1": ("train.temperature=0.1",),
    "temperature 0.4": ("train.temperature=0.4",),
    "lists of 2": ("train.list_size=2",),
    "lists of 8": ("train.list_size=8",),
    "lists of 8, temperature 0.1": ("train.list_size=8", "train.temperature=0.1"),
    "whole lists": ("train.list_size=1000",),
    "twice the learning rate": ("train.lr=2e-4",),
    "batches of 16": ("train.batch=16",),
    "batches of 64, twice the learning rate": ("train.batch=64", "train.lr=2e-4"),
    "two towers": ("encoder.shared=false",),
    "word vectors learn too": ("train.freeze_embeddings=false",),
    "no rank loss": ("train.rank_weight=0",),
    "half rank loss": ("train.rank_weight=0.5",),
    "rank loss alone": ("train.rank_weight=1",),
    "one encoder a task": ("train.multi_task=false",),
    "EPR": (),
    "EPR, temperature 0.2": ("train.epr_temperature=0.2",),
}


def split(task: RankedTask) -> tuple[RankedTask, RankedTask]:
    """Training lists and held-out lists of a task."""
    kept = [one for i, one in enumerate(task.lists) if i % HOLD_OUT_EVERY]
    return RankedTask(task.spec, task.by_id, kept), RankedTask(task.spec, task.by_id, task.lists[::HOLD_OUT_EVERY])


def judge(encoder: BiEncoder, task: RankedTask) -> dict[str, float]:
    """How a retriever orders held-out lists."""
    instruction = task.spec.retrieval_instruction
    golds = [task.by_id[one.query_id] for one in task.lists]
    queries = encoder.encode_queries([g.query for g in golds], instruction)
    shown = list({c.demonstration_id: None for one in task.lists for c in one.candidates})
    vectors = encoder.encode_demonstrations(for_encoder(task.spec, [task.by_id[i] for i in shown]), instruction)
    row = {i: n for n, i in enumerate(shown)}
    agreed, picked = [], []
    for query, one in zip(queries, task.lists, strict=True):
        sims = vectors[[row[c.demonstration_id] for c in one.candidates]] @ query
        nats = np.array([c.lm_score for c in one.candidates])
        picked.append(np.exp(nats[sims.argmax()]))
        for i, j in itertools.combinations(range(len(nats)), 2):
            if abs(nats[i] - nats[j]) > APART:
                agreed.append((sims[i] > sims[j]) == (nats[i] > nats[j]))
    return {"order": float(np.mean(agreed)), "pick": float(np.mean(picked))}


def measure(run: Run, objective: Objective, halves: dict[str, tuple[RankedTask, RankedTask]]) -> dict[str, Any]:
    """Train one variant and judge it, averaged over the tasks."""
    together = run.config.train.multi_task and objective == "udr"
    groups = {"all": list(halves)} if together else {name: [name] for name in halves}
    scores: dict[str, dict[str, float]] = {}
    for label, group in groups.items():
        folder = run.out / label
        if not is_trained(folder):
            lists = [halves[name][0] for name in group]
            title = f"{run.out.name}: {label}"
            fit_and_save(run, run.untrained_encoder(), lists, folder, EPOCHS, objective, 0, title)
        encoder = load_encoder(folder)
        scores |= {name: judge(encoder, halves[name][1]) for name in group}
    return {**average(scores), "tasks": scores}


def average(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {key: round(100 * float(np.mean([s[key] for s in scores.values()])), 1) for key in ("order", "pick")}


def main() -> None:
    base = load_config(RunConfig, CONFIG, sys.argv[1:])
    rows: dict[str, Any] = {}
    with reporting(Console(stderr=True)) as report:
        source = open_run(base, report)
        propose(source, 0)
        score(source, 0)
        names = [name for name, data in source.tasks.items() if data.spec.kind == "classification"]
        halves = {name: split(ranked_tasks(source, [name], [0])[0]) for name in names}
        untrained = {name: judge(source.untrained_encoder(), held) for name, (_, held) in halves.items()}
        nats = [[c.lm_score or 0.0 for c in one.candidates] for _, held in halves.values() for one in held.lists]
        rows["best of each list"] = {"pick": round(100 * float(np.mean([np.exp(max(n)) for n in nats])), 1)}
        rows["mean of each list"] = {"pick": round(100 * float(np.mean([np.exp(n).mean() for n in nats])), 1)}
        rows["untrained encoder"] = {**average(untrained), "tasks": untrained}
        for title, changes in VARIANTS.items():
            out = base.out.with_name(f"{base.out.name}-recipe") / title.replace(" ", "-")
            run = Run(load_config(RunConfig, CONFIG, [*sys.argv[1:], *changes, f"out={out}"]), report)
            rows[title] = measure(run, "epr" if title.startswith("EPR") else "udr", halves)
            print(f"{title}: {average(rows[title]['tasks'])}", flush=True)
    print(write_result("recipe", {"tasks": names, "epochs": EPOCHS, "rows": rows}))


if __name__ == "__main__":
    main()
