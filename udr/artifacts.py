"""Files that outlive a run: written whole or not at all, and checked when they are opened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from udr.errors import ArtifactError

__all__ = ["fingerprint_files", "read_json", "write_atomically", "write_json"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, flush it to the disk, and rename it into place.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written; whatever stood at `path` before still does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # where a parent is a file, even this fails
            temporary.unlink()
        raise ArtifactError(f"{path}: cannot be written ({error.strerror or error})") from None


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
