"""The unmodified OpenAI client, the service's front, and a real vLLM server behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from vllm_server import CHAT_TEMPLATE, PYTHON, VLLMServer, gemma_folder, vllm_server

from serving.settings import Settings
from tests.serving.tools import served

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="no environment with vLLM; run: make vllm"),
]
CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Egypt", "Cairo"), ("Peru", "Lima")]
ASKED: Any = [{"role": "user", "content": "capital of Greece"}]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_folder(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def upstream(gemma: Path, tmp_path: Path) -> Iterator[VLLMServer]:
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    words = ("--served-model-name", "gemma", "--chat-template", str(template))
    with vllm_server(gemma, tmp_path / "vllm.log", *words) as server:
        yield server


@pytest.fixture
def client(upstream: VLLMServer, tmp_path: Path) -> Iterator[openai.OpenAI]:
    settings = Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake", upstream=upstream.url)
    rows = [{"input": f"capital of {land}", "output": town} for land, town in CAPITALS]
    with served(settings) as url, httpx2.Client(base_url=url) as http:
        http.post("/v1/pools", json={"name": "towns", "front": {"k": 4}}).raise_for_status()
        http.post("/v1/pools/towns/demonstrations", json={"demonstrations": rows}).raise_for_status()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
            yield client


def streamed(client: openai.OpenAI, model: str = "towns@gemma", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=ASKED, temperature=0, stream=True, **more)


def waiting(upstream: VLLMServer) -> float:
    """Requests that the LLM server works on, by its own metrics."""
    lines = httpx2.get(f"{upstream.url}/metrics").text.splitlines()
    named = [line for line in lines if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))]
    return sum(float(line.rpartition(" ")[2]) for line in named)


def test_answers_stream_and_nothing_is_left_when_clients_or_the_server_go(
    client: openai.OpenAI, upstream: VLLMServer
) -> None:
    def text(stream: Any) -> str:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    # the demonstrations make a small base model answer with a town (not always the right one); without them it does not
    towns = {"Athens", *(town for _, town in CAPITALS)}
    shown = text(streamed(client, max_tokens=6, stop="\n"))
    assert shown.strip() in towns
    assert text(streamed(client, model="gemma", max_tokens=6, stop="\n")).strip() not in towns
    raw = client.chat.completions.with_raw_response.create(model="towns@gemma", messages=ASKED, max_tokens=2)
    assert len(raw.headers["x-udr-demonstrations"].split(",")) == 4
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        streamed(client, model="towns@another")

    # sixty-four at once, all the same as one alone
    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(lambda _: text(streamed(client, max_tokens=6, stop="\n")), range(64)))
    assert set(answers) == {shown}

    # a client that goes takes its request along
    stream = streamed(client, max_tokens=1500, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert waiting(upstream) == 1
    stream.close()
    deadline = time.monotonic() + 30
    while waiting(upstream):
        assert time.monotonic() < deadline, "the LLM server works on for a client that is gone"
        time.sleep(0.1)

    # the server dies in the middle of an answer: it breaks off, and the next one is 502
    stream = streamed(client, max_tokens=1500, extra_body={"ignore_eos": True})
    next(iter(stream))
    upstream.kill()
    with pytest.raises((httpx2.RemoteProtocolError, openai.APIConnectionError)):
        text(stream)
    with pytest.raises(openai.InternalServerError) as caught:
        streamed(client)
    assert caught.value.status_code == 502
