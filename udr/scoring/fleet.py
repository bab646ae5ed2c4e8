"""Many requests in flight to one or several LLM servers: least loaded first, retries, and a circuit breaker each.

A server that answers 429 or not in time is asked for less at once, and slowly for more again. One that fails several
times in a row is left alone for a while, then tried with a single request. A request goes to another server when one
fails; it is given up when every server has only failed for `patience` seconds, or when it failed too often itself.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from udr.errors import ScorerUnavailable, UDRError
from udr.scoring.endpoint import Endpoint, Failure

__all__ = ["Fleet"]

J = TypeVar("J")
R = TypeVar("R")

TRIES = 8  # of one request whose answers cannot be read
FAILURES = 3  # in a row, until a server is left alone
REST = (1.0, 30.0)  # seconds that it is left alone at first and at most
BACK_OFF = (0.1, 10.0)  # seconds between tries of one request at first and at most
SLOW_START = 4  # requests in flight to a server that has not answered yet


class _Line:
    """The way to one server: how much is under way there, and whether it is to be trusted."""

    def __init__(self, endpoint: Endpoint, most: int) -> None:
        self.endpoint = endpoint
        self.most = most
        self.limit = float(min(SLOW_START, most))
        self.load = 0
        self.failures = 0  # in a row
        self.rest = REST[0]
        self.closed_until = 0.0
        self.trouble: Failure | None = None  # the latest since it last was well
        self.since = 0.0  # when trouble began
        self.lost = False  # it failed again after trouble had lasted for the patience

    def open(self, now: float) -> bool:
        if self.failures >= FAILURES:  # after its rest one request tries it
            return now >= self.closed_until and self.load == 0
        return now >= self.closed_until and self.load < int(self.limit)

    def trust(self) -> None:
        self.trouble, self.lost = None, False

    def succeeded(self) -> None:
        self.trust()
        self.failures, self.rest = 0, REST[0]
        self.limit = min(self.most, self.limit + 1 / self.limit)

    def failed(self, failure: Failure, now: float, patience: float) -> None:
        """Count a failure; how long the last good answer took, or nobody asked, is no reason to give a server up."""
        if self.trouble is None or failure.kind == "garbled":
            self.since = now
        self.trouble = failure
        if failure.kind == "garbled":  # it is there; others are asked first
            self.failures = min(self.failures + 1, FAILURES - 1)
            return
        self.lost = now - self.since > patience
        self.limit = max(1.0, self.limit / 2)
        if failure.kind == "busy":
            if failure.wait:
                self.closed_until = max(self.closed_until, now + failure.wait)
                self.since = max(self.since, self.closed_until)  # a time that it named is not waited for in vain
            return
        self.failures += 1
        if self.failures >= FAILURES:
            self.closed_until = now + min(self.rest, max(REST[0], self.since + patience - now))
            self.rest = min(REST[1], 2 * self.rest)


class Fleet(Generic[J, R]):
    """Runs jobs on servers; `in_flight` bounds what one server is asked at once."""

    def __init__(self, endpoints: Sequence[Endpoint], *, in_flight: int = 16, patience: float = 120.0) -> None:
        self.endpoints = list(endpoints)
        self.patience = patience
        self._lines = [_Line(e, in_flight) for e in endpoints]
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(in_flight * len(self._lines), thread_name_prefix="llm-server")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for endpoint in self.endpoints:
            endpoint.close()

    def run(self, jobs: Sequence[J], call: Callable[[Endpoint, J], R]) -> tuple[list[R | None], UDRError | None]:
        """Do every job; results in order, and why the work was stopped, if it was.

        After an error no further job is begun; those under way are waited for, so that nothing paid is thrown away.
        """
        for line in self._lines:
            line.trust()  # what was wrong in an earlier call does not count
        stop = threading.Event()
        futures = [self._pool.submit(self._do, job, call, stop) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # of no effect where all is done
            with self._changed:
                self._changed.notify_all()
        wait(futures)
        results: list[R | None] = []
        error: UDRError | None = None
        for future in futures:
            problem = future.exception()
            if problem is not None and not isinstance(problem, UDRError):
                raise problem
            error = error or problem
            results.append(None if problem else future.result())
        return results, error

    def _do(self, job: J, call: Callable[[Endpoint, J], R], stop: threading.Event) -> R | None:
        tries = garbled = 0
        while not stop.is_set():
            line = self._take(stop)
            if line is None:
                return None
            try:
                result = call(line.endpoint, job)
            except Failure as failure:
                self._give_back(line, failure)
                tries += 1
                garbled += failure.kind == "garbled"
                if garbled >= TRIES:
                    raise ScorerUnavailable(f"{failure}; tried {garbled} times") from None
                if failure.wait is None:  # else nobody asks that server before its time is over
                    stop.wait(random.uniform(0.5, 1.5) * min(BACK_OFF[1], BACK_OFF[0] * 2 ** min(tries - 1, 10)))
            except BaseException:  # a refusal is an answer: the server is well, and its place must not stay taken
                self._give_back(line, None)
                raise
            else:
                self._give_back(line, None)
                return result
        return None

    def _take(self, stop: threading.Event) -> _Line | None:
        """The least loaded server that takes requests, waited for.

        Raises:
            ScorerUnavailable: all have only failed for `patience` seconds.
        """
        with self._changed:
            while not stop.is_set():
                if all(line.lost for line in self._lines):
                    troubles = "; ".join(str(line.trouble) for line in self._lines)
                    raise ScorerUnavailable(
                        f"{troubles}; nothing else for {self.patience:g} s: what was scored is kept, look after the "
                        "servers and run again"
                    )
                now = time.monotonic()
                ready = [line for line in self._lines if line.open(now)]
                if ready:
                    line = min(ready, key=lambda one: (one.failures, one.load / one.limit))
                    line.load += 1
                    return line
                self._changed.wait(0.05)
        return None

    def _give_back(self, line: _Line, failure: Failure | None) -> None:
        with self._changed:
            line.load -= 1
            if failure is None:
                line.succeeded()
            else:
                line.failed(failure, time.monotonic(), self.patience)
            self._changed.notify_all()
