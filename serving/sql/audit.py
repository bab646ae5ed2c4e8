"""Who changed what: a line in the transaction of each change."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, NamedTuple

import sqlalchemy as sa

from serving.sql.database import Database
from serving.sql.tables import audit

__all__ = ["AuditLog", "AuditRow", "acting", "record"]

acting: ContextVar[str] = ContextVar("acting", default="the service")
"""The caller for whom this context works."""


class AuditRow(NamedTuple):
    """One change; `at` in seconds since 1970."""

    id: int
    at: float
    caller: str
    action: str
    pool: str | None
    details: dict[str, Any]


def record(c: sa.Connection, action: str, pool: str | None, **details: Any) -> None:
    """Add a line to the log within a transaction."""
    values = {"at": time.time(), "caller": acting.get(), "action": action, "pool": pool, "details": details}
    c.execute(sa.insert(audit).values(values))


class AuditLog:
    """The log as it is read and shortened."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, before: int = 0, limit: int = 100, pool: str = "") -> list[AuditRow]:
        """Changes from the newest, or from the one before the id `before`."""
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if before:
            query = query.where(audit.c.id < before)
        if pool:
            query = query.where(audit.c.pool == pool)
        with self._database.read(fresh=True) as c:
            return [AuditRow(*row) for row in c.execute(query)]

    def shorten(self, before: float) -> None:
        """Forget what is older than that."""
        with self._database.write() as c:
            c.execute(sa.delete(audit).where(audit.c.at < before))
