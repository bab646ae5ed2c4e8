"""Steps without waiting: a batch is made while the step before it runs, and memory is kept rather than given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["ahead", "keeping_memory"]

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
EVER, TRIM, MMAPS = 2**31 - 1, 128 << 10, 65536  # no limit, and the two defaults


def ahead(make: Callable[[int], T], first: int, end: int) -> Generator[T]:
    """make(first), …, make(end − 1): one is made in another thread while the caller works with the one before.

    What `make` gives must depend on its number alone. An error of it is raised where its result is asked for.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "ahead", lambda: torch.set_num_threads(1)) as pool:
        coming = pool.submit(make, first) if first < end else None
        for step in range(first, end):
            assert coming is not None
            try:
                made = coming.result()
            finally:
                if step == first:  # torch has one number for the process, too, and the caller keeps its own
                    torch.set_num_threads(threads)
            coming = pool.submit(make, step + 1) if step + 1 < end else None
            yield made


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Let the C library keep what is freed: steps ask for the same large pieces again and again.

    By default it gives them back to the system and gets them anew, page by page, which costs a small network
    much of its time on a CPU. Elsewhere than with glibc nothing changes.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)
    if library is None or mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, EVER)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, MMAPS)
        mallopt(M_TRIM_THRESHOLD, TRIM)
        library.malloc_trim(0)
