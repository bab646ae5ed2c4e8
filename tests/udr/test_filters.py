from __future__ import annotations

from typing import Any

import pytest

from udr.errors import ConfigError, UnknownNameError
from udr.filters import Codebook, parse_filter

ROWS: list[dict[str, str]] = [
    {"lang": "en", "year": "2020"},
    {"lang": "de", "year": "2021.5"},
    {"lang": "en"},
    {"year": "unknown", "lang": ""},
    {},
]


def kept(where: dict[str, Any]) -> list[int]:
    book = Codebook()
    columns = book.encode(ROWS)
    return [int(i) for i in book.admitted(parse_filter(where), columns, len(ROWS)).nonzero()[0]]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"lang": "en"}, [0, 2]),
        ({"lang": {"ne": "en"}}, [1, 3, 4]),
        ({"lang": {"in": ["de", "fr", ""]}}, [1, 3]),
        ({"lang": {"in": []}}, []),
        ({"lang": {"not_in": ["de", "fr"]}}, [0, 2, 3, 4]),
        ({"year": 2020}, [0]),
        ({"year": {"gt": 2020}}, [1]),
        ({"year": {"gte": "2020", "lt": 2021.5}}, [0]),
        ({"year": {"lte": 1e9}}, [0, 1]),
        ({"year": {"exists": True}}, [0, 1, 3]),
        ({"year": {"exists": False}}, [2, 4]),
        ({"lang": "en", "year": {"exists": False}}, [2]),
        ({"nobody": "x"}, []),
        ({"nobody": {"ne": "x"}}, [0, 1, 2, 3, 4]),
        ({"nobody": {"gt": 0}}, []),
    ],
)
def test_a_filter_keeps_the_rows_that_meet_it(where: dict[str, Any], rows: list[int]) -> None:
    assert kept(where) == rows


@pytest.mark.parametrize(
    "where",
    [{"a": {"in": "en"}}, {"a": {"gt": "many"}}, {"a": {"lt": float("nan")}}, {"a": {}}, {"a": None}, {"a": [1]},
     {"a": {"exists": 1}}, {"a": {"eq": {"b": 1}}}, {"a": float("inf")}],
)  # fmt: skip
def test_a_filter_that_cannot_be_used_is_refused_by_key(where: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="filter 'a'"):
        parse_filter(where)


def test_a_misspelt_operator_is_told_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="not_in"):
        parse_filter({"a": {"notin": ["b"]}})


def test_a_column_encoded_before_a_value_came_does_not_hold_it() -> None:
    book = Codebook()
    before = book.encode([{"lang": "en"}])
    book.encode([{"lang": "de"}])
    assert not book.admitted(parse_filter({"lang": "de"}), before, 1).any()
