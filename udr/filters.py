"""Which demonstrations a request may see, by their metadata: conditions over dictionary-coded columns.

A filter is a mapping from metadata keys to a value (`{"lang": "en"}`) or to operators (`{"year": {"gte": 2020}}`); all
conditions must hold. `eq`, `in`, `ne`, `not_in` compare text; `gt`, `gte`, `lt`, `lte` compare numbers and fail on a
value that is none; `exists` asks whether the key is there. `ne` and `not_in` hold where the key is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udr.errors import ConfigError, UnknownNameError

__all__ = ["OPERATORS", "Codebook", "Columns", "Condition", "parse_filter"]

Columns = dict[str, NDArray[np.int32]]  # metadata key -> code (m,) of each row's value; -1 = absent

OPERATORS = ("eq", "ne", "in", "not_in", "gt", "gte", "lt", "lte", "exists")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


class Condition(NamedTuple):
    """One thing that must hold of one metadata key."""

    key: str
    operator: str
    values: tuple[str, ...] = ()  # for eq, ne, in and not_in
    bound: float = 0.0  # for gt, gte, lt and lte
    wanted: bool = True  # for exists


def parse_filter(where: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Check a filter and give its conditions.

    Raises:
        UnknownNameError: an operator that is none of OPERATORS.
        ConfigError: a value that the operator cannot use (names the key).
    """
    found = []
    for key, stated in where.items():
        operators = stated if isinstance(stated, Mapping) else {"eq": stated}
        if not operators:
            raise ConfigError(f"filter {key!r}: expected a value or one of {', '.join(OPERATORS)}")
        found += [_condition(key, operator, value) for operator, value in operators.items()]
    return tuple(found)


def _condition(key: str, operator: str, value: object) -> Condition:
    if operator not in OPERATORS:
        raise UnknownNameError("filter operator", operator, OPERATORS)
    where = f"filter {key!r}, {operator}"
    if operator == "exists":
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: expected true or false")
        return Condition(key, operator, wanted=value)
    if operator in _COMPARE:
        bound = _number(value)
        if bound is None:
            raise ConfigError(f"{where}: expected a number")
        return Condition(key, operator, bound=bound)
    many = operator in ("in", "not_in")
    if many and not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: expected a list")
    values = value if isinstance(value, list | tuple) and many else [value]
    return Condition(key, operator, tuple(as_text(v, where) for v in values))


def as_text(value: object, where: str) -> str:
    """Metadata are text; numbers and truth values are written as JSON writes them.

    Raises:
        ConfigError: a list, an object, null, or a number that is not finite.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise ConfigError(f"{where}: expected text, a number or true/false")


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class Codebook:
    """The distinct values of each metadata key, numbered in the order they came; it only grows.

    Not locked for `encode`; `admitted` may run beside it on columns that were encoded before.
    """

    def __init__(self, codes: Mapping[str, Sequence[str]] | None = None) -> None:
        given = codes or {}
        self._codes: dict[str, dict[str, int]] = {key: {v: i for i, v in enumerate(own)} for key, own in given.items()}

    def codes(self) -> dict[str, list[str]]:
        """The values of each key in the order of their codes, for another codebook to begin with."""
        return {key: list(own) for key, own in self._codes.items()}

    def encode(self, rows: Sequence[Mapping[str, str]]) -> Columns:
        """Code the metadata of m rows; a key that no row has makes no column."""
        columns: Columns = {}
        for i, row in enumerate(rows):
            for key, value in row.items():
                if key not in columns:
                    columns[key] = np.full(len(rows), -1, dtype=np.int32)
                codes = self._codes.setdefault(key, {})
                columns[key][i] = codes.setdefault(value, len(codes))
        return columns

    def admitted(self, conditions: Sequence[Condition], columns: Columns, size: int) -> NDArray[np.bool_]:
        """Tell for each of `size` rows whether all conditions hold."""
        return self.prepare(conditions)(columns, size)

    def prepare(self, conditions: Sequence[Condition]) -> Callable[[Columns, int], NDArray[np.bool_]]:
        """What tells so of any columns encoded up to now; the values are compared once for all of them."""
        tables = [(condition.key, self._table(condition)) for condition in conditions]

        def admits(columns: Columns, size: int) -> NDArray[np.bool_]:
            mask = np.ones(size, dtype=np.bool_)
            for key, table in tables:
                column = columns.get(key)
                mask &= table[-1] if column is None else table[column]
            return mask

        return admits

    def _table(self, condition: Condition) -> NDArray[np.bool_]:
        """What a condition says of each code; the last place, which −1 points to, of an absent key."""
        codes = self._codes.get(condition.key, {})
        values = list(codes)  # at once: another thread may add to it
        table = np.zeros(len(values) + 1, dtype=np.bool_)
        if condition.operator == "exists":
            table[:-1], table[-1] = condition.wanted, not condition.wanted
        elif condition.operator in _COMPARE:
            holds = _COMPARE[condition.operator]
            numbers = [_number(v) for v in values]
            table[:-1] = [n is not None and holds(n, condition.bound) for n in numbers]
        else:
            table[[c for v in condition.values if (c := codes.get(v, len(values))) < len(values)]] = True
            if condition.operator in ("ne", "not_in"):
                table = ~table
        return table
