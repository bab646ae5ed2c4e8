"""Tux Paint's stamps, from Debian's package: pictures with captions in many languages, spoken in some of them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from embed.audio import open_sound
from embed.media import open_picture
from training.captioned import Captioned, Sound, write_captioned
from training.packages import fetch_debian, unpack_debian
from udr.errors import DataError, MissingDependencyError, UDRWarning
from udr.types import Progress

__all__ = ["PLACED", "VOICES", "fetch_stamps", "placed_caption", "read_stamps", "speak", "stamps_table"]

PACKAGE = "tuxpaint-stamps-default"
SIDE = 160  # pixels of a picture at most; stamps are up to a thousand
TEST_SHARE = 0.2
VOICES = ("m1", "f2", "m3", "f1", "m7")  # of espeak-ng; the last one speaks for test rows alone
SPEEDS = (150, 130, 170)  # words a minute
PLACED = "en+folder"  # the English caption behind the words of the stamp's folders, which say what kind it is
SPOKEN = ("en", PLACED)  # what a synthesiser says; people say nine other languages


def fetch_stamps(cache: Path) -> Path:
    """Fetch Debian's package and unpack it; no root is needed. Give the folder of stamps.

    Raises:
        DataError: this is no Debian, or the package cannot be had.
    """
    folder = cache / "tuxpaint" / "usr" / "share" / "tuxpaint" / "stamps"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".tuxpaint-") as scratch:
        try:
            archive = fetch_debian(PACKAGE, Path(scratch))
        except DataError as error:
            raise DataError(f"{error}; or unpack {PACKAGE} by other means and pass --stamps") from None
        unpack_debian(archive, Path(scratch) / "tuxpaint")
        os.replace(Path(scratch) / "tuxpaint", cache / "tuxpaint")
    return folder


def stamps_table(folder: Path, out: Path, synthetic: bool = True, progress: Progress | None = None) -> dict[str, int]:
    """Write the captioned table of a folder of stamps; give what went in, and what was left out.

    Raises:
        DataError: no stamps in the folder.
    """
    counts = {"stamps": 0, "test": 0, "without caption": 0, "unreadable": 0, "svg": 0, "sounds": 0, "synthetic": 0}
    voices = VOICES if synthetic else ()
    if voices and shutil.which("espeak-ng") is None:
        warnings.warn(
            "espeak-ng is not installed, so no caption is spoken by it (Debian: apt install espeak-ng)",
            UDRWarning,
            stacklevel=2,
        )
        voices = ()

    def rows() -> Iterator[Captioned]:
        pictures = _pictures(folder)
        for i, path in enumerate(pictures):
            row = _row(folder, path, counts, voices)
            if progress:
                progress(i + 1, len(pictures))
            if row:
                yield row

    written = write_captioned(out, rows())
    if not written:
        raise DataError(f"{folder}: no stamps with captions")
    return counts


def _pictures(folder: Path) -> list[Path]:
    """One picture a stamp: where there are both, the PNG."""
    found: dict[Path, Path] = {}
    for path in sorted([*folder.rglob("*.svg"), *folder.rglob("*.png")], key=lambda p: (p.suffix == ".png", p)):
        found[path.with_suffix("")] = path
    if not found:
        raise DataError(f"{folder}: no stamps (pictures as .png or .svg)")
    return sorted(found.values())


def _row(folder: Path, path: Path, counts: dict[str, int], voices: Sequence[str]) -> Captioned | None:
    name = path.relative_to(folder).with_suffix("").as_posix()
    captions = read_stamps(path.with_suffix(".txt"))
    if not captions:
        counts["without caption"] += 1
        return None
    captions = (*captions, (PLACED, placed_caption(name.rpartition("/")[0].split("/"), captions[0][1])))
    try:
        image = _png(path)
    except MissingDependencyError:
        counts["svg"] += 1
        return None
    except DataError as error:
        warnings.warn(f"left out: {error}", UDRWarning, stacklevel=2)
        counts["unreadable"] += 1
        return None
    split = _split(name)
    human = list(_spoken(path))
    spoken = dict(captions)
    # of a voice that training never hears, test rows have one recording; the other voices speak for training
    mine = voices[-1:] if split == "test" else voices[:-1]
    made = [
        Sound(language, f"espeak-{voice}", speak(spoken[language], language, voice, SPEEDS[i % len(SPEEDS)]))
        for i, voice in enumerate(mine)
        for language in SPOKEN
        if language in spoken
    ]
    counts["stamps"] += 1
    counts["test"] += split == "test"
    counts["sounds"] += len(human)
    counts["synthetic"] += len(made)
    return Captioned(name, image, captions, (*human, *made), name.rpartition("/")[0], split)


def _split(name: str) -> str:
    """By the stamp, so that no language and no voice of it stands on the other side."""
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") / 2**64
    return "test" if draw < TEST_SHARE else "train"


def read_stamps(path: Path) -> tuple[tuple[str, str], ...]:
    """Captions of a stamp's text file, (language, text): the first line is English, others begin with `xx.utf8=`."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [("en", lines[0].strip())] if lines and lines[0].strip() else []
    for line in lines[1:]:
        language, equals, text = line.partition(".utf8=")
        if equals and text.strip():
            found.append((language.strip(), text.strip()))
    return tuple(found)


def placed_caption(folders: Sequence[str], caption: str) -> str:
    """A caption behind its categories, the widest first: `Animals, birds: A heron.`"""
    words = ", ".join(folder.replace("_", " ").replace("-", " ") for folder in folders if folder)
    return f"{words.capitalize()}: {caption}" if words else caption


def _png(path: Path) -> bytes:
    """The picture on a white square, as PNG of at most `SIDE` pixels."""
    picture = open_picture(_drawn(path) if path.suffix == ".svg" else path, str(path))
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    if side > SIDE:
        square = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    square.save(file, "PNG")
    return file.getvalue()


def _drawn(path: Path) -> bytes:
    try:
        import resvg_py
    except ImportError:
        raise MissingDependencyError("resvg-py", "pretrain") from None
    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=2 * SIDE))
    except ValueError as error:
        raise DataError(f"{path}: no SVG that can be drawn ({str(error).splitlines()[0]})") from None


def _spoken(path: Path) -> Iterator[Sound]:
    """The spoken captions that can be read."""
    for sound in sorted(path.parent.glob(f"{path.stem}_desc*.ogg")):
        language = sound.stem.removeprefix(f"{path.stem}_desc").lstrip("_") or "en"
        raw = sound.read_bytes()
        try:
            open_sound(raw, str(sound))
        except DataError as error:
            warnings.warn(f"left out: {error}", UDRWarning, stacklevel=2)
            continue
        yield Sound(language, "human", raw)


def speak(text: str, language: str, voice: str, speed: int) -> bytes:
    """Let espeak-ng say a text: the bytes of a sound, as Ogg Vorbis of 16 kHz.

    Raises:
        DataError: espeak-ng is missing or fails.
    """
    import soundfile

    command = ["espeak-ng", "-v", f"{language.partition('+')[0]}+{voice}", "-s", str(speed), "--stdout", "--stdin"]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    except OSError:
        raise DataError("espeak-ng is not installed (Debian: apt install espeak-ng)") from None
    if done.returncode or not done.stdout:
        reason = (done.stderr.decode(errors="replace").strip() or "no sound").splitlines()[-1]
        raise DataError(f"espeak-ng: cannot say {text[:40]!r} in {language!r} ({reason})")
    file = io.BytesIO()
    soundfile.write(file, open_sound(done.stdout, "espeak-ng"), 16_000, format="OGG", subtype="VORBIS")
    return file.getvalue()
