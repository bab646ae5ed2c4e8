"""Work that outlives a request: what was asked for, how far it is, and which process is at it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from serving.sql.audit import acting, record
from serving.sql.database import Database
from serving.sql.tables import job, job_part, pool
from udr.errors import ConflictError, NotFoundError, UDRError

__all__ = ["COUNTS", "JobLost", "JobRow", "Jobs", "LineError", "Step", "advance"]

COUNTS = ("created", "replaced", "unchanged", "refused", "encoded", "cut")
"""What a job counts of demonstrations; `cut`: the encoder did not read them to their end."""
_KEPT = 1000  # errors of lines, and notes, that a job keeps; all lines are counted
_SILENT = 10.0  # seconds after which a process that is not heard of is taken for dead
_STALE = 3600.0  # seconds after which an upload that did not go on is forgotten
_DEATHS = 3  # processes that may end at one piece of a job before it is given up: it may be what ends them
OPEN = ("queued", "running")

Kind = Literal["load", "switch"]


class JobLost(UDRError):
    """The job was cancelled, or another owner has taken it over."""


class LineError(NamedTuple):
    """Why one line of a load was not stored."""

    line: int  # from 1
    detail: str


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as its row states it."""

    id: str
    pool_id: int
    kind: Kind
    state: str
    spec: Mapping[str, Any]
    key: str | None
    fingerprint: str | None
    position: int
    line: int
    done: int
    total: int
    counts: Mapping[str, int]
    errors: Sequence[tuple[int | None, str]]
    error: str | None
    owner: str | None
    beat: float
    created: float
    finished: float | None
    deaths: int
    caller: str | None


class Step(NamedTuple):
    """How far a job has come with what is being written."""

    job: str
    owner: str
    position: int
    line: int
    done: int
    refused: Sequence[LineError] = ()
    notes: Sequence[str] = ()  # what is to be told that belongs to no line; what was told before is not told again
    total: int | None = None  # what `done` will come to, where that was not known before
    lines: Mapping[str, int] = MappingProxyType({})  # of each demonstration that is written, by its id


def advance(c: sa.Connection, step: Step, **counts: int) -> None:
    """Note a step in the transaction of what it wrote, so that neither is there without the other.

    Raises:
        JobLost: the job is not this owner's any more; the transaction must not be committed.
    """
    own = (job.c.id == step.job) & (job.c.owner == step.owner) & (job.c.state == "running")
    row = c.execute(sa.select(job.c.counts, job.c.errors).where(own).with_for_update()).one_or_none()
    if row is None:
        raise JobLost(f"job {step.job}: cancelled, or taken over by another owner")
    total = {name: row.counts.get(name, 0) + counts.get(name, 0) for name in COUNTS}
    total["refused"] += len(step.refused)
    notes = [note for note in ([None, text] for text in step.notes) if note not in row.errors]
    values = {
        "position": step.position,
        "line": step.line,
        "done": step.done,
        "counts": total,
        "errors": [*row.errors, *(list(e) for e in step.refused), *notes][:_KEPT],
        "beat": time.time(),
        "deaths": 0,  # it goes on, so it is not what ended the processes before
        **({} if step.total is None else {"total": step.total}),
    }
    c.execute(sa.update(job).where(own).values(values))


def _record(c: sa.Connection, what: Literal["load", "switch", "cancel"], row: JobRow) -> None:
    """Tell the log who asked for a job or cancelled it."""
    name = c.execute(sa.select(pool.c.name).where(pool.c.id == row.pool_id)).scalar_one_or_none()
    record(c, f"job.{what}", name, job=row.id, **({} if what == "cancel" else row.spec))


def _receive(c: sa.Connection, job_id: str) -> JobRow:
    """Tell that a job's payload still comes in, and keep its row until the transaction ends.

    Raises:
        ConflictError: it is not waited for any more.
    """
    waiting = sa.update(job).where(job.c.id == job_id, job.c.state == "receiving").values(beat=time.time())
    row = c.execute(waiting.returning(*job.c)).one_or_none()
    if row is None:
        raise ConflictError(f"job {job_id}: cancelled, or its pool deleted, before all was sent")
    return JobRow(*row)


class Jobs:
    """Jobs of all processes over one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        pool_id: int,
        kind: Kind,
        spec: Mapping[str, Any],
        *,
        state: Literal["receiving", "queued"] = "queued",
        total: int = 0,
        alone: bool = False,
    ) -> JobRow:
        """Make a job.

        Args:
            pool_id: whose it is.
            kind: what is to be done.
            spec: how.
            state: `receiving` until its payload is here.
            total: what `done` will come to.
            alone: refuse it while another of its kind works on the pool.

        Raises:
            ConflictError: `alone`, and there is one.
        """
        now = time.time()
        values = {
            "id": uuid.uuid4().hex,
            "pool_id": pool_id,
            "kind": kind,
            "state": state,
            "spec": dict(spec),
            "position": 0,
            "line": 0,
            "done": 0,
            "total": total,
            "counts": {},
            "errors": [],
            "beat": now,
            "created": now,
            "deaths": 0,
            "caller": acting.get(),
        }
        with self._database.write() as c:
            if alone:
                same = (job.c.pool_id == pool_id) & (job.c.kind == kind) & job.c.state.in_(OPEN)
                if (other := c.execute(sa.select(job.c.id).where(same)).scalars().first()) is not None:
                    raise ConflictError(f"job {other} is at this already; wait for it or cancel it")
            row = JobRow(*c.execute(sa.insert(job).values(values).returning(*job.c)).one())
            if state == "queued":
                _record(c, kind, row)
        return row

    def add_part(self, job_id: str, number: int, data: bytes) -> None:
        """Store a piece of the payload.

        Raises:
            ConflictError: the job was cancelled meanwhile.
        """
        with self._database.write() as c:
            _receive(c, job_id)
            c.execute(sa.insert(job_part).values(job_id=job_id, number=number, data=data))

    def received(self, job_id: str, total: int, key: str | None, fingerprint: str) -> JobRow:
        """Let the job begin, for its payload is whole; where the key was used before, give that job instead.

        Raises:
            ConflictError: the key was used for another payload, or the job was cancelled meanwhile.
        """
        with self._database.write() as c:
            row = _receive(c, job_id)
            if key is not None:
                used = (job.c.pool_id == row.pool_id) & (job.c.key == key)
                before = c.execute(sa.select(job).where(used)).one_or_none()
                if before is not None:
                    c.execute(sa.delete(job).where(job.c.id == job_id))
                    if before.fingerprint != fingerprint:
                        c.commit()
                        raise ConflictError("Idempotency-Key: used before for another body")
                    return JobRow(*before)
            values = {"state": "queued", "total": total, "key": key, "fingerprint": fingerprint}
            begun = sa.update(job).where(job.c.id == job_id).values(values).returning(*job.c)
            row = JobRow(*c.execute(begun).one())
            _record(c, row.kind, row)
        return row

    def parts(self, job_id: str) -> Iterator[bytes]:
        """The payload, piece by piece."""
        number = 0
        while True:
            with self._database.read(fresh=True) as c:
                own = (job_part.c.job_id == job_id) & (job_part.c.number == number)
                data = c.execute(sa.select(job_part.c.data).where(own)).scalar_one_or_none()
            if data is None:
                return
            yield data
            number += 1

    def get(self, job_id: str) -> JobRow:
        """Look a job up.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._database.read(fresh=True) as c:
            row = c.execute(sa.select(job).where(job.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFoundError(f"no job {job_id!r}")
        return JobRow(*row)

    def of_pool(self, pool_id: int, kind: Kind | None = None, limit: int = 100) -> list[JobRow]:
        """Jobs of a pool, the newest first."""
        query = sa.select(job).where(job.c.pool_id == pool_id).order_by(job.c.created.desc()).limit(limit)
        with self._database.read(fresh=True) as c:
            return [JobRow(*row) for row in c.execute(query if kind is None else query.where(job.c.kind == kind))]

    def claim(self, owner: str) -> JobRow | None:
        """Take the oldest job that waits, or whose owner is not heard of any more.

        One at which several processes in a row ended is given up instead, or it would end them all.
        """
        now = time.time()
        lost = (job.c.state == "running") & (job.c.beat < now - _SILENT)
        free = (job.c.state == "queued") | lost
        with self._database.read(fresh=True) as c:  # most often there is none, and no lock is needed to see that
            if c.execute(sa.select(job.c.id).where(free).limit(1)).first() is None:
                return None
        first = sa.select(job.c.id, job.c.state, job.c.deaths).where(free).order_by(job.c.created).limit(1)
        with self._database.write() as c:
            found = c.execute(first.with_for_update(skip_locked=True)).one_or_none()
            if found is None:
                return None
            deaths = found.deaths + (found.state == "running")
            if deaths >= _DEATHS:
                error = f"{deaths} processes in a row ended at it; the service's log may say why"
                ended = {"state": "failed", "error": error, "deaths": deaths, "finished": now}
                c.execute(sa.update(job).where(job.c.id == found.id).values(ended))
                c.execute(sa.delete(job_part).where(job_part.c.job_id == found.id))
                return None
            values = {"state": "running", "owner": owner, "beat": now, "deaths": deaths}
            taken = sa.update(job).where(job.c.id == found.id).values(values)
            return JobRow(*c.execute(taken.returning(*job.c)).one())

    def beat(self, at_work: Mapping[str, str]) -> None:
        """Tell that owners are alive, each at its job."""
        if not at_work:
            return
        with self._database.write() as c:
            for owner, job_id in at_work.items():
                own = (job.c.id == job_id) & (job.c.owner == owner) & (job.c.state == "running")
                c.execute(sa.update(job).where(own).values(beat=time.time()))

    def advance(self, step: Step, **counts: int) -> None:
        """Note a step that writes nothing else."""
        with self._database.write() as c:
            advance(c, step, **counts)

    def finish(self, job_id: str, owner: str, state: Literal["done", "failed"], error: str | None = None) -> None:
        """End a job that is this owner's still; its payload is forgotten."""
        own = (job.c.id == job_id) & (job.c.owner == owner) & (job.c.state == "running")
        values: dict[str, Any] = {"state": state, "error": error, "finished": time.time()}
        if state == "done":
            values["done"] = job.c.total
        with self._database.write() as c:
            if c.execute(sa.update(job).where(own).values(values)).rowcount:
                c.execute(sa.delete(job_part).where(job_part.c.job_id == job_id))

    def release(self, owner: str) -> None:
        """Let others go on with what this one leaves undone."""
        own = (job.c.owner == owner) & (job.c.state == "running")
        with self._database.write() as c:
            c.execute(sa.update(job).where(own).values(state="queued", owner=None))

    def cancel(self, job_id: str) -> JobRow:
        """Stop a job; what it has stored stays.

        Raises:
            NotFoundError: there is none of that id.
            ConflictError: it has ended.
        """
        row = self.get(job_id)
        own = (job.c.id == job_id) & job.c.state.in_(("receiving", *OPEN))
        with self._database.write() as c:
            if not c.execute(sa.update(job).where(own).values(state="cancelled", finished=time.time())).rowcount:
                raise ConflictError(f"job {job_id}: it has ended ({row.state})")
            c.execute(sa.delete(job_part).where(job_part.c.job_id == job_id))
            _record(c, "cancel", row)
        return self.get(job_id)

    def forget(self, before: float) -> None:
        """Forget jobs that ended before that, and uploads that were given up."""
        ended = job.c.finished < before
        given_up = (job.c.state == "receiving") & (job.c.beat < time.time() - _STALE)
        with self._database.write() as c:
            c.execute(sa.delete(job).where(ended | given_up))
