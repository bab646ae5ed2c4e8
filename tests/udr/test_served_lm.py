"""An LM behind servers: the numbers of the same LM in process, whatever the servers offer and however they fail."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import LLMServer, serving

import udr.scoring.endpoint
import udr.scoring.fleet
from udr.errors import (
    ConfigError,
    FingerprintMismatch,
    PartlyScored,
    PromptTooLong,
    ScorerUnavailable,
    UDRError,
    UDRWarning,
)
from udr.scoring.cache import CachedScorer, ScoreCache
from udr.scoring.causal_lm import CausalLM
from udr.scoring.endpoint import Read
from udr.scoring.reads import plan
from udr.scoring.served_lm import ServedLM, build_served_lm

ALL = {"logprob_token_ids", "prompt_logprobs", "echo", "generative_scoring", "tokenize"}
LABELS = ("great", "terrible", "not so bad")
CONTEXTS = [f"the film was a joy\tIt was great .\n{text}\tIt was " for text in ("a dull plot", "shares fell", "a joy")]
REQUESTS = [(c, o) for c in CONTEXTS for o in LABELS] + [("one fish", " two fish red fish blue fish"), ("", "a")]
MakeLM = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_lm: MakeLM) -> Path:
    """The tokenizer of the tiny LM; servers hold its weights."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_lm("llama").tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def start(make_lm: MakeLM, folder: Path) -> Iterator[Callable[..., tuple[LLMServer, str]]]:
    """Start servers that are stopped after the test."""
    with ExitStack() as stack:

        def one(offers: set[str] = ALL, kind: str = "llama", name: str = "tiny") -> tuple[LLMServer, str]:
            server = LLMServer(make_lm(kind), name, offers)
            return server, stack.enter_context(serving(server))

        yield one


@pytest.fixture
def open_lm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ServedLM]]:
    """Open served LMs that are closed after the test; no wait between tries is longer than a tenth of a second."""
    monkeypatch.setattr(udr.scoring.fleet, "BACK_OFF", (0.01, 0.05))
    monkeypatch.setattr(udr.scoring.fleet, "REST", (0.05, 0.1))
    opened: list[ServedLM] = []

    def one(*urls: str, **settings: Any) -> ServedLM:
        opened.append(build_served_lm(str(folder), urls, **({"patience": 0.5, "timeout": 5} | settings)))
        return opened[-1]

    yield one
    for lm in opened:
        lm.close()


def ask(lm: Any, requests: list[tuple[str, str]] = REQUESTS) -> Any:
    return lm.loglikelihood([c for c, _ in requests], [o for _, o in requests])


# -- the same numbers


@pytest.mark.parametrize(
    "offers",
    [
        {"logprob_token_ids"},
        {"prompt_logprobs"},
        {"echo"},
        {"generative_scoring"},
        {"generative_scoring", "echo"},
        {"top_logprobs", "tokenize"},
        ALL,
    ],
)
def test_every_way_of_asking_gives_the_numbers_of_the_lm_in_process(
    start: Any, open_lm: Any, make_lm: MakeLM, offers: set[str]
) -> None:
    _, url = start(offers)
    lm = open_lm(url)
    assert lm.reader.offers == offers - {"tokenize"}
    found, expected = ask(lm), ask(make_lm("llama"))
    np.testing.assert_allclose(found.nats, expected.nats, atol=1e-4)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.nats.dtype == np.float32


def test_as_many_likely_tokens_are_asked_for_as_it_takes(
    start: Any, open_lm: Any, make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_lm("llama")
    third = own.model.config.vocab_size // 3
    monkeypatch.setattr(udr.scoring.endpoint, "LIKELIEST", (third, 2 * third, 2**20))
    server, url = start({"top_logprobs"})
    lm = open_lm(url)
    server.asked.clear()
    np.testing.assert_allclose(ask(lm).nats, ask(own).nats, atol=1e-4)
    counts = [b["logprobs"] for b in server.reads for _ in b["prompt"]]
    assert 0 < counts.count(2**20) < counts.count(2 * third) < counts.count(third)


def test_llama_cpp_tells_its_context_and_how_its_weights_are_quantised(
    start: Any, open_lm: Any, make_lm: MakeLM
) -> None:
    _, url = start({"top_logprobs", "tokenize"})
    lm = open_lm(url)
    assert lm.context_length == 256
    assert lm.fingerprint.endswith("-served-by-llamacpp-Q4_K-Medium")
    with pytest.raises(PromptTooLong):
        lm.reader.endpoints[0].read([Read(tuple([5] * 300), (5,))])


def test_options_that_begin_alike_share_a_question_and_long_answers_are_asked_whole(start: Any, open_lm: Any) -> None:
    server, url = start(ALL)
    lm = open_lm(url)
    server.asked.clear()
    single = [(CONTEXTS[0], o) for o in ("great", "terrible")]
    ask(lm, [*single, REQUESTS[-2]])
    kinds = [("whole" if "prompt_logprobs" in b else "single", len(b["prompt"])) for b in server.reads]
    assert sorted(kinds) == [("single", 1), ("whole", 1)]


token = st.integers(0, 3)
sequences = st.lists(st.tuples(st.lists(token, min_size=1, max_size=3), st.lists(token, min_size=1, max_size=4)))


@given(
    sequences,
    st.sampled_from([{"logprob_token_ids"}, {"top_logprobs"}, {"echo"}, {"logprob_token_ids", "prompt_logprobs"}]),
    st.sampled_from([2, 128]),
)
def test_a_plan_reads_every_token_after_what_stands_before_it(
    requests: list[tuple[list[int], list[int]]], offers: set[str], most: int
) -> None:
    starts, ends = [a for a, _ in requests], [b for _, b in requests]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udr.scoring.reads.TARGETS_PER_READ", most)
        found = plan(starts, ends, frozenset(offers))
    assert all(len(r.targets) <= most for r in found.reads if not r.whole)
    assert len(set(found.reads)) == len(found.reads)
    for start_ids, end, places in zip(starts, ends, found.places, strict=True):
        assert len(places) == len(end)
        for n, (i, column) in enumerate(places):
            read = found.reads[i]
            k = list(found.columns(i)).index(column)
            assert read.targets[k] == end[n]
            before = read.ids[: len(read.ids) - len(read.targets) + k] if read.whole else read.ids
            assert before == (*start_ids, *end[:n])


def test_answers_are_those_of_the_lm_in_process(start: Any, open_lm: Any, make_lm: MakeLM) -> None:
    _, url = start()
    prompts = ["one fish\ttwo fish\nred fish\t", "the film was", CONTEXTS[0]]
    lm = open_lm(url)
    assert lm.generate(prompts, 6) == make_lm("llama").generate(prompts, 6)
    assert lm.generate([], 6) == []
    with pytest.raises(PromptTooLong, match="prompt 1"):
        lm.generate(["a", "joy " * 256], 6)


def test_tokens_are_counted_before_and_after_alike(start: Any, open_lm: Any) -> None:
    lm = open_lm(start()[1])
    counted = lm.count_tokens(*zip(*REQUESTS, strict=True))
    ask(lm)
    assert lm.tokens_computed == counted > 0


def test_bad_requests_are_refused_before_any_is_sent(start: Any, open_lm: Any) -> None:
    server, url = start()
    lm = open_lm(url)
    server.asked.clear()
    with pytest.raises(ConfigError, match="request 1: the continuation has no tokens"):
        ask(lm, [("a", "b"), ("a", "")])
    with pytest.raises(PromptTooLong, match=r"request 1: .* the LM reads 255"):
        ask(lm, [("a", "b"), ("joy " * 256, "b")])
    assert server.asked == []


# -- many requests at once


def test_many_requests_are_under_way_at_once_over_few_connections(start: Any, open_lm: Any) -> None:
    server, url = start({"echo"})
    lm = open_lm(url, in_flight=6)
    server.fault = lambda *_: time.sleep(0.02)
    requests = [(f"the film {i}", "a joy") for i in range(400)]
    ask(lm, requests)
    assert 4 < server.most_at_once <= 6
    assert len(server.connections) <= 7  # one more opened the server


def test_the_least_loaded_server_is_asked_so_that_a_slow_one_holds_nobody_up(start: Any, open_lm: Any) -> None:
    (slow, a), (quick, b) = start({"echo"}), start({"echo"})
    lm = open_lm(a, b, in_flight=4)
    slow.asked.clear(), quick.asked.clear()

    def wait_for_the_other(*_: object) -> None:
        while len(quick.asked) < 30:
            time.sleep(0.01)

    slow.fault = wait_for_the_other
    ask(lm, [(f"the film {i}", "a joy") for i in range(400)])
    assert len(slow.asked) + len(quick.asked) == 50
    assert 2 * len(slow.asked) < len(quick.asked)


# -- faults


def every(n: int, answer: Any) -> Callable[..., Any]:
    """A fault of every n-th request."""
    return lambda number, path, body: answer if number % n == 0 else None


Body = dict[str, Any]


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"error": {"message": "too many requests"}}, {"Retry-After": "0"}),
        (503, {}, {}),
        (500, {"error": {"message": "internal"}}, {}),
        (502, b"<html>bad gateway</html>", {}),
        (200, b'{"choices": [{"ind', {}),
        (200, {"choices": []}, {}),
        (200, {"choices": [{"index": 0, "logprobs": {"token_logprobs": [None, -1.0]}}]}, {}),
        (200, b'{"choices": [{"index": 0, "prompt_logprobs": null}, {"index": 1}]}', {}),
        "drop",
    ],
    ids=["429", "503", "500", "html", "cut", "none", "truncated", "null", "reset"],
)
@pytest.mark.parametrize("offers", [{"logprob_token_ids"}, {"prompt_logprobs"}, {"echo"}])
def test_faults_that_pass_are_tried_again_and_change_nothing(
    start: Any, open_lm: Any, make_lm: MakeLM, offers: set[str], answer: Any
) -> None:
    server, url = start(offers)
    lm = open_lm(url, in_flight=3, patience=20)
    server.fault = every(3, answer)
    np.testing.assert_allclose(ask(lm).nats, ask(make_lm("llama")).nats, atol=1e-4)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "null", "0.7", "-9999999", '"x"'])
def test_a_number_that_is_no_log_probability_is_never_taken(
    start: Any, open_lm: Any, tmp_path: Path, value: str
) -> None:
    server, url = start({"echo"})
    lm = open_lm(url)

    def spoiled(number: int, path: str, body: Body) -> Any:
        choices = ", ".join(
            f'{{"index": {i}, "logprobs": {{"token_logprobs": [null{f", {value}" * (len(ids) - 1)}]}}}}'
            for i, ids in enumerate(body["prompt"])
        )
        return 200, f'{{"choices": [{choices}]}}'.encode(), {}

    server.fault = spoiled
    cache = ScoreCache(tmp_path / "scores.sqlite")
    with pytest.raises(ScorerUnavailable, match=f"{url}: .* is no log-probability; tried"):
        ask(CachedScorer(lm, cache))
    assert len(cache) == 0
    cache.close()


def test_a_storm_of_429_is_weathered_with_fewer_requests_at_once(start: Any, open_lm: Any, make_lm: MakeLM) -> None:
    server, url = start({"echo"})
    lm = open_lm(url, in_flight=16)

    def storm(number: int, path: str, body: Body) -> Any:
        if server.busy > 2:
            return 429, {"error": {"message": "too many"}}, {"Retry-After": "0.01"}
        time.sleep(0.002)
        return None

    server.fault = storm
    requests = [(f"the film {i}", "a joy") for i in range(300)]
    np.testing.assert_allclose(ask(lm, requests).nats, ask(make_lm("llama"), requests).nats, atol=1e-4)
    refused = len(server.asked) - 38 - 8
    assert refused < 4 * 38  # of 38 requests; without backing off a dozen would knock again and again


def test_a_server_that_dies_leaves_its_work_to_the_others_and_nothing_is_paid_twice(
    start: Any, open_lm: Any, make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dying, a), (other, b) = start({"echo"}), start({"echo"})
    lm = open_lm(a, b)
    monkeypatch.setattr(udr.scoring.fleet, "REST", (60.0, 60.0))  # longer than the test
    dying.asked.clear(), other.asked.clear()
    dying.fault = lambda number, *_: "drop" if number > 5 else None
    requests = [(f"the film {i}", "a joy") for i in range(400)]
    np.testing.assert_allclose(ask(lm, requests).nats, ask(make_lm("llama"), requests).nats, atol=1e-4)
    assert len(other.reads) + 5 == 50
    assert len(dying.asked) < 30  # it is left alone after some failures


def test_what_a_server_gave_before_it_died_is_kept_and_only_the_rest_is_asked_again(
    start: Any, open_lm: Any, make_lm: MakeLM, tmp_path: Path
) -> None:
    server, url = start({"echo"})
    lm = open_lm(url, in_flight=2)
    cache = ScoreCache(tmp_path / "scores.sqlite")
    scorer = CachedScorer(lm, cache)
    before = len(server.asked)
    server.fault = lambda number, *_: "drop" if number > before + 4 else None
    requests = [(f"the film {i}", "a joy") for i in range(80)]
    with pytest.raises(PartlyScored, match=r"nothing else for 0\.5 s: what was scored is kept"):
        ask(scorer, requests)
    assert len(cache) == 4 * 8
    server.fault = lambda *_: None
    server.asked.clear()
    found = ask(scorer, requests)
    assert sum(len(b["prompt"]) for b in server.reads) == 80 - 32
    np.testing.assert_allclose(found.nats, ask(make_lm("llama"), requests).nats, atol=1e-4)
    cache.close()


def test_a_server_that_comes_back_is_used_again(make_lm: MakeLM, open_lm: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LLMServer(make_lm("llama"), "tiny", {"echo"})
    with serving(server, port) as url:
        lm = open_lm(url, patience=20)
        ask(lm)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask(lm)))
    thread.start()
    time.sleep(0.3)
    assert not found
    with serving(server, port):
        thread.join(10)
    np.testing.assert_allclose(found[0].nats, ask(make_lm("llama")).nats, atol=1e-4)


def test_a_server_too_slow_for_the_timeout_is_given_up_in_one_line(start: Any, open_lm: Any) -> None:
    server, url = start({"echo"})
    lm = open_lm(url, timeout=0.1, patience=0.3)
    server.fault = lambda *_: time.sleep(1)
    with pytest.raises(ScorerUnavailable, match=f"{url}: no answer in time; nothing else for 0.3 s") as caught:
        ask(lm, REQUESTS[:2])
    assert "\n" not in str(caught.value)


def test_a_failure_after_answers_that_took_longer_than_the_patience_is_tried_again(
    start: Any, open_lm: Any, make_lm: MakeLM
) -> None:
    server, url = start({"echo"})
    lm = open_lm(url, in_flight=1, patience=0.1)
    failed: list[int] = []

    def slow(number: int, path: str, body: Body) -> Any:
        time.sleep(0.2)
        if number % 2 == 0 and number - 1 not in failed:
            failed.append(number)
            return 500, {}, {}
        return None

    server.fault = slow
    requests = [(f"the film {i}", "a joy") for i in range(40)]
    np.testing.assert_allclose(ask(lm, requests).nats, ask(make_lm("llama"), requests).nats, atol=1e-4)
    assert len(failed) >= 2


def test_a_refusal_stops_at_once_and_says_what_the_server_says(start: Any, open_lm: Any) -> None:
    server, url = start({"echo"})
    lm = open_lm(url)
    server.asked.clear()
    server.fault = lambda *_: (401, {"error": {"message": "Invalid API key"}}, {})
    with pytest.raises(ScorerUnavailable, match="401 Invalid API key"):
        ask(lm, REQUESTS[:2])
    assert len(server.asked) == 1


def test_a_context_that_the_server_cannot_hold_is_told_as_such(start: Any, open_lm: Any) -> None:
    server, url = start({"echo"})
    lm = open_lm(url)
    server.context_length = 8
    with pytest.raises(UDRError, match="maximum context length is 8 tokens"):
        ask(lm)


# -- is it the model that was asked for?


def test_a_server_of_another_model_is_refused_by_name(start: Any, open_lm: Any) -> None:
    _, url = start(name="other/model")
    with pytest.raises(ConfigError, match=r"serves other/model, not .*tiny; .*lm\.served_name=NAME"):
        open_lm(url)
    assert open_lm(url, served_name="other/model").reader.offers
    _, url = start(name="/srv/models/tiny")  # the same folder's name elsewhere
    assert open_lm(url).reader.offers


def test_a_server_of_another_tokenizer_is_refused(start: Any, open_lm: Any) -> None:
    _, url = start(kind="gpt2")
    with pytest.raises(FingerprintMismatch, match="its tokenizer is not that of"):
        open_lm(url)


def test_servers_with_other_weights_are_refused(start: Any, open_lm: Any, make_lm: MakeLM) -> None:
    from udr.scoring.identity import probe

    (_, a), (other, b) = start(), start()
    own = probe(make_lm("llama"))
    assert open_lm(a, expected={"the folder": own}).reader.offers
    with pytest.raises(FingerprintMismatch, match=f"{a}: its log-probabilities lie .* from those of the folder"):
        open_lm(a, expected={"the folder": [v - 3 for v in own]})
    right = other.logs
    other.logs = lambda ids: np.roll(right(ids), 1, axis=-1)  # type: ignore[method-assign]
    with pytest.raises(FingerprintMismatch, match=f"{b}: its log-probabilities lie .* from those of {a}"):
        open_lm(a, b)


def test_a_server_that_offers_no_scoring_is_refused_with_what_is_needed(start: Any, open_lm: Any) -> None:
    _, url = start(set())
    with pytest.raises(ScorerUnavailable, match="one of logprob_token_ids, prompt_logprobs, echo"):
        open_lm(url)


def test_one_silent_server_of_several_is_left_out_and_all_silent_are_an_error(start: Any, open_lm: Any) -> None:
    _, url = start()
    with pytest.warns(UDRWarning, match="left out: http://127"):
        assert len(open_lm("http://127.0.0.1:9", url).reader.endpoints) == 1
    with pytest.raises(ScorerUnavailable, match="no LLM server answers"):
        open_lm("http://127.0.0.1:9")
    with pytest.raises(UDRError):
        open_lm("nonsense")


def test_a_key_is_sent_and_a_proxy_of_the_machine_is_not_used(
    start: Any, open_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HTTP_PROXY", "http://127.0.0.1:9")
    lm = open_lm(start()[1], key="secret")
    assert lm.reader.endpoints[0]._client.headers["authorization"] == "Bearer secret"
