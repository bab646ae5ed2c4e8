"""The encoding thread: batches, refusals, and requests that are given up or fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from serving.batching import EncodingWorker
from serving.retrievers import PoolEncoder
from udr.errors import Overloaded
from udr.fakes import FakeEncoder
from udr.tasks.spec import TaskSpec
from udr.types import FloatArray, Query

SPEC = TaskSpec(name="t", family="custom", kind="generation", metric="rouge_l")


class Held(FakeEncoder):
    """Waits for leave; a query named `bad` fails its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.leave, self.begun, self.batches = threading.Event(), threading.Event(), list[int]()

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        self.begun.set()
        assert self.leave.wait(10)
        self.batches.append(len(queries))
        if any(q.id == "bad" for q in queries):
            raise ValueError("bad")
        return super().encode_queries(queries, instruction)


@pytest.fixture
def worker() -> Iterator[EncodingWorker]:
    opened = EncodingWorker(max_waiting=4)
    yield opened
    opened.close()


def query(name: str) -> list[Query]:
    return [Query(name, f"the text {name}")]


def test_what_waits_shares_a_pass_and_a_request_given_up_harms_nobody(worker: EncodingWorker) -> None:
    held = Held()
    encoder = PoolEncoder(held, SPEC)
    first = worker.encode_queries(encoder, query("a"))
    assert held.begun.wait(10)
    waiting = [worker.encode_queries(encoder, query(name)) for name in "bcd"]
    assert waiting[1].cancel()
    with pytest.raises(Overloaded):
        worker.encode_queries(encoder, query("e"))
    held.leave.set()
    for future, name in ((first, "a"), (waiting[0], "b"), (waiting[2], "d")):
        np.testing.assert_array_equal(future.result(10), FakeEncoder().encode_queries(query(name)))
    assert held.batches == [1, 2]
    with pytest.raises(ValueError, match="bad"):
        worker.encode_queries(encoder, query("bad")).result(10)
    assert worker.encode_queries(encoder, query("f")).result(10).shape == (1, 64)
    assert worker.alive


def test_a_request_alone_is_never_refused_for_its_size(worker: EncodingWorker) -> None:
    queries = [Query(str(i), f"text {i}") for i in range(50)]
    assert worker.encode_queries(PoolEncoder(FakeEncoder(), SPEC), queries).result(10).shape == (50, 64)


def test_after_the_end_nothing_is_taken_on() -> None:
    worker = EncodingWorker()
    worker.close()
    with pytest.raises(Overloaded):
        worker.encode_queries(PoolEncoder(FakeEncoder(), SPEC), query("a"))
    assert not worker.alive
