"""Pairs of clips of one video that overlap in time and space by a drawn share: what STOR asks about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from udr.errors import DataError

__all__ = ["RATES", "Box", "Pair", "draw_boxes", "draw_spans", "pace_count"]

RATES = (1.0, 0.8, 0.6, 0.4, 0.2)  # shares of overlap, one a label, in time and in space
AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of the first crop
TRIES = 10_000  # after which boxes cannot be placed


@dataclass(frozen=True)
class Box:
    """A part of a frame in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Pair:
    """Where in time two clips lie: they begin at frames `starts` and show every 2^`pace`-th one.

    `overlap` is the label of the share of one that lies in the other, an index of `RATES`.
    """

    starts: tuple[int, int]
    pace: int
    overlap: int


def pace_count(length: int, frames: int, paces: int) -> int:
    """How many paces, 1, 2, 4, …, a video of `length` frames is long enough for; at least one."""
    return min(paces, int(math.log2(max(1.0, length / (frames - 1)))) + 1)


def draw_spans(length: int, frames: int, paces: int, random: Random) -> Pair:
    """Two clips of `frames` frames of one pace that overlap in time by a drawn label.

    At pace 2^r a clip reaches over c = (frames − 1)·2^r frames, and the second one begins int((1 − rate)·c) frames
    before or after the first. Pace, label, direction and start are even among those that the video has room for. One
    that is too short for a clip is shown again from its beginning, and both clips are the same.

    Source: the rule of the authors' code, with 15 there for frames − 1.
    """
    pace = random.randrange(pace_count(length, frames, paces))
    reach = (frames - 1) << pace
    room = length - 1 - reach  # of starts, beside 0
    if room < 0:
        return Pair((0, 0), pace, 0)
    shifts = [int((1 - rate) * reach + 1e-9) for rate in RATES]
    overlap = random.choice([label for label, shift in enumerate(shifts) if shift <= room])
    shift = shifts[overlap]
    early = random.randint(0, room - shift)
    starts = (early, early + shift)
    return Pair(starts if random.random() < 0.5 else starts[::-1], pace, overlap)


def draw_boxes(side: int, overlap: int, random: Random) -> tuple[Box, Box]:
    """Two crops of one size in a square frame, of which the second covers `RATES[overlap]` of the first.

    The first one's area is drawn from 0.2 to 1 of the frame's and its proportion from 3/4 to 4/3, either way round; the
    second lies towards a drawn corner, with a drawn width of what they share. Where one of them would leave the frame
    all is drawn again but the label, which so stays even; crops that overlap little are therefore smaller ones.
    """
    rate = RATES[overlap]
    for _ in range(TRIES):
        area, ratio = random.uniform(*AREA) * side * side, random.uniform(*RATIO)
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if random.random() < 0.5:
            width, height = height, width
        if not (0 < width <= side and 0 < height <= side):
            continue
        shared_width = random.randint(math.ceil(rate * width - 1e-9), width)
        shared_height = min(height, round(rate * width * height / shared_width))
        left, top = random.randint(0, side - width), random.randint(0, side - height)
        right, down = random.choice((-1, 1)), random.choice((-1, 1))
        other = Box(left + right * (width - shared_width), top + down * (height - shared_height), width, height)
        if 0 <= other.left <= side - width and 0 <= other.top <= side - height:
            return Box(left, top, width, height), other
    raise DataError(f"no two crops of a frame of {side} pixels share {rate:.0%}")
