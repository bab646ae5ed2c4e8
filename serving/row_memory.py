"""Demonstrations that were read from the database and need not be read again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from serving.sql.rows import Stored
from serving.sql.store import Store
from udr.types import Demonstration

__all__ = ["RowMemory", "characters_of_media"]

_MOST = 50_000  # demonstrations: some 50 MB
_LIGHT = 8192  # characters of media of one; pictures are read again
_PAGE = 2000  # read ahead at a time


class RowMemory:
    """The demonstrations of all pools by row, as many as there is room for.

    A row never changes and its number is never used again, so one that an index still holds may be remembered.

    Args:
        store: the database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[int, Stored] = {}
        self._read_to: dict[int, int] = {}  # the last row of each pool that was read ahead

    def get(self, pool_id: int, rows: Sequence[int]) -> dict[int, Stored]:
        """Demonstrations of a pool by row, without those that are gone."""
        found = {row: stored for row in rows if (stored := self._known.get(row)) is not None}
        if len(found) < len(rows):
            fresh = self._store.get(pool_id, [row for row in rows if row not in found])
            found |= fresh
            if len(self._known) > _MOST:
                self._known.clear()
            light = {row: s for row, s in fresh.items() if characters_of_media(s.demonstration) <= _LIGHT}
            self._known |= light
        return found

    def read_ahead(self, pool_id: int) -> None:
        """Read a pool's demonstrations before they are asked for, as far as there is room for all pools'."""
        while len(self._known) < _MOST // 2:
            rows, behind = self._store.light(pool_id, self._read_to.get(pool_id, 0), _PAGE, _LIGHT)
            if not behind:
                break
            self._known |= {stored.row: stored for stored in rows}
            self._read_to[pool_id] = behind

    def forget_all_but(self, pools: Collection[int]) -> None:
        """Forget how far pools were read that are no more."""
        for number in self._read_to.keys() - set(pools):
            self._read_to.pop(number, None)


def characters_of_media(demonstration: Demonstration) -> int:
    """Characters of what it shows and plays."""
    return sum(len(m.uri) for m in demonstration.media)
