"""An unmodified OpenAI client in front of the service, and an LLM server behind it."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import orjson
import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.front import addressed, chat_query, with_text, with_turns
from serving.settings import Settings
from tests.serving.chat_server import WORDS, ChatServer, chat_server
from tests.serving.tools import refused as refused_plainly
from tests.serving.tools import served
from udr.errors import ConfigError
from udr.fakes import FakeEncoder
from udr.tasks.spec import TaskSpec, Template
from udr.types import Demonstration, Prompt

LABELS = {"billing": "Billing", "printer": "Printer"}
TICKETS = [
    {"id": "t1", "input": "the invoice is wrong", "output": "billing", "metadata": {"lang": "en"}},
    {"id": "t 2,é", "input": "the printer is on fire", "output": "printer", "metadata": {"lang": "en"}},
    {"id": "t3", "input": "der printer brennt", "output": "printer", "metadata": {"lang": "de"}},
]
ASKED = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "my printer smokes"}]


@pytest.fixture
def upstream() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def address(tmp_path: Path, upstream: ChatServer) -> Iterator[str]:
    settings = Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake", upstream=upstream.url + "/v1")
    with served(settings) as url, httpx2.Client(base_url=url) as client:
        made = client.post("/v1/pools", json={"name": "tickets", "task": {"verbaliser": LABELS}, "front": {"k": 2}})
        assert made.status_code == 201, made.text
        assert client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": TICKETS}).status_code == 201
        yield url


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="mine", max_retries=0) as client:
        yield client


def shown(uri: str) -> dict[str, Any]:
    """A user's turn that is a picture alone."""
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}


def refused(answer: Any, status: int, words: str) -> None:
    """An error as clients of the OpenAI API read it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    message = answer.json()["error"]["message"]
    assert words in message
    assert "\n" not in message


def chat(client: openai.OpenAI, model: str = "tickets@gemma", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=ASKED, **more)  # type: ignore[call-overload]


def test_an_openai_client_changes_only_its_address(client: openai.OpenAI, upstream: ChatServer) -> None:
    words = [chunk.choices[0].delta.content for chunk in chat(client, stream=True, temperature=0)]
    assert words == WORDS
    path, headers, body = upstream.asked[-1]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer mine"
    assert body == {
        "model": "gemma",
        "stream": True,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": "der printer brennt"},
            {"role": "assistant", "content": "Printer"},
            {"role": "user", "content": "the printer is on fire"},
            {"role": "assistant", "content": "Printer"},
            {"role": "user", "content": "my printer smokes"},
        ],
    }
    assert chat(client).choices[0].message.content == "".join(WORDS)


def test_the_answer_says_which_demonstrations_stand_in_the_prompt(client: openai.OpenAI, upstream: ChatServer) -> None:
    answer = client.chat.completions.with_raw_response.create(model="tickets@gemma", messages=ASKED)  # type: ignore[arg-type]
    assert answer.headers["x-udr-demonstrations"] == "t3,t%202%2C%C3%A9"
    assert answer.headers["x-udr-pool"] == "tickets"
    assert answer.headers["x-upstream"] == "yes"
    assert "x-udr-tokens-cut" not in answer.headers
    assert b'"odd"' in answer.http_response.content  # fields that nobody knows come back


def test_the_answer_says_how_much_of_the_query_was_not_read(
    client: openai.OpenAI, upstream: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEncoder, "tokens_cut", lambda _, texts, instruction="": [3] * len(texts))
    answer = client.chat.completions.with_raw_response.create(model="tickets@gemma", messages=ASKED)  # type: ignore[arg-type]
    assert answer.headers["x-udr-tokens-cut"] == "3"


def test_what_nobody_knows_goes_through(client: openai.OpenAI, upstream: ChatServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "my printer"}, picture, {"type": "text", "text": "smokes"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    more = {"guided_choice": ["a", "b"], "nested": {"x": [1, None, 1.5]}, "udr": {"k": 1, "style": "text"}}
    client.chat.completions.create(  # type: ignore[call-overload]
        model="tickets@gemma", messages=[{"role": "user", "content": content}], tools=tools, extra_body=more
    )
    assert upstream.body["tools"] == tools
    assert upstream.body["guided_choice"] == ["a", "b"]
    assert upstream.body["nested"] == {"x": [1, None, 1.5]}
    assert "udr" not in upstream.body
    text = {"type": "text", "text": "the printer is on fire\tPrinter\nmy printer\nsmokes\t"}
    assert upstream.body["messages"] == [{"role": "user", "content": [text, picture]}]


def test_a_request_may_choose_otherwise_than_its_pool(client: openai.OpenAI, upstream: ChatServer) -> None:
    chat(client, extra_body={"udr": {"where": {"lang": "de"}, "k": 5}})
    assert [m["content"] for m in upstream.body["messages"][1:-1]] == ["der printer brennt", "Printer"]
    chat(client, model="gemma")
    assert upstream.body["messages"] == ASKED
    chat(client, model="gemma", extra_headers={"X-UDR-Pool": "tickets"})
    assert len(upstream.body["messages"]) == 6
    chat(
        client, model="gemma@2", extra_headers={"X-UDR-Pool": "tickets"}
    )  # the name is the LLM server's, whatever it holds
    assert (upstream.body["model"], len(upstream.body["messages"])) == ("gemma@2", 6)


def test_completions_get_the_finished_prompt(client: openai.OpenAI, upstream: ChatServer) -> None:
    answer = client.completions.create(model="tickets@gemma", prompt="my printer smokes", extra_body={"udr": {"k": 1}})
    assert answer.choices[0].text == "".join(WORDS)
    assert upstream.body["prompt"] == "the printer is on fire\tPrinter\nmy printer smokes\t"
    client.completions.create(model="tickets@gemma", prompt=["a", "b"], extra_body={"udr": {"k": 1}})
    assert [p.rpartition("\n")[2] for p in upstream.body["prompt"]] == ["a\t", "b\t"]
    with pytest.raises(openai.UnprocessableEntityError, match="token ids"):
        client.completions.create(model="tickets@gemma", prompt=[1, 2, 3])


def test_models_are_listed_behind_each_pool(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["gemma", "tickets@gemma"]
    for name in ("gemma", "tickets@gemma"):
        found = client.models.retrieve(name)
        assert (found.id, found.owned_by) == (name, "test")
    for name in ("gemm", "tickets@gemm", "nothing@gemma", "tickets@"):
        with pytest.raises(openai.NotFoundError, match="GET /v1/"):
            client.models.retrieve(name)


def test_what_the_llm_server_says_of_its_models_is_kept(address: str, upstream: ChatServer) -> None:
    odd = {"name": "without an id"}
    upstream.models = {"object": "list", "first_id": "org/m@1", "data": [{"id": "org/m@1", "root": "/m"}, odd, "odd"]}
    listed = httpx2.get(f"{address}/v1/models", headers={"accept-encoding": "br"}).json()
    behind = {"id": "tickets@org/m@1", "root": "/m"}
    assert listed == {**upstream.models, "data": [*upstream.models["data"], behind]}
    for name, row in (("org%2Fm@1", listed["data"][0]), ("tickets@org/m@1", behind)):
        assert httpx2.get(f"{address}/v1/models/{name}").json() == row
    assert upstream.model_headers["accept-encoding"] == "identity"
    upstream.models = ["gemma"]
    refused(httpx2.get(f"{address}/v1/models"), 502, "does not tell its models")


def test_headers_go_through_byte_by_byte(address: str, upstream: ChatServer) -> None:
    body = {"model": "gemma", "messages": ASKED}
    for value in ("é".encode(), "é".encode("latin-1")):
        answer = httpx2.post(f"{address}/v1/chat/completions", json=body, headers=[(b"x-thing", value)])
        assert answer.status_code == 200, answer.text
        assert upstream.asked[-1][1]["x-thing"].encode("latin-1") == value
        assert httpx2.get(f"{address}/v1/models", headers=[(b"x-thing", value)]).status_code == 200


def test_an_answer_is_asked_for_as_the_caller_would_have_it(address: str, upstream: ChatServer) -> None:
    with socket.create_connection(address.removeprefix("http://").split(":")) as plain:  # a client that names no coding
        content = orjson.dumps({"model": "gemma", "messages": ASKED})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        plain.sendall(head.encode() + content)
        assert plain.recv(1024).startswith(b"HTTP/1.1 200")
    assert upstream.asked[-1][1]["accept-encoding"] == "identity"
    httpx2.post(f"{address}/v1/chat/completions", content=content, headers={"accept-encoding": "gzip"})
    assert upstream.asked[-1][1]["accept-encoding"] == "gzip"


def test_an_answer_bears_one_request_id(address: str, upstream: ChatServer) -> None:
    own = {"x-request-id": "mine-1"}
    answer = httpx2.post(f"{address}/v1/chat/completions", json={"model": "gemma", "messages": ASKED}, headers=own)
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert upstream.asked[-1][1]["x-request-id"] == "mine-1"


def test_embeddings_are_those_that_the_pool_is_searched_with(client: openai.OpenAI, address: str) -> None:
    texts = ["the printer is on fire", "the invoice"]
    floats = client.embeddings.create(model="dense", input=texts, encoding_format="float").data
    packed = client.embeddings.create(model="tickets@", input=texts).data  # the client asks for base64
    assert np.allclose([e.embedding for e in floats], [e.embedding for e in packed])
    used = client.embeddings.create(model="dense", input=texts).usage
    assert (used.prompt_tokens, used.total_tokens) == (7, 7)  # words, as the encoder counts
    raw = httpx2.post(f"{address}/v1/embeddings", json={"model": "dense", "input": "a", "encoding_format": "base64"})
    own = np.frombuffer(base64.b64decode(raw.json()["data"][0]["embedding"]), "<f4")
    assert np.allclose(
        own, client.embeddings.create(model="dense", input="a", encoding_format="float").data[0].embedding
    )
    with pytest.raises(openai.UnprocessableEntityError, match="unknown retriever 'dens'; did you mean dense"):
        client.embeddings.create(model="dens", input="a")


# -- errors keep their meaning


def test_the_llm_servers_refusal_is_the_clients(client: openai.OpenAI, upstream: ChatServer) -> None:
    upstream.fault = "refuse"
    with pytest.raises(openai.RateLimitError, match="too much to do") as caught:
        chat(client)
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "busy"


def test_an_llm_server_that_is_not_there_is_502_and_one_that_is_silent_504(
    tmp_path: Path, upstream: ChatServer
) -> None:
    upstream.fault = "hang"
    own = Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake")
    body = {"model": "gemma", "messages": ASKED}
    for change, status, words in (
        ({"upstream": upstream.url, "upstream_timeout": 0.3}, 504, "silent"),
        ({"upstream": "http://127.0.0.1:9"}, 502, "cannot be reached"),
        ({}, 404, "UDR_UPSTREAM"),
    ):
        with TestClient(create_app(own.model_copy(update=change))) as client:
            refused(client.post("/v1/chat/completions", json=body), status, words)


def test_an_llm_server_that_breaks_off_breaks_the_answer_off(client: openai.OpenAI, upstream: ChatServer) -> None:
    upstream.fault = "break"
    words = []
    with pytest.raises((httpx2.RemoteProtocolError, openai.APIConnectionError)):
        words += [chunk.choices[0].delta.content for chunk in chat(client, stream=True)]
    upstream.fault = ""
    assert chat(client).choices[0].message.content == "".join(WORDS)


def eventually(claim: Any) -> None:
    deadline = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_goes_takes_its_request_with_it(client: openai.OpenAI, upstream: ChatServer) -> None:
    upstream.fault = "slow"
    stream = chat(client, stream=True)
    assert next(iter(stream)).choices[0].delta.content == WORDS[0]
    assert upstream.streaming == 1
    stream.close()
    eventually(lambda: upstream.given_up == 1 and upstream.streaming == 0)
    with pytest.raises(openai.APITimeoutError):  # before an answer has begun, too
        chat(client, timeout=0.3)
    eventually(lambda: upstream.given_up == 2)


def test_many_streams_at_once_come_whole_and_leave_nothing(
    client: openai.OpenAI, upstream: ChatServer, address: str
) -> None:
    def one(number: int) -> str:
        stream = chat(client, stream=True, extra_body={"number": number})
        return "".join(chunk.choices[0].delta.content for chunk in stream)

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(64))) == ["".join(WORDS)] * 64
    assert sorted(body["number"] for _, _, body in upstream.asked) == list(range(64))
    eventually(lambda: upstream.streaming == 0)
    metrics = httpx2.get(f"{address}/metrics").text
    assert 'udr_upstream_total{end="whole"}' in metrics


def test_what_the_llm_server_answers_is_counted_apart(address: str, upstream: ChatServer) -> None:
    path = "/v1/chat/completions"
    names = (("udr_answers_total", '",status="422"'), ("udr_relayed_total", '",status="200"'))

    def counts() -> list[float]:
        text = httpx2.get(f"{address}/metrics").text
        assert 'route="/metrics"' not in text
        found = [re.search(rf'{name}{{method="POST",route="{path}{status}}} (\S+)', text) for name, status in names]
        took = re.search(rf'udr_request_seconds_count{{method="POST",route="{path}"}} (\S+)', text)
        return [float(one[1]) if one else 0.0 for one in (*found, took)]

    before = counts()
    assert httpx2.post(f"{address}{path}", json={"model": "gemma", "messages": ASKED}).status_code == 200
    assert httpx2.post(f"{address}{path}", json={"model": ""}).status_code == 422
    assert [after - first for after, first in zip(counts(), before, strict=True)] == [1, 1, 1]


# -- who may, and what is refused


def test_a_key_of_this_service_never_reaches_the_llm_server(tmp_path: Path, upstream: ChatServer) -> None:
    own = Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake", upstream=upstream.url, key="secret")
    body = {"model": "tickets@gemma", "messages": ASKED}
    for upstream_key, expected in (("", None), ("theirs", "Bearer theirs")):
        with TestClient(create_app(own.model_copy(update={"upstream_key": upstream_key}))) as client:
            admin = {"Authorization": "Bearer secret"}
            client.post("/v1/pools", json={"name": "tickets"}, headers=admin)
            client.post("/v1/pools", json={"name": "others"}, headers=admin)
            assert client.post("/v1/chat/completions", json=body).status_code == 401
            assert client.post("/v1/chat/completions", json=body, headers=admin).status_code == 200
            assert upstream.asked[-1][1].get("authorization") == expected
            if not upstream_key:
                made = client.post("/v1/keys", json={"name": "r", "pools": ["others"]}, headers=admin).json()
                other = {"Authorization": f"Bearer {made['key']}"}
                refused(client.post("/v1/chat/completions", json=body, headers=other), 404, "no pool 'tickets'")
                listed = client.get("/v1/models", headers=other).json()["data"]
                assert [m["id"] for m in listed] == ["gemma", "others@gemma"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "@gemma"}, "POOL@MODEL"),
        ({"model": "tickets@"}, "POOL@MODEL"),
        ({"model": None}, "POOL@MODEL"),
        ({"messages": "hello"}, "list of messages"),
        ({"messages": []}, "none of a user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "none of a user"),
        ({"messages": [*ASKED, shown("data:image/png;base64,AAAA")]}, "no text, and dense reads texts alone"),
        (
            {"messages": [*ASKED, shown("http://127.0.0.1/a.png")]},
            "no text and no picture, clip or sound as a data-URI",
        ),
        ({"udr": {"style": "song"}}, "udr.style"),
        ({"udr": {"colour": 1}}, "udr.colour"),
        ({"udr": 3}, "object of settings"),
        ({"udr": {"budget": 3}}, "exceed the budget"),
        ({"udr": {"budget": 2**63}}, "udr.budget"),
        ({"messages": [{"role": "user", "content": "a\x00"}]}, "NUL"),
        ({"udr": {"retriever": "no"}}, "unknown retriever"),
    ],
)
def test_what_cannot_be_met_is_one_line_and_goes_no_further(
    address: str, upstream: ChatServer, change: dict[str, Any], words: str
) -> None:
    body = {"model": "tickets@gemma", "messages": ASKED, **change}
    refused(httpx2.post(f"{address}/v1/chat/completions", json=body), 422, words)
    assert upstream.asked == []


def test_a_pools_front_is_kept_and_checked(address: str, upstream: ChatServer) -> None:
    with httpx2.Client(base_url=address) as client:
        assert client.put("/v1/pools/tickets/front", json={"style": "text", "k": 1}).json()["front"] == {
            "style": "text",
            "k": 1,
        }
        client.post("/v1/chat/completions", json={"model": "tickets@gemma", "messages": ASKED})
        assert upstream.body["messages"][1:] == [
            {"role": "user", "content": "the printer is on fire\tPrinter\nmy printer smokes\t"}
        ]
        refused_plainly(client.put("/v1/pools/tickets/front", json={"where": {"year": {"above": 3}}}), 422, "above")
        refused_plainly(client.put("/v1/pools/tickets/front", json={"k": 0}), 422, "k")
        refused(client.post("/v1/chat/completions", content=b"{"), 422, "not JSON")
        refused(client.post("/v1/chat/completions", content=b"[]"), 422, "not a JSON object")
        for depth, words in ((300, "cannot be sent on"), (100_000, "not JSON")):
            deep = b'{"model": "gemma", "messages": ' + b"[" * depth + b"]" * depth + b"}"
            refused(client.post("/v1/chat/completions", content=deep), 422, words)


# -- the pieces

SPEC = TaskSpec(
    name="t", family="f", kind="generation", metric="rouge_l", template=Template(input_prefix="Q: ", answer="A: %s")
)
PROMPT = Prompt("whole", (Demonstration("1", "one", "eins"),), (), 5, 99)


def test_turns_stand_between_the_systems_words_and_the_conversation() -> None:
    said = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "s"},
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "now"},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    body = {"messages": said}
    assert chat_query(body) == "now"
    turns = [{"role": "user", "content": "Q: one"}, {"role": "assistant", "content": "A: eins"}]
    asked = [said[2], said[3], {"role": "user", "content": "Q: now"}, said[5]]
    assert with_turns(body, SPEC, PROMPT)["messages"] == [*said[:2], *turns, *asked]
    assert with_text(body, PROMPT)["messages"] == [*said[:4], {"role": "user", "content": "whole"}, said[5]]
    assert body == {"messages": said}


def test_a_model_is_addressed_behind_a_pool() -> None:
    assert addressed({"model": "a@org/m@1"}) == ("a", "org/m@1")
    assert addressed({"model": "m"}) == ("", "m")
    assert addressed({"model": "m"}, "a") == ("a", "m")
    assert addressed({"model": "org/m@1"}, "a") == ("a", "org/m@1")
    assert addressed({"model": "org/m@1"}, "") == ("", "org/m@1")
    with pytest.raises(ConfigError):
        addressed({})
