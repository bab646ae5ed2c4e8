"""How well a frozen LM answers with each retriever's demonstrations: predictions, one table, intervals and tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from udr.artifacts import write_atomically
from udr.errors import DataError, PromptTooLong
from udr.metrics import make_scorer, per_example
from udr.prompt import render
from udr.retriever import SPARES, Retrieved, Retriever
from udr.scoring.feedback import choose_options
from udr.significance import bootstrap_interval, paired_permutation
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Generator, LMScorer, Progress, Query, Tokenizer

__all__ = [
    "Answer",
    "EvaluationTable",
    "LanguageModel",
    "answer_prompts",
    "answer_queries",
    "build_table",
    "read_answers",
    "write_answers",
]


ASKED_AT_ONCE = 32  # prompts between two tellings of progress
SPARE = 4  # tokens of the LM's context: the mark before a text, and what the border of prompt and answer may add


class LanguageModel(LMScorer, Generator, Tokenizer, Protocol):
    """What evaluation needs of an LM: to score options, to write answers, and to count tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One test query answered with one retriever's demonstrations."""

    query_id: str
    input: str
    prediction: str
    references: tuple[str, ...]  # the gold output first
    demonstrations: tuple[str, ...]  # ids, in prompt order
    tokens: int  # of the prompt


def answer_queries(
    retriever: Retriever,
    queries: Sequence[Demonstration],
    lm: LanguageModel,
    *,
    budget: int,
    k: int = 8,
    k_generation: int = 50,
    selection: str = "top_k",
    arrange: str = "ascending",
    progress: Progress | None = None,
) -> list[Answer]:
    """Retrieve, build each prompt, and let the LM answer: argmax over options, or greedy text up to a newline.

    Classification and multiple choice take `k` demonstrations, generation at most the best `k_generation`; those that
    fit `budget` together with the longest answer are in the prompt. A query that alone exceeds the budget is asked
    without demonstrations, and one that exceeds even the LM's context with its end cut off.
    """
    spec = retriever.spec
    wanted = k_generation if spec.kind == "generation" else k
    found = retriever.retrieve([q.query for q in queries], SPARES * wanted, selection=selection)
    prompts = [
        _prompt(retriever, query, own, lm, budget, wanted, arrange) for query, own in zip(queries, found, strict=True)
    ]
    texts = [text for text, _, _ in prompts]
    predictions = answer_prompts(spec, lm, texts, [q.query for q in queries], progress)
    return [
        Answer(q.id, q.input, prediction, _references(q), ids, tokens)
        for q, prediction, (_, ids, tokens) in zip(queries, predictions, prompts, strict=True)
    ]


def answer_prompts(
    spec: TaskSpec,
    lm: LanguageModel,
    texts: Sequence[str],
    queries: Sequence[Query],
    progress: Progress | None = None,
) -> list[str]:
    """The LM's answer to each finished prompt: the label or choice it prefers, or greedy text up to a newline.

    Queries of a multiple-choice task that bring no choices are answered with text too.
    """
    options = [spec.options(q.choices) for q in queries]
    if not all(options):
        return _generate(lm, texts, spec.max_new_tokens, progress)
    chosen = choose_options(spec, lm, texts, queries, progress)
    if spec.kind == "classification":
        labels = list(spec.verbaliser)
        return [labels[c] for c in chosen]
    return [own[c] for own, c in zip(options, chosen, strict=True)]


def _prompt(
    retriever: Retriever,
    query: Demonstration,
    found: Sequence[Retrieved],
    lm: LanguageModel,
    budget: int,
    k: int,
    arrange: str,
) -> tuple[str, tuple[str, ...], int]:
    spec, room = retriever.spec, lm.context_length - SPARE
    options = spec.options(query.choices)
    reserve = max(len(lm.encode(o)) for o in options) if options else spec.max_new_tokens
    try:
        prompt = retriever.prompt(query.query, found, lm, min(budget, room), k=k, reserve=reserve, arrange=arrange)
    except PromptTooLong:
        text = _cut(spec, query.query, lm, room - reserve)
        return text, (), len(lm.encode(text))
    return prompt.text, tuple(d.id for d in prompt.demonstrations), prompt.tokens


def _generate(lm: LanguageModel, texts: Sequence[str], max_new_tokens: int, progress: Progress | None) -> list[str]:
    answers: list[str] = []
    if progress:
        progress(0, len(texts))
    for start in range(0, len(texts), ASKED_AT_ONCE):
        answers += lm.generate(texts[start : start + ASKED_AT_ONCE], max_new_tokens)
        if progress:
            progress(len(answers), len(texts))
    return answers


def _cut(spec: TaskSpec, query: Query, tokenizer: Tokenizer, room: int) -> str:
    """A query without demonstrations, as much of its input as fits `room` tokens."""
    shortest, longest = 0, len(query.input)  # characters
    while shortest < longest:
        kept = (shortest + longest + 1) // 2
        text = render(spec, [], replace(query, input=query.input[:kept]))
        if len(tokenizer.encode(text)) <= room:
            shortest = kept
        else:
            longest = kept - 1
    return render(spec, [], replace(query, input=query.input[:shortest]))


def _references(query: Demonstration) -> tuple[str, ...]:
    return tuple(dict.fromkeys((query.output, *query.references)))


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """One answer a line; the file appears whole or not at all."""
    lines = [json.dumps(asdict(a), ensure_ascii=False) for a in answers]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        DataError: a line that is no answer (file:line).
    """
    answers = []
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(text.split("\n") if text else [], 1):  # splitlines would cut inputs at U+2028
        try:
            row = json.loads(line)
            row["references"], row["demonstrations"] = tuple(row["references"]), tuple(row["demonstrations"])
            answers.append(Answer(**row))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not an answer") from None
    return answers


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """Scores of several retrievers over several tasks, 0..100, and what can be said of their differences."""

    tasks: tuple[str, ...]
    families: Mapping[str, str]
    kinds: Mapping[str, str]
    methods: tuple[str, ...]
    scores: Mapping[str, Mapping[str, float]]  # method -> task, family:NAME, kind:NAME or average -> score
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]  # 95 %
    p_values: Mapping[str, float]  # task -> p of the last method against the best other method on that task
    best_baseline: Mapping[str, str]  # task or average -> that method

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self, intervals: bool = True) -> str:
        """One row a task, then families, kinds and the average; the best method of a row is bold.

        Behind each score stands its 95 % interval, unless `intervals` is false.
        """
        lines = ["| | " + " | ".join(self.methods) + " | p |", "|---|" + "---|" * (len(self.methods) + 1)]
        last = self.scores[self.methods[-1]]
        for row in last:
            values = [self.scores[m][row] for m in self.methods]
            cells = [f"**{v:.1f}**" if v == max(values) else f"{v:.1f}" for v in values]
            if intervals:
                bounds = [self.intervals[m][row] for m in self.methods]
                cells = [f"{cell} ({low:.0f}–{high:.0f})" for cell, (low, high) in zip(cells, bounds, strict=True)]
            p = f"{self.p_values[row]:.3f}" if row in self.p_values else ""
            lines.append(f"| {row} | " + " | ".join(cells) + f" | {p} |")
        return "\n".join(lines)


def build_table(
    specs: Sequence[TaskSpec],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    *,
    seed: int = 0,
    draws: int = 1000,
) -> EvaluationTable:
    """Put answers (method -> task -> answers) into one table; the last method is tested against the best other one.

    Every score is 0..100. Families, kinds and the average weigh each task alike. The test is a paired permutation test
    on the same queries; intervals are bootstrap percentiles over queries.

    Raises:
        DataError: two methods answered different queries of a task.
    """
    methods = tuple(answers)
    names = [s.name for s in specs]
    for task in names:
        if len({tuple(a.query_id for a in answers[m][task]) for m in methods}) > 1:
            raise DataError(f"task {task}: the methods answered different queries")
    scorers = {(m, s.name): make_scorer(s.metric, *_columns(answers[m][s.name])) for m in methods for s in specs}
    sizes = {t: len(answers[methods[0]][t]) for t in names}
    groups = _groups(specs)
    scores = {m: {t: scorers[m, t](np.arange(sizes[t])) for t in names} for m in methods}
    intervals = {m: {t: bootstrap_interval(scorers[m, t], sizes[t], seed, draws) for t in names} for m in methods}
    for m in methods:
        samples = _task_samples([scorers[m, t] for t in names], [sizes[t] for t in names], seed, draws)
        for group, members in groups.items():
            at = [names.index(t) for t in members]
            scores[m][group] = float(np.mean([scores[m][t] for t in members]))
            low, high = np.quantile(samples[:, at].mean(1), [0.025, 0.975])
            intervals[m][group] = (float(low), float(high))
    best = {row: max(methods[:-1], key=lambda m: scores[m][row]) for row in [*names, *groups]} if methods[1:] else {}
    p_values = {}
    if methods[1:]:
        for s in specs:
            ours, theirs = (per_example(s.metric, *_columns(answers[m][s.name])) for m in (methods[-1], best[s.name]))
            p_values[s.name] = paired_permutation(ours, theirs, seed)
        p_values["average"] = _p_of_average(specs, answers, methods[-1], best["average"], seed)
    return EvaluationTable(
        tuple(names),
        {s.name: s.family for s in specs},
        {s.name: s.kind for s in specs},
        methods,
        scores,
        intervals,
        p_values,
        best,
    )


def _columns(answers: Sequence[Answer]) -> tuple[list[str], list[tuple[str, ...]], list[str]]:
    return [a.prediction for a in answers], [a.references for a in answers], [a.input for a in answers]


def _groups(specs: Sequence[TaskSpec]) -> dict[str, list[str]]:
    """Rows below the tasks: each family, each kind, and all."""
    groups: dict[str, list[str]] = {}
    for s in specs:
        groups.setdefault(f"family: {s.family}", []).append(s.name)
    for s in specs:
        groups.setdefault(f"kind: {s.kind}", []).append(s.name)
    groups["average"] = [s.name for s in specs]
    return groups


def _task_samples(scorers: Sequence[Callable[[Any], float]], sizes: Sequence[int], seed: int, draws: int) -> np.ndarray:
    """Scores on resampled test sets, (draws, tasks)."""
    rng = np.random.default_rng(seed)
    return np.array(
        [[score(rng.integers(0, n, size=n)) for score, n in zip(scorers, sizes, strict=True)] for _ in range(draws)]
    )


def _p_of_average(
    specs: Sequence[TaskSpec],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    ours: str,
    theirs: str,
    seed: int,
) -> float:
    """Paired test over all queries, each task weighing alike."""
    a, b = (
        np.concatenate([x / len(x) for s in specs if (x := per_example(s.metric, *_columns(answers[m][s.name]))).size])
        for m in (ours, theirs)
    )
    return paired_permutation(a, b, seed)
