"""The pipeline's stages over one run folder: each reads files, writes files, and is skipped where its files stand.

::

    OUT/config.yaml                      the resolved settings; another run's settings are refused
    OUT/run.json                         fingerprints of the LM and of the untrained encoder
    OUT/round-N/TASK.proposed.jsonl      candidates
    OUT/round-N/TASK.scored.jsonl        with LM scores and ranks
    OUT/round-N/encoder/                 the bi-encoder after this round
    OUT/epr/TASK/, OUT/epr_mined/TASK/   the baselines' encoders
    OUT/retriever/                       the final encoder, the untrained one, and pool, index and words of each task
    OUT/evaluation/                      answers, table, plots
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, cast
from warnings import warn

from training.lm import build_lm
from training.meter import Meter
from training.plots import plot_losses
from training.settings import RunConfig
from udr.artifacts import read_json, write_atomically, write_json
from udr.candidates import read_candidates, union, write_candidates
from udr.config import load_config
from udr.data import TaskData, open_task
from udr.encoder import BiEncoder, build_encoder, load_encoder
from udr.errors import ArtifactError, ConfigError, FingerprintMismatch, MissingDependencyError, UDRWarning
from udr.evaluation import LanguageModel
from udr.mining import choose_queries, drop_long, pairs_of, propose_bm25, propose_dense, sample, score_lists
from udr.scoring.cache import CachedScorer, ScoreCache
from udr.scoring.estimate import Estimate, estimate
from udr.train import Objective, RankedTask, fit, forgotten
from udr.types import CandidateList, Progress

__all__ = [
    "FEEDBACK",
    "Run",
    "estimate_score",
    "final_round",
    "mine_and_train",
    "open_run",
    "propose",
    "score",
    "train",
]

FEEDBACK = "feedback.json"  # in the folder of a round that learns from what came of prompts
Note = Callable[[], str] | None  # what else is worth telling beside how far the work is


class Report(Protocol):
    """A stage's title -> where its progress is told."""

    def __call__(self, title: str, note: Note = None) -> Progress: ...


def silent(title: str, note: Note = None) -> Progress:
    """Tell nobody."""
    return lambda done, total: None


@dataclass
class Run:
    """One run folder, its settings, and the models loaded when first needed."""

    config: RunConfig
    report: Report = silent

    @property
    def out(self) -> Path:
        return self.config.out

    @cached_property
    def tasks(self) -> dict[str, TaskData]:
        """The training tasks, by name."""
        tasks = by_name(self.load_task(name) for name in self.config.tasks)
        for name, data in tasks.items():
            self._check_fingerprint(f"task {name}", data.fingerprint)
        return tasks

    def load_task(self, name: str) -> TaskData:
        return open_task(name, self.config.data)

    @cached_property
    def lm(self) -> LanguageModel:
        lm = build_lm(self.config.lm, self.score_cache if self.config.lm.servers else None)
        for key, tokens in (
            ("evaluation.budget", self.config.evaluation.budget),
            ("mining.max_tokens", self.config.mining.max_tokens),
        ):
            if tokens > lm.context_length:
                raise ConfigError(f"{key}: {tokens} tokens, and the LM {self.config.lm.name} reads {lm.context_length}")
        self._check_fingerprint("lm", lm.fingerprint)
        return lm

    def close(self) -> None:
        """Let go of connections and files."""
        if close := getattr(self.__dict__.get("lm"), "close", None):  # only an LM behind servers holds something
            close()
        if "score_cache" in self.__dict__:
            self.score_cache.close()

    @cached_property
    def score_cache(self) -> ScoreCache:
        return ScoreCache(self.config.scores or self.out.parent / "scores.sqlite")

    @cached_property
    def scorer(self) -> CachedScorer:
        return CachedScorer(self.lm, self.score_cache)

    def untrained_encoder(self) -> BiEncoder:
        encoder = build_encoder(**self.config.encoder.model_dump())
        self._check_fingerprint("encoder", encoder.fingerprint)
        return encoder

    @cached_property
    def compared_encoders(self) -> dict[str, BiEncoder]:
        """Sentence encoders that are only compared with, by method; they read as many tokens of a text as ours.

        Raises:
            ConfigError: one cannot be loaded.
        """
        limits = self.config.encoder.model_dump(include={"max_tokens", "precision"})
        found = {}
        for method, name in self.config.evaluation.encoders.items():
            try:
                found[method] = build_encoder(name, shared=True, **limits)
            except ConfigError as error:
                problem = str(error).removeprefix("encoder.name: ")
                raise ConfigError(f"evaluation.encoders.{method}: {problem}") from None
        return found

    def round_folder(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def _check_fingerprint(self, part: str, fingerprint: str) -> None:
        """Refuse to mix the feedback of two models, or of two states of the data, in one run folder."""
        path = self.out / "run.json"
        known = read_json(path) if path.is_file() else {}
        if not self.begun:
            known.pop(part, None)
        if known.setdefault(part, fingerprint) != fingerprint:
            raise FingerprintMismatch(
                f"{self.out} was begun with {part} {known[part]}, which now is {fingerprint}; "
                "give the run another out folder"
            )
        if not path.is_file() or read_json(path) != known:
            write_json(path, dict(sorted(known.items())))

    @property
    def begun(self) -> bool:
        """True when a stage has left a file: a run refused before that may be given any other settings."""
        return any(any(self.out.glob(f"{stage}/[!.]*")) for stage in ("round-*", "epr*", "retriever", "evaluation"))


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep a second command out of a run folder: two would take away each other's half-written files.

    Raises:
        ConfigError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)  # the lock ends with the process, however it ends
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another udr is at work there; wait for it, or give another out=FOLDER") from None
        yield
    finally:
        os.close(folder)


def open_run(config: RunConfig, report: Report = silent) -> Run:
    """Open a run folder or begin one.

    Raises:
        ConfigError: the folder was begun with other settings of tasks, encoder, mining or training.
        FingerprintMismatch: the folder was begun with another LM.
    """
    path = config.out / "config.yaml"
    run = Run(config, report)
    if path.is_file() and run.begun:
        before = load_config(RunConfig, path)
        for key in ("seed", "tasks", "encoder", "mining", "train"):  # the LM is known by its fingerprint
            if getattr(before, key) != getattr(config, key):
                raise ConfigError(
                    f"{path}: this run was begun with other settings under {key!r}; give another out=FOLDER"
                )
        if before.lm != config.lm:
            _ = run.lm  # another model is refused here: a finished run would never load it
    content = config.dump_yaml().encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return run


def by_name(tasks: Iterable[TaskData]) -> dict[str, TaskData]:
    """Tasks under their names.

    Raises:
        ConfigError: two of them have the same name.
    """
    found: dict[str, TaskData] = {}
    for data in tasks:
        if data.spec.name in found:
            raise ConfigError(f"tasks: two are named {data.spec.name}; a table goes by the name of its file")
        found[data.spec.name] = data
    return found


def propose(run: Run, number: int) -> None:
    """Write the candidates of a round: lexical in round 0, by the encoder of the round before after that."""
    mining, seed = run.config.mining, run.config.seed
    encoders: dict[Path, BiEncoder] = {}
    for name, data in run.tasks.items():
        path = run.round_folder(number) / f"{name}.proposed.jsonl"
        if path.is_file():
            continue
        fitting = drop_long(data.spec, data.train, run.lm, mining.max_tokens)
        most = min(mining.queries or len(fitting), data.spec.train_cap or len(fitting), len(fitting))
        balanced = mining.balanced and data.spec.kind == "classification"
        # queries follow the metric: evenly over labels that count alike, otherwise as often as they will be asked
        order = choose_queries(fitting, 0, seed, balanced and data.spec.metric == "macro_f1")
        start = number * most if mining.fresh_queries else 0
        queries = [order[i % len(order)] for i in range(start, start + most)]
        pool = choose_queries(fitting, mining.pool, seed + 1 + (number if mining.fresh_queries else 0))
        if number == 0:
            lists = propose_bm25(data.spec, pool, queries, mining.candidates)
        else:
            folder = trained_encoder(run, number - 1, name)
            if folder not in encoders:
                encoders = {folder: load_encoder(folder)}
            lists = propose_dense(data.spec, pool, queries, mining.candidates, encoders[folder])
        outputs = {d.id: d.output for d in pool} if balanced else None
        write_candidates(path, sample(lists, mining.scored, seed + number, outputs))


def score(run: Run, number: int) -> None:
    """Let the LM score and rank every candidate of a round."""
    mining = run.config.mining
    for name, data in run.tasks.items():
        path = run.round_folder(number) / f"{name}.scored.jsonl"
        if not path.is_file():
            lists = _read_lists(run, number, name, "proposed")
            meter = Meter(run.scorer)
            progress = meter.counting(run.report(f"round {number}: LM scores of {name}", meter.note))
            scored = score_lists(data, lists, run.scorer, progress, mining.gold_only, mining.shortcut)
            write_candidates(path, scored)


def estimate_score(run: Run, number: int) -> dict[str, Estimate]:
    """What `score` has yet to pay for each task of a round; learns the speed from a few pairs, which it keeps."""
    mining = run.config.mining
    found = {}
    for name, data in run.tasks.items():
        if not (run.round_folder(number) / f"{name}.scored.jsonl").is_file():
            pairs = pairs_of(data, _read_lists(run, number, name, "proposed"))
            found[name] = estimate(data.spec, run.scorer, pairs, mining.gold_only, mining.shortcut)
    return found


def _read_lists(run: Run, number: int, name: str, stage: Literal["proposed", "scored"]) -> Sequence[CandidateList]:
    """A round's lists of one task.

    Raises:
        ArtifactError: they are not made yet, or some of them are missing from the file.
    """
    path = run.round_folder(number) / f"{name}.{stage}.jsonl"
    command = {"proposed": "propose", "scored": "score"}[stage]
    if not path.is_file():
        raise ArtifactError(f"{path}: not {stage} yet; run: udr {command} --round {number}")
    lists = read_candidates(path)
    proposed = path.with_name(f"{name}.proposed.jsonl")
    wanted = len(read_candidates(proposed)) if stage == "scored" and proposed.is_file() else len(lists)
    if not lists or len(lists) != wanted:
        how = f"{len(lists)} lists of {wanted}" if lists else "empty"
        raise ArtifactError(f"{path}: damaged ({how}); delete it and run: udr {command} --round {number}")
    return lists


def train(run: Run, number: int) -> None:
    """Fit the bi-encoder on a round's lists, going on from the round before."""
    if run.config.train.multi_task:
        _train_one(run, number, list(run.tasks))
    else:
        for name in run.tasks:
            _train_one(run, number, [name])


def rounds_of(run: Run, number: int) -> Sequence[int]:
    """The rounds whose lists training reads after round `number`."""
    return range(number + 1) if run.config.mining.accumulate else [number]


def _train_one(run: Run, number: int, names: Sequence[str]) -> None:
    folder = encoder_folder(run, number, names[0])
    if is_trained(folder):
        return
    encoder = load_encoder(trained_encoder(run, number - 1, names[0])) if number else run.untrained_encoder()
    epochs = run.config.train.round_epochs if number else run.config.train.epochs
    title = f"round {number}: training" + ("" if run.config.train.multi_task else f" for {names[0]}")
    fit_and_save(run, encoder, ranked_tasks(run, names, rounds_of(run, number)), folder, epochs, "udr", number, title)


def ranked_tasks(run: Run, names: Sequence[str], rounds: Sequence[int]) -> list[RankedTask]:
    """The scored lists of some rounds, merged query by query."""
    tasks = []
    for name in names:
        scored = [_read_lists(run, n, name, "scored") for n in rounds]
        lists: Sequence[CandidateList] = union(scored) if len(scored) > 1 else scored[0]
        tasks.append(RankedTask(run.tasks[name].spec, run.tasks[name].by_id, lists))
    return tasks


def fit_and_save(
    run: Run,
    encoder: BiEncoder,
    tasks: Sequence[RankedTask],
    folder: Path,
    epochs: float,
    objective: Objective,
    number: int,
    title: str,
) -> None:
    """Train with a checkpoint beside `folder`, then put the finished encoder there in one move."""
    settings = run.config.train.model_dump()
    for key in ("epochs", "round_epochs", "multi_task"):
        settings.pop(key)
    if objective == "epr":
        settings |= {"false_negatives": "text", "tasks_per_step": 1, "weighting": "equal"}  # as published
    lists = sum(len(t.lists) for t in tasks)
    checkpoint = checkpoint_of(folder)
    taken = fit(
        encoder,
        tasks,
        steps=max(1, round(epochs * lists / settings["batch"])),
        objective=objective,
        seed=run.config.seed * 1000 + number,
        checkpoint=checkpoint,
        progress=run.report(title),
        **cast(Any, settings),
    )
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    encoder.save(building)
    write_atomically(building / "losses.json", json.dumps([step._asdict() for step in taken]).encode())
    with suppress(MissingDependencyError):  # the picture is worth no extra
        plot_losses(taken, building / "losses.png")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror})") from None
    checkpoint.unlink(missing_ok=True)
    for task, (best, last) in forgotten(taken).items():
        warn(
            f"{title}: {task} was learnt and lost again (its loss was {best:.2f} and ended at {last:.2f}); "
            "give another out=FOLDER a lower train.lr, a longer train.warmup or a larger train.batch",
            UDRWarning,
            stacklevel=2,
        )


def is_trained(folder: Path) -> bool:
    """True when a finished encoder stands there; a checkpoint that a killed run left beside it is removed."""
    finished = (folder / "encoder.json").is_file()
    if finished:
        checkpoint_of(folder).unlink(missing_ok=True)
    return finished


def checkpoint_of(folder: Path) -> Path:
    """Where training keeps its state until the encoder is finished."""
    return folder.with_name(f"{folder.name}.checkpoint")


def encoder_folder(run: Run, number: int, name: str) -> Path:
    """Where the encoder that serves a task after a round lies."""
    folder = run.round_folder(number)
    return folder / "encoder" if run.config.train.multi_task else folder / f"encoder-{name}"


def trained_encoder(run: Run, number: int, name: str) -> Path:
    """As `encoder_folder`, of a round that is finished.

    Raises:
        ArtifactError: it is not trained yet.
    """
    folder = encoder_folder(run, number, name)
    if not is_trained(folder):
        raise ArtifactError(f"{folder}: not trained yet; run: udr train --round {number}")
    return folder


def final_round(run: Run) -> int:
    """The last round: `mining.rounds`, or the last one behind it that learnt from feedback."""
    number = run.config.mining.rounds
    while (run.round_folder(number + 1) / FEEDBACK).is_file() and is_trained(encoder_folder(run, number + 1, "")):
        number += 1
    return number


def mine_and_train(run: Run) -> None:
    """All rounds: propose, score, train."""
    if not all(is_trained(encoder_folder(run, 0, name)) for name in run.tasks):
        run.untrained_encoder()  # one that cannot be loaded is told now, and not after the hours of LM scoring
    for number in range(run.config.mining.rounds + 1):
        propose(run, number)
        score(run, number)
        train(run, number)
