"""The service put together: `create_app(settings)` for any ASGI server, `serve(settings)` for uvicorn."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI

from serving.access import Access, parse_hosts, parse_rate
from serving.background import Background
from serving.batching import EncodingWorker
from serving.catalog import Catalog
from serving.dependencies import Parts
from serving.errors import PROBLEMS, add_error_handlers
from serving.idempotency import Idempotency
from serving.logs import LIBRARIES, configure_logs
from serving.middleware import Gate
from serving.retrievers import Retrievers, sentence_encoder
from serving.routes import admin, feedback, jobs, openai, operations, playground, pools, retrieval
from serving.settings import Settings, packaged_encoder
from serving.sql.audit import AuditLog
from serving.sql.database import open_database
from serving.sql.feedback import FeedbackStore
from serving.sql.jobs import Jobs
from serving.sql.keys import Answers, Keys
from serving.sql.store import Store
from serving.tokenizers import Tokenizers
from serving.tracing import Tracing
from serving.upstream import Upstream
from udr.errors import ConfigError
from udr.types import Demonstration

__all__ = ["build_parts", "close_parts", "create_app", "serve"]


def build_parts(settings: Settings) -> Parts:
    """Open the database and what works on it.

    Raises:
        ConfigError: the service could be reached from other machines and asks for no key.
    """
    _refuse_open_door(settings)
    rate, hosts = parse_rate(settings.rate), parse_hosts(settings.hosts)
    name = packaged_encoder() or "none" if settings.encoder == "auto" else settings.encoder
    dense = None if name == "none" else sentence_encoder(name)
    retrievers = Retrievers(dense, settings.retrievers, precision=settings.query_precision)
    database = open_database(settings.database, settings.replica)
    threads = settings.encoder_threads or max(1, _cores() // settings.workers)
    worker = EncodingWorker(settings.max_waiting, threads, _end_process)
    catalog = Catalog(
        Store(database),
        retrievers,
        worker,
        max_pools=settings.max_pools,
        max_pool=settings.max_pool,
        cache=settings.cache_folder,
        tag=_tagging(settings),
    )
    keys, answers, audit, waiting = Keys(database), Answers(database), AuditLog(database), Jobs(database)
    background = Background(
        catalog,
        waiting,
        answers,
        audit,
        max_text=settings.max_text,
        max_pool=settings.max_pool,
        audit_days=settings.audit_days,
    )
    return Parts(
        settings=settings,
        database=database,
        catalog=catalog,
        worker=worker,
        tokenizers=Tokenizers(settings.tokenizers),
        access=Access(keys, settings.key, rate, hosts),
        keys=keys,
        answers=answers,
        audit=audit,
        jobs=waiting,
        feedback=FeedbackStore(database),
        background=background,
        upstream=Upstream(settings.upstream, settings.upstream_key, settings.upstream_timeout)
        if settings.upstream
        else None,
    )


def _tagging(settings: Settings) -> Callable[[Sequence[Demonstration]], Sequence[Demonstration]]:
    if not settings.labeller:
        return list
    from serving.tagging import open_tagger  # with torch, which a service of BM25 alone does without

    return open_tagger(Path(settings.labeller), settings.label_threshold)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application; it opens its parts when it starts and closes them when it stops."""
    own = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts = app.state.parts = await run_sync(build_parts, own)
        if tracing:
            tracing.watch(parts.database.engine)
        try:
            yield
        finally:
            if parts.upstream:
                await parts.upstream.close()
            await run_sync(close_parts, parts)
            if tracing:
                await run_sync(tracing.close)

    app = FastAPI(
        title="UDR",
        summary="Demonstrations and prompts for in-context learning.",
        lifespan=lifespan,
        responses=PROBLEMS,
        redirect_slashes=False,  # a redirect names the host that a proxy asked, and clients lose bodies at it
    )
    for module in (pools, retrieval, openai, feedback, jobs, admin, operations, playground):
        app.include_router(module.router)
    add_error_handlers(app)
    app.add_middleware(Idempotency)
    app.add_middleware(
        Gate, max_body=own.max_body, max_load=own.max_load, max_in_flight=own.max_in_flight
    )  # the outermost
    tracing = Tracing(app, own.traces) if own.traces else None
    return app


def close_parts(parts: Parts) -> None:
    """Stop what works, and leave what is not finished to the next process."""
    parts.background.stop()
    parts.worker.close()  # gives up what waits to be encoded, so that no job waits for it
    parts.background.close()
    parts.database.close()


def serve(settings: Settings) -> None:
    """Run until a signal; what was begun is answered first.

    Raises:
        ConfigError: the service could be reached from other machines and asks for no key.
    """
    _refuse_open_door(settings)  # in one line, before worker processes end at it again and again
    if settings.workers > 1:  # they start from nothing and read their settings from the environment
        os.environ.update(settings.as_environment())
        with TemporaryDirectory(prefix="udr-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where they add up what they count
            _run("serving.app:create_logging_app", settings, factory=True)
        return
    _run(create_logging_app(settings), settings)


def _end_process() -> None:
    """As whoever runs the service does it: what was begun is answered first."""
    os.kill(os.getpid(), signal.SIGTERM)


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse_open_door(settings: Settings) -> None:
    if not settings.on_loopback and not settings.key:
        raise ConfigError(f"host {settings.host}: other machines could reach the service; set UDR_KEY")


def create_logging_app(settings: Settings | None = None) -> FastAPI:
    """As `create_app`, in a process that logs JSON lines."""
    configure_logs()
    return create_app(settings)


def _run(app: FastAPI | str, settings: Settings, *, factory: bool = False) -> None:
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        factory=factory,
        access_log=False,
        log_config=LIBRARIES,
        timeout_graceful_shutdown=20,
    )
