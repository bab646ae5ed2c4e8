"""The main table: every method on the tasks of main.yaml; tasks not trained on; and the ablations.

    python tests/benchmarks/main_table.py main|unseen|tried|ablations [cheap] [key=value ...]

`key=value` replaces settings of main.yaml (data=, lm.name=, encoder.name=, out=). Each part resumes where it was.
`cheap` leaves the six tasks out whose feedback costs most: half the time. It wants a run folder of its own.
Results: results/main.json, unseen.json, tried.json, ablations.json; cheap_main.json and so on.
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

from training.evaluate import evaluate, index, table_path
from training.progress import reporting
from training.run import alone_in, mine_and_train, open_run
from training.settings import RunConfig
from udr.artifacts import read_json
from udr.config import load_config
from udr.evaluation import EvaluationTable, build_table, read_answers

CONFIG = Path(__file__).parent / "main.yaml"
# one task of four families each, none trained on
UNSEEN = ("sentiment_medicine", "presuppositions", "winowhy", "e2e_nlg")
# others that were not trained on; the retriever's way with such tasks was chosen by looking at these
TRIED = ("answer_type", "timedial", "spider_sql", "disfluency", "cosmos_answer", "xsum")
# the twelve of main.yaml that `udr score --dry-run` says to cost least in round 0, cheapest first; ten families
CHEAP = "past_tense,wikidata_qa,sentiment_hotels,common_gen,metaphor,adjective_order,sentiment_products,date_format,\
fever,temporal_category,asset,social_iqa"
ON_UNSEEN = ("encoder", "udr_unmixed", "udr")
ABLATIONS = {
    "no_instruction": ("encoder.query_instruction=false", "encoder.demonstration_instruction=false"),
    "single_task": ("train.multi_task=false",),
    "no_rank_loss": ("train.rank_weight=0",),
}


def run_one(overrides: list[str], methods: tuple[str, ...] = (), tasks: tuple[str, ...] = ()) -> EvaluationTable:
    config = load_config(RunConfig, CONFIG, overrides)
    with reporting(Console(stderr=True)) as report, alone_in(config.out):
        run = open_run(config, report)
        mine_and_train(run)
        if config.train.multi_task:
            index(run)
        return evaluate(run, methods, tasks)


def without_mining(config: RunConfig) -> tuple[str, ...]:
    """As many training steps, and LM scores where a task has the queries to ask about, all on lexical candidates."""
    mining, train = config.mining, config.train
    visits = train.epochs + sum(train.round_epochs * (n + 1) for n in range(1, mining.rounds + 1))  # lists accumulate
    rounds = mining.rounds + 1
    return "mining.rounds=0", f"mining.queries={mining.queries * rounds}", f"train.epochs={visits / rounds}"


def ablations(overrides: list[str]) -> EvaluationTable:
    """The full method against each of its ablations, all as `udr`, in one table."""
    config = load_config(RunConfig, CONFIG, overrides)
    answers = {}
    for name, changes in [*ABLATIONS.items(), ("no_mining", without_mining(config)), ("full", ())]:
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
    name = part
    if overrides[:1] == ["cheap"]:
        name, overrides = f"cheap_{part}", [f"tasks=[{CHEAP}]", *overrides[1:]]
    config = load_config(RunConfig, CONFIG, overrides)
    config.out.mkdir(parents=True, exist_ok=True)
    with counted(config.out / f"seconds-{part}.json") as calls:
        if part == "main":
            table = run_one(overrides)
        elif part == "unseen":
            # all test rows: differences are smaller here, and there are no retrievers to train
            table = run_one([*overrides, "evaluation.queries=0"], ("random", "bm25", *ON_UNSEEN), UNSEEN)
        elif part == "tried":
            table = run_one([*overrides, "evaluation.queries=150"], ON_UNSEEN, TRIED)
        else:
            table = ablations(overrides)
    seconds = round(sum(calls))
    settings = config.model_dump(mode="json", exclude={"out", "scores", "data", "lm", "encoder"})
    figures = {"seconds": seconds, "settings": settings, **table.as_json()}
    if part in ("unseen", "tried"):
        facts = read_json(table_path(open_run(config), table.tasks))["facts"]
        figures["untrained_share"] = facts["untrained_share"]
    print(table.markdown(intervals=False))  # as README shows it; the intervals stand in the result
    print(write_result(name, figures))


if __name__ == "__main__":
    main()
