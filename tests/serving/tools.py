"""What tests of the service share."""

from __future__ import annotations

import time
from typing import Any

from fastapi.testclient import TestClient


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
