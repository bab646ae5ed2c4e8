"""The service over HTTP, as its users see it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings, parse_settings
from tests.serving.tools import finished, refused
from udr.errors import ConfigError

LABELS = {"billing": "Billing", "printer": "Printer", "login": "Login"}
TICKETS = [
    {"id": "t1", "input": "the invoice is wrong", "output": "billing", "metadata": {"lang": "en", "year": 2020}},
    {"id": "t2", "input": "the printer is on fire", "output": "printer", "metadata": {"lang": "en", "year": 2024}},
    {"id": "t3", "input": "my password does not work", "output": "login", "metadata": {"lang": "en"}},
    {"id": "t4", "input": "der printer brennt", "output": "printer", "metadata": {"lang": "de", "year": 2024}},
    {"id": "t5", "input": "charged twice on the invoice", "output": "billing", "metadata": {"lang": "en"}},
]


@pytest.fixture
def pool(client: TestClient) -> str:
    made = client.post("/v1/pools", json={"name": "tickets", "task": {"verbaliser": LABELS}})
    assert made.status_code == 201, made.text
    added = client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": TICKETS})
    assert added.status_code == 201, added.text
    assert added.json()["created"] == 5
    return "tickets"


def retrieve(client: TestClient, query: str, **more: Any) -> list[str]:
    answer = client.post("/v1/retrieve", json={"pool": "tickets", "queries": [query], **more})
    assert answer.status_code == 200, answer.text
    return [d["id"] for d in answer.json()["results"][0]["demonstrations"]]


def test_a_pool_from_its_making_to_its_end(client: TestClient, pool: str) -> None:
    described = client.get("/v1/pools/tickets").json()
    assert described["demonstrations"] == 5
    assert described["retriever"] == "dense"
    assert retrieve(client, "a printer on fire", k=2) == ["t2", "t4"]
    assert retrieve(client, "a printer on fire", k=1, retriever="bm25") == ["t2"]
    put = client.put("/v1/pools/tickets/demonstrations/t2", json={"input": "no paper left", "output": "printer"})
    assert put.status_code == 200
    assert retrieve(client, "a printer on fire", k=1) == ["t4"]
    assert retrieve(client, "no paper", k=1, retriever="bm25") == ["t2"]
    assert client.get("/v1/pools/tickets/demonstrations/t2").json()["input"] == "no paper left"
    assert client.delete("/v1/pools/tickets/demonstrations/t4").status_code == 204
    refused(client.get("/v1/pools/tickets/demonstrations/t4"), 404, "'t4'")
    refused(client.delete("/v1/pools/tickets/demonstrations/t4"), 404, "'t4'")
    assert "t4" not in retrieve(client, "a printer on fire", k=10)
    assert client.delete("/v1/pools/tickets").status_code == 204
    refused(client.get("/v1/pools/tickets"), 404, "no pool 'tickets'")
    assert client.get("/v1/pools").json() == {"pools": [], "next": None}


def test_what_was_stored_is_there_after_a_restart(settings: Settings, client: TestClient, pool: str) -> None:
    before = client.post("/v1/retrieve", json={"pool": pool, "queries": ["printer", "invoice"]}).json()
    with TestClient(create_app(settings)) as again:
        assert again.post("/v1/retrieve", json={"pool": pool, "queries": ["printer", "invoice"]}).json() == before


def test_two_processes_over_one_database_see_each_others_writes(
    settings: Settings, client: TestClient, pool: str
) -> None:
    with TestClient(create_app(settings)) as other:
        assert retrieve(other, "coffee", k=1, threshold=0.5) == []
        new = {"id": "t6", "input": "the coffee is cold", "output": "printer"}
        client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": [new]})
        assert retrieve(other, "coffee", k=1, threshold=0.3) == ["t6"]
        other.delete("/v1/pools/tickets/demonstrations/t6")
        assert retrieve(client, "coffee", k=1, threshold=0.3) == []


@pytest.mark.parametrize("retriever", ["", "bm25"])
def test_conditions_on_the_metadata(client: TestClient, pool: str, retriever: str) -> None:
    def found(where: dict[str, Any]) -> set[str]:
        return set(retrieve(client, "printer invoice password", k=5, where=where, retriever=retriever))

    assert found({"lang": "de"}) == {"t4"}
    assert found({"year": {"gte": 2021}}) == {"t2", "t4"}
    assert found({"year": {"exists": False}, "lang": {"ne": "de"}}) == {"t3", "t5"}
    assert found({"lang": {"in": []}}) == set()


def test_selections_thresholds_and_copies(client: TestClient, pool: str) -> None:
    assert len(retrieve(client, "the invoice", k=3, selection="balanced")) == 3
    labels = {t["id"]: t["output"] for t in TICKETS}
    chosen = retrieve(client, "the invoice", k=3, selection="balanced")
    assert sorted(labels[i] for i in chosen) == sorted(LABELS)  # type: ignore[index]
    for selection in ("mmr", "dpp", "coverage"):
        assert len(set(retrieve(client, "the invoice", k=4, selection=selection))) == 4
    assert retrieve(client, "the invoice is wrong", k=1) == ["t1"]
    assert "t1" not in retrieve(client, "the invoice is wrong", k=5, without_copies=True)
    assert retrieve(client, "zzz", k=5, threshold=0.99) == []


def test_retrieval_takes_an_order_and_explains_with_tokens(client: TestClient, pool: str) -> None:
    best_first = retrieve(client, "printer on fire", k=4)
    assert retrieve(client, "printer on fire", k=4, order="descending") == best_first
    assert retrieve(client, "printer on fire", k=4, order="ascending") == best_first[::-1]
    asked = {"pool": pool, "queries": ["printer on fire"], "k": 4, "explain": True}
    for order in ("random", "interleaved"):
        (found,) = client.post("/v1/retrieve", json={**asked, "order": order}).json()["results"]
        (made,) = client.post("/v1/prompt", json={**asked, "order": order}).json()["results"]
        assert found["demonstrations"] == made["demonstrations"]
        assert [d["tokens"] for d in found["demonstrations"]] == [
            len(f"{d['input']}\t{LABELS[d['output']]}") for d in found["demonstrations"]
        ]
    refused(client.post("/v1/retrieve", json={**asked, "order": "up"}), 422, "order")
    refused(client.post("/v1/retrieve", json={**asked, "tokenizer": "byte"}), 422, "bytes")
    refused(client.post("/v1/retrieve", json={**asked, "budget": 9}), 422, "budget")


def test_a_query_is_answered_alike_alone_and_among_others(client: TestClient, pool: str) -> None:
    queries = [t["input"] for t in TICKETS] * 7
    many = client.post("/v1/retrieve", json={"pool": pool, "queries": queries, "k": 3}).json()["results"]
    for query, own in zip(queries[:5], many, strict=False):
        alone = client.post("/v1/retrieve", json={"pool": pool, "queries": [{"input": query}], "k": 3}).json()
        assert alone["results"] == [own]


def test_the_prompt_keeps_to_its_budget_and_says_what_it_dropped(client: TestClient, pool: str) -> None:
    asked = {"pool": pool, "queries": ["printer on fire"], "k": 5, "budget": 90, "reserve": 10}
    (made,) = client.post("/v1/prompt", json=asked).json()["results"]
    assert len(made["text"].encode()) == made["tokens"] <= 80
    assert made["truncated"]
    assert all("left of 90" in d["reason"] for d in made["dropped"])
    best = made["demonstrations"][-1]
    assert best["id"] == "t2"
    assert made["text"].endswith("the printer is on fire\tPrinter\nprinter on fire\t")
    assert made["messages"][-3:] == [
        {"role": "user", "content": "the printer is on fire"},
        {"role": "assistant", "content": "Printer"},
        {"role": "user", "content": "printer on fire"},
    ]
    turned = client.post("/v1/prompt", json={**asked, "order": "descending"}).json()["results"][0]
    assert turned["demonstrations"][0]["id"] == "t2"
    refused(client.post("/v1/prompt", json={**asked, "budget": 12}), 422, "exceed the budget of 12")
    refused(client.post("/v1/prompt", json={**asked, "tokenizer": "byte"}), 422, "bytes")


def test_lists_come_in_pages(client: TestClient, pool: str) -> None:
    for i in range(7):
        client.post("/v1/pools", json={"name": f"p{i}"})
    names, cursor = [], ""
    while cursor is not None:
        page = client.get("/v1/pools", params={"limit": 3, "cursor": cursor}).json()
        names += [p["name"] for p in page["pools"]]
        cursor = page["next"]
    assert names == [*(f"p{i}" for i in range(7)), "tickets"]
    ids, cursor = [], ""
    while cursor is not None:
        page = client.get("/v1/pools/tickets/demonstrations", params={"limit": 2, "cursor": cursor}).json()
        ids += [d["id"] for d in page["demonstrations"]]
        cursor = page["next"]
    assert ids == ["t1", "t2", "t3", "t4", "t5"]
    refused(client.get("/v1/pools/tickets/demonstrations", params={"cursor": "xyz!"}), 422, "cursor")


def test_a_write_is_stored_whole_or_not_at_all(client: TestClient, pool: str) -> None:
    new = {"id": "t6", "input": "a", "output": "login"}
    where = "/v1/pools/tickets/demonstrations"
    clash = {"id": "t1", "input": "another", "output": "login"}
    refused(client.post(where, json={"demonstrations": [new, clash]}), 409, "'t1'")
    refused(client.post(where, json={"demonstrations": [new, new]}), 422, "twice")
    refused(client.post(where, json={"demonstrations": [new, {"input": "b", "output": "coffee"}]}), 422, "'coffee'")
    assert client.get("/v1/pools/tickets").json()["demonstrations"] == 5
    again = client.post(where, json={"demonstrations": TICKETS}).json()
    assert (again["created"], again["unchanged"]) == (0, 5)
    replaced = client.post(where, json={"demonstrations": [new, clash], "mode": "upsert"}).json()
    assert (replaced["created"], replaced["replaced"]) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/pools", {"name": "../etc"}, 422, "name"),
        ("/v1/pools", {"name": "a", "task": {"kin": "generation"}}, 422, "kin"),
        ("/v1/pools", {"name": "tickets"}, 409, "exists"),
        ("/v1/retrieve", {"pool": "ticket", "queries": ["a"]}, 404, "'ticket'"),
        ("/v1/retrieve", {"pool": "tickets", "queries": []}, 422, "queries"),
        ("/v1/retrieve", {"pool": "tickets", "queries": ["a"], "top_k": 3}, 422, "top_k"),
        ("/v1/retrieve", {"pool": "tickets", "queries": ["a"], "retriever": "bm52"}, 422, "bm25"),
        ("/v1/retrieve", {"pool": "tickets", "queries": ["a"], "where": {"a": {"near": 1}}}, 422, "near"),
        ("/v1/retrieve", {"pool": "tickets", "queries": ["a"] * 1001}, 413, "1000"),
        ("/v1/retrieve", {"pool": "tickets", "queries": ["a" * 100_001]}, 422, "queries.0"),
        ("/v1/pools/tickets/demonstrations", {"demonstrations": [{"input": "a\u0000", "output": "login"}]}, 422, "NUL"),
        ("/v1/pools/tickets/demonstrations", {"demonstrations": [{"input": "a"}]}, 422, "output"),
        ("/v1/pools/tickets/retriever/rollback", {}, 409, "go back"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_get_one_line(
    client: TestClient, pool: str, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    refused(client.post(path, json=body), status, words)


@pytest.mark.parametrize("raw", [b"{", b"[" * 100_000, b'{"pool": "\xff"}', b'{"k": 1' + b"0" * 5000 + b"}", b"nul"])
def test_a_body_that_is_no_request_is_refused(client: TestClient, pool: str, raw: bytes) -> None:
    answer = client.post("/v1/retrieve", content=raw, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["type"].startswith("urn:udr:")


def test_a_body_too_large_is_refused_before_it_is_kept(settings: Settings) -> None:
    small = settings.model_copy(update={"max_body": 100})
    with TestClient(create_app(small)) as client:
        refused(client.post("/v1/pools", content=b"x" * 101), 413, "100 bytes")
        refused(client.post("/v1/pools", content=(b"x" * 60 for _ in range(2))), 413, "100 bytes")
        twice, keyed = (b"x" * 60 for _ in range(2)), {"idempotency-key": "a"}
        refused(client.post("/v1/pools", content=twice, headers=keyed), 413, "100 bytes")


def test_the_key_is_asked_for_everywhere_but_at_the_probes(settings: Settings) -> None:
    keyed = settings.model_copy(update={"key": "secret", "host": "0.0.0.0"})
    with TestClient(create_app(keyed)) as client:
        for path in ("/v1/pools", "/metrics", "/openapi.json", "/v1/nothing", "/v1/keys"):
            refused(client.get(path), 401, "Bearer")
            refused(client.get(path, headers={"authorization": "Bearer wrong"}), 401, "Bearer")
        assert client.get("/v1/pools", headers={"authorization": "bearer secret"}).status_code == 200
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_other_machines_are_not_served_without_a_key(settings: Settings) -> None:
    with (
        pytest.raises(ConfigError, match="UDR_KEY"),
        TestClient(create_app(settings.model_copy(update={"host": "0.0.0.0"}))),
    ):
        pass


def test_metrics_and_request_ids(client: TestClient, pool: str) -> None:
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(client.get("/livez", headers={"x-request-id": "a b\t"}).headers["x-request-id"]) == 32
    retrieve(client, "a")
    assert client.request("HURRY", "/v1/pools").status_code == 405
    text = client.get("/metrics").text
    assert 'udr_answers_total{method="POST",route="/v1/retrieve",status="200"}' in text
    assert 'method="other"' in text
    assert "HURRY" not in text


def test_a_setting_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="UDR_PORT"):
        parse_settings({"port": 70_000})


def test_a_list_of_large_demonstrations_comes_in_more_pages(
    client: TestClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = [{"kind": "image", "uri": "http://here/" + "a" * 500}]
    large = [{"id": f"m{i}", "input": f"picture {i}", "output": "billing", "media": media} for i in range(7)]
    assert client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": large}).status_code == 201
    monkeypatch.setattr("serving.catalog._LARGE", 1000)
    monkeypatch.setattr("serving.sql.store._MEDIA", 700)
    for where in ("", '{"lang": {"ne": "de"}}'):
        found, asked = [], {"where": where, "cursor": ""}
        while asked["cursor"] is not None:
            page = client.get("/v1/pools/tickets/demonstrations", params=asked).json()
            assert sum(len(d.get("media", ())) for d in page["demonstrations"]) <= 2
            found += [d["id"] for d in page["demonstrations"]]
            asked["cursor"] = page["next"]
        assert found == [t["id"] for t in [*TICKETS, *large] if not where or t["id"] != "t4"]


def test_words_and_vectors_together(client: TestClient, pool: str) -> None:
    """Reciprocal rank fusion against plain arithmetic over the two lists."""
    query = "the printer does not print the invoice"
    lists = [retrieve(client, query, k=5, retriever=name) for name in ("dense", "bm25")]
    score = {key: sum(1 / (61 + own.index(key)) for own in lists) for key in lists[0]}
    answer = client.post("/v1/retrieve", json={"pool": pool, "queries": [query], "k": 3, "retriever": "hybrid"}).json()
    found = answer["results"][0]["demonstrations"]
    assert answer["retriever"] == "hybrid"
    assert [d["similarity"] for d in found] == pytest.approx(sorted(score.values(), reverse=True)[:3])
    assert all(d["similarity"] == pytest.approx(score[d["id"]]) for d in found)


def test_what_was_not_chosen_is_explained(client: TestClient, pool: str) -> None:
    asked = {"pool": pool, "queries": ["the invoice is wrong"], "explain": True, "k": 1}

    def told(**more: Any) -> dict[str, str]:
        (result,) = client.post("/v1/retrieve", json={**asked, **more}).json()["results"]
        assert not {d["id"] for d in result["demonstrations"]} & {p["id"] for p in result["passed_over"]}
        ranks = [p["rank"] for p in result["passed_over"]]
        assert ranks == sorted(ranks)
        return {p["id"]: p["reason"] for p in result["passed_over"]}

    assert told()["t5"] == "not among the 1 nearest"
    assert told(without_copies=True)["t1"] == "its input is the query's"
    assert all("threshold 0.99" in reason for reason in told(threshold=0.99).values())
    assert set(told(selection="mmr").values()) == {"mmr chose others"}
    (made,) = client.post("/v1/prompt", json={**asked, "k": 2, "budget": 200}).json()["results"]
    assert [d["tokens"] for d in made["demonstrations"]] == [
        len(f"{d['input']}\t{LABELS[d['output']]}") for d in made["demonstrations"]
    ]


def test_the_explanation_of_a_prompt_leaves_nothing_near_unsaid(client: TestClient, pool: str) -> None:
    ranking = retrieve(client, "printer on fire", k=5)
    for budget in (60, 90, 500):
        asked = {"pool": pool, "queries": ["printer on fire"], "k": 1, "budget": budget, "explain": True}
        (made,) = client.post("/v1/prompt", json=asked).json()["results"]
        (shown,) = [d["id"] for d in made["demonstrations"]]
        passed = [p["id"] for p in made["passed_over"]]
        assert sorted([shown, *passed, *(d["id"] for d in made["dropped"])]) == sorted(ranking)
        assert passed == [i for i in ranking if i in passed]
        spare = "would have stood in for one that did not fit"
        assert made["passed_over"][0]["reason"] in (spare, "not among the 2 nearest")


def test_lists_can_be_filtered_and_taken_elsewhere(client: TestClient, pool: str) -> None:
    where = "/v1/pools/tickets/demonstrations"

    def listed(condition: str) -> list[str]:
        ids, cursor = [], ""
        while cursor is not None:
            page = client.get(where, params={"where": condition, "limit": 1, "cursor": cursor}).json()
            ids += [d["id"] for d in page["demonstrations"]]
            cursor = page["next"]
        return ids

    assert listed('{"lang": "en", "year": {"exists": false}}') == ["t3", "t5"]
    refused(client.get(where, params={"where": "{"}), 422, "where")
    refused(client.get(where, params={"where": "[]"}), 422, "where")
    lines = client.get("/v1/pools/tickets/export").text.splitlines()
    client.post("/v1/pools", json={"name": "again", "task": {"verbaliser": LABELS}})
    loaded = client.post(
        "/v1/pools/again/load", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}
    )
    assert finished(client, loaded)["created"] == 5
    assert client.get("/v1/pools/again/export").text.splitlines() == lines


def test_a_change_may_depend_on_what_was_read(client: TestClient, pool: str) -> None:
    def tag(path: str) -> str:
        return str(client.get(path).headers["etag"])

    one, new = f"/v1/pools/{pool}/demonstrations/t1", {"input": "no toner", "output": "printer"}
    first = tag(one)
    assert tag(one) == first != tag(one.replace("t1", "t2"))
    put = client.put(one, json=new, headers={"if-match": f'"other", {first}'})
    assert put.status_code == 200
    refused(client.put(one, json={**new, "output": "login"}, headers={"if-match": first}), 412, "'t1' has changed")
    refused(client.delete(one, headers={"if-match": first}), 412, "'t1' has changed")
    refused(client.delete(one, headers={"if-match": f"W/{tag(one)}"}), 412, "'t1' has changed")
    assert client.get(one).json() == {"id": "t1", **new}
    assert client.delete(one, headers={"if-match": tag(one)}).status_code == 204
    refused(client.put(one, json=new, headers={"if-match": "*"}), 412, "not there any more")
    refused(client.delete(one), 404, "'t1'")

    whole = f"/v1/pools/{pool}"
    before = tag(whole)
    assert client.put(one, json=new).status_code == 200
    refused(client.put(f"{whole}/front", json={"k": 2}, headers={"if-match": before}), 412, "the pool has changed")
    refused(client.put(f"{whole}/retriever", json={"retriever": "dense"}, headers={"if-match": before}), 412, "pool")
    refused(client.delete(whole, headers={"if-match": before}), 412, "the pool has changed")
    read = tag(whole)
    changed = client.put(f"{whole}/front", json={"k": 2}, headers={"if-match": read})
    assert changed.json()["front"] == {"k": 2}
    assert read != changed.headers["etag"] == tag(whole)
    assert client.delete(whole, headers={"if-match": tag(whole)}).status_code == 204


def test_a_request_sent_again_is_done_once(client: TestClient, pool: str) -> None:
    where, key = "/v1/pools/tickets/demonstrations", {"idempotency-key": "a"}
    new = {"demonstrations": [{"input": "no toner", "output": "printer"}]}
    first = client.post(where, json=new, headers=key)
    seq = client.get("/v1/pools/tickets").json()["seq"]
    again = client.post(where, json=new, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert client.get("/v1/pools/tickets").json()["seq"] == seq
    refused(client.post("/v1/pools", json={"name": "b"}, headers=key), 409, "another request")
    refused(client.post(where, json={}, headers={"idempotency-key": "b" * 300}), 422, "255")
    wrong = {"demonstrations": [{"input": "x", "output": "coffee"}]}
    for _ in range(2):  # a refusal is an answer too
        refused(client.post(where, json=wrong, headers={"idempotency-key": "c"}), 422, "'coffee'")


def test_a_deletion_sent_again_is_answered_as_the_first(client: TestClient, pool: str) -> None:
    key, place = {"idempotency-key": "a"}, "/v1/pools/tickets/demonstrations/t1"
    for _ in range(2):
        answer = client.delete(place, headers=key)
        assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["idempotent-replayed"] == "true"
    assert "content-type" not in answer.headers
    refused(client.delete(place), 404, "'t1'")
    refused(client.get(place, headers=key), 404, "'t1'")  # what only reads is not answered from memory
    refused(client.put(place, json={"input": "a", "output": "printer"}, headers=key), 409, "another request")
    for _ in range(2):
        assert client.delete("/v1/pools/tickets", headers={"idempotency-key": "b"}).status_code == 204
    made = client.post("/v1/keys", json={"name": "k"}, headers={"idempotency-key": "c"}).json()
    again = client.post("/v1/keys", json={"name": "k"}, headers={"idempotency-key": "c"})
    refused(again, 409, "exists already")  # a secret is kept nowhere, so it is not told again either
    assert made["key"]
    for _ in range(2):
        assert client.delete("/v1/keys/k", headers={"idempotency-key": "d"}).status_code == 204


def test_a_request_whose_first_attempt_is_worked_on_is_told_when_to_come_again(client: TestClient, pool: str) -> None:
    catalog = client.app.state.parts.catalog  # type: ignore[attr-defined]
    asked, own, early = {"demonstrations": [{"input": "no toner", "output": "printer"}]}, catalog.write, list[Any]()

    def ask() -> Any:
        return client.post("/v1/pools/tickets/demonstrations", json=asked, headers={"idempotency-key": "a"})

    def slow(*words: Any) -> Any:
        early.append(ask())
        return own(*words)

    catalog.write = slow
    first = ask()
    assert first.status_code == 201
    refused(early[0], 409, "worked on")
    assert early[0].headers["retry-after"] == "1"
    assert ask().json() == first.json()


def test_a_pool_has_its_limits(settings: Settings) -> None:
    small = settings.model_copy(update={"max_pools": 1, "max_pool": 2})
    rows = [{"id": str(i), "input": f"text {i}", "output": "y"} for i in range(3)]
    with TestClient(create_app(small)) as client:
        client.post("/v1/pools", json={"name": "p"})
        refused(client.post("/v1/pools", json={"name": "q"}), 403, "1 pools")
        refused(client.post("/v1/pools/p/demonstrations", json={"demonstrations": rows}), 403, "limit is 2")
        assert client.post("/v1/pools/p/demonstrations", json={"demonstrations": rows[:2]}).status_code == 201
        changed = {"demonstrations": [{**rows[0], "output": "z"}], "mode": "upsert"}
        assert client.post("/v1/pools/p/demonstrations", json=changed).status_code == 201
