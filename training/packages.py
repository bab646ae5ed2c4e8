"""Material out of packages: npm's, known by their hash, and Debian's, which apt checks itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from udr.errors import DataError

__all__ = ["checked", "fetch_debian", "fetch_npm", "run_tool", "unpack_debian"]


def run_tool(command: Sequence[str], folder: Path) -> None:
    """Run a registry's tool in a folder.

    Raises:
        DataError: it is missing or failed; with the last line that it said.
    """
    named = " ".join(command[:2])
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError(f"{named}: there is no {command[0]} here") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DataError(f"{named} failed ({lines[-1] if lines else f'exit code {done.returncode}'})")


def checked(path: Path, sha256: str) -> Path:
    """The file, if it is the one that is known.

    Raises:
        DataError: it is another, or not there.
    """
    if path.is_file():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return path
    raise DataError(f"{path}: not the file that is known (SHA-256 differs); remove it and try again")


def fetch_npm(cache: Path, name: str, version: str, sha256: str) -> Path:
    """Fetch a package by npm, unless it lies in `cache`; give its archive.

    Raises:
        DataError: npm is missing, the package cannot be had, or it is not the one that is known.
    """
    archive = cache / f"{name}-{version}.tgz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".npm-") as scratch:
            run_tool(["npm", "pack", "--silent", f"{name}@{version}"], Path(scratch))
            os.replace(checked(Path(scratch) / archive.name, sha256), archive)
    return checked(archive, sha256)


def fetch_debian(name: str, folder: Path) -> Path:
    """Fetch a package by apt into an empty folder; no root is needed. Give its archive.

    Raises:
        DataError: this is no Debian, or the package cannot be had.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise DataError(f"{name}: there is no apt-get here")
    try:
        run_tool(["apt-get", "download", name], folder)
    except DataError as error:
        raise DataError(f"{name}: {error}; perhaps `apt-get update` is needed") from None
    found = list(folder.glob("*.deb"))
    if len(found) != 1:
        raise DataError(f"{name}: apt-get brought no package")
    return found[0]


def unpack_debian(archive: Path, folder: Path) -> None:
    """Write what a Debian package holds into a folder.

    Raises:
        DataError: it is damaged.
    """
    run_tool(["dpkg", "-x", str(archive.resolve()), str(folder.resolve())], archive.parent)
