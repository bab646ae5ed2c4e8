"""Fit the bi-encoder on ranked candidate lists of many tasks; a killed run goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from udr.artifacts import fsync_folder
from udr.encoder import BiEncoder
from udr.errors import ArtifactError, DataError, TrainingStopped
from udr.losses import PairWeight, epr_loss, udr_loss
from udr.prompt import for_encoder
from udr.tasks.spec import TaskSpec
from udr.types import Candidate, CandidateList, Demonstration, Progress
from udr.weighting import Weighting, build_weighting

__all__ = ["RankedTask", "Step", "fit", "forgotten"]

ListSampling = Literal["uniform", "stratified"]
Objective = Literal["udr", "epr"]
FalseNegatives = Literal["text", "output"]
WEIGHTING_LR = 0.025  # of weights that are learnt beside the encoder, as GradNorm's authors set it
EXTREME = 5  # "top" and "bottom" of a list: its 5 best and its 5 worst


@dataclass(frozen=True, slots=True)
class RankedTask:
    """What one task gives to training: its words, its demonstrations by id, and ranked lists."""

    spec: TaskSpec
    by_id: Mapping[str, Demonstration]
    lists: Sequence[CandidateList]


class Step(NamedTuple):
    """One task's batch in a step of training, and its loss before the step."""

    task: str
    loss: float


def forgotten(
    steps: Sequence[Step], parts: int = 6, fewest: int = 10, rise: float = 1.2
) -> dict[str, tuple[float, float]]:
    """Tasks that training has learnt and lost again: (best, last) mean loss of a task's steps in `parts` equal parts.

    A task is lost when its last mean is `rise` times the best one, of at least `fewest` steps each. So looks a
    representation that has collapsed under the steps of other tasks; the mean loss of all tasks does not show it.
    """
    own: dict[str, list[float]] = {}
    for step in steps:
        own.setdefault(step.task, []).append(step.loss)
    lost = {}
    for task, losses in own.items():
        if len(losses) >= parts * fewest:
            means = [float(part.mean()) for part in np.array_split(np.array(losses), parts)]
            if means[-1] > rise * min(means):
                lost[task] = (min(means), means[-1])
    return lost


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids of one step, each distinct demonstration once."""

    queries: list[list[int]]  # b
    demonstrations: list[list[int]]  # u
    own: Tensor  # (b, l) columns of each query's candidates
    ranks: Tensor  # (b, l) among those l, 1 = best; 0 where a list is shorter
    masked: Tensor  # (b, u) false negatives


def draw(candidates: Sequence[Candidate], size: int, how: ListSampling, rng: np.random.Generator) -> list[Candidate]:
    """Take `size` candidates of a list ranked best first.

    `uniform` is the paper's choice; `stratified` takes one of the best 5, one of the worst 5, the rest between.
    """
    ranked = sorted(candidates, key=lambda c: c.rank or 0)
    if how == "uniform" or len(ranked) <= size or size < 2:
        return [ranked[i] for i in sorted(rng.permutation(len(ranked))[:size])]
    edge = min(EXTREME, len(ranked) // 2)
    first, last = int(rng.integers(edge)), len(ranked) - 1 - int(rng.integers(edge))
    between = [i for i in range(len(ranked)) if i not in (first, last)]
    middle = rng.permutation(between)[: size - 2].tolist()
    return [ranked[i] for i in sorted([first, last, *middle])]


def draw_extremes(candidates: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
    """EPR's positive and hard negative: one of the best and one of the worst 5 of 50 (Rubin et al. 2022, section 3.2).

    Of a shorter list a tenth is taken at either end: among the best 5 of 6 most would be no positives.
    """
    ranked = sorted(candidates, key=lambda c: c.rank or 0)
    edge = min(EXTREME, -(-len(ranked) // 10))
    return [ranked[int(rng.integers(edge))], ranked[len(ranked) - 1 - int(rng.integers(edge))]]


def _padded(numbers: Sequence[int], width: int) -> list[int]:
    return [*numbers, *[0] * (width - len(numbers))]


class _Sampler:
    """Draws batches that depend on (seed, step) alone, so that a resumed run sees what the first one would have."""

    def __init__(
        self,
        encoder: BiEncoder,
        tasks: Sequence[RankedTask],
        *,
        batch: int,
        tasks_per_step: int,
        list_size: int,
        list_sampling: ListSampling,
        objective: Objective,
        false_negatives: FalseNegatives,
        seed: int,
    ) -> None:
        self.encoder = encoder
        self.list_size = list_size
        self.list_sampling = list_sampling
        self.objective = objective
        self.false_negatives = false_negatives
        self.seed = seed
        self.tasks = [t for t in tasks if any(len(one.candidates) > 1 for one in t.lists)]
        if not self.tasks:
            raise DataError("nothing to train on: no list holds two scored candidates")
        self.lists = [[one for one in t.lists if len(one.candidates) > 1] for t in self.tasks]
        weights = np.sqrt([len(own) for own in self.lists])  # tasks drawn with probability ∝ |D_T|^0.5
        self.weights = weights / weights.sum()
        self.tasks_per_step = min(tasks_per_step, len(self.tasks))
        self.batch = max(1, batch // self.tasks_per_step)  # queries of each
        self._ids: dict[tuple[int, bool, str], list[int]] = {}

    def _draw_tasks(self, step: int) -> tuple[list[int], np.random.Generator]:
        rng = np.random.default_rng([self.seed, step])
        drawn: list[int] = []
        left = self.weights.copy()
        for _ in range(self.tasks_per_step):
            drawn.append(int(rng.choice(len(left), p=left / left.sum())))
            left[drawn[-1]] = 0
        return drawn, rng

    def tasks_of(self, step: int) -> list[int]:
        """Whose batches a step takes."""
        return self._draw_tasks(step)[0]

    def __call__(self, step: int) -> list[Batch]:
        tasks, rng = self._draw_tasks(step)
        return [self._batch(t, rng) for t in tasks]

    def _batch(self, t: int, rng: np.random.Generator) -> Batch:
        by_id, lists = self.tasks[t].by_id, self.lists[t]
        chosen = [lists[i] for i in rng.permutation(len(lists))[: self.batch]]
        drawn = [
            draw_extremes(one.candidates, rng)
            if self.objective == "epr"
            else draw(one.candidates, self.list_size, self.list_sampling, rng)
            for one in chosen
        ]
        width = max(map(len, drawn))
        columns = {i: n for n, i in enumerate(dict.fromkeys(c.demonstration_id for own in drawn for c in own))}
        golds = [by_id[one.query_id] for one in chosen]
        names = [(i, by_id[i].query.content_hash, by_id[i].content_hash) for i in columns]
        own_names = [(g.id, g.query.content_hash, g.content_hash) for g in golds]
        masked = [[i == j or x == y or z == w for i, x, z in names] for j, y, w in own_names]
        if self.false_negatives == "output":
            outputs = [by_id[i].output for i in columns]
            for hidden, gold, own in zip(masked, golds, drawn, strict=True):
                right = {gold.output, by_id[own[0].demonstration_id].output}
                hidden[:] = [h or output in right for h, output in zip(hidden, outputs, strict=True)]
        return Batch(
            queries=[self._token_ids(t, g, of_query=True) for g in golds],
            demonstrations=[self._token_ids(t, by_id[i], of_query=False) for i in columns],
            own=torch.tensor([_padded([columns[c.demonstration_id] for c in own], width) for own in drawn]),
            ranks=torch.tensor([_padded(range(1, len(own) + 1), width) for own in drawn]),
            masked=torch.tensor(masked),
        )

    def _token_ids(self, t: int, demonstration: Demonstration, *, of_query: bool) -> list[int]:
        key = (t, of_query, demonstration.id)
        if key not in self._ids:
            spec = self.tasks[t].spec
            instruction = spec.retrieval_instruction
            self._ids[key] = (
                self.encoder.query_ids([demonstration.query], instruction)
                if of_query
                else self.encoder.demonstration_ids(for_encoder(spec, [demonstration], self.encoder), instruction)
            )[0]
        return self._ids[key]


def fit(
    encoder: BiEncoder,
    tasks: Sequence[RankedTask],
    *,
    steps: int,
    batch: int = 128,
    tasks_per_step: int = 1,
    weighting: str = "equal",
    list_size: int = 8,
    list_sampling: ListSampling = "uniform",
    objective: Objective = "udr",
    false_negatives: FalseNegatives = "text",
    rank_weight: float = 0.8,
    pair_weight: PairWeight = "lm_rank",
    temperature: float = 1.0,
    lr: float = 1e-4,
    warmup: int = 500,
    weight_decay: float = 0.01,
    freeze_embeddings: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    progress: Progress | None = None,
) -> list[Step]:
    """Train `encoder` in place; return what each step was, those before a checkpoint included.

    A step is one task's batch of `batch` queries with `list_size` candidates each, ranked among themselves; or the
    batches of `tasks_per_step` tasks with as many queries in all, whose losses `weighting` makes one step of (see
    `udr.weighting`). AdamW with linear warm-up over `warmup` steps (at most a tenth of all) and linear decay.
    `objective: epr` is the baseline: one positive of the top and one hard negative of the bottom of each list (Rubin et
    al. 2022, arXiv 2112.08633).
    `false_negatives` are left out of L_ib: `text` means the query and its equals, `output` also candidates that give
    the output of the query or of its best candidate, for they help for the same reason.

    Raises:
        DataError: no list holds two scored candidates.
        UnknownNameError: no weighting of that name.
        TrainingStopped: a loss is no number.
        ArtifactError: the checkpoint cannot be written, or is damaged.
    """
    sampler = _Sampler(
        encoder,
        tasks,
        batch=batch,
        tasks_per_step=tasks_per_step,
        list_size=list_size,
        list_sampling=list_sampling,
        objective=objective,
        false_negatives=false_negatives,
        seed=seed,
    )
    for tower in (encoder.query_tower, encoder.demonstration_tower):
        tower.get_input_embeddings().requires_grad_(not freeze_embeddings)  # type: ignore[operator]
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    weigh = build_weighting(weighting, len(sampler.tasks)).to(encoder.device)
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if own := list(weigh.parameters()):
        groups.append({"params": own, "lr": WEIGHTING_LR, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
    rise = max(1, min(warmup, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / rise, (steps - n) / max(1, steps - rise))
    )
    losses = _restore(checkpoint, encoder, weigh, optimizer, schedule) if checkpoint else []
    first = len(losses) // sampler.tasks_per_step
    encoder.train()
    if progress:
        progress(first, steps)
    for step in range(first, steps):
        torch.manual_seed(seed * 1_000_003 + step)  # dropout too is a function of (seed, step)
        batches = sampler(step)
        own_losses = [_loss(encoder, b, objective, rank_weight, pair_weight, temperature) for b in batches]
        told = [float(loss.detach()) for loss in own_losses]
        if not np.isfinite(told).all():
            raise TrainingStopped(
                f"step {step}: the loss is {told[int(np.argmin(np.isfinite(told)))]}; training diverged: give another "
                "out=FOLDER a lower train.lr"
            )
        optimizer.zero_grad(set_to_none=True)
        weigh.backward(own_losses, parameters, sampler.tasks_of(step))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses += told
        if checkpoint and (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            _store(checkpoint, encoder, weigh, optimizer, schedule, losses)
        if progress:
            progress(step + 1, steps)
    encoder.eval()
    encoder.refresh_fingerprint()
    taken = [sampler.tasks[t].spec.name for step in range(steps) for t in sampler.tasks_of(step)]
    return [Step(task, loss) for task, loss in zip(taken, losses, strict=True)]


def _loss(
    encoder: BiEncoder,
    batch: Batch,
    objective: Objective,
    rank_weight: float,
    pair_weight: PairWeight,
    temperature: float,
) -> Tensor:
    queries, demonstrations = encoder.embed_both(batch.queries, batch.demonstrations)
    sims = queries @ demonstrations.T / temperature  # (b, u)
    own, ranks, masked = (x.to(sims.device) for x in (batch.own, batch.ranks, batch.masked))
    if objective == "epr":
        return epr_loss(sims, own[:, 0], masked)
    return udr_loss(sims, own, ranks, masked, rank_weight, pair_weight)


def _store(
    path: Path,
    encoder: BiEncoder,
    weigh: Weighting,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    losses: list[float],
) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    state = {
        "encoder": encoder.state_dict(),
        "weighting": weigh.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "losses": losses,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise ArtifactError(f"{path}: the checkpoint cannot be written ({str(error).partition(chr(10))[0]})") from None


def _restore(
    path: Path,
    encoder: BiEncoder,
    weigh: Weighting,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> list[float]:
    """Load a checkpoint if there is one; return the losses of the batches until then."""
    if not path.is_file():
        return []
    try:
        state = torch.load(path, map_location=encoder.device, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        weigh.load_state_dict(state.get("weighting", {}))  # absent where training began before there was one
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        return [float(loss) for loss in state["losses"]]
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, UnpicklingError):
        raise ArtifactError(
            f"{path}: the checkpoint is damaged or of another encoder; delete it to begin anew"
        ) from None
