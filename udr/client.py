"""A typed client of the service: `Client`, and `AsyncClient` with the same methods to be awaited.

::

    with Client("http://127.0.0.1:8000") as client:
        client.create_pool("tickets", {"verbaliser": {"billing": "Billing", "printer": "Printer"}})
        client.add("tickets", [Demonstration("t1", "the invoice is wrong", "billing")])
        (found,) = client.retrieve("tickets", ["charged twice"], k=4)
        (prompt,) = client.prompt("tickets", ["charged twice"], k=4, budget=1024)

Errors that the service names are raised as the errors of this package that they are; others as ServiceError.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx2

from udr import service_api as api
from udr.errors import (
    ArtifactError,
    ConfigError,
    ConflictError,
    DataError,
    FingerprintMismatch,
    IndexNotReady,
    MissingDependencyError,
    NotFoundError,
    Overloaded,
    PreconditionFailed,
    PromptTooLong,
    QuotaExceeded,
    ScorerUnavailable,
    ServiceError,
    StoreUnavailable,
    UDRError,
    UnknownNameError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from udr.service_api import Call, Job

__all__ = ["AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")
_AGAIN = (429, 502, 503, 504)  # statuses after which the same request may go well
_LONGEST_WAIT = 10.0  # seconds between two attempts
_POLL = 0.2  # seconds between two looks at a job
# errors that an answer names, beside Overloaded, which is made of a time too
_NAMED: dict[str, type[UDRError]] = {
    kind.__name__: kind
    for kind in (
        ArtifactError,
        ConfigError,
        ConflictError,
        DataError,
        FingerprintMismatch,
        IndexNotReady,
        MissingDependencyError,
        NotFoundError,
        PreconditionFailed,
        PromptTooLong,
        QuotaExceeded,
        ScorerUnavailable,
        StoreUnavailable,
        UnknownNameError,
        UpstreamTimeout,
        UpstreamUnavailable,
    )
}


def _raised(answer: httpx2.Response) -> UDRError:
    """The error that an answer states."""
    try:
        body = answer.json()
        told = body.get("error", body)  # the OpenAI-compatible routes have a form of their own
        detail, kind = str(told["message" if "error" in body else "detail"]), str(told["type"]).removeprefix("urn:udr:")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServiceError(f"{answer.request.url}: status {answer.status_code}", answer.status_code)
    name = "".join(word.capitalize() for word in kind.split("-"))
    if name == "Overloaded":
        return Overloaded(detail, int(answer.headers.get("retry-after", "1")))
    if name in ("UnknownNameError", "MissingDependencyError"):  # whose line is made of what no answer tells
        return _NAMED[name].__new__(_NAMED[name], detail)
    return _NAMED[name](detail) if name in _NAMED else ServiceError(detail, answer.status_code)


def _finished(call: Call[T], answer: httpx2.Response) -> T:
    if answer.status_code >= 300:
        raise _raised(answer)
    if call.whole:
        return call.read(answer)
    return call.read(answer.json() if answer.content else None)


def _may_go_well(answer: httpx2.Response) -> bool:
    """Whether the same request may go well later; a 409 that says when is one whose first attempt is worked on."""
    return answer.status_code in _AGAIN or (answer.status_code == 409 and "retry-after" in answer.headers)


def _pause(attempt: int, answer: httpx2.Response | None) -> float:
    """Seconds until the next attempt: what the service says, or twice as long each time, with some chance in it."""
    told = answer.headers.get("retry-after", "") if answer is not None else ""
    if told.isdecimal():
        return min(float(told), _LONGEST_WAIT)
    return float(min(0.1 * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1))


def _unreachable(url: str, error: httpx2.HTTPError) -> ServiceError:
    return ServiceError(f"{url}: the service cannot be reached ({error or type(error).__name__})")


def _settings(url: str, key: str, timeout: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url, "headers": headers, "timeout": timeout}


def _sync(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(build(*args, **kwargs))

    return method


def _awaited(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @functools.wraps(build)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(build(*args, **kwargs))

    return method


class Client:
    """The service over one pool of connections; safe to share between threads.

    A request that the service has no room for, or that it could not be reached with, is sent again: writes are done
    once all the same.

    Args:
        url: of the service.
        key: that it asks for.
        timeout: seconds for one attempt.
        retries: attempts after the first.
    """

    def __init__(self, url: str, key: str = "", *, timeout: float = 60.0, retries: int = 3) -> None:
        self._retries = retries
        self._http = httpx2.Client(**_settings(url, key, timeout))

    create_pool = _sync(api.create_pool)
    pools = _sync(api.pools)
    pool = _sync(api.pool)
    delete_pool = _sync(api.delete_pool)
    set_front = _sync(api.set_front)
    tag = _sync(api.tag)
    add = _sync(api.add)
    put = _sync(api.put)
    get = _sync(api.get)
    delete = _sync(api.delete)
    demonstrations = _sync(api.demonstrations)
    load = _sync(api.load)
    export = _sync(api.export)
    retrievers = _sync(api.retrievers)
    switch = _sync(api.switch)
    roll_back = _sync(api.roll_back)
    job = _sync(api.job_of)
    jobs = _sync(api.jobs)
    cancel = _sync(api.cancel)
    retrieve = _sync(api.retrieve)
    prompt = _sync(api.prompt)
    embeddings = _sync(api.embeddings)
    feedback = _sync(api.feedback)
    outcomes = _sync(api.outcomes)
    review = _sync(api.review)
    export_outcomes = _sync(api.export_outcomes)
    create_key = _sync(api.create_key)
    keys = _sync(api.keys)
    delete_key = _sync(api.delete_key)
    changes = _sync(api.changes)

    def wait(self, job: Job) -> Job:
        """Wait until a job has ended.

        Raises:
            ServiceError: it failed, or was cancelled.
        """
        while not job.ended:
            time.sleep(_POLL)
            job = self.job(job.id)
        return _done(job)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        request = call.as_request()
        attempt = 0
        while True:
            answer = None
            try:
                answer = self._http.request(**request)
                if attempt == self._retries or not _may_go_well(answer):
                    return _finished(call, answer)
            except httpx2.HTTPError as error:
                if attempt == self._retries:
                    raise _unreachable(str(self._http.base_url), error) from None
            time.sleep(_pause(attempt, answer))
            attempt += 1


class AsyncClient:
    """As `Client`, with methods to be awaited."""

    def __init__(self, url: str, key: str = "", *, timeout: float = 60.0, retries: int = 3) -> None:
        self._retries = retries
        self._http = httpx2.AsyncClient(**_settings(url, key, timeout))

    create_pool = _awaited(api.create_pool)
    pools = _awaited(api.pools)
    pool = _awaited(api.pool)
    delete_pool = _awaited(api.delete_pool)
    set_front = _awaited(api.set_front)
    tag = _awaited(api.tag)
    add = _awaited(api.add)
    put = _awaited(api.put)
    get = _awaited(api.get)
    delete = _awaited(api.delete)
    demonstrations = _awaited(api.demonstrations)
    load = _awaited(api.load)
    export = _awaited(api.export)
    retrievers = _awaited(api.retrievers)
    switch = _awaited(api.switch)
    roll_back = _awaited(api.roll_back)
    job = _awaited(api.job_of)
    jobs = _awaited(api.jobs)
    cancel = _awaited(api.cancel)
    retrieve = _awaited(api.retrieve)
    prompt = _awaited(api.prompt)
    embeddings = _awaited(api.embeddings)
    feedback = _awaited(api.feedback)
    outcomes = _awaited(api.outcomes)
    review = _awaited(api.review)
    export_outcomes = _awaited(api.export_outcomes)
    create_key = _awaited(api.create_key)
    keys = _awaited(api.keys)
    delete_key = _awaited(api.delete_key)
    changes = _awaited(api.changes)

    async def wait(self, job: Job) -> Job:
        """Wait until a job has ended.

        Raises:
            ServiceError: it failed, or was cancelled.
        """
        while not job.ended:
            await asyncio.sleep(_POLL)
            job = await self.job(job.id)
        return _done(job)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        request = call.as_request()
        attempt = 0
        while True:
            answer = None
            try:
                answer = await self._http.request(**request)
                if attempt == self._retries or not _may_go_well(answer):
                    return _finished(call, answer)
            except httpx2.HTTPError as error:
                if attempt == self._retries:
                    raise _unreachable(str(self._http.base_url), error) from None
            await asyncio.sleep(_pause(attempt, answer))
            attempt += 1


def _done(job: Job) -> Job:
    if job.state != "done":
        raise ServiceError(f"job {job.id}: {job.state}" + (f" ({job.error})" if job.error else ""))
    return job
