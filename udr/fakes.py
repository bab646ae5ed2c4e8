"""An encoder and a language model without weights: deterministic, quick, and good enough to teach a retriever.

They stand in for real models in tests and in first tries of the pipeline. `FakeEncoder` sees which words two texts
share; `FakeLM` follows demonstrations that resemble the query, so its feedback says which demonstration helps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from udr.errors import ConfigError, PromptTooLong
from udr.overlap import dice, words
from udr.types import Demonstration, FloatArray, LogLikelihoods, Media, Query

__all__ = ["FakeEncoder", "FakeLM"]

TOKEN = re.compile(r"\w+|\s|[^\w\s]")  # every character belongs to one token, so tokens joined are the text

SURPRISE = 4.0  # nats of a token that no demonstration speaks for
EVIDENCE = 3.5  # of them taken away by perfect evidence
PRIOR = 0.25  # at most so many nats by which one continuation is rarer than another
STRANGER = 0.05  # weight of a demonstration that shares no word with the query


def _hash(text: str) -> int:
    """A number below 2³² that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


class FakeEncoder:
    """Hashed bags of words: coordinate `axis(word)` counts a word, and every vector has length 1.

    An inner product is the cosine of two bags of words, in 0..1. A demonstration is the words of its input and its
    output; a picture, clip or sound counts as one word. The instruction is passed over unless `reads_instruction`.
    """

    def __init__(self, dim: int = 64, *, reads_instruction: bool = False) -> None:
        if dim < 1:
            raise ConfigError(f"dim of an encoder must be at least 1, got {dim}")
        self._dim = dim
        self.reads_instruction = reads_instruction

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def fingerprint(self) -> str:
        return f"fake-encoder-{self._dim}" + ("-instruction" if self.reads_instruction else "")

    def axis(self, word: str) -> int:
        """The coordinate that counts `word`, whatever its case."""
        return _hash(word.casefold()) % self._dim

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries, float32 (n, d)."""
        return self._encode([(q.input, q.media) for q in queries], instruction)

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations, float32 (m, d)."""
        return self._encode([(f"{d.input}\n{d.output}", d.media) for d in demonstrations], instruction)

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """It reads everything."""
        return [0] * len(texts)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """Words of each query (n,), and of the instruction where it is read."""
        head = len(words(instruction)) if self.reads_instruction else 0
        return [head + len(words(q.input)) for q in queries]

    def _encode(self, rows: Sequence[tuple[str, tuple[Media, ...]]], instruction: str) -> FloatArray:
        vectors = np.zeros((len(rows), self._dim), dtype=np.float32)
        head = words(instruction) if self.reads_instruction else []
        for vector, (text, media) in zip(vectors, rows, strict=True):
            own = [*head, *words(text), *(m.content_hash for m in media)]
            for word in own or [""]:  # a text without words has a direction too
                vector[self.axis(word)] += 1
            vector /= np.linalg.norm(vector)
        return vectors


class FakeLM:
    """A language model that believes demonstrations which resemble the query, as real ones do in context.

    The context is read as `joiner`-separated blocks, each an input and an answer parted by the last `separator`; the
    last block is the query. What speaks for a continuation is 1 − Π_z (1 − w_z · a_z) over the demonstrations z: w_z
    grows with the words that z's input shares with the query, a_z is how much of z's answer is the continuation. So a
    demonstration with the gold answer raises its probability, one with another answer that of the other, and both the
    more, the more words they share with the query. Words, punctuation marks and single spaces are the tokens.
    """

    prompts_per_call = 64

    def __init__(self, context_length: int = 2048, *, separator: str = "\t", joiner: str = "\n") -> None:
        self._context_length = context_length
        self.separator = separator
        self.joiner = joiner
        self.tokens_computed = 0

    @property
    def fingerprint(self) -> str:
        marks = (self.separator, self.joiner)
        return "fake-lm-1" + ("" if marks == ("\t", "\n") else f"-{marks!r}")

    @property
    def context_length(self) -> int:
        return self._context_length

    def encode(self, text: str) -> list[int]:
        """Token ids, the same in every process; texts that end at a token's border add up."""
        return [_hash(token) for token in TOKEN.findall(text)]

    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int:
        """Tokens that `loglikelihood` would read: nothing is shared."""
        return sum(len(self.encode(a)) + len(self.encode(b)) for a, b in zip(contexts, continuations, strict=True))

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        """The shortest beginnings of whole tokens that tell options apart."""
        own = [TOKEN.findall(o) for o in options]
        found = []
        for tokens in own:
            others = [other for other in own if other != tokens]
            n = next((n for n in range(1, len(tokens)) if all(o[:n] != tokens[:n] for o in others)), len(tokens))
            found.append("".join(tokens[:n]))
        return tuple(found)

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        """Score each continuation after its context: nats (n,), all negative, and its number of tokens (n,).

        Raises:
            ConfigError: an empty continuation.
            PromptTooLong: a request that exceeds the context length (names its number and length).
        """
        nats = np.empty(len(contexts), dtype=np.float32)
        tokens = np.empty(len(contexts), dtype=np.int64)
        known = {c: (len(self.encode(c)), self._demonstrations(c)) for c in dict.fromkeys(contexts)}
        for i, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
            length, demonstrations = known[context]
            tokens[i] = len(self.encode(continuation))
            if not tokens[i]:
                raise ConfigError(f"request {i}: the continuation has no tokens")
            self._check_length(f"request {i}", length, int(tokens[i]), i)
            nats[i] = -tokens[i] * _surprise(demonstrations, continuation)
            self.tokens_computed += length + int(tokens[i])
        return LogLikelihoods(nats, tokens)

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Copy the answer of the demonstration most like the query (of equal ones the last), up to the first newline.

        A prompt without demonstrations is answered with nothing.

        Raises:
            PromptTooLong: a prompt that leaves no room for the answer.
        """
        answers = []
        for i, prompt in enumerate(prompts):
            self._check_length(f"prompt {i}", len(self.encode(prompt)), max_new_tokens)
            best, answer = 0.0, ""
            for weight, own in self._demonstrations(prompt):
                if weight >= best:
                    best, answer = weight, own
            line = answer.lstrip(" ").split("\n")[0]
            answers.append("".join(TOKEN.findall(line)[:max_new_tokens]).strip())
        return answers

    def _demonstrations(self, context: str) -> list[tuple[float, str]]:
        """(weight in 0..1, answer) of each demonstration of a context, in order."""
        *blocks, query = context.split(self.joiner)
        asked, separator, prefix = query.rpartition(self.separator)
        if not separator:
            asked, prefix = query, ""
        wanted = sorted(set(words(asked)))
        found = []
        for block in blocks:
            text, separator, answer = block.rpartition(self.separator)
            if separator:
                weight = STRANGER + (1 - STRANGER) * dice(sorted(set(words(text))), wanted)
                found.append((weight, answer.removeprefix(prefix)))
        return found

    def _check_length(self, what: str, length: int, more: int, request: int | None = None) -> None:
        if length + more > self._context_length:
            raise PromptTooLong(
                f"{what}: {length} + {more} tokens, the LM reads {self._context_length}; lower the token budget",
                request,
            )


def _surprise(demonstrations: Sequence[tuple[float, str]], continuation: str) -> float:
    """Nats a token, between SURPRISE − EVIDENCE and SURPRISE + PRIOR."""
    wanted = _marks(continuation)
    doubt = 1.0
    for weight, answer in demonstrations:
        doubt *= 1 - weight * dice(_marks(answer), wanted)
    return SURPRISE - EVIDENCE * (1 - doubt) + PRIOR * _hash(continuation) / 2**32


def _marks(text: str) -> list[str]:
    """Words and punctuation marks, without spaces."""
    return [token for token in TOKEN.findall(text.casefold()) if not token.isspace()]
