"""Connections to SQLite or PostgreSQL, and what a transaction means there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from udr.errors import ConfigError, MissingDependencyError, StoreUnavailable

__all__ = ["Database", "open_database"]

_POOL = 48  # connections; the threads that serve requests are 40


class Database:
    """One database, and perhaps a replica of it that answers reads.

    Args:
        engine: of the database, brought up to date.
        replica: of a copy that follows it; what was just written is read there only when it has arrived.
    """

    def __init__(self, engine: sa.Engine, replica: sa.Engine | None = None) -> None:
        self.engine = engine
        self._writing = engine.execution_options(udr_writing=True)
        self._fresh = _snapshot(engine)
        self._reading = _snapshot(replica) if replica is not None else self._fresh
        self._engines = [e for e in (engine, replica) if e is not None]

    @contextmanager
    def read(self, *, fresh: bool = False) -> Iterator[sa.Connection]:
        """A transaction that sees the database as it was at one moment; `fresh`: never a replica's.

        Raises:
            StoreUnavailable: the database fails.
        """
        with _told(), (self._fresh if fresh else self._reading).connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction; what it wrote is on disk when it ends without an error.

        Raises:
            StoreUnavailable: the database fails.
        """
        with _told(), self._writing.connect() as connection, connection.begin():
            yield connection

    def ping(self) -> None:
        """Raise StoreUnavailable unless every database answers."""
        for fresh in (True, False):
            with self.read(fresh=fresh) as c:
                c.execute(sa.select(1))

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()


def open_database(url: str, replica: str = "") -> Database:
    """Open a database, made or brought up to date if need be.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`; several hosts with
            `target_session_attrs=read-write` follow a primary that changes.
        replica: of a PostgreSQL copy that is to answer reads; empty: none.

    Raises:
        ConfigError: an address that is none.
        StoreUnavailable: it cannot be opened.
    """
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with _told(), engine.execution_options(udr_writing=True).connect() as connection:
        if engine.dialect.name == "postgresql":  # processes that start together bring it up to date one by one
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x756472)))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreUnavailable(f"the database was made by another version ({error}); use that one") from None
        connection.commit()
    return Database(engine, _engine(replica) if replica else None)


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        name = parsed.get_backend_name()
        if name not in ("sqlite", "postgresql"):
            raise ConfigError(f"database {parsed.render_as_string()}: expected sqlite:///… or postgresql+psycopg://…")
        settings: dict[str, Any] = {"pool_size": _POOL, "max_overflow": 0}
        settings |= {"json_serializer": _as_json, "json_deserializer": orjson.loads}
        engine = sa.create_engine(parsed, pool_pre_ping=name != "sqlite", **settings)  # a file is never away
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError(
            "database: not an address like sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        ) from None
    except ModuleNotFoundError:
        raise MissingDependencyError("psycopg", "postgres") from None
    if name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _as_json(value: Any) -> str:
    """By the library that reads it again, so that nothing is written that cannot be read."""
    return orjson.dumps(value).decode()


def _snapshot(engine: sa.Engine) -> sa.Engine:
    """Reading transactions of SQLite see one moment anyway."""
    return (
        engine.execution_options(isolation_level="REPEATABLE READ") if engine.dialect.name == "postgresql" else engine
    )


@contextmanager
def _told() -> Iterator[None]:
    """A database that fails is one line."""
    try:
        yield
    except DBAPIError as error:
        reason = (str(error.orig).splitlines() or [type(error.orig).__name__])[0]
        raise StoreUnavailable(f"the database failed ({reason}); try again") from None
    except PoolTimeout:
        raise StoreUnavailable("the database is busy: no connection became free; try again") from None


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """An answered write survives a power cut (FULL); readers and the writer do not wait for each other (WAL)."""
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes its lock at once: one that began by reading would fail where another wrote meanwhile."""
    writing = connection.get_execution_options().get("udr_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
