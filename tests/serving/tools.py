"""What tests of the service share."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings


def refused(answer: Any, status: int, words: str) -> None:
    """A problem body of that status whose one line holds these words."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["type"].startswith("urn:udr:")
    assert body["status"] == status
    assert words in body["detail"]
    assert "\n" not in body["detail"]


def finished(client: TestClient, begun: Any, state: str = "done") -> dict[str, Any]:
    """The job of a 202 answer once it has ended, in that state."""
    assert begun.status_code == 202, begun.text
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/v1/jobs/{begun.json()['id']}").json()
        if job["state"] not in ("queued", "running"):
            assert job["state"] == state, job
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job takes too long: {job}")


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The service on a socket, by its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, access_log=False, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
