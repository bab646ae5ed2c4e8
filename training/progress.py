"""Where long work tells how far it is: bars with an ETA on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from training.run import Note, Report
from udr.errors import UDRWarning
from udr.types import Progress

__all__ = ["hush_transformers", "reporting"]

LINE_EVERY = 10.0  # seconds, where the output is no terminal


def hush_transformers() -> None:
    """Keep the bars and remarks of transformers on loading and saving off the terminal; downloads stay shown."""
    try:
        from huggingface_hub.utils import enable_progress_bars
        from transformers.utils import logging
    except ImportError:
        return
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    enable_progress_bars()  # of the hub, which the first line stops too


@contextmanager
def reporting(console: Console) -> Iterator[Report]:
    """Give a function that starts a bar for each title; warnings of this project are lines of their own."""
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, UDRWarning):
                console.print(f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True)
            else:
                before(message, category, *rest, **more)

        warnings.showwarning = show
        with _bars(console) as report:
            yield report


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    if not console.is_terminal:
        yield lambda title, note=None: _lines(console, title, note)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:

        def start(title: str, note: Note = None) -> Progress:
            task = bars.add_task(title, total=None, note="")

            def tell(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total, note=note() if note else "")

            return tell

        yield start


def _lines(console: Console, title: str, note: Note) -> Progress:
    begun: int | None = None  # where this process took up the work
    started = last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal started, last, begun
        now = time.monotonic()
        if begun is None:
            begun, started, last = done, now, now
        if done == begun or (done < total and now - last < LINE_EVERY):
            return
        last = now
        left = (now - started) / (done - begun) * (total - done)
        more = f", {note()}" if note else ""
        console.print(
            f"{title}: {done}/{total}, {now - started:.0f} s, ETA {left:.0f} s{more}", highlight=False, soft_wrap=True
        )

    return tell
