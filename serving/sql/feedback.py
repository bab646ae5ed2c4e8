"""What came of prompts, and the corrections that wait for a reviewer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import sqlalchemy as sa

from serving.sql.audit import acting, record
from serving.sql.database import Database
from serving.sql.tables import feedback
from udr.errors import ConflictError, NotFoundError
from udr.outcomes import Outcome, RecordedOutcome, State

__all__ = ["FeedbackRow", "FeedbackStore", "review"]


class FeedbackRow(NamedTuple):
    """An outcome as it is stored, and who told it when (seconds since 1970)."""

    recorded: RecordedOutcome
    at: float
    caller: str


class FeedbackStore:
    """Outcomes of all pools of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, pool_id: int, outcomes: Sequence[Outcome]) -> list[int]:
        """Store outcomes, all or none, and give their numbers."""
        now, caller = time.time(), acting.get()
        values = [
            {
                **o._asdict(),
                "choices": list(o.choices),
                "shown": list(o.shown),
                "pool_id": pool_id,
                "at": now,
                "caller": caller,
                "state": "recorded" if o.corrected is None else "waiting",
            }
            for o in outcomes
        ]
        returning = sa.insert(feedback).returning(feedback.c.id, sort_by_parameter_order=True)
        with self._database.write() as c:
            return list(c.execute(returning, values).scalars())

    def page(self, pool_id: int, after: int = 0, limit: int = 100, state: State | None = None) -> list[FeedbackRow]:
        """Outcomes in the order they came, from the one after `after`; `state`: only those."""
        query = sa.select(feedback).where(feedback.c.pool_id == pool_id, feedback.c.id > after)
        if state is not None:
            query = query.where(feedback.c.state == state)
        with self._database.read(fresh=True) as c:
            return [_row(r) for r in c.execute(query.order_by(feedback.c.id).limit(limit))]

    def get(self, pool_id: int, number: int) -> FeedbackRow:
        """One outcome.

        Raises:
            NotFoundError: the pool has none of that number.
        """
        with self._database.read(fresh=True) as c:
            return _get(c, pool_id, number)

    def reject(self, pool_id: int, name: str, number: int) -> None:
        """Take a correction off the queue, of which nothing comes.

        Raises:
            NotFoundError: the pool has none of that number.
            ConflictError: there is no correction, or it was accepted.
        """
        with self._database.write() as c:
            review(c, pool_id, name, number, "rejected")


def review(
    c: sa.Connection,
    pool_id: int,
    name: str,
    number: int,
    state: Literal["accepted", "rejected"],
    output: str | None = None,
) -> bool:
    """Take a correction off the queue in the transaction of what comes of it; False: it was reviewed alike before.

    `output` replaces the correction, where the reviewer has corrected it in turn.

    Raises:
        NotFoundError: the pool has none of that number.
        ConflictError: there is no correction, or it was reviewed otherwise, or with another output.
    """
    change = {"state": state} if output is None else {"state": state, "corrected": output}
    waiting = _own(pool_id, number) & (feedback.c.state == "waiting")
    if c.execute(sa.update(feedback).where(waiting).values(change)).rowcount:
        record(c, "feedback.review", name, number=number, state=state)
        return True
    found = _get(c, pool_id, number).recorded
    if found.state != state:
        what = "holds no correction" if found.state == "recorded" else f"was {found.state} before"
        raise ConflictError(f"feedback {number} {what}")
    if output not in (None, found.outcome.corrected):
        raise ConflictError(f"feedback {number} was accepted with another output before; change the demonstration")
    return False


def _own(pool_id: int, number: int) -> sa.ColumnElement[bool]:
    return (feedback.c.pool_id == pool_id) & (feedback.c.id == number)


def _get(c: sa.Connection, pool_id: int, number: int) -> FeedbackRow:
    row = c.execute(sa.select(feedback).where(_own(pool_id, number))).one_or_none()
    if row is None:
        raise NotFoundError(f"no feedback {number} on this pool")
    return _row(row)


def _row(r: sa.Row[tuple[object, ...]]) -> FeedbackRow:
    outcome = Outcome(r.input, tuple(r.choices), tuple(r.shown), r.output, r.score, r.corrected)
    return FeedbackRow(RecordedOutcome(r.id, r.state, outcome), r.at, r.caller)
