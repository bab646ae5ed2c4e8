"""Files that outlive a run: written whole or not at all, and checked when they are opened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from udr.errors import ArtifactError

__all__ = ["fingerprint_files", "read_json", "replacing", "write_atomically", "write_json"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write; at the end it is flushed to the disk and renamed into place.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written; whatever stood at `path` before still does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # where a parent is a file, even this fails
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise ArtifactError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written; whatever stood at `path` before still does.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object; the file appears whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: absent, unreadable, or not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: damaged (not JSON)") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: damaged (not a JSON object)")
    return value


def fingerprint_files(
    folder: Path, names: tuple[str, ...] = (".safetensors", ".json", ".gguf", ".bin", ".txt", ".model")
) -> str:
    """Hash the weights and settings of a model folder: 16 hex digits that change when any byte does.

    Raises:
        ArtifactError: the folder holds no such file.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in names) if folder.is_dir() else []
    if not files:
        raise ArtifactError(f"{folder}: no model files")
    h = hashlib.blake2b(digest_size=8)
    for path in files:
        h.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                h.update(block)
    return h.hexdigest()
