"""Whether quality rises while the service is used, and whether lies sink it: users, simulated on real tasks.

    python tests/benchmarks/feedback.py out=FOLDER data=FOLDER lm.name=FOLDER encoder.name=FOLDER [key=value ...]

Pools begin small and their retriever has seen one round of the LM's feedback. Then users come to the service with
queries that no pool holds: they take the prompt, the LM answers, and they say whether it was right; of wrong answers
every other one is corrected, and a reviewer who does not look accepts all corrections. After each `USED` queries a task
the outcomes are exported, `udr train --feedback` learns one more round, the service switches to it, and test queries
are answered. A lying user calls a right answer wrong and corrects it to a wrong one, and calls a wrong one right.

arms: honest; liars (20 % of the users); and for what each part brings: the grown pools under the first retriever.
`key=value` replaces settings of main.yaml. Arms that are finished are not run again. Result: results/feedback.json.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result
from rich.console import Console

from training.evaluate import index
from training.feedback import train_on_feedback
from training.progress import hush_transformers, reporting
from training.run import Run, alone_in, mine_and_train, open_run
from training.settings import RunConfig
from udr.client import Client
from udr.config import load_config
from udr.data import TaskData, open_task
from udr.draw import seeded
from udr.errors import UDRError
from udr.evaluation import answer_prompts
from udr.metrics import per_example
from udr.types import Demonstration

TASKS = ("past_tense", "metaphor", "adjective_order")
POOL, USED, USES, TESTED = 100, 80, 2, 100  # rows of each task: in the pool at first, used a time, times, tested
K, BUDGET = 4, 640
ARMS = {"honest": 0.0, "liars": 0.2}
MAIN = Path(__file__).parent / "main.yaml"
# every row of the small pools is a training query, and so few lists are gone over more often; the rest is main.yaml's
SETTINGS = ("mining.rounds=0", f"mining.queries={POOL}", "mining.fresh_queries=false", "mining.pool=0")
SETTINGS += ("train.epochs=8", "train.round_epochs=6", "train.batch=16")


@dataclass(frozen=True)
class Rows:
    """One task's rows as the simulation deals them out."""

    data: TaskData
    traffic: tuple[Demonstration, ...]


def deal(name: str, source: Path, folder: Path, seed: int) -> Rows:
    """Write a table with a small pool and test rows; keep the rest for the users."""
    whole = open_task(name, source)
    rows = [whole.train[i] for i in seeded("feedback", seed).permutation(len(whole.train))]
    tested = [whole.test[i] for i in seeded("tested", seed).permutation(len(whole.test))[:TESTED]]
    lines = []
    for split, part in (("train", rows[:POOL]), ("test", tested)):
        for d in part:
            row = {"id": d.id, "input": d.input, "output": d.output, "choices": d.choices, "references": d.references}
            lines.append(json.dumps({**row, "split": split}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(lines))
    return Rows(open_task(name, folder), tuple(rows[POOL : POOL + USED * USES]))


@contextmanager
def served(folder: Path, lm: str) -> Iterator[Client]:
    """The service over one arm's database, with every retriever that the arm has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    retrievers = [f"--retriever={path.name}={path}" for path in sorted((folder / "retrievers").iterdir())]
    command = [sys.executable, "-m", "training.cli", "serve", "--port", str(port), f"--tokenizer=lm={lm}", *retrievers]
    command += ["--database", f"sqlite:///{folder / 'udr.sqlite'}", "--encoder", "none"]
    with (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    client = Client(f"http://127.0.0.1:{port}", timeout=600)
    try:
        for _ in range(300):
            try:
                client.pools()
                break
            except UDRError:
                time.sleep(0.2)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait()


def answers(run: Run, client: Client, data: TaskData, queries: Sequence[Demonstration]) -> list[tuple[str, list[str]]]:
    """What the LM answers to the service's prompts, and the demonstrations in each."""
    spec = data.spec
    asked = [d.query for d in queries]
    reserve = 8 if spec.kind != "generation" else spec.max_new_tokens
    built = client.prompt(spec.name, asked, K, BUDGET, tokenizer="lm", reserve=reserve)
    texts = answer_prompts(spec, run.lm, [b.text for b in built], asked)
    return [(text, [h.demonstration.id for h in b.hits]) for text, b in zip(texts, built, strict=True)]


def right(data: TaskData, queries: Sequence[Demonstration], given: Sequence[str]) -> np.ndarray:
    """Of each answer, (n,): 1 or 0."""
    references = [(d.output, *d.references) for d in queries]
    return np.asarray(per_example(data.spec.metric, list(given), references, [d.input for d in queries]))


def tested(run: Run, client: Client, rows: Sequence[Rows]) -> dict[str, float]:
    """Points of every task on its test rows, and their mean."""
    found = {}
    for one in rows:
        given = [text for text, _ in answers(run, client, one.data, one.data.test)]
        found[one.data.spec.name] = 100 * float(right(one.data, one.data.test, given).mean())
    return found | {"average": float(np.mean(list(found.values())))}


def use(run: Run, client: Client, one: Rows, number: int, liars: float) -> None:
    """So many users of one task, who take prompts and say what came of them; then all corrections are accepted."""
    name = one.data.spec.name
    rng = seeded("users", run.config.seed, name, number)
    queries = one.traffic[number * USED : (number + 1) * USED]
    given = answers(run, client, one.data, queries)
    was_right = right(one.data, queries, [text for text, _ in given])
    others = [d.output for d in one.traffic]
    for i, (query, (text, shown), good) in enumerate(zip(queries, given, was_right, strict=True)):
        told: dict[str, Any] = {"output": text, "choices": query.choices, "correct": bool(good)}
        if rng.random() < liars:
            told["correct"] = not good
            if good:
                wrong = [o for o in (query.choices or others) if o != query.output]
                told["corrected_output"] = wrong[int(rng.integers(len(wrong)))]
        elif not good and i % 2:
            told["corrected_output"] = query.output
        client.feedback(name, query.input, shown, **told)
    waiting, _ = client.outcomes(name, state="waiting", limit=1000)
    for row in waiting:
        client.review(name, row["id"], True)


def exported(client: Client, name: str, path: Path) -> Path:
    """Every outcome of a pool as the service exports it."""
    rows, cursor = client.outcomes(name, limit=1000)
    while cursor:
        more, cursor = client.outcomes(name, cursor=cursor, limit=1000)
        rows += more
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def keep_retriever(run: Run, folder: Path, number: int) -> str:
    """Put the run's retriever where the service finds it."""
    name = f"round-{number}"
    if not (folder / "retrievers" / name).is_dir():
        shutil.copytree(index(run), folder / "retrievers" / name)
    return name


def arm(folder: Path, config: RunConfig, rows: Sequence[Rows], liars: float) -> dict[str, Any]:
    """One simulation from its first use to its last; the points before and after each."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(config.out, folder / "run")
    own = config.model_copy(update={"out": folder / "run"})
    found: dict[str, Any] = {"liars": liars, "points": [], "learnt": []}
    with reporting(Console(stderr=True)) as report, alone_in(own.out):
        run = open_run(own, report)
        name = keep_retriever(run, folder, 0)
        for number in range(USES + 1):
            with served(folder, config.lm.name) as client:
                for one in rows:
                    spec = one.data.spec
                    if number == 0:
                        client.create_pool(spec.name, spec.model_dump(mode="json", exclude={"name", "source"}))
                        client.add(spec.name, one.data.train)
                    client.wait(client.switch(spec.name, name))
                found["points"].append(tested(run, client, rows))
                print(folder.name, number, found["points"][-1], file=sys.stderr, flush=True)
                if number < USES:
                    for one in rows:
                        use(run, client, one, number, liars)
                names = [one.data.spec.name for one in rows]
                files = {n: exported(client, n, folder / f"{n}.ndjson") for n in names}
                if number == USES:  # what the grown pools alone would give
                    for n in names:
                        client.wait(client.switch(n, "round-0"))
                    found["grown_pools_first_retriever"] = tested(run, client, rows)
                    break
            found["learnt"].append(train_on_feedback(run, files))
            name = keep_retriever(run, folder, number + 1)
    return found


def main(overrides: list[str]) -> None:
    hush_transformers()
    asked = load_config(RunConfig, MAIN, overrides)
    out = asked.out
    assert asked.data, "data=FOLDER"
    (out / "data").mkdir(parents=True, exist_ok=True)
    shutil.copy(asked.data / "manifest.json", out / "data")
    rows = [deal(name, asked.data, out / "data", asked.seed) for name in TASKS]
    own = [f"tasks={json.dumps(TASKS)}", f"data={out / 'data'}", f"out={out / 'first'}", *SETTINGS]
    config = load_config(RunConfig, MAIN, [*overrides, *own])
    begun = time.monotonic()
    with reporting(Console(stderr=True)) as report, alone_in(config.out):
        run = open_run(config, report)
        mine_and_train(run)
        index(run)
    found = {}
    for name, liars in ARMS.items():
        done = out / f"{name}.json"
        if not done.is_file():
            done.write_text(json.dumps(arm(out / name, config, rows, liars)))
        found[name] = json.loads(done.read_text())
    sizes = {"pool": POOL, "used_each_time": USED, "uses": USES, "tested": TESTED, "k": K}
    seconds = round(time.monotonic() - begun)
    write_result("feedback", {"tasks": TASKS, **sizes, "seed": asked.seed, "seconds": seconds, "arms": found})
    for name, one in found.items():
        print(name, [round(p["average"], 1) for p in one["points"]])


if __name__ == "__main__":
    main(sys.argv[1:])
