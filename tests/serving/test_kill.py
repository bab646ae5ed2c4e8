"""kill −9 in a loop while clients write: what was acknowledged is there, once, and the index is what the store is."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

SERVE = """
import sys
import serving.background, serving.pool_index
from serving.app import serve
from serving.settings import Settings
serving.pool_index._WORTH = 1  # so that every start reads an index that was saved, or half of one
serving.background._TENDED = 0.05
serve(Settings(port=int(sys.argv[1]), database=sys.argv[2], cache=sys.argv[3], encoder="fake"))
"""
WRITERS = 3
UNSURE = object()  # a write without an answer: it may have been stored or not


@contextmanager
def serving(database: str, log: Path, script: str = SERVE) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server process that is ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(port), database, str(log.parent / "indexes")], stdout=file, stderr=file
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(httpx2.TransportError):
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    break
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process, url
    finally:
        process.kill()
        process.wait()


class Writer(threading.Thread):
    """Adds, replaces and deletes its own ids until the server is gone; knows what was acknowledged."""

    def __init__(self, url: str, number: int, known: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.url, self.number, self.known, self.random = url, number, known, random.Random(seed)

    def run(self) -> None:
        with httpx2.Client(base_url=self.url) as client, suppress(httpx2.TransportError):
            while True:
                keys = [f"w{self.number}-{k}" for k in self.random.sample(range(200), self.random.randint(1, 5))]
                if self.random.random() < 0.2:
                    self.delete(client, keys[0])
                else:
                    self.upsert(client, keys)

    def delete(self, client: httpx2.Client, key: str) -> None:
        before = self.known.get(key)
        self.known[key] = UNSURE
        status = client.delete(f"/v1/pools/p/demonstrations/{key}").status_code
        assert status == (404 if before is None else 204) or before is UNSURE, (status, before)
        self.known[key] = None

    def upsert(self, client: httpx2.Client, keys: list[str]) -> None:
        texts = {key: f"word{self.random.randrange(50)} {self.random.random()}" for key in keys}
        self.known.update(dict.fromkeys(keys, UNSURE))
        rows = [{"id": key, "input": text, "output": "y"} for key, text in texts.items()]
        answer = client.post("/v1/pools/p/demonstrations", json={"demonstrations": rows, "mode": "upsert"})
        assert answer.status_code == 201, answer.text
        self.known.update(texts)


def stored(client: httpx2.Client) -> dict[str, str]:
    """All of the pool by its list; an id twice is an error."""
    found: dict[str, str] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = client.get("/v1/pools/p/demonstrations", params={"limit": 1000, "cursor": cursor}).json()
        for d in page["demonstrations"]:
            assert d["id"] not in found
            found[d["id"]] = d["input"]
        cursor = page["next"]
    return found


def check(url: str, known: dict[str, Any]) -> None:
    with httpx2.Client(base_url=url) as client:
        found = stored(client)
        for key, text in known.items():
            if text is not UNSURE:
                assert found.get(key) == text, f"{key}: acknowledged {text!r}, stored {found.get(key)!r}"
        assert set(found) <= set(known), "nobody wrote these"
        for retriever in ("dense", "bm25"):
            asked = {"pool": "p", "queries": ["word1"], "k": 1000, "retriever": retriever}
            (result,) = client.post("/v1/retrieve", json=asked).json()["results"]
            assert {d["id"]: d["input"] for d in result["demonstrations"]} == found, retriever
    known.update({key: found.get(key) for key, text in known.items() if text is UNSURE})


def kill_in_a_loop(database: str, folder: Path, kills: int) -> None:
    log = folder / "log"
    everything: dict[str, Any] = {}
    rng = random.Random(kills)
    for turn in range(kills):
        with serving(database, log) as (process, url):
            if turn == 0:
                assert httpx2.post(f"{url}/v1/pools", json={"name": "p"}).status_code == 201
            check(url, everything)
            own = [{k: v for k, v in everything.items() if k.startswith(f"w{i}-")} for i in range(WRITERS)]
            writers = [Writer(url, i, own[i], seed=turn * 10 + i) for i in range(WRITERS)]
            for writer in writers:
                writer.start()
            time.sleep(rng.uniform(0.05, 0.5))
            os.kill(process.pid, signal.SIGKILL)
            for writer in writers:
                writer.join()
                everything |= writer.known
    assert any(text not in (None, UNSURE) for text in everything.values())
    with serving(database, log) as (_, url):
        check(url, everything)
    assert not [line for line in log.read_text().splitlines() if '"status": 5' in line]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_nothing_acknowledged_is_lost_in_twenty_kills(database_url: str, tmp_path: Path) -> None:
    kill_in_a_loop(database_url, tmp_path, 20)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_two_hundred_kills(database_url: str, tmp_path: Path) -> None:
    kill_in_a_loop(database_url, tmp_path, 200)
