"""The evaluation stage: every method's answers on every task, kept as files, then one table."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.plots import plot_table
from training.run import (
    Run,
    by_name,
    encoder_folder,
    final_round,
    fit_and_save,
    is_trained,
    ranked_tasks,
    rounds_of,
    trained_encoder,
)
from udr.artifacts import read_json, write_atomically, write_json
from udr.data import TaskData
from udr.encoder import BiEncoder, load_encoder
from udr.errors import ArtifactError, ConfigError
from udr.evaluation import Answer, EvaluationTable, answer_queries, build_table, read_answers, write_answers
from udr.mining import choose_queries
from udr.mixture import SHARES, mix
from udr.retriever import (
    BM25Ranker,
    NoRanker,
    RandomRanker,
    Ranker,
    Retriever,
    build_dense_ranker,
    build_input_ranker,
    save_task,
)
from udr.types import Demonstration

__all__ = ["evaluate", "evaluated_tasks", "index", "table_path", "train_epr"]

EPR = ("epr", "epr_mined")  # one encoder a task
UDR = ("udr", "udr_unmixed")
LONGEST_NAMES = 120  # bytes of a file's name; file systems take 255 in all


def index(run: Run) -> Path:
    """Put the final encoder and each training task's pool, words and index into OUT/retriever."""
    path = run.out / "retriever"
    if not run.config.train.multi_task:
        raise ConfigError("train.multi_task: false trains one encoder a task; a retriever folder holds one for all")
    source = trained_encoder(run, final_round(run), "")
    if encoder_fingerprint(path / "encoder") != encoder_fingerprint(source):
        shutil.rmtree(path, ignore_errors=True)  # of another encoder: its indexes are worthless too
        building = path / ".encoder.building"
        shutil.rmtree(building, ignore_errors=True)
        try:
            shutil.copytree(source, building)
            building.rename(path / "encoder")
        except shutil.Error as error:  # one (source, destination, reason) for each file that could not be copied
            raise ArtifactError(f"{path / 'encoder'}: cannot be written ({error.args[0][0][2]})") from None
    if not (path / "untrained" / "encoder.json").is_file():
        run.untrained_encoder().save(path / "untrained")  # for tasks that come later
    encoder = load_encoder(path / "encoder")
    for name, data in run.tasks.items():
        if not (path / "tasks" / name / "index" / "manifest.json").is_file():
            save_task(path, data.spec, data.train, encoder)
    return path


def train_epr(run: Run, name: str, mined: bool = False) -> BiEncoder:
    """The EPR baseline of one task, alone: one positive and one hard negative of each list, a contrastive loss.

    Source: Rubin et al. 2022, arXiv 2112.08633. It learns from the LM's scores of the lexical proposals, as published,
    and visits as many lists of its task as the unified retriever did in all rounds. `mined` lends it the lists of the
    later rounds too, which the unified retriever proposed: what is left between the two is the loss, with what counts
    as a negative there, and multi-tasking.
    """
    folder = trained_folder(run, "epr_mined" if mined else "epr", name)
    if not is_trained(folder):
        settings = run.config.train
        rounds = range(run.config.mining.rounds + 1)
        lists = [len(ranked_tasks(run, [name], rounds_of(run, n))[0].lists) for n in rounds]
        visits = sum((settings.round_epochs if n else settings.epochs) * lists[n] for n in rounds)
        tasks = ranked_tasks(run, [name], rounds if mined else [0])
        epochs = visits / len(tasks[0].lists)
        title = f"EPR baseline{' with mined lists' if mined else ''}: {name}"
        fit_and_save(run, run.untrained_encoder(), tasks, folder, epochs, "epr", 0, title)
    return load_encoder(folder)


def _ranker(run: Run, method: str, data: TaskData) -> Ranker:
    name = data.spec.name
    if method == "zero_shot":
        return NoRanker()
    if method == "random":
        return RandomRanker(len(data.train), run.config.seed)
    if method == "bm25":
        return BM25Ranker(data.train)
    if method == "encoder":
        return build_input_ranker(data.train, run.untrained_encoder())
    if method in run.config.evaluation.encoders:
        return build_input_ranker(data.train, run.compared_encoders[method])
    if method in EPR:
        return build_dense_ranker(data.spec, data.train, train_epr(run, name, mined=method == "epr_mined"))
    trained = load_encoder(trained_encoder(run, final_round(run), name))
    if not mixes(run, method, name):
        return build_dense_ranker(data.spec, data.train, trained)
    mixture = mix(data.spec, data.train, trained, run.untrained_encoder())
    write_json(mixture_path(run, method, name), mixture.as_json())
    return mixture.ranker


def mixes(run: Run, method: str, name: str) -> bool:
    """True where the untrained encoder has a say: on a task that the retriever was not trained on."""
    return method == "udr" and name not in run.tasks


def mixture_path(run: Run, method: str, name: str) -> Path:
    """Where the say of the untrained encoder on a task is written down."""
    return run.out / "evaluation" / method / f"{name}.mixture.json"


def trained_folder(run: Run, method: str, name: str) -> Path:
    """Where the encoder of a method that learns lies."""
    return run.out / method / name if method in EPR else encoder_folder(run, final_round(run), name)


def encoder_fingerprint(folder: Path) -> str | None:
    """Of a saved encoder; None where there is none."""
    path = folder / "encoder.json"
    return str(read_json(path).get("fingerprint")) if path.is_file() else None


def evaluation_queries(data: TaskData, count: int, seed: int) -> list[Demonstration]:
    """The test rows that are evaluated; a larger count keeps those of a smaller one.

    Raises:
        ConfigError: the task has no test rows.
    """
    if not data.test:
        raise ConfigError(f"task {data.spec.name}: no rows of split test to evaluate on")
    return choose_queries(data.test, count, seed)


def evaluated_tasks(run: Run, methods: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[TaskData]:
    """The tasks of an evaluation, checked: what cannot be evaluated is told before hours of mining.

    Raises:
        ConfigError: two tasks of one name, another task of a training task's name, a task without test rows, or one
            never trained on for a method that is trained for one task at a time; or an encoder that cannot be loaded.
    """
    settings = run.config.evaluation
    if settings.encoders.keys() & set(methods or settings.methods):
        _ = run.compared_encoders  # opened now, not after hours
    names = tuple(tasks or settings.tasks or run.config.tasks)
    found = by_name(run.tasks.get(name) or run.load_task(name) for name in names)
    for given, (name, data) in zip(names, found.items(), strict=True):
        if data != run.tasks.get(name, data):  # its answers would stand in the place of the training task's
            raise ConfigError(
                f"evaluation.tasks: {given} differs from the training task {name} but has its name; rename the file"
            )
    datas = list(found.values())
    alone = [m for m in methods or settings.methods if m in EPR or (m in UDR and not run.config.train.multi_task)]
    for data in datas:
        evaluation_queries(data, settings.queries, run.config.seed)
        if alone and data.spec.name not in run.tasks:
            raise ConfigError(
                f"evaluation.methods: {alone[0]} is trained for one task at a time; {data.spec.name} was not trained on"
            )
    return datas


def evaluate(run: Run, methods: Sequence[str] = (), tasks: Sequence[str] = ()) -> EvaluationTable:
    """Answer test queries with every method; write answers, table.json, table.md and plots; return the table.

    Answers that stand already are not asked again; they are kept per method, task and settings. The table of other
    tasks than those of the run stands beside its own, under their names.
    """
    settings = run.config.evaluation
    methods = tuple(methods or settings.methods)
    datas = evaluated_tasks(run, methods, tasks)
    answers: dict[str, dict[str, list[Answer]]] = {m: {} for m in methods}
    started = time.monotonic()
    for data in datas:
        for method in methods:
            answers[method][data.spec.name] = _answers(run, method, data)
    table = build_table([d.spec for d in datas], answers, seed=run.config.seed, draws=settings.draws)
    facts = {
        "seed": run.config.seed,
        "queries": settings.queries,
        "k": settings.k,
        "budget": settings.budget,
        "seconds": round(time.monotonic() - started, 1),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "models": read_json(run.out / "run.json"),
    }
    mixed = [d.spec.name for d in datas if "udr" in methods and mixes(run, "udr", d.spec.name)]
    if mixed:
        facts["untrained_share"] = {name: read_json(mixture_path(run, "udr", name))["share"] for name in mixed}
    _write_table(table_path(run, table.tasks), table, facts)
    return table


def table_path(run: Run, tasks: Sequence[str]) -> Path:
    """Where the table of these tasks lies, as JSON; .md and .png stand beside it."""
    names = "" if set(tasks) == set(run.tasks) else "-" + "-".join(tasks)
    if len(names.encode()) > LONGEST_NAMES:
        names = f"-{len(tasks)}-tasks-{hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"
    return run.out / "evaluation" / f"table{names}.json"


def _write_table(path: Path, table: EvaluationTable, facts: dict[str, Any]) -> None:
    """Write the table's three files, the JSON last; leave them as they are if they say all this already."""
    content = json.loads(json.dumps({**table.as_json(), "facts": facts}))
    if path.is_file():
        before = read_json(path)
        took = before.get("facts", {}).get("seconds")  # not the time of looking at answers that stand already
        if before == {**content, "facts": {**facts, "seconds": took}}:
            return
    write_atomically(path.with_suffix(".md"), (table.markdown() + "\n").encode())
    plot_table(table, path.with_suffix(".png"))
    write_json(path, content)


def _answers(run: Run, method: str, data: TaskData) -> list[Answer]:
    settings = run.config.evaluation
    name = data.spec.name
    queries = evaluation_queries(data, settings.queries, run.config.seed)
    path = run.out / "evaluation" / method / f"{name}.jsonl"
    mixed = mixes(run, method, name)

    def encoder() -> str | None:
        """The fingerprint of the encoder that ranks, where a run folder may hold one and then another."""
        if method in settings.encoders:
            return run.compared_encoders[method].fingerprint
        return encoder_fingerprint(trained_folder(run, method, name)) if method in (*EPR, *UDR) else None

    def marks() -> dict[str, Any]:
        """What the answers depend on beside what a run folder holds fast."""
        return {
            "task": data.fingerprint,
            "queries": [[q.id, q.content_hash, *q.references] for q in queries],
            "encoder": encoder(),
            **({"mixture": list(SHARES)} if mixed else {}),
            **settings.model_dump(mode="json", include={"budget", "k", "k_generation", "selection", "order"}),
        }

    # without similarities, or without vectors where a selection needs them, the order itself is the choice
    blind = {"zero_shot", "random"} | ({"bm25"} if settings.selection in ("mmr", "dpp") else set())
    stamp = path.with_suffix(".json")
    explained = not mixed or mixture_path(run, method, name).is_file()
    if path.is_file() and explained and stamp.is_file() and read_json(stamp) == marks():
        answers = read_answers(path)
        if [a.query_id for a in answers] != [q.id for q in queries]:
            raise ArtifactError(f"{path}: damaged (not one answer a query); remove it to ask again")
        return answers
    retriever = Retriever(data.spec, data.train, _ranker(run, method, data), run.config.seed)
    answers = answer_queries(
        retriever,
        queries,
        run.lm,
        budget=settings.budget,
        k=settings.k,
        k_generation=settings.k_generation,
        selection="top_k" if method in blind else settings.selection,
        arrange=settings.order,
        progress=run.report(f"{method} on {name}"),
    )
    stamp.unlink(missing_ok=True)
    write_answers(path, answers)
    write_json(stamp, marks())  # anew: an EPR encoder was perhaps trained only now
    return answers
