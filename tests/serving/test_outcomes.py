"""What came of prompts: recorded, reviewed, exported."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving.tools import refused
from udr.errors import StoreUnavailable

LABELS = {"billing": "Billing", "printer": "Printer"}
OUTCOME = {"input": "the printer smokes", "demonstrations": ["t1"], "output": "Billing"}


@pytest.fixture
def pool(client: TestClient) -> str:
    client.post("/v1/pools", json={"name": "tickets", "task": {"verbaliser": LABELS}})
    row = {"id": "t1", "input": "the printer is on fire", "output": "printer"}
    assert client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": [row]}).status_code == 201
    return "/v1/pools/tickets"


def tell(client: TestClient, *outcomes: dict[str, Any], **headers: str) -> Any:
    return client.post("/v1/feedback", json={"pool": "tickets", "outcomes": list(outcomes)}, headers=headers)


def test_outcomes_are_kept_in_order_and_exported(client: TestClient, pool: str) -> None:
    rows = [{**OUTCOME, "score": 0.25}, {**OUTCOME, "correct": True}, {**OUTCOME, "corrected_output": "printer"}]
    answer = tell(client, *rows)
    assert answer.status_code == 201
    ids = answer.json()["ids"]
    assert ids == sorted(ids)
    listed = client.get(f"{pool}/feedback").json()
    assert [(f["id"], f["state"], f.get("score")) for f in listed["feedback"]] == [
        (ids[0], "recorded", 0.25),
        (ids[1], "recorded", 1.0),
        (ids[2], "waiting", None),
    ]
    assert listed["next"] is None
    first = client.get(f"{pool}/feedback?limit=2").json()
    rest = client.get(f"{pool}/feedback", params={"cursor": first["next"]}).json()
    assert [f["id"] for f in (*first["feedback"], *rest["feedback"])] == ids
    exported = [json.loads(line) for line in client.get(f"{pool}/feedback/export").text.splitlines()]
    assert exported == listed["feedback"]
    waiting = client.get(f"{pool}/feedback/export?state=waiting").text.splitlines()
    assert [json.loads(line)["id"] for line in waiting] == ids[2:]


def test_an_accepted_correction_is_a_demonstration_and_a_rejected_one_is_not(client: TestClient, pool: str) -> None:
    row = {**OUTCOME, "corrected_output": "printer"}
    yes, no, other = tell(client, row, row, row).json()["ids"]
    for _ in range(2):  # the same review twice is one
        accepted = client.post(f"{pool}/feedback/{yes}/review", json={"accept": True})
        assert accepted.json()["demonstration"] == {
            "id": f"feedback-{yes}",
            "input": "the printer smokes",
            "output": "printer",
            "metadata": {"source": "feedback"},
        }
        assert client.post(f"{pool}/feedback/{no}/review", json={"accept": False}).json()["state"] == "rejected"
    client.post(f"{pool}/feedback/{other}/review", json={"accept": True, "output": "billing"})
    found = client.post("/v1/retrieve", json={"pool": "tickets", "queries": ["smokes"], "k": 5, "retriever": "bm25"})
    shown = {d["id"]: d["output"] for d in found.json()["results"][0]["demonstrations"]}
    assert shown[f"feedback-{yes}"] == "printer"
    assert shown[f"feedback-{other}"] == "billing"
    assert f"feedback-{no}" not in shown
    again = client.post(f"{pool}/feedback/{other}/review", json={"accept": True, "output": "printer"})
    refused(again, 409, "another output")
    exported = [json.loads(line) for line in client.get(f"{pool}/feedback/export?state=accepted").text.splitlines()]
    assert [(f["id"], f["corrected_output"]) for f in exported] == [(yes, "printer"), (other, "billing")]
    assert client.get(f"{pool}/feedback?state=waiting").json()["feedback"] == []
    refused(client.post(f"{pool}/feedback/{no}/review", json={"accept": True}), 409, "rejected")
    refused(client.post(f"{pool}/feedback/{yes}/review", json={"accept": False}), 409, "accepted before")


def test_of_two_reviews_at_once_the_pool_holds_what_the_record_says(client: TestClient, pool: str) -> None:
    """Another reviewer acts between the reading and the writing of one."""
    ids = tell(client, *[{**OUTCOME, "corrected_output": "printer"}] * 2).json()["ids"]
    catalog = client.app.state.parts.catalog  # type: ignore[attr-defined]
    own = catalog.write
    for number, first in zip(ids, ({"accept": False}, {"accept": True}), strict=True):

        def raced(*words: Any, first: Any = first, number: int = number) -> None:
            catalog.write = own
            assert client.post(f"{pool}/feedback/{number}/review", json=first).status_code == 200
            own(*words)

        catalog.write = raced
        other = client.post(f"{pool}/feedback/{number}/review", json={"accept": True, "output": "billing"})
        refused(other, 409, "before")
        found = client.get(f"{pool}/demonstrations/feedback-{number}")
        assert found.status_code == (200 if first["accept"] else 404)
        assert found.json().get("output") == ("printer" if first["accept"] else None)


def test_a_correction_is_accepted_with_its_demonstration_or_not_at_all(
    client: TestClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (number,) = tell(client, {**OUTCOME, "corrected_output": "printer"}).json()["ids"]
    asked, there = f"{pool}/feedback/{number}/review", f"{pool}/demonstrations/feedback-{number}"

    def cut_short(*_: Any) -> None:
        raise StoreUnavailable("the database failed")

    with monkeypatch.context() as patched:
        patched.setattr("serving.sql.store.insert", cut_short)
        refused(client.post(asked, json={"accept": True}), 503, "failed")
    assert [f["id"] for f in client.get(f"{pool}/feedback?state=waiting").json()["feedback"]] == [number]
    assert client.get(there).status_code == 404
    assert client.post(asked, json={"accept": True}).status_code == 200
    # what was made of the demonstration since stays, though the review is sent again
    changed = {"input": "the printer smokes", "output": "billing"}
    assert client.put(there, json=changed).status_code == 200
    assert client.post(asked, json={"accept": True}).status_code == 200
    assert client.get(there).json()["output"] == "billing"
    assert client.delete(there).status_code == 204
    assert client.post(asked, json={"accept": True}).status_code == 200
    assert client.get(there).status_code == 404
    actions = [c["action"] for c in client.get("/v1/audit").json()["changes"]]
    assert actions.count("feedback.review") == 1


def test_what_says_nothing_or_cannot_be_is_refused_whole(client: TestClient, pool: str) -> None:
    good = {**OUTCOME, "correct": True}
    for change, words in (
        ({}, "outcomes.1: needs a score"),
        ({"input": "", "correct": True}, "outcomes.1: input is empty"),
        ({"input": " \n", "corrected_output": "printer"}, "outcomes.1: input is empty"),
        ({"score": 2}, "less than or equal to 1"),
        ({"score": 0.5, "correct": True}, "two things"),
        ({"corrected_output": "coffee"}, "'coffee' is not in the verbaliser"),
        ({"correct": True, "input": "a\x00"}, "NUL"),
    ):
        refused(tell(client, good, {**OUTCOME, **change}), 422, words)
    refused(client.post("/v1/feedback", json={"pool": "none", "outcomes": [good]}), 404, "no pool")
    assert client.get(f"{pool}/feedback").json()["feedback"] == []
    (number,) = tell(client, good).json()["ids"]
    refused(client.post(f"{pool}/feedback/{number}/review", json={"accept": True}), 409, "recorded")
    refused(client.post(f"{pool}/feedback/{number}/review", json={"accept": False}), 409, "holds no correction")
    refused(client.post(f"{pool}/feedback/{number + 1}/review", json={"accept": False}), 404, "no feedback")
    refused(client.get(f"{pool}/feedback?state=lost"), 422, "state")


def test_feedback_under_one_key_is_recorded_once(client: TestClient, pool: str) -> None:
    headers = {"Idempotency-Key": "k"}
    first = tell(client, {**OUTCOME, "correct": True}, **headers).json()
    assert tell(client, {**OUTCOME, "correct": True}, **headers).json() == first
    assert len(client.get(f"{pool}/feedback").json()["feedback"]) == 1


def test_feedback_goes_with_its_pool(client: TestClient, pool: str) -> None:
    tell(client, {**OUTCOME, "correct": True})
    client.delete(pool)
    client.post("/v1/pools", json={"name": "tickets"})
    assert client.get(f"{pool}/feedback").json()["feedback"] == []
