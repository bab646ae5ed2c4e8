"""Labelled tables made of emoji: pictures with the tags of Unicode's annotations, and canvases of several emoji.

Both are split by emoji, never by style: a drawing of a test emoji is not learnt from, in whatever style.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embed.media import open_picture
from training.captioned import Captioned
from training.labelled import Box, Labelled, label_names, write_labelled
from training.packages import fetch_npm
from training.stamps import PLACED
from udr.errors import DataError
from udr.types import Progress

__all__ = ["OBJECTS", "SCENES", "canvases_table", "fetch_tags", "in_test", "read_tags", "tagged_table"]

PACKAGE, VERSION = "emojibase-data", "17.0.0"  # MIT
SHA256 = "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"
TEST_SHARE = 0.2  # of emoji
LARGEST = 20_000_000  # bytes of the list of tags

# objects, and the subcategories of emoji that draw them
OBJECTS = {
    "bug": ("animal bug",),
    "building": ("place building",),
    "car": ("transport ground",),
    "clock": ("time",),
    "drink": ("drink",),
    "face": ("face smiling", "face concerned", "face neutral skeptical", "face affection", "face unwell"),
    "fruit": ("food fruit",),
    "hand": ("hand fingers open", "hand fingers partial", "hand fingers closed", "hand single finger"),
    "heart": ("heart",),
    "letter": ("alphanum", "keycap"),
    "plant": ("plant flower", "plant other"),
    "sky": ("sky & weather",),
}
# what is seen together, and how often
SCENES: dict[str, tuple[float, tuple[str, ...]]] = {
    "garden": (0.30, ("plant", "bug", "sky", "fruit")),
    "street": (0.24, ("car", "building", "clock", "sky")),
    "picnic": (0.18, ("fruit", "drink", "face", "plant")),
    "party": (0.13, ("face", "heart", "drink", "hand")),
    "office": (0.09, ("clock", "letter", "hand", "drink")),
    "card": (0.06, ("heart", "letter", "face")),
}
STRAY = 0.15  # chance of an object of another scene
GRID = 2  # places of a side


def in_test(code: str) -> bool:
    """Whether an emoji, by its code points, belongs to the test split; the same everywhere and for ever."""
    drawn = int.from_bytes(hashlib.blake2b(_plain_code(code).encode(), digest_size=8).digest(), "big")
    return drawn < TEST_SHARE * 2**64


def _plain_code(code: str) -> str:
    """Code points without the selector of variants, which one list has and another has not."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def _code(row: Captioned) -> str:
    return row.id.rpartition("/")[2]


def fetch_tags(cache: Path) -> Path:
    """Fetch the package of emoji's tags by npm; give its archive.

    Raises:
        DataError: npm is missing or the package cannot be had.
    """
    return fetch_npm(cache, PACKAGE, VERSION, SHA256)


def read_tags(archive: Path) -> dict[str, tuple[str, ...]]:
    """English tags of emoji, by code points without selectors.

    Raises:
        DataError: the archive is damaged or holds none.
    """
    known: Any = ()
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.name == "package/en/data.json" and member.isfile() and member.size <= LARGEST:
                    file = packed.extractfile(member)
                    known = json.loads(file.read()) if file else ()
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{archive}: damaged ({error})") from None
    shaped = isinstance(known, list) and all(isinstance(one, dict) and "hexcode" in one for one in known)
    if not known or not shaped:
        raise DataError(f"{archive}: no {PACKAGE} package")
    tags = {_plain_code(str(one["hexcode"])): tuple(map(str, one.get("tags") or ())) for one in known}
    return tags


def tagged_table(
    emoji: Sequence[Captioned], tags: dict[str, tuple[str, ...]], out: Path, fewest: int = 10
) -> dict[str, int]:
    """Write emoji with those of their tags that at least `fewest` emoji have; give what went in.

    An emoji without any is left out: that nobody wrote a frequent tag does not mean that none is true. The text of a
    row is the emoji's name.

    Raises:
        DataError: no emoji has a frequent tag.
    """
    rows = [
        Labelled(row.id, row.image, next(iter(row.texts(["en"])), ""), tuple(dict.fromkeys(tags[code])))
        for row in emoji
        if (code := _plain_code(_code(row))) in tags
    ]
    once = {row.id.rpartition("/")[2]: row for row in rows}  # in whatever number of styles
    kept = set(label_names(list(once.values()), fewest))
    found = [
        replace(row, labels=labels, split="test" if in_test(row.id.rpartition("/")[2]) else "train")
        for row in rows
        if (labels := tuple(label for label in row.labels if label in kept))
    ]
    count = write_labelled(out, found)
    return {"pictures": count, "tags": len(kept), "test": sum(row.split == "test" for row in found)}


def canvases_table(
    emoji: Sequence[Captioned],
    out: Path,
    count: int = 5000,
    test: int = 1000,
    size: int = 48,
    together: float = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write canvases of several emoji that belong together, labels their objects, with boxes; give what went in.

    A canvas shows a scene of `SCENES`: its objects side by side, some missing, seldom one of another scene. Emoji of
    test canvases stand on no other.

    Args:
        emoji: what is drawn with.
        out: the table.
        count: canvases of split train.
        test: canvases of split test.
        size: pixels of a side.
        together: chance that an object of the scene is there. The nearer to 1, the more is known of what is hard to
            see, and the less tells which object is which.
        seed: of all draws.
        progress: told after each canvas.

    Raises:
        DataError: an object that no emoji of a split draws.
    """
    drawings = {split: _drawings(emoji, split) for split in ("train", "test")}
    rng = np.random.default_rng(seed)
    boxes = 0

    def rows() -> Iterator[Labelled]:
        nonlocal boxes
        for i in range(count + test):
            split = "train" if i < count else "test"
            row = _canvas(f"canvas/{i}", drawings[split], size, together, rng)
            boxes += len(row.boxes)
            yield replace(row, split=split)
            if progress:
                progress(i + 1, count + test)

    return {"canvases": write_labelled(out, rows()), "objects": boxes, "labels": len(OBJECTS)}


def _drawings(emoji: Sequence[Captioned], split: str) -> dict[str, list[Image.Image]]:
    """Of each object its emoji of one split."""
    names = {kind: name for name, kinds in OBJECTS.items() for kind in kinds}
    found: dict[str, list[Image.Image]] = {name: [] for name in OBJECTS}
    for row in emoji:
        kind = next(iter(row.texts([PLACED])), "").partition(":")[0].split(", ")[-1]
        if kind in names and in_test(_code(row)) == (split == "test"):
            found[names[kind]].append(open_picture(row.image, row.id))
    for name, drawn in found.items():
        if not drawn:
            raise DataError(f"no emoji of split {split} draws {name} ({', '.join(OBJECTS[name])})")
    return found


def _canvas(
    name: str, drawings: dict[str, list[Image.Image]], size: int, together: float, rng: np.random.Generator
) -> Labelled:
    """One canvas: objects in different places of a grid, each somewhere in its place."""
    shares = np.array([share for share, _ in SCENES.values()])
    _, objects = list(SCENES.values())[int(rng.choice(len(shares), p=shares / shares.sum()))]
    labels = [one for one in objects if rng.random() < together] or [objects[0]]
    others = [one for one in OBJECTS if one not in objects]
    if rng.random() < STRAY:
        labels.append(others[int(rng.integers(len(others)))])
    labels = [labels[i] for i in rng.permutation(len(labels))][: GRID * GRID]
    canvas = Image.new("RGB", (size, size), "white")
    side, boxes = size // GRID, []
    for label, place in zip(labels, rng.permutation(GRID * GRID), strict=False):
        drawn = drawings[label]
        wide = int(rng.integers(round(0.8 * side), side + 1))
        x, y = (int(corner) * side + int(rng.integers(side - wide + 1)) for corner in divmod(int(place), GRID))
        canvas.paste(drawn[int(rng.integers(len(drawn)))].resize((wide, wide), Image.Resampling.BICUBIC), (x, y))
        box: Box = (x / size, y / size, (x + wide) / size, (y + wide) / size)
        boxes.append(box)
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return Labelled(name, file.getvalue(), "", tuple(labels), tuple(boxes))
