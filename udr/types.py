"""The nouns of the field and the Protocols that parts are exchanged by; imports nothing of ours and no torch."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LARGEST",
    "LONGEST_ADDRESS",
    "Candidate",
    "CandidateList",
    "Demonstration",
    "Dropped",
    "Encoder",
    "FloatArray",
    "Generator",
    "Hits",
    "Index",
    "IntArray",
    "LMScorer",
    "LogLikelihoods",
    "Media",
    "Progress",
    "Prompt",
    "Query",
    "Tokenizer",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Progress = Callable[[int, int], None]  # (done, total): where the work begins, then after each unit


SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"\x1aE\xdf\xa3": "video/webm",
    b"OggS": "audio/ogg",
    b"fLaC": "audio/flac",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
}


def _digest(*parts: str) -> str:
    """Hash a sequence of strings so that no two different sequences collide by joining."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()


LARGEST = 2**53  # whole numbers up to this one are the same in every program that reads JSON

# characters of a data-URI that a pool takes: of a clip some 6 MB, of the others some 1.1 MB
LONGEST_ADDRESS = {"image": 1_500_000, "video": 8_000_000, "audio": 1_500_000}


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, clip or sound that belongs to an input: by address or by its own bytes."""

    kind: Literal["image", "video", "audio"]
    uri: str = ""
    data: bytes = b""

    @property
    def content_hash(self) -> str:
        return hashlib.blake2b(self.data or self.uri.encode(), digest_size=16).hexdigest()

    @property
    def address(self) -> str:
        """The address, or the bytes as a data-URI (RFC 2397) of the type that they begin like."""
        if not self.data:
            return self.uri
        kind = next((t for begin, t in SIGNATURES.items() if self.data.startswith(begin)), "")
        if self.data.startswith(b"RIFF"):
            kind = {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}.get(self.data[8:12], "")
        if not kind.startswith(self.kind):  # Ogg holds videos too
            kind = {"video": "video/mp4", "audio": "audio/mpeg"}.get(self.kind, "application/octet-stream")
        return f"data:{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Query:
    """An input that wants an answer; `choices` are its own options (multiple choice only)."""

    id: str
    input: str
    choices: tuple[str, ...] = ()
    media: tuple[Media, ...] = ()

    @property
    def content_hash(self) -> str:
        """Identity of the input alone: equal inputs are the same query whatever their ids and options."""
        return _digest(self.input, *(m.content_hash for m in self.media))


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A solved example: an input, its output, and what else is known of it."""

    id: str
    input: str
    output: str
    choices: tuple[str, ...] = ()
    references: tuple[str, ...] = ()  # other right answers, for the metrics
    media: tuple[Media, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def query(self) -> Query:
        """The same input with the answer taken away."""
        return Query(self.id, self.input, self.choices, self.media)

    @property
    def content_hash(self) -> str:
        """Identity of the text: equal input, options and output are the same demonstration."""
        return _digest(self.query.content_hash, *self.choices, "", self.output)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A demonstration proposed for one query; scores are absent until they are known."""

    demonstration_id: str
    retrieval_score: float = 0.0
    lm_score: float | None = None  # p(y | z, x), or normalised over the options
    rank: int | None = None  # 1 = best


@dataclass(frozen=True, slots=True)
class CandidateList:
    """All candidates of one query in one mining round."""

    task: str
    query_id: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A demonstration that did not enter the prompt, and the reason in words."""

    demonstration_id: str
    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A finished prompt: `text` is what the LM reads, `tokens` its exact length by the LM's tokenizer."""

    text: str
    demonstrations: tuple[Demonstration, ...]  # in the order they stand, the best one last by default
    dropped: tuple[Dropped, ...]
    tokens: int
    budget: int

    @property
    def truncated(self) -> bool:
        """True when a demonstration was left out for want of room."""
        return bool(self.dropped)


class Hits(NamedTuple):
    """Search results: positions −1 mark places with no result."""

    rows: IntArray  # (n, k) ids given to Index.add
    scores: FloatArray  # (n, k) inner products, descending


class LogLikelihoods(NamedTuple):
    """What the LM thinks of each continuation."""

    nats: FloatArray  # (n,) sum of token log-probabilities
    tokens: IntArray  # (n,) how many tokens were summed


@runtime_checkable
class Encoder(Protocol):
    """Turns queries and demonstrations into vectors of one space."""

    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray: ...  # (n, d)
    def encode_demonstrations(
        self, demonstrations: Sequence[Demonstration], instruction: str = ""
    ) -> FloatArray: ...  # (m, d)
    def tokens_cut(
        self, texts: Sequence[Query | Demonstration], instruction: str = ""
    ) -> list[int]: ...  # (n,) of each text, left out because it is too long
    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]: ...  # (n,) 0: no text is read


@runtime_checkable
class Tokenizer(Protocol):
    """Counts as the LM counts."""

    def encode(self, text: str) -> Sequence[int]: ...


@runtime_checkable
class LMScorer(Protocol):
    """Log-probability of continuations given contexts."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def prompts_per_call(self) -> int: ...  # so many are worth handing over at once; more only delay the next report
    @property
    def tokens_computed(self) -> int: ...  # so far; text that requests share is counted as often as it is read
    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int: ...  # that it would compute
    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]: ...  # that tell them apart, in tokens
    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods: ...


@runtime_checkable
class Generator(Protocol):
    """Answers prompts by greedy decoding, up to the first newline."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]: ...


@runtime_checkable
class Index(Protocol):
    """Nearest neighbours by inner product over int64 ids."""

    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def add(self, ids: IntArray, vectors: FloatArray, fingerprint: str) -> None: ...
    def remove(self, ids: IntArray) -> int: ...
    def search(self, vectors: FloatArray, k: int, fingerprint: str) -> Hits: ...
    def vectors(self, ids: IntArray) -> FloatArray: ...
    def save(self, path: Path) -> None: ...
