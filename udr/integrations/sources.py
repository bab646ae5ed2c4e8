"""Where other tools get demonstrations from: a pool of the service, or a retriever in this process."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from udr.errors import ConfigError, MissingDependencyError
from udr.retriever import Retriever, load_retriever
from udr.types import Demonstration, Query

__all__ = ["LocalSource", "PoolSource", "Source", "open_source"]


class Source(Protocol):
    """Chooses demonstrations for inputs."""

    @property
    def place(self) -> dict[str, Any]: ...  # what `open_source` opens it again from
    def choose(self, inputs: Sequence[str], k: int) -> list[list[Demonstration]]: ...  # of each input, best first


class PoolSource:
    """A pool of the service.

    Args:
        url: of the service.
        pool: its name.
        key: that the service asks for; not part of `place`, so it is never saved.
        without_copies: leave out demonstrations of the very same input, as `LocalSource` does, so that whoever
            evaluates on rows of the pool is not shown their answers.
        more: what else /v1/retrieve takes (retriever, where, selection, …).
    """

    def __init__(self, url: str, pool: str, *, key: str = "", without_copies: bool = True, **more: Any) -> None:
        try:
            from udr.client import Client
        except ImportError:
            raise MissingDependencyError("httpx2", "client") from None
        self.client = Client(url, key)
        weakref.finalize(self, self.client.close)  # the tools that hold a source close nothing
        more["without_copies"] = without_copies
        self.place = {"url": url, "pool": pool, **more}
        self._pool, self._more = pool, more

    def choose(self, inputs: Sequence[str], k: int) -> list[list[Demonstration]]:
        """The `k` demonstrations of each input, best first."""
        found = self.client.retrieve(self._pool, list(inputs), k, **self._more)
        return [[hit.demonstration for hit in one.hits] for one in found]

    def add(self, demonstration: Demonstration) -> str:
        """Store one more, and give its id."""
        (key,) = self.client.add(self._pool, [demonstration])
        return key


class LocalSource:
    """A retriever in this process: one task of a retriever folder, or any `Retriever`."""

    def __init__(
        self, retriever: Retriever, place: Mapping[str, Any] | None = None, *, selection: str = "top_k"
    ) -> None:
        self.retriever = retriever
        self._place = None if place is None else dict(place)
        self._selection = selection

    @property
    def place(self) -> dict[str, Any]:
        """Raises ConfigError where the retriever came from no folder."""
        if self._place is None:
            raise ConfigError("this retriever came from no folder, so it cannot be saved; open it by open_source")
        return self._place

    def choose(self, inputs: Sequence[str], k: int) -> list[list[Demonstration]]:
        """The `k` demonstrations of each input, best first; those of the very same input are left out."""
        queries = [Query(f"input-{i}", text) for i, text in enumerate(inputs)]
        found = self.retriever.retrieve(queries, k, selection=self._selection)
        return [[one.demonstration for one in own] for own in found]


def open_source(place: Mapping[str, Any], *, key: str = "") -> Source:
    """Open a source from where it is: `{"url": …, "pool": …}` or `{"retriever": FOLDER, "task": …}`.

    Raises:
        ConfigError: neither.
        ArtifactError: the folder holds no such retriever.
    """
    if {"url", "pool"} <= place.keys():
        return PoolSource(key=key, **place)
    if {"retriever", "task"} <= place.keys():
        more = {k: v for k, v in place.items() if k not in ("retriever", "task")}
        return LocalSource(load_retriever(Path(place["retriever"]), place["task"]), place, **more)
    raise ConfigError(f"a source is a url and a pool, or a retriever and a task; got {', '.join(place) or 'nothing'}")
