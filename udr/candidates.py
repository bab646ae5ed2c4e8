"""Candidate lists: ranks from LM scores, and their JSONL files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from udr.artifacts import write_atomically
from udr.errors import DataError
from udr.types import Candidate, CandidateList

__all__ = ["read_candidates", "union", "with_ranks", "write_candidates"]


def with_ranks(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Rank by LM score, 1 = best; ties go to the smaller demonstration id, so runs repeat."""
    best_first = sorted(candidates, key=lambda c: (-_score(c), c.demonstration_id))
    return tuple(replace(c, rank=r) for r, c in enumerate(best_first, 1))


def _score(candidate: Candidate) -> float:
    if candidate.lm_score is None:
        raise DataError(f"candidate {candidate.demonstration_id} has no LM score yet; run: udr score")
    return candidate.lm_score


def union(rounds: Iterable[Sequence[CandidateList]]) -> list[CandidateList]:
    """Merge the lists of several rounds query by query, each demonstration once, and rank anew."""
    merged: dict[tuple[str, str], dict[str, Candidate]] = {}
    for lists in rounds:
        for one in lists:
            own = merged.setdefault((one.task, one.query_id), {})
            own.update({c.demonstration_id: c for c in one.candidates})
    return [CandidateList(task, query, with_ranks(list(own.values()))) for (task, query), own in merged.items()]


def write_candidates(path: Path, lists: Sequence[CandidateList]) -> None:
    """One list a line; the file appears whole or not at all."""
    lines = []
    for one in lists:
        rows = [[c.demonstration_id, c.retrieval_score, c.lm_score, c.rank] for c in one.candidates]
        line = {"task": one.task, "query": one.query_id, "candidates": rows}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines).encode())


def read_candidates(path: Path) -> list[CandidateList]:
    """Read what `write_candidates` wrote.

    Raises:
        DataError: a line that is no candidate list (file:line).
    """
    lists = []
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(text.split("\n") if text else [], 1):  # splitlines would cut ids at U+2028
        try:
            row = json.loads(line)
            candidates = tuple(Candidate(str(i), float(s), lm, rank) for i, s, lm, rank in row["candidates"])
            lists.append(CandidateList(row["task"], row["query"], candidates))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a candidate list") from None
    return lists
