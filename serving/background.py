"""Jobs at work: loads of many demonstrations, and pools on their way to another retriever.

Any process may take a job up; how far it has come is stored with what it wrote, so another one goes on where a process
ended.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryFile

import structlog

from serving.catalog import Catalog, Pool
from serving.filling import Tell
from serving.loading import batches, rows_of
from serving.sql.audit import AuditLog, acting
from serving.sql.jobs import JobLost, JobRow, Jobs, Step
from serving.sql.keys import Answers
from serving.sql.store import Clash
from udr.errors import StoreUnavailable, UDRError, is_out_of_memory

__all__ = ["Background"]

_AT_ONCE = 2  # jobs of this process; all encode by one thread
_IDLE = 1.0  # seconds between looks at the jobs of all processes
_TENDED = 20.0  # seconds between looks at the indexes
_PATIENCE = 15.0  # seconds for a thread to end: the graph of a million rows takes minutes, and is not waited for
_DAY = 86_400.0
_log = structlog.get_logger("udr.serving")


class Background:
    """Threads that take jobs up, and the housekeeping of the database.

    Args:
        catalog: where the work is done.
        jobs: of the same database.
        answers: kept for a day.
        log: of changes.
        max_text: characters of an input or output.
        max_pool: demonstrations that a pool may hold; 0: any number.
        audit_days: how long changes are remembered.
    """

    def __init__(
        self,
        catalog: Catalog,
        jobs: Jobs,
        answers: Answers,
        log: AuditLog,
        *,
        max_text: int,
        max_pool: int,
        audit_days: float,
    ) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._answers = answers
        self._audit = log
        self._max_text = max_text
        self._max_pool = max_pool
        self._audit_days = audit_days
        self._at_work: dict[str, str] = {}  # the job of each owner
        self._stopping = threading.Event()
        self._news = threading.Condition()
        # a thread each, so that one that was not heard of and is alive loses its job to another of the same process too
        process = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._owners = [f"{process}-{i}" for i in range(_AT_ONCE)]
        self._threads = [
            threading.Thread(target=self._work, args=(owner,), name=f"job-{i}", daemon=True)
            for i, owner in enumerate(self._owners)
        ]
        self._threads.append(threading.Thread(target=self._keep_house, name="housekeeping", daemon=True))
        self._threads.append(threading.Thread(target=self._tend, name="indexes", daemon=True))
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Tell that there is a new job."""
        with self._news:
            self._news.notify()

    def stop(self) -> None:
        """Begin to stop: after the piece of work at hand."""
        self._stopping.set()
        with self._news:
            self._news.notify_all()

    def close(self) -> None:
        """Stop; what is not finished waits for the next process."""
        self.stop()
        for thread in self._threads:
            thread.join(_PATIENCE)
        if self._catalog.worker.exhausted:
            return  # perhaps one of them used memory up: each counts that this process ended at it
        with suppress(StoreUnavailable):  # they are taken over once this process is not heard of
            for owner in self._owners:
                self._jobs.release(owner)

    def _work(self, owner: str) -> None:
        while not self._stopping.is_set():
            try:
                job = self._jobs.claim(owner)
                if job is not None:
                    self._at_work[owner] = job.id
                    try:
                        self._run(job, owner)
                    finally:
                        del self._at_work[owner]
                    continue
            except Exception as error:  # the thread must not end; most often the database is away
                self._warn("jobs", error)
            with self._news:
                self._news.wait(_IDLE)

    def _run(self, job: JobRow, owner: str) -> None:
        acting.set(job.caller or f"job {job.id}")
        try:
            pool = self._catalog.pool_of(job.pool_id)
            step = Step(job.id, owner, job.position, job.line, job.done)
            {"load": self._load, "switch": self._switch}[job.kind](job, pool, step)
        except (JobLost, _Stopped):
            return  # cancelled, taken over, or the process ends
        except StoreUnavailable:
            raise  # it is taken up again once the database answers
        except UDRError as error:
            if self._stopping.is_set():  # the encoding thread gives up what waits
                return
            self._jobs.finish(job.id, owner, "failed", str(error))
        except Exception as error:  # the client is told; the thread has nobody else to tell
            _log.exception("job", job=job.id)
            if is_out_of_memory(error):
                self._catalog.worker.give_up()
                return
            self._jobs.finish(job.id, owner, "failed", f"{type(error).__name__}: {error}")
        else:
            self._jobs.finish(job.id, owner, "done")

    def _load(self, job: JobRow, pool: Pool, step: Step) -> None:
        """Store first, then encode: what is stored is found by its words at once."""
        clash: Clash = "replace" if job.spec["mode"] == "upsert" else "skip"
        with TemporaryFile() as file:
            for part in self._jobs.parts(job.id):
                file.write(part)
                self._go_on()
            step = step._replace(total=rows_of(file, job.spec["format"]))
            for batch in batches(file, job.spec["format"], job.position, job.line, pool.spec, self._max_text):
                step = step._replace(position=batch.position, line=batch.line, done=batch.position)
                told = step._replace(refused=batch.refused, lines=batch.lines)
                tagged = self._catalog.tag(batch.demonstrations)
                self._catalog.store.write(pool.row.id, tagged, {}, clash=clash, limit=self._max_pool, step=told)
                self._go_on()
        self._catalog.complete(self._catalog.pool_of(job.pool_id), self._teller(step, "encoded"))

    def _switch(self, job: JobRow, pool: Pool, step: Step) -> None:
        self._catalog.become(pool, job.spec["retriever"], self._teller(step))

    def _teller(self, step: Step, count: str = "") -> Tell:
        """What notes that so many more are encoded, as a count of the job or as its progress, and which cannot be."""

        def tell(more: int, unread: Sequence[str], cut: int) -> None:
            nonlocal step
            if not count:
                step = step._replace(done=step.done + more)
            self._jobs.advance(step._replace(notes=unread), cut=cut, **({count: more} if count else {}))
            self._go_on()

        return tell

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _keep_house(self) -> None:
        tidied = 0.0
        while not self._stopping.wait(_IDLE):
            now = time.time()
            try:
                self._jobs.beat(self._at_work.copy())
                if now - tidied > _DAY / 24:
                    self._jobs.forget(now - 7 * _DAY)
                    self._answers.forget(now - _DAY)
                    self._audit.shorten(now - self._audit_days * _DAY)
                    tidied = now
            except Exception as error:  # without its beat this process would lose its jobs to another one
                self._warn("housekeeping", error)

    def _tend(self) -> None:
        threads = max(1, (os.cpu_count() or 1) // 2)
        while True:
            stopping = self._stopping.wait(_TENDED)
            try:
                self._catalog.tend(0 if stopping else threads)
            except Exception as error:  # indexes are made anew from the store, so nothing is lost
                self._warn("indexes", error)
            if stopping:
                return

    def _warn(self, what: str, error: Exception) -> None:
        """One line for what was raised on purpose; the place of anything else."""
        _log.warning(what, error=str(error), exc_info=not isinstance(error, UDRError))
        if is_out_of_memory(error):
            self._catalog.worker.give_up()


class _Stopped(Exception):
    """The process ends; the job is left for another one."""
