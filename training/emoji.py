"""Emoji as captioned pictures, from npm's packages of Google's and Twitter's drawings: more to learn words from."""

from __future__ import annotations

import json
import shutil
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.captioned import Captioned, Sound, write_captioned
from training.packages import fetch_npm
from training.stamps import PLACED, SPEEDS, VOICES, placed_caption, speak
from udr.errors import DataError, UDRWarning
from udr.types import Progress

__all__ = ["STYLES", "emoji_table", "fetch_emoji", "read_emoji"]

VERSION = "16.0.0"
SHA256 = {  # of the styles whose licences allow it (Apache 2.0 and CC-BY 4.0)
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
STYLES = tuple(SHA256)
LEFT_OUT = ("Flags", "Component")  # categories of pictures whose names say nothing that is seen
LARGEST = 1_000_000  # bytes of one picture
KEYS = {"unified", "image", "category"}  # of what is known of an emoji


def fetch_emoji(cache: Path, style: str) -> Path:
    """Fetch the package of a style by npm; give its archive.

    Raises:
        DataError: npm is missing, or the package cannot be had or is another one.
    """
    return fetch_npm(cache, f"emoji-datasource-{style}", VERSION, SHA256[style])


def emoji_table(
    archives: dict[str, Path], out: Path, synthetic: bool = True, progress: Progress | None = None
) -> dict[str, int]:
    """Write the captioned table of emoji of some styles, all of split train; give what went in.

    Raises:
        DataError: an archive is damaged or holds no emoji.
    """
    counts = {"pictures": 0, "synthetic": 0}
    voices = VOICES[:2] if synthetic else ()
    if voices and shutil.which("espeak-ng") is None:
        message = "espeak-ng is not installed, so no name is spoken by it (Debian: apt install espeak-ng)"
        warnings.warn(message, UDRWarning, stacklevel=2)
        voices = ()
    spoken: dict[str, tuple[Sound, ...]] = {}  # the same name in every style

    def rows() -> Iterator[Captioned]:
        for number, (style, archive) in enumerate(archives.items()):
            known, pictures = _read(archive, style)
            for i, one in enumerate(known):
                if progress:
                    progress(number * len(known) + i + 1, len(archives) * len(known))
                if one["category"] in LEFT_OUT or one["image"] not in pictures:
                    continue
                captions = _captions(one)
                name = captions[0][1]
                if name not in spoken:
                    said = dict(reversed(captions))  # the first name of a language
                    spoken[name] = tuple(
                        Sound(language, f"espeak-{v}", speak(text, language, v, SPEEDS[j % len(SPEEDS)]))
                        for j, v in enumerate(voices)
                        for language, text in said.items()
                    )
                counts["pictures"] += 1
                counts["synthetic"] += len(spoken[name])
                yield Captioned(
                    f"emoji/{style}/{one['unified']}", pictures[one["image"]], captions, spoken[name], one["category"]
                )

    if not write_captioned(out, rows()):
        raise DataError(f"{', '.join(map(str, archives.values()))}: no emoji")
    return counts


def read_emoji(archive: Path, style: str) -> dict[str, bytes]:
    """Pictures of a style by the code points of the emoji, such as `1F600`, in an order that does not change.

    Raises:
        DataError: the archive is damaged or holds no emoji.
    """
    known, pictures = _read(archive, style)
    kept = [one for one in known if one["category"] not in LEFT_OUT and one["image"] in pictures]
    return {one["unified"]: pictures[one["image"]] for one in sorted(kept, key=lambda one: str(one["unified"]))}


def _captions(one: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The Unicode name, the short names in words where they differ, and the name behind its categories."""
    names = [str(one["name"] or one["short_name"]).capitalize()]
    names += [str(name).replace("_", " ").replace("-", " ").capitalize() for name in one["short_names"]]
    kinds = [str(one[key]).lower() for key in ("category", "subcategory") if one.get(key)]
    return (*(("en", name) for name in dict.fromkeys(names)), (PLACED, placed_caption(kinds, names[0])))


def _read(archive: Path, style: str) -> tuple[Sequence[dict[str, Any]], dict[str, bytes]]:
    """What is known of each emoji, and the pictures by their names."""
    begin = f"package/img/{style}/64/"
    known: Any = ()
    pictures: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                wanted = member.name == "package/emoji.json"
                if not member.isfile() or not (wanted or (member.name.startswith(begin) and member.size <= LARGEST)):
                    continue
                file = packed.extractfile(member)
                raw = file.read() if file else b""
                if wanted:
                    known = json.loads(raw)
                else:
                    pictures[member.name.removeprefix(begin)] = raw
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{archive}: damaged ({error})") from None
    shaped = isinstance(known, list) and all(isinstance(one, dict) and one.keys() >= KEYS for one in known)
    if not known or not pictures or not shaped:
        raise DataError(f"{archive}: no emoji-datasource package of style {style}")
    return known, pictures
