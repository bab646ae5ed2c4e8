"""Batches that are made ahead: in order, one at a time, with their errors; and memory that is kept."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from training.ahead import ahead, keeping_memory


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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts page faults as Linux does")
def test_memory_that_is_asked_for_again_is_not_fetched_again() -> None:
    import resource

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(48 << 20, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    usually = faults()
    with keeping_memory():
        faults()
        kept = faults()
    assert kept < usually / 10
    assert faults() > 10 * kept
