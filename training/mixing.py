"""The mixing stage: the LM's answers to queries held back from training say what the untrained encoder is worth.

::

    OUT/mixture/TASK.json                the share of the untrained encoder on a task, and what each would have given
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.run import Run, final_round, held_and_asked, trained_encoder
from udr.artifacts import read_json, write_json
from udr.data import TaskData
from udr.encoder import load_encoder
from udr.errors import ArtifactError
from udr.evaluation import rate_queries
from udr.mining import drop_long
from udr.mixture import JUDGED, MixedEncoder, mix_by_judge
from udr.retriever import DenseRanker, Retriever
from udr.types import Encoder, FloatArray

__all__ = ["mix", "mixed_encoder", "mixed_share", "mixed_weights"]


def mix(run: Run) -> None:
    """Choose the share of the untrained encoder on every training task; skipped where the final encoder has its own.

    The prompts are those of the evaluation (`evaluation.budget`, `k` and so on), of training queries that no round
    asked about. With `mining.held` at 0, the paper's choice, there is nothing to do.
    """
    for name, data in run.tasks.items() if run.config.mining.held else ():
        if _known(run, name) is None:
            _mix_task(run, name, data)


def mixed_share(run: Run, name: str) -> float:
    """The untrained encoder's share of the similarity on a training task, 0..1.

    Raises:
        ArtifactError: queries are held back for this, and the stage has not run with the final encoder yet.
    """
    return float(_chosen(run, name)["share"]) if run.config.mining.held else 0.0


def mixed_weights(run: Run, name: str) -> tuple[float, float] | None:
    """The weights of the trained and the untrained encoder on a training task; None where the trained one is alone.

    Raises:
        ArtifactError: as `mixed_share`.
    """
    if not mixed_share(run, name):
        return None
    a, b = _chosen(run, name)["weights"]
    return a, b


def mixed_encoder(run: Run, name: str, trained: Encoder, untrained: Callable[[], Encoder]) -> Encoder:
    """What ranks a training task: the trained encoder, with the untrained one where that has a say.

    Raises:
        ArtifactError: as `mixed_share`.
    """
    weights = mixed_weights(run, name)
    return MixedEncoder(trained, untrained(), *weights) if weights else trained


def _path(run: Run, name: str) -> Path:
    return run.out / "mixture" / f"{name}.json"


def _marks(run: Run, name: str) -> dict[str, object]:
    """What a share depends on beside what a run folder holds fast."""
    settings = run.config.evaluation.model_dump(
        mode="json", include={"budget", "k", "k_generation", "selection", "order"}
    )
    encoder = read_json(trained_encoder(run, final_round(run), name) / "encoder.json").get("fingerprint")
    return {"encoder": encoder, "shares": list(JUDGED), **settings}


def _chosen(run: Run, name: str) -> dict[str, Any]:
    known = _known(run, name)
    if known is None:
        raise ArtifactError(f"{_path(run, name)}: not mixed yet; run: udr mix CONFIG")
    return known


def _known(run: Run, name: str) -> dict[str, Any] | None:
    path = _path(run, name)
    known = read_json(path) if path.is_file() else {}
    return known if known.get("of") == _marks(run, name) else None


def _mix_task(run: Run, name: str, data: TaskData) -> None:
    settings = run.config.evaluation
    held, _ = held_and_asked(run, data.spec, drop_long(data.spec, data.train, run.lm, run.config.mining.max_tokens))
    trained = load_encoder(trained_encoder(run, final_round(run), name))
    number = 0

    def judge(ranker: DenseRanker) -> FloatArray:
        nonlocal number
        number += 1
        return rate_queries(
            Retriever(data.spec, data.train, ranker, run.config.seed),
            held,
            run.lm,
            run.scorer,
            budget=settings.budget,
            k=settings.k,
            k_generation=settings.k_generation,
            selection=settings.selection,
            arrange=settings.order,
            progress=run.report(f"held-back queries of {name}, mixture {number} of {len(JUDGED)}"),
        )

    found = {"share": 0.0, "weights": [1.0, 0.0]}  # a task too small to hold any back
    if held:
        found = mix_by_judge(data.spec, data.train, trained, run.untrained_encoder(), judge, run.config.seed).as_json()
    write_json(_path(run, name), {**found, "queries": len(held), "of": _marks(run, name)})
