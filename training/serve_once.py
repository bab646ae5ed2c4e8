"""Retrieval and prompts from the command line: open, answer, close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.lm import build_lm
from training.settings import LMSettings
from udr.data import FORMATS, SPEC_FORMATS, open_task
from udr.encoder import load_encoder
from udr.errors import ArtifactError, ConfigError, DataError
from udr.evaluation import answer_prompts
from udr.mixture import mix
from udr.retriever import SPARES, Retriever, load_retriever
from udr.scoring.model_config import context_length, read_config
from udr.scoring.tokens import load_tokenizer
from udr.selection import ORDERS
from udr.types import Query

__all__ = ["as_queries", "make_prompts", "open_retriever"]


def open_retriever(folder: Path, task: str, tell: Callable[[str], None]) -> Retriever:
    """A task the retriever holds, or any task file: its pool is encoded on the spot, by both encoders.

    What share of the similarity the untrained encoder got, and why, is told in one line.

    Raises:
        ArtifactError: the retriever folder was made before it held the untrained encoder.
    """
    if task.lower().endswith((*FORMATS, *SPEC_FORMATS)):
        data = open_task(task, hold_out=False)
        if (folder / "encoder").is_dir() and not (folder / "untrained").is_dir():
            raise ArtifactError(f"{folder}: holds no untrained encoder, which a new task needs; run: udr index CONFIG")
        trained, untrained = (load_encoder(folder / name) for name in ("encoder", "untrained"))
        mixture = mix(data.spec, data.train, trained, untrained)
        told = ", ".join(f"{share:g}: {like:.3f}" for share, like in mixture.likeness.items())
        tell(
            f"{data.spec.name} was not trained on: the untrained encoder's share is {mixture.share:g} "
            f"(how alike the outputs of neighbours are under each share: {told})"
        )
        return Retriever(data.spec, data.train, mixture.ranker)
    return load_retriever(folder, task)


def as_queries(inputs: Sequence[str]) -> list[Query]:
    """Inputs of a command as queries.

    Raises:
        DataError: one is no Unicode text.
    """
    for i, text in enumerate(inputs):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"input {i}: {ascii(text)[:60]} is no UTF-8 text") from None
    return [Query(f"query-{i}", text) for i, text in enumerate(inputs)]


def make_prompts(
    folder: Path,
    task: str,
    inputs: Sequence[str],
    lm: str,
    budget: int,
    reserve: int,
    k: int,
    selection: str,
    order: str,
    answer: bool,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Finished prompts as JSON-like rows: text, tokens, demonstrations in prompt order, what was dropped and why.

    Raises:
        ConfigError: the LM reads fewer tokens than the budget.
        PromptTooLong: an input alone exceeds the budget.
    """
    if order not in ORDERS:
        raise ConfigError(f"--order: {order!r} is not one of {', '.join(ORDERS)}")
    retriever = open_retriever(folder, task, tell)
    answering = build_lm(LMSettings(name=lm)) if answer or lm == "fake" else None
    tokenizer = answering or load_tokenizer(lm)  # which is all that a prompt wants of the LM
    reads = answering.context_length if answering else context_length(read_config(lm))
    if reads and budget > reads:
        raise ConfigError(f"--budget: {budget} tokens, and the LM {lm} reads {reads}")
    queries = as_queries(inputs)
    rows = []
    for query, found in zip(queries, retriever.retrieve(queries, SPARES * k, selection=selection), strict=True):
        prompt = retriever.prompt(query, found, tokenizer, budget, k=k, reserve=reserve, arrange=order)
        row = asdict(prompt) | {"input": query.input}
        if answering and answer:
            (row["answer"],) = answer_prompts(retriever.spec, answering, [prompt.text], [query])
        rows.append(row)
    return rows
