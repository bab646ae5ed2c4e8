"""The error tree: one root, one line each, near names."""

from __future__ import annotations

import inspect
import re

import udr.errors
from udr.errors import MissingDependencyError, UDRError, UDRWarning, UnknownNameError


def test_the_docstring_names_exactly_the_errors_there_are() -> None:
    named = re.findall(r"[├└]── (\w+)", udr.errors.__doc__ or "")
    classes = [name for name in udr.errors.__all__ if inspect.isclass(getattr(udr.errors, name))]
    assert sorted([*named, "UDRError", "UDRWarning"]) == sorted(classes)
    for name in [*named, "UDRError"]:
        assert issubclass(getattr(udr.errors, name), UDRError)
    assert issubclass(UDRWarning, UserWarning)


def test_an_unknown_name_lists_the_near_ones() -> None:
    error = UnknownNameError("task", "sst3", ["agnews", "sst2", "sst5"])
    assert error.near == ["sst5", "sst2"]
    assert str(error) == "unknown task 'sst3'; did you mean sst5, sst2?"


def test_a_name_like_no_other_lists_all() -> None:
    assert str(UnknownNameError("metric", "zzz", ["b", "a"])) == "unknown metric 'zzz'; known: a, b"


def test_a_missing_package_says_what_to_run() -> None:
    assert "pip install 'udr[train]'" in str(MissingDependencyError("faiss-cpu", "train"))
