"""Progress lines where the output is no terminal."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.console import Console

import training.progress
from training.progress import reporting
from udr.errors import UDRWarning


def lines(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[float, int, int]]) -> list[str]:
    """What is printed when the work tells (second, done, total)."""
    clock = [0.0]
    monkeypatch.setattr(training.progress.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=200)
    with reporting(console) as report:
        tell = report("scores")
        for clock[0], done, total in calls:
            tell(done, total)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, [(0, 0, 4), (8, 1, 4), (16, 2, 4), (24, 3, 4), (32, 4, 4)]) == [
        "scores: 2/4, 16 s, ETA 16 s",
        "scores: 4/4, 32 s, ETA 0 s",
    ]


def test_the_eta_counts_large_units_and_not_what_an_earlier_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, [(0, 0, 100), (18, 64, 100)]) == ["scores: 64/100, 18 s, ETA 10 s"]
    assert lines(monkeypatch, [(0, 80, 100), (20, 90, 100)]) == ["scores: 90/100, 20 s, ETA 20 s"]


def test_the_clock_starts_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded between the title and the first unit."""
    assert lines(monkeypatch, [(50, 0, 2), (70, 1, 2), (90, 2, 2)]) == [
        "scores: 1/2, 20 s, ETA 20 s",
        "scores: 2/2, 40 s, ETA 0 s",
    ]


@pytest.mark.filterwarnings("default")
def test_a_warning_of_this_project_is_one_line_and_others_are_left_to_python() -> None:
    console, long = Console(file=io.StringIO(), width=80), 30 * "word "
    with reporting(console):
        warnings.warn(f"[a] task was lost {long}", UDRWarning, stacklevel=1)
        with pytest.warns(DeprecationWarning, match="of another"):
            warnings.warn("of another", DeprecationWarning, stacklevel=1)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == f"warning: [a] task was lost {long}\n"
