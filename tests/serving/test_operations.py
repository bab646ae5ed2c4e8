"""Snapshots, worker processes, overload and traces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from serving.app import create_app
from serving.settings import Settings, parse_settings
from tests.serving.postgres import free_port
from tests.serving.test_kill import serving
from tests.serving.tools import finished, refused
from training.cli import app
from udr.fakes import FakeEncoder
from udr.types import FloatArray, Query

ROWS = {"demonstrations": [{"id": "1", "input": "a text", "output": "y"}]}


def udr(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    return result.output if result.exit_code == 0 else f"{result.exit_code}: {result.exception}"


def test_a_snapshot_is_taken_while_it_is_served_and_put_back_while_not(tmp_path: Path) -> None:
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake")
    url, file = settings.database, tmp_path / "snapshot"
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "p"})
        client.post("/v1/pools/p/demonstrations", json=ROWS)
        assert "MB" in udr("snapshot", str(file), "--database", url)
        assert "is there already" in udr("snapshot", str(file), "--database", url)
        client.delete("/v1/pools/p")
        assert "has it open" in udr("restore", str(file), "--database", url, "--replace")
        assert client.get("/v1/pools").json()["pools"] == []
    assert "--replace" in udr("restore", str(file), "--database", url)
    assert "restored" in udr("restore", str(file), "--database", url, "--replace")
    with TestClient(create_app(settings)) as client:
        assert client.get("/v1/pools/p/demonstrations/1").json()["input"] == "a text"
        found = client.post("/v1/retrieve", json={"pool": "p", "queries": ["text"]}).json()
        assert len(found["results"][0]["demonstrations"]) == 1
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    assert "not a whole snapshot" in udr("restore", str(file), "--database", f"sqlite:///{tmp_path}/new.sqlite")
    assert not (tmp_path / "new.sqlite").exists()
    assert "pg_dump" in udr("snapshot", str(file), "--database", "postgresql+psycopg://a@b/c")


def test_settings_survive_the_way_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Settings(port=1234, retrievers={"mine": "a b"}, rate="3/second", audit_days=2.5, key="ö'\"")
    for name, value in own.as_environment().items():
        monkeypatch.setenv(name, value)
    assert parse_settings({}) == own


def test_several_workers_count_together(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "UDR_ENCODER": "fake", "UDR_DATABASE": f"sqlite:///{tmp_path}/udr.sqlite"}
    command = [sys.executable, "-m", "training.cli", "serve", "--port", str(port), "--workers", "2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            with suppress(httpx2.TransportError):
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert httpx2.post(f"{url}/v1/pools", json={"name": "p"}).status_code == 201
        assert httpx2.post(f"{url}/v1/pools/p/demonstrations", json=ROWS).status_code == 201
        asked = {"pool": "p", "queries": ["text"]}
        for _ in range(40):  # each over a connection of its own, to either process
            (result,) = httpx2.post(f"{url}/v1/retrieve", json=asked).json()["results"]
            assert len(result["demonstrations"]) == 1
        text = httpx2.get(f"{url}/metrics").text
        counted = re.search(r'udr_answers_total{method="POST",route="/v1/retrieve",status="200"} (\S+)', text)
        assert counted is not None
        assert float(counted[1]) == 40
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert sum(line.get("path") == "/v1/retrieve" for line in logged) == 40


FAILING = """
import sys
import serving.retrievers
from serving.app import serve
from serving.settings import Settings
from udr.fakes import FakeEncoder

class Failing(FakeEncoder):
    def encode_queries(self, queries, instruction=""):
        for query in queries:
            if query.input == "odd":
                raise ValueError("an odd one")
            if query.input == "huge":
                raise MemoryError
        return super().encode_queries(queries, instruction)

serving.retrievers.FakeEncoder = Failing
serve(Settings(port=int(sys.argv[1]), database=sys.argv[2], encoder="fake"))
"""


def test_failures_are_logged_under_their_requests_and_without_memory_the_process_ends(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/udr.sqlite", tmp_path / "log", FAILING) as (process, url):
        assert httpx2.post(f"{url}/v1/pools", json={"name": "p"}).status_code == 201
        for query in ("odd", "huge"):
            asked = {"pool": "p", "queries": [query]}
            answer = httpx2.post(f"{url}/v1/retrieve", json=asked, headers={"x-request-id": f"mine-{query}"})
            refused(answer, 500, "log")
            assert answer.headers["x-request-id"] == f"mine-{query}"
        assert process.wait(30) in (0, -signal.SIGTERM)
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]  # each is JSON
    failed = {line["request_id"]: line["exception"] for line in logged if line["event"] == "failed"}
    assert failed.keys() == {"mine-odd", "mine-huge"}
    assert "an odd one" in failed["mine-odd"]
    assert any(line.get("logger") == "uvicorn.error" for line in logged)
    assert sum("out of memory" in line["event"] for line in logged) == 1


def test_a_job_that_uses_up_memory_ends_three_processes_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausting(*_: object) -> FloatArray:
        raise MemoryError

    ended = threading.Event()
    monkeypatch.setattr("serving.app._end_process", ended.set)
    monkeypatch.setattr("serving.sql.jobs._SILENT", 1.5)
    monkeypatch.setattr("serving.retrievers.PoolEncoder.encode_demonstrations", exhausting)
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake")
    lines = b'{"id": "1", "input": "a text", "output": "y"}'
    for life in range(3):
        ended.clear()
        with TestClient(create_app(settings)) as client:
            assert client.get("/readyz").status_code == 200
            if life == 0:
                client.post("/v1/pools", json={"name": "p"})
                kind = {"content-type": "application/x-ndjson"}
                begun = client.post("/v1/pools/p/load", content=lines, headers=kind)
            assert ended.wait(20)
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["encoding"]) == (503, "out of memory; the process ends")
    with TestClient(create_app(settings)) as client:
        assert "3 processes in a row" in finished(client, begun, "failed")["error"]
        assert client.get("/readyz").status_code == 200


class Slow(FakeEncoder):
    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        time.sleep(0.05)
        return super().encode_queries(queries, instruction)


def test_too_much_work_is_refused_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.retrievers.FakeEncoder", Slow)
    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake", max_waiting=4, max_in_flight=20)
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "p"})
        client.post("/v1/pools/p/demonstrations", json=ROWS)

        def ask(_: int) -> tuple[int, str | None]:
            answer = client.post("/v1/retrieve", json={"pool": "p", "queries": ["a text"]})
            return answer.status_code, answer.headers.get("retry-after")

        with ThreadPoolExecutor(40) as threads:
            answers = Counter(threads.map(ask, range(300)))
            assert client.get("/livez").status_code == 200
        assert set(answers) == {(200, None), (429, "1")}
        assert answers[200, None] >= 20
        time.sleep(0.1)
        assert ask(0) == (200, None)
        many = client.post("/v1/retrieve", json={"pool": "p", "queries": ["a"] * 50})
        assert many.status_code == 200  # a request alone is never refused for its size


def test_while_a_refusal_holds_requests_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_app(Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake"))) as client:
        monkeypatch.setattr("serving.batching.EncodingWorker.full", True)
        for path in ("/v1/retrieve", "/v1/prompt", "/v1/embeddings"):
            answer = client.post(path, content=b"not even JSON")
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
        assert client.get("/v1/pools").status_code == 200
        monkeypatch.undo()
        assert client.post("/v1/retrieve", content=b"not even JSON").status_code == 422


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    received = list[bytes]()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        traces = f"http://127.0.0.1:{server.server_port}"
        settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake", traces=traces)
        with TestClient(create_app(settings)) as client:
            client.post("/v1/pools", json={"name": "p"})
        server.shutdown()
    spans = b"".join(received)
    assert b"POST /v1/pools" in spans
    assert b"INSERT" in spans
