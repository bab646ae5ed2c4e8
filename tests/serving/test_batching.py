"""The encoding thread: batches, refusals, and requests that are given up or fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from serving.batching import EncodingWorker
from serving.retrievers import PoolEncoder
from udr.errors import DataError, Overloaded
from udr.fakes import FakeEncoder
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, FloatArray, Query

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
    assert not worker.full
    with pytest.raises(Overloaded):
        worker.encode_queries(encoder, query("e"))
    assert worker.full
    time.sleep(0.1)
    assert not worker.full
    held.leave.set()
    for future, name in ((first, "a"), (waiting[0], "b"), (waiting[2], "d")):
        np.testing.assert_array_equal(future.result(10), FakeEncoder().encode_queries(query(name)))
    assert held.batches == [1, 2]
    held.leave.clear()
    waits = worker.encode_queries(encoder, query("g"))
    with pytest.raises(Overloaded):  # one that is too large, while there is room for small ones
        worker.encode_queries(encoder, [Query(str(i), "text") for i in range(9)])
    assert not worker.full
    held.leave.set()
    waits.result(10)
    with pytest.raises(ValueError, match="bad"):
        worker.encode_queries(encoder, query("bad")).result(10)
    assert worker.encode_queries(encoder, query("f")).result(10).shape == (1, 64)
    assert worker.alive


def test_one_request_that_fails_does_not_fail_those_it_shared_a_pass_with(worker: EncodingWorker) -> None:
    held = Held()
    encoder = PoolEncoder(held, SPEC)
    first = worker.encode_queries(encoder, query("a"))
    assert held.begun.wait(10)
    waiting = [worker.encode_queries(encoder, query(name)) for name in ("b", "bad", "c")]
    held.leave.set()
    first.result(10)
    for future, name in ((waiting[0], "b"), (waiting[2], "c")):
        np.testing.assert_array_equal(future.result(10), FakeEncoder().encode_queries(query(name)))
    with pytest.raises(ValueError, match="bad"):
        waiting[1].result(10)
    assert held.batches[:2] == [1, 3]


class HeldBulk(FakeEncoder):
    """Demonstrations wait for leave; counts how many passes over them are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.leave, self.begun = threading.Event(), threading.Event()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.begun.set()
        assert self.leave.wait(10)
        with self._lock:
            self.now -= 1
        return super().encode_demonstrations(demonstrations, instruction)


def test_bulk_work_leaves_a_thread_to_queries_and_comes_back_in_order() -> None:
    worker, held = EncodingWorker(threads=3), HeldBulk()
    encoder = PoolEncoder(held, SPEC)
    rows = [Demonstration(str(i), f"text {i}", "out") for i in range(300)]
    with ThreadPoolExecutor(1) as threads:
        bulk = threads.submit(worker.encode_demonstrations, encoder, rows)
        assert held.begun.wait(10)
        for name in "abc":  # they pass by
            assert worker.encode_queries(encoder, query(name)).result(10).shape == (1, 64)
        assert not bulk.done()
        held.leave.set()
        np.testing.assert_array_equal(bulk.result(10), encoder.encode_demonstrations(rows))
    assert held.most == 2
    worker.close()


def test_many_clients_at_once_get_what_each_would_get_alone() -> None:
    worker, encoder = EncodingWorker(threads=4), PoolEncoder(FakeEncoder(), SPEC)
    queries = [query(str(i)) for i in range(400)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda q: worker.encode_queries(encoder, q).result(10), queries))
    for own, vectors in zip(queries, found, strict=True):
        np.testing.assert_array_equal(vectors, encoder.encode_queries(own))
    assert worker.waiting == 0
    worker.close()


def test_a_request_encodes_by_itself_only_while_a_pass_is_free_and_nobody_waits(worker: EncodingWorker) -> None:
    held = Held()
    encoder = PoolEncoder(held, SPEC)
    with ThreadPoolExecutor(1) as threads:
        own = threads.submit(worker.encode_now, encoder, query("a"))
        assert held.begun.wait(10)
        assert worker.waiting == 1
        assert worker.encode_now(encoder, query("b")) is None  # the only pass is taken
        waiting = worker.encode_queries(encoder, query("c"))
        time.sleep(0.05)
        assert held.batches == []
        held.leave.set()
        np.testing.assert_array_equal(own.result(10), FakeEncoder().encode_queries(query("a")))
        np.testing.assert_array_equal(waiting.result(10), FakeEncoder().encode_queries(query("c")))
    assert held.batches == [1, 1]
    with pytest.raises(ValueError, match="bad"):
        worker.encode_now(encoder, query("bad"))
    while worker.waiting:  # the worker counts after its answer
        time.sleep(0.001)
    assert worker.encode_now(encoder, query("d")) is not None


class Broken(FakeEncoder):
    """Fails by an error, if it is given one."""

    error: Exception | None = None

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        if self.error:
            raise self.error
        return super().encode_demonstrations(demonstrations, instruction)

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        if self.error:
            raise self.error
        return super().encode_queries(queries, instruction)


def test_an_encoder_that_fails_again_and_again_is_not_ready_for_a_while(
    worker: EncodingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken()
    encoder = PoolEncoder(broken, SPEC)

    def fail(times: int, error: Exception) -> None:
        broken.error = error
        for _ in range(times):
            with pytest.raises(type(error)):
                worker.encode_queries(encoder, query("a")).result(10)

    fail(9, DataError("no picture"))
    fail(4, ValueError("no such kernel"))
    broken.error = None
    assert worker.encode_queries(encoder, query("a")).result(10).shape == (1, 64)
    fail(4, ValueError("no such kernel"))
    assert worker.state == "ok"
    fail(1, ValueError("no such kernel"))
    assert worker.state == "the last 5 encodings failed"
    monkeypatch.setattr("serving.batching._RESTED", 0)
    assert worker.state == "ok"


def test_demonstrations_that_cannot_be_encoded_leave_the_service_ready(worker: EncodingWorker) -> None:
    broken = Broken()
    broken.error = ValueError("no such kernel")
    for _ in range(9):
        with pytest.raises(ValueError, match="kernel"):
            worker.encode_demonstrations(PoolEncoder(broken, SPEC), [Demonstration("1", "a", "b")])
    assert worker.state == "ok"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_once_memory_has_run_out_the_process_is_asked_to_end(error: Exception) -> None:
    ended = []
    worker, broken = EncodingWorker(end=lambda: ended.append(True)), Broken()
    broken.error = error
    encoder = PoolEncoder(broken, SPEC)
    with pytest.raises(type(error)):
        worker.encode_queries(encoder, query("a")).result(10)
    while worker.waiting:
        time.sleep(0.001)
    with pytest.raises(type(error)):
        worker.encode_now(encoder, query("a"))
    assert ended == [True]
    assert "memory" in worker.state
    worker.close()


def test_a_request_alone_is_never_refused_for_its_size(worker: EncodingWorker) -> None:
    queries = [Query(str(i), f"text {i}") for i in range(50)]
    assert worker.encode_queries(PoolEncoder(FakeEncoder(), SPEC), queries).result(10).shape == (50, 64)


def test_after_the_end_nothing_is_taken_on() -> None:
    worker = EncodingWorker()
    worker.close()
    with pytest.raises(Overloaded):
        worker.encode_queries(PoolEncoder(FakeEncoder(), SPEC), query("a"))
    assert not worker.alive
