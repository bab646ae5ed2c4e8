"""The client against the service on a socket: the same calls, sent at once or awaited, mean the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import udr.client
from serving.settings import Settings
from tests.serving.tools import served
from udr.client import AsyncClient, Client
from udr.errors import (
    ConflictError,
    DataError,
    NotFoundError,
    Overloaded,
    PreconditionFailed,
    PromptTooLong,
    ServiceError,
    UnknownNameError,
)
from udr.types import Demonstration, Media, Query

LABELS = {"billing": "Billing", "printer": "Printer"}
TICKETS = [
    Demonstration("t1", "the invoice is wrong", "billing", metadata={"lang": "en"}),
    Demonstration("t/2", "the printer is on fire", "printer", references=("printer", "Printer")),
    Demonstration("t3", "der printer brennt", "printer", media=(Media("image", "https://example.org/a.png"),)),
]


class Awaiting:
    """An AsyncClient whose calls are waited for one by one."""

    def __init__(self, url: str, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(url, *args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._loop.run_until_complete(getattr(self._client, name)(*args, **kwargs))

    def __enter__(self) -> Awaiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.close()


KINDS: list[Any] = [Client, Awaiting]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(Settings(database=f"sqlite:///{tmp_path_factory.mktemp('c')}/u.sqlite", encoder="fake")) as url:
        yield url


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    with request.param(url) as client:
        yield client


@pytest.fixture
def tickets(client: Any) -> Iterator[str]:
    client.create_pool("tickets", {"verbaliser": LABELS}, front={"k": 2})
    assert client.add("tickets", TICKETS) == ["t1", "t/2", "t3"]
    yield "tickets"
    client.delete_pool("tickets")


def test_a_pool_from_its_making_to_its_end(client: Any, tickets: str) -> None:
    assert client.pool("tickets")["front"] == {"k": 2}
    assert [p["name"] for p in client.pools()[0]] == ["tickets"]
    assert [client.get("tickets", d.id) for d in TICKETS] == TICKETS
    first = client.demonstrations("tickets", limit=2)
    assert [d.id for d in first.demonstrations] == ["t1", "t/2"]
    second = client.demonstrations("tickets", cursor=first.next)
    assert ([d.id for d in second.demonstrations], second.next) == (["t3"], "")
    assert [d.id for d in client.demonstrations("tickets", where={"lang": "en"}).demonstrations] == ["t1"]
    client.delete("tickets", "t/2")
    with pytest.raises(NotFoundError, match="'t/2'"):
        client.get("tickets", "t/2")


def test_retrieval_and_prompts(client: Any, tickets: str) -> None:
    one, two = client.retrieve("tickets", ["a printer on fire", Query("q", "an invoice")], k=1)
    assert one.hits[0].demonstration == TICKETS[1]
    assert (two.hits[0].demonstration.id, two.hits[0].rank, two.tokens_cut) == ("t1", 1, 0)
    (found,) = client.retrieve("tickets", ["a printer on fire"], where={"lang": "en"}, retriever="bm25")
    assert [h.demonstration.id for h in found.hits] == ["t1"]
    (prompt,) = client.prompt("tickets", ["a printer on fire"], k=3, budget=80)
    assert prompt.text.endswith("the printer is on fire\tPrinter\na printer on fire\t")
    assert prompt.messages[-1] == {"role": "user", "content": "a printer on fire"}
    assert prompt.tokens == len(prompt.text) <= prompt.budget == 80
    assert [h.demonstration.id for h in prompt.hits][-1] == "t/2"
    assert (prompt.truncated, prompt.tokens_cut, prompt.hits[0].tokens, prompt.passed_over) == (True, 0, None, [])
    assert {d.demonstration_id for d in prompt.dropped} | {h.demonstration.id for h in prompt.hits} == {
        "t1",
        "t/2",
        "t3",
    }


def test_an_explanation_is_given_whole(client: Any, tickets: str) -> None:
    (found,) = client.retrieve("tickets", ["a printer on fire"], k=1, explain=True)
    (prompt,) = client.prompt("tickets", ["a printer on fire"], k=1, explain=True)
    for one in (found, prompt):
        assert (one.retriever, one.seq) == ("dense", client.pool("tickets")["seq"])
        assert one.fingerprint == client.pool("tickets")["encodings"][0]["fingerprint"]
        assert one.hits[0].tokens == len("the printer is on fire\tPrinter")
        assert [(p.rank, p.id) for p in one.passed_over] == [(2, "t3"), (3, "t1")]
        assert "nearest" in one.passed_over[-1].reason
    (by_words,) = client.retrieve("tickets", ["fire"], retriever="bm25")
    assert (by_words.fingerprint, by_words.hits[0].tokens) == (None, None)


def test_what_others_changed_is_not_written_over(client: Any, tickets: str) -> None:
    old = client.tag("tickets", "t/2")
    changed = replace(TICKETS[1], input="the printer smokes")
    assert client.put("tickets", changed, match=old) == changed
    with pytest.raises(PreconditionFailed, match="'t/2' has changed"):
        client.put("tickets", TICKETS[1], match=old)
    with pytest.raises(PreconditionFailed, match="'t/2' has changed"):
        client.delete("tickets", "t/2", match=old)
    assert client.get("tickets", "t/2") == changed
    pool = client.tag("tickets")
    assert client.set_front("tickets", {"k": 3}, match=pool)["front"] == {"k": 3}
    with pytest.raises(PreconditionFailed, match="the pool has changed"):
        client.delete_pool("tickets", match=pool)


def test_what_else_the_service_does(client: Any, tickets: str) -> None:
    assert client.retrievers() == {"retrievers": ["dense", "bm25", "hybrid"], "tokenizers": ["bytes"]}
    client.create_pool("again", {"verbaliser": LABELS})
    names, cursor = client.pools(limit=1)
    rest, end = client.pools(cursor=cursor)
    assert ([p["name"] for p in (*names, *rest)], end) == (["again", "tickets"], "")
    job = client.wait(client.load("again", client.export("tickets")))
    assert client.jobs("again") == [job]
    assert (job.kind, job.counts["created"]) == ("load", 3)
    assert client.export("again") == client.export("tickets")
    with pytest.raises(ConflictError):
        client.cancel(job.id)
    client.delete_pool("again")
    one, two = client.embeddings("dense", ["a printer", "an invoice"])
    assert len(one) == len(two) > 0
    assert client.embeddings("tickets@", ["a printer"]) == [pytest.approx(one)]
    client.feedback("tickets", "it smokes", score=0.5)
    assert json.loads(client.export_outcomes("tickets"))["score"] == 0.5
    assert client.export_outcomes("tickets", state="waiting") == b""
    made = client.create_key("bob", "write", pools=["tickets"], days=1)
    assert made["key"]
    (kept,) = client.keys()
    assert kept == {name: value for name, value in made.items() if name != "key"}
    client.delete_key("bob")
    assert client.keys() == []
    (newest,), behind = client.changes(limit=1)
    assert newest["action"] == "key.delete"
    assert behind


def test_jobs_are_waited_for(client: Any, tickets: str) -> None:
    lines = [{"id": "n1", "input": "no paper", "output": "printer"}, {"input": "no output"}]
    payload = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    job = client.wait(client.load("tickets", payload))
    assert (job.state, job.counts["created"], [line for line, _ in job.errors]) == ("done", 1, [2])
    assert client.wait(client.switch("tickets", "dense")).state == "done"
    with pytest.raises(ServiceError, match="failed"):
        client.wait(client.load("tickets", b"no Parquet", format="parquet"))


def test_feedback_is_recorded_listed_and_reviewed(client: Any, tickets: str) -> None:
    first = client.feedback("tickets", "the printer smokes", ["t/2"], output="Billing", correct=False)
    second = client.feedback("tickets", "the printer smokes", corrected_output="printer")
    assert second > first
    page, behind = client.outcomes("tickets", limit=1)
    rest, end = client.outcomes("tickets", cursor=behind)
    assert [(o["id"], o["state"]) for o in (*page, *rest)] == [(first, "recorded"), (second, "waiting")]
    assert end == ""
    assert client.review("tickets", second, True, "billing")["state"] == "accepted"
    assert client.get("tickets", f"feedback-{second}").output == "billing"
    assert client.outcomes("tickets", state="waiting") == ([], "")
    with pytest.raises(DataError, match="needs a score"):
        client.feedback("tickets", "the printer smokes")


def test_errors_come_as_what_they_are(client: Any, tickets: str) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        client.create_pool("tickets")
    with pytest.raises(NotFoundError, match="no pool 'none'"):
        client.retrieve("none", ["x"])
    with pytest.raises(PromptTooLong, match="budget"):
        client.prompt("tickets", ["a long query"], budget=3)
    with pytest.raises(UnknownNameError, match="unknown retriever 'no'") as unknown:
        client.retrieve("tickets", ["x"], retriever="no")
    assert (unknown.value.name, unknown.value.near) == ("", ())
    with pytest.raises(UnknownNameError, match="unknown retriever 'no'"):
        client.embeddings("no", ["x"])
    with pytest.raises(ServiceError, match="greater than") as caught:
        client.retrieve("tickets", ["x"], k=0)
    assert caught.value.status == 422


# -- attempts


class Scripted(HTTPServer):
    """Answers with one status after another, and keeps the Idempotency-Keys."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.keys = statuses, list[str | None]()
        super().__init__(("127.0.0.1", 0), _Handler)
        Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        assert isinstance(self.server, Scripted)
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.keys.append(self.headers["Idempotency-Key"])
        status = self.server.statuses.pop(0)
        if not status:
            self.close_connection = True  # without an answer
            return
        kind = "internal-error" if status == 500 else "overloaded"
        raw = json.dumps({"ids": ["a"], "type": f"urn:udr:{kind}", "detail": "too much"}).encode()
        self.send_response(status)
        if status in (409, 429):
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_DELETE = do_POST


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udr.client, "_pause", lambda attempt, answer: 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("at_once")
def test_what_had_no_room_or_no_answer_is_sent_again_as_the_same_request(kind: Any) -> None:
    server = Scripted([429, 0, 503, 201])
    with kind(server.url) as client:
        assert client.add("p", TICKETS) == ["a"]
    assert len(server.keys) == 4
    assert len(set(server.keys)) == 1
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("at_once")
def test_a_deletion_whose_answer_was_lost_is_sent_again_as_the_same_request(kind: Any) -> None:
    server = Scripted([0, 409, 200])  # 409: the first attempt is being worked on
    with kind(server.url) as client:
        client.delete("p", "t1")
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1
    assert server.keys[0] is not None
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("at_once")
def test_at_last_the_error_is_told(kind: Any) -> None:
    server = Scripted([429, 429, 500, 0])
    with kind(server.url, retries=1) as client:
        with pytest.raises(Overloaded, match="too much"):
            client.add("p", TICKETS)
        with pytest.raises(ServiceError, match="too much"):  # 500 is not tried again
            client.add("p", TICKETS)
    server.shutdown()
    server.server_close()
    with kind(server.url, retries=1) as client, pytest.raises(ServiceError, match="cannot be reached") as caught:
        client.add("p", TICKETS)
    assert caught.value.status is None
    assert "\n" not in str(caught.value)


def test_pauses_grow_and_keep_to_what_the_service_says() -> None:
    import httpx2

    told = httpx2.Response(429, headers={"Retry-After": "3"})
    assert udr.client._pause(0, told) == 3.0
    assert 0.05 <= udr.client._pause(0, None) <= 0.1
    assert 5.0 <= udr.client._pause(20, None) <= 10.0


def test_an_address_of_something_else_is_told_in_one_line(tmp_path: Path) -> None:
    server = Scripted([404])
    server.RequestHandlerClass = type("H", (_Handler,), {"do_POST": lambda self: self.send_error(404)})
    with Client(server.url) as client, pytest.raises(ServiceError, match="status 404"):
        client.add("p", TICKETS)
    server.shutdown()
    server.server_close()
