"""Who encodes when: a request itself while nobody waits, else threads for all, which go before bulk work.

Queries that wait together share a forward pass. A request that finds a pass free makes it in its own thread, for to
hand the queries over and the vectors back would take a large part of the time that one short text does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import structlog

from serving.retrievers import PoolEncoder
from udr.errors import Overloaded, UDRError, is_out_of_memory
from udr.types import Demonstration, FloatArray, Query

__all__ = ["EncodingWorker"]

_CHARACTERS = 4096  # of queries in one pass: some 1,000 tokens; a CPU gains nothing by more, and the first would wait
_OF_MEDIA = 512  # characters that a picture, clip or sound counts for
_REFUSED = 0.05  # seconds for which a refusal holds for whoever comes
_FULL = 0.9  # of the queries that may wait
_BULK = 32  # demonstrations in one pass, so that a query never waits long behind them
_FAILURES = 5  # passes that fail one after another, before the service is not ready
_RESTED = 30.0  # seconds after the last of them; then it is ready to be tried again
_log = structlog.get_logger("udr.serving")


class _Work(NamedTuple):
    """Queries or demonstrations, never both."""

    encoder: PoolEncoder
    future: Future[FloatArray]
    queries: Sequence[Query] = ()
    demonstrations: Sequence[Demonstration] = ()

    @property
    def size(self) -> int:
        return len(self.queries) + len(self.demonstrations)

    @property
    def characters(self) -> int:
        return sum(len(q.input) + _OF_MEDIA * len(q.media) for q in self.queries)


class EncodingWorker:
    """Encodes off the request threads, in micro-batches of one encoder's queries.

    Args:
        max_waiting: queries that may wait; a request whose queries would exceed it is refused at once. A request
            alone is never refused for its size.
        threads: passes at once, those of requests themselves counted in. Bulk work leaves one of them to queries, where
            there are several.
        end: ends the process, for which this asks once memory has run out.
    """

    def __init__(self, max_waiting: int = 1024, threads: int = 1, end: Callable[[], None] = lambda: None) -> None:
        self.max_waiting = max_waiting
        self.exhausted = False  # memory has run out
        self._end = end
        self._failures = 0  # passes that failed since one went well
        self._failed = 0.0  # when the last of them did, on the monotonic clock
        self.waiting = 0  # queries that were taken on and are not encoded yet
        self._refused = -_REFUSED  # when the last request was refused, on the monotonic clock
        self._queries: deque[_Work] = deque()
        self._bulk: deque[_Work] = deque()
        self._passes = 0  # under way
        self._bulk_passes, self._most_bulk_passes = 0, max(1, threads - 1)
        self._change = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"encoding-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    @property
    def state(self) -> str:
        """`ok`, or why nothing can be encoded."""
        if self.exhausted:
            return "out of memory; the process ends"
        if not self.alive:
            return "the encoding thread has ended"
        if self._failures >= _FAILURES and time.monotonic() - self._failed < _RESTED:
            return f"the last {self._failures} encodings failed"
        return "ok"

    def give_up(self) -> None:
        """Memory has run out, here or elsewhere: have the process end, for what goes on may hang or be wrong."""
        with self._change:
            before, self.exhausted = self.exhausted, True
        if not before:
            _log.critical("out of memory; the process ends")
            self._end()

    @property
    def full(self) -> bool:
        """True for a moment after a refusal, while hardly any more may wait: what comes now need not be read.

        One large request that was refused while there was room for small ones keeps nobody out.
        """
        return self.waiting > _FULL * self.max_waiting and time.monotonic() - self._refused < _REFUSED

    def encode_queries(self, encoder: PoolEncoder, queries: Sequence[Query]) -> Future[FloatArray]:
        """Vectors (n, d), soon.

        Raises:
            Overloaded: too many wait.
        """
        work = _Work(encoder, Future(), queries=queries)
        with self._change:
            if self._closed:
                raise Overloaded("the service is shutting down")
            if self.waiting and self.waiting + len(queries) > self.max_waiting:
                self._refused = time.monotonic()
                raise Overloaded(f"{self.waiting} queries wait to be encoded; try again in a second")
            self.waiting += len(queries)
            self._queries.append(work)
            self._change.notify()
        return work.future

    def encode_now(self, encoder: PoolEncoder, queries: Sequence[Query]) -> FloatArray | None:
        """Vectors (n, d), made in this thread; None: others are at it or wait, so these must wait too."""
        with self._change:
            if self._closed or self._queries or not self._free:
                return None
            self._passes += 1
            self.waiting += len(queries)
        try:
            vectors = encoder.encode_queries(queries)
        except Exception as error:
            self._note(error, of_queries=True)
            raise
        else:
            self._failures = 0
            return vectors
        finally:
            with self._change:
                self._passes -= 1
                self.waiting -= len(queries)
                self._change.notify()

    def encode_demonstrations(self, encoder: PoolEncoder, demonstrations: Sequence[Demonstration]) -> FloatArray:
        """Vectors (m, d); waits until no query does.

        Raises:
            Overloaded: the service is shutting down.
        """
        if not demonstrations:
            return np.empty((0, encoder.dim), dtype=np.float32)
        parts: deque[Future[FloatArray]] = deque()
        found = []
        for start in range(0, len(demonstrations), _BULK):
            if len(parts) >= self._most_bulk_passes:  # no more at once, so that others' bulk work has its turn
                found.append(parts.popleft().result())
            work = _Work(encoder, Future(), demonstrations=demonstrations[start : start + _BULK])
            with self._change:
                if self._closed:
                    raise Overloaded("the service is shutting down")
                self._bulk.append(work)
                self._change.notify()
            parts.append(work.future)
        return np.vstack([*found, *(part.result() for part in parts)])

    def close(self) -> None:
        """Finish the passes under way and refuse what waits."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for work in (*self._queries, *self._bulk):
            if work.future.set_running_or_notify_cancel():
                work.future.set_exception(Overloaded("the service is shutting down"))
        self._queries.clear()
        self._bulk.clear()

    def _run(self) -> None:
        while taken := self._next():
            # a request that was given up must not be answered: setting its result would end this thread
            if works := [work for work in taken if work.future.set_running_or_notify_cancel()]:
                self._answer(works)
            with self._change:
                self._passes -= 1
                self.waiting -= sum(len(work.queries) for work in taken)
                if taken[0].demonstrations:
                    self._bulk_passes -= 1
                    self._change.notify()  # whom it kept from bulk work

    def _next(self) -> list[_Work]:
        """Wait for work; queries of one encoder that wait together, or else one piece of bulk work; none at the end."""
        with self._change:
            self._change.wait_for(lambda: (self._free and (self._queries or self._may_do_bulk)) or self._closed)
            if self._closed:
                return []
            self._passes += 1
            if not self._queries:
                self._bulk_passes += 1
                return [self._bulk.popleft()]
            works = [self._queries.popleft()]
            size = works[0].characters
            while self._queries and self._queries[0].encoder.fingerprint == works[0].encoder.fingerprint:
                size += self._queries[0].characters
                if size > _CHARACTERS:
                    break
                works.append(self._queries.popleft())
            return works

    def _answer(self, works: Sequence[_Work]) -> None:
        try:
            vectors = _encode(works)
        except BaseException as error:  # the worker goes on
            if len(works) > 1 and not is_out_of_memory(error):
                for work in works:  # what cannot be read is the fault of the request that brought it, and no other's
                    self._answer([work])
            else:
                self._note(error, of_queries=not works[0].demonstrations)
                for work in works:
                    work.future.set_exception(error)
            return
        self._failures = 0
        start = 0
        for work in works:
            work.future.set_result(vectors[start : start + work.size])
            start += work.size

    def _note(self, error: BaseException, of_queries: bool) -> None:
        """Note that a pass failed.

        What was refused for what it holds says nothing of the encoder; neither do the demonstrations of a load, where
        those that fail are found by encoding ever fewer of them.
        """
        if is_out_of_memory(error):
            self.give_up()
        elif of_queries and not isinstance(error, UDRError):
            with self._change:
                self._failures, self._failed = self._failures + 1, time.monotonic()

    @property
    def _free(self) -> bool:
        return self._passes < len(self._threads)

    @property
    def _may_do_bulk(self) -> bool:
        return bool(self._bulk) and self._bulk_passes < self._most_bulk_passes


def _encode(works: Sequence[_Work]) -> FloatArray:
    encoder = works[0].encoder
    if works[0].demonstrations:
        return encoder.encode_demonstrations(works[0].demonstrations)
    return encoder.encode_queries([q for work in works for q in work.queries])
