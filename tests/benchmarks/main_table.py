"""The main table: every method on the tasks of main.yaml, the unseen tasks, and the ablations.

    python tests/benchmarks/main_table.py main|unseen|ablations [key=value ...]

`key=value` replaces settings of main.yaml (data=, lm.name=, encoder.name=, out=). Each part resumes where it was.
Results: results/main.json, unseen.json, ablations.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from record import write_result
from rich.console import Console

from training.evaluate import evaluate, index
from training.progress import reporting
from training.run import alone_in, mine_and_train, open_run
from training.settings import RunConfig
from udr.config import load_config
from udr.evaluation import EvaluationTable, build_table, read_answers

CONFIG = Path(__file__).parent / "main.yaml"
# one task of four families each, none trained on
UNSEEN = ("sentiment_medicine", "presuppositions", "winowhy", "e2e_nlg")
ABLATIONS = {
    "no_instruction": ("encoder.query_instruction=false", "encoder.demonstration_instruction=false"),
    "single_task": ("train.multi_task=false",),
    "no_rank_loss": ("train.rank_weight=0",),
    # as many training steps, and LM scores where a task has 1,800 queries to ask about, all on lexical candidates
    "no_mining": ("mining.rounds=0", "mining.queries=1800", "train.epochs=3.2"),
}


def run_one(overrides: list[str], methods: tuple[str, ...] = (), tasks: tuple[str, ...] = ()) -> EvaluationTable:
    config = load_config(RunConfig, CONFIG, overrides)
    with reporting(Console(stderr=True)) as report, alone_in(config.out):
        run = open_run(config, report)
        mine_and_train(run)
        if config.train.multi_task:
            index(run)
        return evaluate(run, methods, tasks)


def ablations(overrides: list[str]) -> EvaluationTable:
    """The full method against each of its ablations, all as `udr`, in one table."""
    config = load_config(RunConfig, CONFIG, overrides)
    answers = {}
    for name, changes in [*ABLATIONS.items(), ("full", ())]:
        out = config.out if name == "full" else config.out.with_name(f"{config.out.name}-{name}")
        run_one([*overrides, *changes, f"out={out}"], ("udr",))
        answers[name] = {t: read_answers(out / "evaluation" / "udr" / f"{t}.jsonl") for t in config.tasks}
    with reporting(Console(stderr=True)) as report:
        run = open_run(config, report)
        return build_table([d.spec for d in run.tasks.values()], answers, seed=config.seed)


@contextmanager
def counted(path: Path) -> Iterator[list[float]]:
    """Keep the seconds of every call on one run folder; a call that was killed outright is missing."""
    calls: list[float] = json.loads(path.read_text()) if path.is_file() else []
    started = time.monotonic()
    try:
        yield calls
    finally:
        calls.append(round(time.monotonic() - started, 1))
        path.write_text(json.dumps(calls))


def main() -> None:
    part, *overrides = sys.argv[1:]
    config = load_config(RunConfig, CONFIG, overrides)
    config.out.mkdir(parents=True, exist_ok=True)
    with counted(config.out / f"seconds-{part}.json") as calls:
        if part == "main":
            table = run_one(overrides)
        elif part == "unseen":
            # all test rows: differences are smaller here, and there are no retrievers to train
            table = run_one([*overrides, "evaluation.queries=0"], ("random", "bm25", "encoder", "udr"), UNSEEN)
        else:
            table = ablations(overrides)
    seconds = round(sum(calls))
    settings = config.model_dump(mode="json", exclude={"out", "scores", "data", "lm", "encoder"})
    print(table.markdown())
    print(write_result(part, {"seconds": seconds, "settings": settings, **table.as_json()}))


if __name__ == "__main__":
    main()
