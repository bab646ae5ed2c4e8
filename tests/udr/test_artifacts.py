"""Files appear whole or not at all, and damage is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from udr.artifacts import fingerprint_files, read_json, write_atomically, write_json
from udr.errors import ArtifactError


def test_what_is_written_is_read_back_and_nothing_else_lies_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"name": "ä", "n": 1})
    write_json(path, {"name": "ö", "n": 2})
    assert read_json(path) == {"name": "ö", "n": 2}
    assert os.listdir(path.parent) == ["a.json"]


def test_a_failed_write_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"a\.bin: cannot be written \(No space left on device\)"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_gives_an_artifact_error_and_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    code = f"""
import resource
from pathlib import Path
from udr.artifacts import write_atomically
from udr.errors import ArtifactError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path({str(path)!r}), b"x" * 5000)
except ArtifactError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{path}: cannot be written" in done.stdout
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_in_the_place_of_a_folder_gives_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a.json", tmp_path / "file" / "b" / "a.json"):
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_json(path, {})


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_json_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.json: damaged"):
        read_json(path)


def test_an_absent_json_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_json(tmp_path / "a.json")


def test_the_fingerprint_of_a_folder_changes_with_any_byte_of_a_model_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "README.md").write_text("words")
    first = fingerprint_files(tmp_path)
    assert len(first) == 16
    assert int(first, 16) >= 0
    (tmp_path / "README.md").write_text("other words")
    assert fingerprint_files(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(bytes(99) + b"\1")
    second = fingerprint_files(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "configured.json")  # the same bytes in the same place
    assert len({first, second, fingerprint_files(tmp_path)}) == 3


def test_a_folder_without_model_files_has_no_fingerprint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="no model files"):
            fingerprint_files(folder)
