"""Batches that are made ahead: in order, one at a time, with their errors; and memory that is kept."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
import torch

from training.ahead import ahead


def test_steps_come_in_order_and_the_next_is_made_while_one_is_worked_on() -> None:
    made: list[int] = []
    threads: set[str] = set()

    def make(step: int) -> int:
        made.append(step)
        threads.add(threading.current_thread().name)
        return step * step

    before = torch.get_num_threads()
    found = []
    for given in ahead(make, 3, 7):
        found.append(given)
        until = time.monotonic() + 10
        while len(made) < min(len(found) + 1, 4) and time.monotonic() < until:
            time.sleep(0.001)
        assert made == list(range(3, min(4 + len(found), 7)))  # one ahead, and no more
    assert found == [9, 16, 25, 36]
    assert threading.current_thread().name not in threads
    assert torch.get_num_threads() == before
    assert list(ahead(make, 5, 5)) == []


def test_an_error_is_raised_at_its_step_and_a_caller_may_leave_early() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no such batch")
        return step

    found: list[int] = []
    with pytest.raises(ValueError, match="no such batch"):
        found.extend(ahead(make, 0, 5))
    assert found == [0, 1]
    with closing(ahead(make, 0, 2)) as batches:
        assert next(batches) == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


KEPT = """
import ctypes, torch
from training.ahead import keeping_memory

NAMES = "arena ordblks smblks hblks mapped usmblks fsmblks used free keepcost".split()

class Mallinfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)

ask = ctypes.CDLL(None).mallinfo2
ask.restype = Mallinfo
large = 48 << 20  # bytes; beyond what glibc would keep by itself

def mapped_for_one():
    before = ask().mapped
    piece = torch.ones(large, dtype=torch.uint8)
    return ask().mapped - before

assert mapped_for_one() >= large, "had from the system, and given back to it"
with keeping_memory():
    assert mapped_for_one() < large, "kept in the heap"
    assert ask().free >= large
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc what it keeps")
def test_memory_that_is_freed_is_kept_for_the_next_step() -> None:
    # in a process of its own: a heap that once kept a piece has room for it later, too
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
