"""Blocks of noise: every edit is a permutation, boxes hold the best blocks, and both agree with plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.synthesis.blocks import MOVES, Box, Move, cells_of_boxes, chosen_cells, move_blocks
from udr.errors import ConfigError

SIDE = 4


@st.composite
def layouts(draw: st.DrawFn, side: int = SIDE) -> tuple[list[np.ndarray], list[Box]]:
    """Maps of one to three words, all scores different, and a box each, over each other or not."""
    words = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    maps = [rng.permutation(side * side).reshape(side, side).astype(np.float32) + 1 + 0.01 * i for i in range(words)]
    boxes = []
    for _ in range(words):
        x0, y0 = draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1))
        boxes.append((x0, y0, draw(st.integers(x0 + 1, side)), draw(st.integers(y0 + 1, side))))
    return maps, boxes


def owners(boxes: list[Box], side: int) -> list[list[int]]:
    """By loops: each cell is of the smallest box that holds it, the first of equals."""
    found: list[list[int]] = [[] for _ in boxes]
    for y in range(side):
        for x in range(side):
            best = None
            for i, (x0, y0, x1, y1) in enumerate(boxes):
                if x0 <= x < x1 and y0 <= y < y1:
                    size = (x1 - x0) * (y1 - y0)
                    if best is None or size < best[0]:
                        best = (size, i)
            if best is not None:
                found[best[1]].append(y * side + x)
    return found


def chosen_by_loops(maps: list[np.ndarray], counts: list[int]) -> list[list[int]]:
    cells = maps[0].size
    scores = [[float(v) / float(m.mean()) for v in m.ravel()] for m in maps]
    of = [max(range(len(maps)), key=lambda w: (scores[w][c], -w)) for c in range(cells)]
    found, taken = [], set()
    for w, count in enumerate(counts):
        own = sorted((c for c in range(cells) if of[c] == w), key=lambda c: -scores[w][c])
        found.append(own[:count])
        taken |= set(own[:count])
    for w, count in enumerate(counts):
        others = sorted((c for c in range(cells) if of[c] != w and c not in taken), key=lambda c: scores[of[c]][c])
        more = others[: count - len(found[w])]
        found[w] += more
        taken |= set(more)
    return found


def covered(boxes: list[Box]) -> bool:
    return any(not own for own in owners(boxes, SIDE))


@given(layouts())
def test_cells_of_boxes_are_those_of_the_smallest_box_over_them(drawn: tuple[list[np.ndarray], list[Box]]) -> None:
    _, boxes = drawn
    if covered(boxes):
        with pytest.raises(ConfigError, match="other boxes lie all over it"):
            cells_of_boxes(boxes, SIDE)
        return
    assert [list(cells) for cells in cells_of_boxes(boxes, SIDE)] == owners(boxes, SIDE)


@given(layouts())
def test_chosen_cells_are_those_of_plain_loops(drawn: tuple[list[np.ndarray], list[Box]]) -> None:
    maps, boxes = drawn
    counts = [len(own) for own in owners(boxes, SIDE)]
    assert [list(c) for c in chosen_cells(maps, counts)] == chosen_by_loops(maps, counts)


@pytest.mark.parametrize("move", MOVES)
@given(drawn=layouts(), seed=st.integers(0, 100), block=st.integers(1, 3), channels=st.integers(1, 3))
def test_an_edit_is_an_exact_permutation_of_blocks_and_boxes_hold_the_best(
    move: Move, drawn: tuple[list[np.ndarray], list[Box]], seed: int, block: int, channels: int
) -> None:
    maps, boxes = drawn
    if covered(boxes):
        return
    source = MOVES[move](maps, boxes, np.random.default_rng(seed))
    assert sorted(source) == list(range(SIDE * SIDE))
    areas = owners(boxes, SIDE)
    best = chosen_by_loops(maps, [len(a) for a in areas])
    for area, cells in zip(areas, best, strict=True):
        assert {int(source[c]) for c in area} == set(cells)
    noise = torch.randn(channels, SIDE * block, SIDE * block, generator=torch.Generator().manual_seed(seed))
    moved = move_blocks(noise, source)
    assert moved.flatten().sort().values.equal(noise.flatten().sort().values)
    for cell in range(SIDE * SIDE):
        (y, x), (v, u) = divmod(cell, SIDE), divmod(int(source[cell]), SIDE)
        now = moved[:, y * block : (y + 1) * block, x * block : (x + 1) * block]
        assert now.equal(noise[:, v * block : (v + 1) * block, u * block : (u + 1) * block])


@given(layouts())
def test_sorted_boxes_begin_with_the_best_and_the_rest_keeps_its_order(
    drawn: tuple[list[np.ndarray], list[Box]],
) -> None:
    maps, boxes = drawn
    if covered(boxes):
        return
    source = MOVES["sorted"](maps, boxes, np.random.default_rng(0))
    areas = owners(boxes, SIDE)
    for area, cells in zip(areas, chosen_by_loops(maps, [len(a) for a in areas]), strict=True):
        assert [int(source[c]) for c in area] == cells
    outside = [c for c in range(SIDE * SIDE) if not any(c in area for area in areas)]
    assert [int(source[c]) for c in outside] == sorted(int(source[c]) for c in outside)


@given(layouts(), st.integers(0, 100))
def test_exchange_leaves_every_block_that_lies_right_or_that_nobody_wants(
    drawn: tuple[list[np.ndarray], list[Box]], seed: int
) -> None:
    maps, boxes = drawn
    if covered(boxes):
        return
    source = MOVES["exchange"](maps, boxes, np.random.default_rng(seed))
    areas = owners(boxes, SIDE)
    best = chosen_by_loops(maps, [len(a) for a in areas])
    for area, cells in zip(areas, best, strict=True):
        for cell in set(area) & set(cells):
            assert source[cell] == cell
    unwanted = set(range(SIDE * SIDE)) - {c for part in (*areas, *best) for c in part}
    assert all(source[c] == c for c in unwanted)
    assert (source == MOVES["exchange"](maps, boxes, np.random.default_rng(seed))).all()


def test_one_word_takes_the_cells_above_its_threshold() -> None:
    score = np.arange(16, dtype=np.float32).reshape(4, 4)
    source = MOVES["exchange"]([score], [(0, 0, 2, 2)], np.random.default_rng(0))
    assert {int(source[c]) for c in (0, 1, 4, 5)} == {12, 13, 14, 15}
    assert {int(source[c]) for c in (12, 13, 14, 15)} == {0, 1, 4, 5}  # swapped, one for one


def test_boxes_and_latents_that_do_not_fit_are_told() -> None:
    for box in ((0, 0, 0, 1), (0, 0, 5, 1), (-1, 0, 1, 1)):
        with pytest.raises(ConfigError, match="empty, or out of 4 × 4 cells"):
            cells_of_boxes([box], 4)
    with pytest.raises(ConfigError, match="do not fall into 9 blocks"):
        move_blocks(torch.zeros(1, 4, 4), np.arange(9))
    with pytest.raises(ConfigError, match="do not fall into 8 blocks"):
        move_blocks(torch.zeros(1, 4, 4), np.arange(8))
