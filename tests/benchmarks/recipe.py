"""What of the training recipe matters: some of main.yaml's tasks, every fifth scored query held out.

    python tests/benchmarks/recipe.py [weighting] [key=value ...]

`weighting` compares ways to make one step of several tasks' losses (udr.weighting), on six tasks; otherwise three. Each
variant trains on the other lists of all rounds that stand in OUT. `accuracy`: the LM with 8 demonstrations on the
held-out queries, as in the main table. `same`: share of those demonstrations that have the query's label. `labels`: how
many different ones a prompt shows. `pick`: mean p(gold | z, x) with the variant's first choice z of a held-out list; it
costs no LM call, and does not say how good the retriever is. Results: results/recipe.json, weighting.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result
from rich.console import Console

from training.progress import reporting
from training.run import Run, fit_and_save, is_trained, mine_and_train, open_run, ranked_tasks
from training.settings import RunConfig
from udr.artifacts import read_json, write_json
from udr.config import load_config
from udr.data import TaskData
from udr.encoder import BiEncoder, load_encoder
from udr.evaluation import answer_queries
from udr.prompt import for_encoder
from udr.retriever import Retriever, build_dense_ranker
from udr.train import Objective, RankedTask
from udr.weighting import WEIGHTINGS

CONFIG = Path(__file__).parent / "main.yaml"
TASKS = ("sentiment_hotels", "question_type", "fever")
HOLD_OUT_EVERY = 5
EPOCHS = 3
VARIANTS: dict[str, tuple[str, ...]] = {
    "main.yaml": (),
    "temperature 0.02": ("train.temperature=0.02",),
    "temperature 0.1": ("train.temperature=0.1",),
    "temperature 0.2": ("train.temperature=0.2",),
    "lists of 2": ("train.list_size=2",),
    "whole lists of 6": ("train.list_size=6",),
    "no rank loss": ("train.rank_weight=0",),
    "half rank loss": ("train.rank_weight=0.5",),
    "rank loss alone": ("train.rank_weight=1",),
    "learning rate 3e-4": ("train.lr=3e-4",),
    "two towers": ("encoder.shared=false",),
    "one encoder a task": ("train.multi_task=false",),
    "EPR, with the mined lists": (),
}
SIX_TASKS = (*TASKS, "metaphor", "social_support", "temporal_category")
WEIGHED = {
    "one task a step, drawn by size": (),
    **{f"four tasks a step, {name}": ("train.tasks_per_step=4", f"train.weighting={name}") for name in WEIGHTINGS},
}


def split(task: RankedTask) -> tuple[RankedTask, RankedTask]:
    """Training lists and held-out lists of a task."""
    kept = [one for i, one in enumerate(task.lists) if i % HOLD_OUT_EVERY]
    return RankedTask(task.spec, task.by_id, kept), RankedTask(task.spec, task.by_id, task.lists[::HOLD_OUT_EVERY])


def judge(run: Run, encoder: BiEncoder, data: TaskData, held: RankedTask) -> dict[str, float]:
    """How the LM fares with a retriever's demonstrations of held-out queries, and with its choices in their lists."""
    queries = [data.by_id[one.query_id] for one in held.lists]
    settings = run.config.evaluation
    answers = answer_queries(
        Retriever(data.spec, data.train, build_dense_ranker(data.spec, data.train, encoder)),
        queries,
        run.lm,
        budget=settings.budget,
        k=settings.k,
    )
    shown = [[data.by_id[i].output for i in a.demonstrations] for a in answers]
    return {
        "accuracy": float(np.mean([a.prediction in a.references for a in answers])),
        "same": float(np.mean([o == q.output for q, own in zip(queries, shown, strict=True) for o in own])),
        "labels": float(np.mean([len(set(own)) for own in shown])),
        "pick": pick(encoder, held),
    }


def pick(encoder: BiEncoder, held: RankedTask) -> float:
    """Mean p(gold | z, x) with the first choice of each held-out list."""
    instruction = held.spec.retrieval_instruction
    queries = encoder.encode_queries([held.by_id[one.query_id].query for one in held.lists], instruction)
    found = []
    for query, one in zip(queries, held.lists, strict=True):
        own = for_encoder(held.spec, [held.by_id[c.demonstration_id] for c in one.candidates], encoder)
        best = (encoder.encode_demonstrations(own, instruction) @ query).argmax()
        found.append(np.exp(one.candidates[best].lm_score or 0.0))
    return float(np.mean(found))


def measure(run: Run, objective: Objective, halves: dict[str, tuple[RankedTask, RankedTask]]) -> dict[str, Any]:
    """Train one variant and judge it, averaged over the tasks; one that was judged on these lists is not done again."""
    path = run.out / "judged.json"
    made_of = hashlib.sha256(run.config.model_dump_json(exclude={"out"}).encode())
    made_of.update(repr([(name, *map(str, half.lists)) for name, own in halves.items() for half in own]).encode())
    stamp = {"objective": objective, "made_of": made_of.hexdigest(), "lm": run.lm.fingerprint}
    if not path.is_file() or {k: v for k, v in read_json(path).items() if k in stamp} != stamp:
        shutil.rmtree(run.out, ignore_errors=True)
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
            scores |= {name: judge(run, encoder, run.load_task(name), halves[name][1]) for name in group}
        write_json(path, {**stamp, **average(scores), "tasks": scores})
    return {k: v for k, v in read_json(path).items() if k not in stamp}


def average(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    keys = ("accuracy", "same", "labels", "pick")
    return {
        key: round((1 if key == "labels" else 100) * float(np.mean([s[key] for s in scores.values()])), 2)
        for key in keys
    }


def main() -> None:
    name, overrides = ("weighting", sys.argv[2:]) if sys.argv[1:2] == ["weighting"] else ("recipe", sys.argv[1:])
    tasks, variants = (SIX_TASKS, WEIGHED) if name == "weighting" else (TASKS, VARIANTS)
    base = load_config(RunConfig, CONFIG, overrides)
    rows: dict[str, Any] = {}
    with reporting(Console(stderr=True)) as report:
        source = open_run(base, report)
        mine_and_train(source)
        rounds = range(base.mining.rounds + 1)
        halves = {task: split(ranked_tasks(source, [task], rounds)[0]) for task in tasks}
        untrained = {
            task: judge(source, source.untrained_encoder(), source.tasks[task], held)
            for task, (_, held) in halves.items()
        }
        rows["untrained encoder"] = {**average(untrained), "tasks": untrained}
        for title, changes in variants.items():
            out = base.out.with_name(f"{base.out.name}-{name}") / title.replace(" ", "-").replace(",", "")
            run = Run(load_config(RunConfig, CONFIG, [*overrides, *changes, f"out={out}"]), report)
            rows[title] = measure(run, "epr" if title.startswith("EPR") else "udr", halves)
            print(title, json.dumps({k: v for k, v in rows[title].items() if k != "tasks"}), flush=True)
    queries = {task: len(held.lists) for task, (_, held) in halves.items()}
    print(write_result(name, {"queries": queries, "epochs": EPOCHS, "rows": rows}))


if __name__ == "__main__":
    main()
