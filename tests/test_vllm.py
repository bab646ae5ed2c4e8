"""A real vLLM server, and vLLM in process: the same numbers as the LM in transformers.

scripts: see CONTRIBUTING.md ("vLLM"); UDR_VLLM_PYTHON names the Python of an environment that has vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from vllm_server import PYTHON, gemma_folder, vllm_server

from udr.errors import FingerprintMismatch
from udr.scoring.causal_lm import build_causal_lm
from udr.scoring.identity import probe
from udr.scoring.served_lm import build_served_lm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="no environment with vLLM; run: make vllm"),
]
LABELS = ("Number", "Location", "a human being", "Human group")
QUESTIONS = ("Where is Kyoto?", "How many moons has Mars?", "Who wrote Emma?")
CONTEXTS = [f"Question: When?\tDate\n{z}\tLocation\n{x}\t" for z in QUESTIONS for x in QUESTIONS if x != z]
REQUESTS = [(c, o) for c in CONTEXTS for o in LABELS]
# after other contexts: where a context has a long answer, its labels are read whole too
REQUESTS += [(f"In full. {c}", " the answer is one that takes a good many tokens to write down") for c in CONTEXTS]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_folder(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def url(gemma: Path) -> Iterator[str]:
    with vllm_server(gemma, gemma.parent / "vllm.log") as server:
        yield server.url


def ask(lm: Any) -> np.ndarray:
    return np.array(lm.loglikelihood([c for c, _ in REQUESTS], [o for _, o in REQUESTS]).nats)


def test_a_vllm_server_offers_every_way_of_scoring_and_each_gives_our_numbers(gemma: Path, url: str) -> None:
    own = build_causal_lm(str(gemma), dtype="float32")
    lm = build_served_lm(str(gemma), [url], expected={str(gemma): probe(own)})
    try:
        offers = lm.reader.offers
        assert offers == {"logprob_token_ids", "prompt_logprobs", "echo", "generative_scoring"}
        expected = ask(own)
        for some in (offers, {"echo"}, {"prompt_logprobs"}, {"logprob_token_ids"}, {"generative_scoring"}):
            lm.reader.offers = lm.reader.endpoints[0].offers = frozenset(some)  # type: ignore[misc, attr-defined]
            np.testing.assert_allclose(ask(lm), expected, atol=2e-3)
        prompts = ["The capital of France is", "one two three four"]
        assert lm.generate(prompts, 8) == own.generate(prompts, 8)
        with pytest.raises(FingerprintMismatch, match="it holds another model"):
            build_served_lm(str(gemma), [url], expected={"another": [v * 1.2 for v in probe(own)]})
    finally:
        lm.close()


def served(url: str) -> float:
    """Requests that a server has answered, by its own metrics."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:request_success_total"))


def test_a_run_outlives_a_server_that_is_killed_and_pays_nothing_twice(gemma: Path, tmp_path: Path) -> None:
    contexts = [f"Question: What is {i} plus {j}?\t" for i in range(40) for j in range(10)]
    ends = [str(i + j) + " and no other number" for i in range(40) for j in range(10)]
    in_flight = 4
    with vllm_server(gemma, tmp_path / "first.log") as first, ThreadPoolExecutor(1) as pool:
        lm = build_served_lm(str(gemma), [first.url], in_flight=in_flight)
        lm.reader.offers = lm.reader.endpoints[0].offers = frozenset({"prompt_logprobs"})  # type: ignore[misc, attr-defined]
        before = served(first.url)
        found = pool.submit(lm.loglikelihood, contexts, ends)
        while (answered := served(first.url) - before) < len(contexts) / 4:
            assert not found.done()
            time.sleep(0.2)
        first.kill()
        with vllm_server(gemma, tmp_path / "second.log", port=httpx2.URL(first.url).port or 0) as second:
            nats = found.result(timeout=600).nats
            asked_again = served(second.url) - (len(contexts) - answered)
    lm.close()
    assert 0 < answered < len(contexts) - in_flight
    assert asked_again <= in_flight  # those that were under way; the rest had come before the count, or after it
    np.testing.assert_allclose(
        nats, build_causal_lm(str(gemma), dtype="float32").loglikelihood(contexts, ends).nats, atol=2e-3
    )


def test_vllm_in_process_gives_our_numbers(gemma: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from udr.scoring.vllm_engine import build_vllm_lm
if __name__ == "__main__":
    lm = build_vllm_lm(sys.argv[1], dtype="float32", context_length=1024)
    requests = json.loads(sys.argv[2])
    read, whole = lm.reader.read, set()
    lm.reader.read = lambda reads: whole.update(r.whole for r in reads) or read(reads)
    nats = lm.loglikelihood([c for c, _ in requests], [o for _, o in requests]).nats.tolist()
    print("RESULT " + json.dumps([nats, lm.generate(["The capital of France is"], 8), lm.fingerprint, sorted(whole)]))
"""
    script = tmp_path / "ask.py"
    script.write_text(code)
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [PYTHON, str(script), str(gemma), json.dumps(REQUESTS)], env=environment, capture_output=True, text=True
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")] or [done.stderr[-2000:]]
    nats, answers, fingerprint, whole = json.loads(line.removeprefix("RESULT "))
    assert whole == [False, True]  # labels token by token, long answers as they stand
    own = build_causal_lm(str(gemma), dtype="float32")
    np.testing.assert_allclose(nats, ask(own), atol=2e-3)
    assert answers == own.generate(["The capital of France is"], 8)
    assert fingerprint.endswith("-float32-vllm")
