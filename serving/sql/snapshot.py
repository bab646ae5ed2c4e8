"""Copies of an SQLite database, taken while it is served, and put back while it is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from udr.artifacts import replacing
from udr.errors import ArtifactError, ConfigError

__all__ = ["restore", "snapshot"]


def snapshot(url: str, file: Path) -> int:
    """Write the database as it is at one moment to a file of its own; reads and writes go on meanwhile.

    Returns:
        Its bytes.

    Raises:
        ConfigError: not an SQLite database, or there is none.
        ArtifactError: the file is there already or cannot be written.
    """
    source = _file_of(url)
    if not source.is_file():
        raise ConfigError(f"database {url}: no such file")
    if file.exists():
        raise ArtifactError(f"{file}: is there already; give a new name")
    with replacing(file) as temporary, closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("VACUUM INTO ?", (str(temporary),))
        except sqlite3.Error as error:
            raise ArtifactError(f"{source}: cannot be copied ({error})") from None
    _check(file)
    return file.stat().st_size


def restore(file: Path, url: str, *, replace: bool = False) -> None:
    """Put a snapshot in the place of a database that no service has open.

    Args:
        file: what `snapshot` wrote.
        url: of the database.
        replace: forget the one that is there.

    Raises:
        ConfigError: not the address of an SQLite database.
        ArtifactError: the snapshot is damaged; a database is there and `replace` is false; it is in use.
    """
    target = _file_of(url)
    _check(file)
    if target.exists():
        if not replace:
            raise ArtifactError(f"{target}: is there already; --replace forgets it")
        try:  # a service that runs holds it open in WAL mode, and then this lock cannot be had
            with closing(sqlite3.connect(target, timeout=0.5)) as connection:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA journal_mode=DELETE")
                connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise ArtifactError(f"{target}: a service has it open; stop that first") from None
    with replacing(target) as temporary:
        temporary.write_bytes(file.read_bytes())
    for suffix in ("-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)


def _file_of(url: str) -> Path:
    if not url.startswith("sqlite:///"):
        raise ConfigError("database: snapshots are of SQLite; for PostgreSQL use pg_dump or pg_basebackup")
    return Path(url.removeprefix("sqlite:///"))


def _check(file: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            (state,) = connection.execute("PRAGMA integrity_check").fetchone()
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        state = str(error)
    if state != "ok":
        raise ArtifactError(f"{file}: not a whole snapshot ({state})")
