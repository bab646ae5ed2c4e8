"""Every error this project raises on purpose.

::

    UDRError                     anything below; the command line prints it as one line and exits 2
    ├── ConfigError              a setting is missing, misspelt or out of range (file, key, allowed values)
    ├── UnknownNameError         a name that no registry holds (lists the near ones)
    ├── DataError                a row or file of data that cannot be used (file:line)
    ├── MissingDependencyError   an optional package is absent (names the extra to install)
    ├── ArtifactError            a saved artifact is absent, incomplete or damaged
    ├── FingerprintMismatch      vectors or scores made by another model than the one in hand
    ├── IndexNotReady            a search before anything was indexed
    ├── PromptTooLong            text that cannot fit the token budget or the LM's context
    ├── ScorerUnavailable        the language model cannot be loaded or reached
    │   └── PartlyScored         it was lost on the way; holds the scores that it had given
    ├── NotFoundError            a pool, demonstration or job that the store does not hold
    ├── ConflictError            a name that is taken, or a state that does not allow what is asked
    ├── PreconditionFailed       what was to be changed has changed since it was read
    ├── QuotaExceeded            more than this service keeps
    ├── Overloaded               more work waits than can be done soon; try again later
    ├── StoreUnavailable         the database cannot be reached or written
    ├── ServiceError             the service that a client asks refuses, or cannot be reached
    ├── TrainingStopped          training has diverged or collapsed; says what to change
    └── UpstreamUnavailable      the LLM server behind the service cannot be reached
        └── UpstreamTimeout      it does not answer in time

    UDRWarning                   the work goes on, and its result may not be what was hoped for
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "ArtifactError",
    "ConfigError",
    "ConflictError",
    "DataError",
    "FingerprintMismatch",
    "IndexNotReady",
    "MissingDependencyError",
    "NotFoundError",
    "Overloaded",
    "PartlyScored",
    "PreconditionFailed",
    "PromptTooLong",
    "QuotaExceeded",
    "ScorerUnavailable",
    "ServiceError",
    "StoreUnavailable",
    "TrainingStopped",
    "UDRError",
    "UDRWarning",
    "UnknownNameError",
    "UpstreamTimeout",
    "UpstreamUnavailable",
    "is_out_of_memory",
]

_NO_MEMORY = ("can't allocate memory", "bad_alloc", "Failed to allocate memory")


class UDRError(Exception):
    """Root of the tree; its text is one line that says what, where and what to do."""


class ConfigError(UDRError):
    """A setting is missing, misspelt or out of range."""


class UnknownNameError(UDRError):
    """A name that the registry does not hold."""

    name: str = ""  # what is known of one that a service tells is its line
    near: Sequence[str] = ()

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.name = name
        self.near = near


class DataError(UDRError):
    """A row or file of data that cannot be used."""


class MissingDependencyError(UDRError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'udr[{extra}]'")


class ArtifactError(UDRError):
    """A saved artifact is absent, incomplete or damaged."""


class FingerprintMismatch(UDRError):
    """Vectors or scores made by another model than the one in hand."""


class IndexNotReady(UDRError):
    """A search before anything was indexed."""


class PromptTooLong(UDRError):
    """Text that cannot fit the token budget or the LM's context; `request`: which of the call's, where one is meant."""

    def __init__(self, message: str, request: int | None = None) -> None:
        super().__init__(message)
        self.request = request


class ScorerUnavailable(UDRError):
    """The language model cannot be loaded or reached."""


class PartlyScored(ScorerUnavailable):
    """The language model was lost on the way: `found` are the log-likelihoods of those `requests` that it answered."""

    def __init__(self, message: str, requests: Sequence[int], found: Any) -> None:
        super().__init__(message)
        self.requests = requests
        self.found = found


class NotFoundError(UDRError):
    """A pool, demonstration or job that the store does not hold."""


class ConflictError(UDRError):
    """A name that is taken, or a state that does not allow what is asked; `retry_after`: seconds until it may."""

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PreconditionFailed(UDRError):
    """What was to be changed has changed since it was read."""


class QuotaExceeded(UDRError):
    """More than this service keeps."""


class Overloaded(UDRError):
    """More work waits than can be done soon."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class StoreUnavailable(UDRError):
    """The database cannot be reached or written."""


class ServiceError(UDRError):
    """The service that a client asks refuses with this status, or cannot be reached (None)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class TrainingStopped(UDRError):
    """Training has diverged or collapsed, and going on would waste time."""


class UpstreamUnavailable(UDRError):
    """The LLM server behind the service cannot be reached."""


class UpstreamTimeout(UpstreamUnavailable):
    """The LLM server behind the service does not answer in time."""


class UDRWarning(UserWarning):
    """The work goes on, and its result may not be what was hoped for; one line, as of an error."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for what Python, a GPU, torch on a CPU or ONNX Runtime raises; by name, as none may be loaded."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    raised = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return raised and any(words in str(error) for words in _NO_MEMORY)
