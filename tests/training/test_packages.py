"""Packages are fetched once, and another file than the one that is known is refused."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import training.packages
from training.packages import fetch_debian, fetch_npm, run_tool
from udr.errors import DataError

KNOWN = hashlib.sha256(b"a package").hexdigest()


def test_a_package_of_npm_is_fetched_once_and_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    content = b"another"

    def npm(command: Sequence[str], folder: Path) -> None:
        asked.append(command)
        (folder / "words-1.0.0.tgz").write_bytes(content)

    monkeypatch.setattr(training.packages, "run_tool", npm)
    with pytest.raises(DataError, match="not the file that is known"):
        fetch_npm(tmp_path / "new", "words", "1.0.0", KNOWN)
    assert not list((tmp_path / "new").iterdir())
    content = b"a package"
    for _ in range(2):
        assert fetch_npm(tmp_path / "new", "words", "1.0.0", KNOWN).read_bytes() == b"a package"
    assert asked == [["npm", "pack", "--silent", "words@1.0.0"]] * 2
    (tmp_path / "new" / "words-1.0.0.tgz").write_bytes(b"spoiled")
    with pytest.raises(DataError, match="remove it and try again"):
        fetch_npm(tmp_path / "new", "words", "1.0.0", KNOWN)


def test_a_tool_that_fails_or_is_missing_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"-c failed \(it is so\)"):
        run_tool([sys.executable, "-c", "import sys; sys.exit('no matter\\nit is so\\n')"], tmp_path)
    with pytest.raises(DataError, match="nowhere pack: there is no nowhere here"):
        run_tool(["nowhere", "pack", "x"], tmp_path)
    monkeypatch.setattr(training.packages.shutil, "which", lambda _: None)
    with pytest.raises(DataError, match="x: there is no apt-get here"):
        fetch_debian("x", tmp_path)
