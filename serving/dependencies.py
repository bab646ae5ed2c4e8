"""What routes are handed: the parts of the service, the caller, and a pool that the caller may touch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from serving.access import Access, Caller
from serving.background import Background
from serving.batching import EncodingWorker
from serving.catalog import Catalog, Pool
from serving.schemas import is_text
from serving.settings import Settings
from serving.sql.audit import AuditLog
from serving.sql.database import Database
from serving.sql.feedback import FeedbackStore
from serving.sql.jobs import Jobs
from serving.sql.keys import Answers, Keys, Role
from serving.tokenizers import Tokenizers
from serving.upstream import Upstream
from udr.errors import NotFoundError

__all__ = ["AnyPool", "By", "Parts", "Service", "needs", "too_many", "visible"]


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the service is made of."""

    settings: Settings
    database: Database
    catalog: Catalog
    worker: EncodingWorker
    tokenizers: Tokenizers
    access: Access
    keys: Keys
    answers: Answers
    audit: AuditLog
    jobs: Jobs
    feedback: FeedbackStore
    background: Background
    upstream: Upstream | None


async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


Service = Annotated[Parts, Depends(_parts)]
By = Annotated[Caller, Depends(_caller)]


def needs(role: Role) -> Callable[[Caller], Awaitable[None]]:
    """Lets callers of that role in, and those who may more."""

    async def check(caller: By) -> None:
        if not caller.may(role):
            raise HTTPException(403, f"key {caller.name!r} is for {caller.role} alone; this needs {role}")

    return check


def visible(caller: Caller, name: str) -> str:
    """The name of a pool that the caller may touch; others are not there, so that nobody learns of them.

    Raises:
        NotFoundError: it may not, or no pool can have that name.
    """
    if not is_text(name) or not caller.sees(name):
        raise NotFoundError(f"no pool {name!r}; GET /v1/pools lists them")
    return name


async def _pool(name: str, parts: Service, caller: By) -> Pool:
    return await run_sync(lambda: parts.catalog.pool(visible(caller, name), fresh=True))


AnyPool = Annotated[Pool, Depends(_pool)]


def too_many(what: str, n: int, limit: int) -> None:
    """Refuse a request of more than `limit` items."""
    if n > limit:
        raise HTTPException(413, f"{n} {what} in one request; the limit is {limit}")
