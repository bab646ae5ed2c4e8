"""Which questions to ask a server so that every token of some continuations gets its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from udr.scoring.endpoint import Read

__all__ = ["Plan", "bundles", "plan"]

READS_PER_REQUEST = 8  # prompts in one HTTP request
TARGETS_PER_READ = 128  # vLLM tells no more chosen tokens' log-probabilities at once
# a whole prompt's log-probabilities keep the server from using its prefix cache and want logits at every position:
# it costs about as much as so many single positions
WHOLE_COST = 2


class Plan(NamedTuple):
    """The reads that answer some requests, and where each request's tokens are read."""

    reads: list[Read]
    places: list[list[tuple[int, int]]]  # of each request: (read, column) of every token

    def columns(self, read: int) -> Sequence[int]:
        """The column names of a read: target tokens, or their positions where the targets are read as they stand."""
        one = self.reads[read]
        return range(len(one.targets)) if one.whole else one.targets


def plan(starts: Sequence[Sequence[int]], ends: Sequence[Sequence[int]], offers: frozenset[str]) -> Plan:
    """Choose for each context the cheaper way to read its continuations' tokens.

    Position by position: continuations that begin alike share a read, and the server's prefix cache serves the context.
    Or each continuation as one whole prompt.
    """
    single = bool(offers & {"logprob_token_ids", "generative_scoring", "top_logprobs"})
    whole = bool(offers & {"prompt_logprobs", "echo"})
    of_context: dict[tuple[int, ...], list[int]] = {}
    for i, start in enumerate(starts):
        of_context.setdefault(tuple(start), []).append(i)
    reads: list[Read] = []
    places: list[list[tuple[int, int]]] = [[] for _ in ends]
    at: dict[tuple[tuple[int, ...], int], int] = {}  # the read that tells the log-probability of a token after `ids`
    for start, rows in of_context.items():
        nodes: dict[tuple[int, ...], dict[int, None]] = {}
        for i in rows:
            for n, token in enumerate(ends[i]):
                nodes.setdefault((*start, *ends[i][:n]), {})[token] = None
        distinct = {tuple(ends[i]) for i in rows}
        if single and (not whole or len(nodes) <= WHOLE_COST * len(distinct)):
            for ids, tokens in nodes.items():
                wanted = tuple(t for t in tokens if (ids, t) not in at)  # a longer context may begin like this one
                for first in range(0, len(wanted), TARGETS_PER_READ):
                    targets = wanted[first : first + TARGETS_PER_READ]
                    at |= {(ids, token): len(reads) for token in targets}
                    reads.append(Read(ids, targets))
            for i in rows:
                places[i] = [(at[(*start, *ends[i][:n]), token], token) for n, token in enumerate(ends[i])]
        else:
            of_end = {end: len(reads) + n for n, end in enumerate(sorted(distinct))}
            reads += [Read((*start, *end), end, True) for end in sorted(distinct)]
            for i in rows:
                places[i] = [(of_end[tuple(ends[i])], n) for n in range(len(ends[i]))]
    return Plan(reads, places)


def bundles(reads: Sequence[Read]) -> list[list[int]]:
    """Reads that one HTTP request can carry: all whole, or all with the same targets."""
    kinds: dict[object, list[int]] = {}
    for i, read in enumerate(reads):
        kinds.setdefault("whole" if read.whole else read.targets, []).append(i)
    return [
        rows[start : start + READS_PER_REQUEST]
        for rows in kinds.values()
        for start in range(0, len(rows), READS_PER_REQUEST)
    ]
