"""What the OpenAI-compatible front adds to a real vLLM server: time before the first token, and right answers.

    UDR_VLLM_PYTHON=PYTHON python tests/benchmarks/front.py latency lm=FOLDER data=FOLDER encoder=FOLDER
    UDR_VLLM_PYTHON=PYTHON python tests/benchmarks/front.py accuracy lm=FOLDER run=FOLDER

latency   the same finished prompts streamed by the server alone and through the front, which has yet to build them, in
          turns; the server remembers no prefix
accuracy  test queries of an evaluated run's tasks, by a client that knows nothing of demonstrations, with and without a
          pool before the model's name, beside what `udr evaluate` says of the same retriever (`run=`, its folder)
Results: results/front_latency.json, front_accuracy.json. Run alone.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from record import write_result
from service import call, fill, service

from training.settings import RunConfig
from udr.client import Client
from udr.config import load_config
from udr.data import TaskData, open_task
from udr.evaluation import Answer, read_answers
from udr.metrics import per_example
from udr.prompt import render
from udr.significance import paired_permutation
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

sys.path.insert(0, str(Path(__file__).parents[1]))
from vllm_server import vllm_server

TASKS = ("past_tense", "wikidata_qa", "sentiment_hotels", "metaphor", "adjective_order", "sentiment_products")


def first_token(port: int, body: dict[str, Any]) -> float:
    """Seconds until the first bytes of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read1(1)
    seconds = time.perf_counter() - begun
    if answer.status != 200:
        raise SystemExit(f"{answer.status} {answer.read()[:300]!r}")
    answer.read()
    connection.close()
    return seconds


def latency(lm: str, data: str, encoder: str, task: str = "question_type", count: int = 150) -> None:
    own = open_task(str(Path(data) / f"{task}.parquet"))
    rows = [{"input": d.input, "output": d.output} for d in own.train[:2000]]
    queries = [d.input for d in own.test[:count]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ("--served-model-name", "lm", "--no-enable-prefix-caching")
        with (
            vllm_server(Path(lm), folder / "vllm.log", *words, dtype="auto") as upstream,
            service(folder, encoder, upstream=upstream.url, tokenizers=json.dumps({"lm": lm})) as (port, _),
        ):
            fill(port, rows)
            settings = {"k": 8, "budget": 1024, "tokenizer": "lm"}
            call(port, "PUT", "/v1/pools/p/front", settings)
            asked = call(port, "POST", "/v1/prompt", {"pool": "p", "queries": queries, **settings})
            texts = [result["text"] for result in asked["results"]]
            behind, found = urlsplit(upstream.url).port or 80, {"alone": [], "front": []}  # type: ignore[var-annotated]
            for i, (query, text) in enumerate(zip(queries, texts, strict=True)):
                ways = {"alone": (behind, "lm", text), "front": (port, "p@lm", query)}
                for way in sorted(ways, reverse=bool(i % 2)):
                    at, model, prompt = ways[way]
                    body = {"model": model, "prompt": prompt, "max_tokens": 1, "stream": True, "temperature": 0}
                    seconds = first_token(at, body)
                    if i >= 10:  # the first ones warm both
                        found[way].append(1000 * seconds)
    added = np.array(found["front"]) - np.array(found["alone"])
    result = {
        "queries": len(added),
        "alone_p50_ms": round(float(np.median(found["alone"])), 2),
        "front_p50_ms": round(float(np.median(found["front"])), 2),
        "added_p50_ms": round(float(np.median(added)), 2),
        "added_p90_ms": round(float(np.percentile(added, 90)), 2),
    }
    print(result)
    write_result("front_latency", result)


def asked(port: int, model: str, spec: TaskSpec, queries: Sequence[Demonstration], prompts: Sequence[str]) -> list[str]:
    """What comes back for each prompt, eight at once: one of the options where there are some, else a line of text."""

    def ask(query: Demonstration, prompt: str) -> str:
        body = {"model": model, "prompt": prompt, "temperature": 0, "stop": ["\n"], "max_tokens": 32}
        if options := spec.options(query.choices):
            body["structured_outputs"] = {"choice": list(options)}
        else:
            body["max_tokens"] = spec.max_new_tokens
        return str(call(port, "POST", "/v1/completions", body)["choices"][0]["text"]).strip()

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, queries, prompts))


def fill_task(client: Client, data: TaskData, front: dict[str, Any]) -> None:
    """A pool of a task's demonstrations under the trained retriever."""
    name = data.spec.name
    client.create_pool(name, data.spec.model_dump(mode="json", exclude={"name", "source"}), front=front)
    rows = [{"id": d.id, "input": d.input, "output": d.output, "choices": d.choices} for d in data.train]
    client.wait(client.load(name, b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
    client.wait(client.switch(name, "trained"))


def compared(port: int, data: TaskData, answers: Sequence[Answer]) -> dict[str, float]:
    """Points of one task through the front, at the same server without demonstrations, and as it was evaluated."""
    spec, by_id = data.spec, {d.id: d for d in data.test}
    queries = [by_id[a.query_id] for a in answers]
    texts = {
        "front": asked(port, f"{spec.name}@lm", spec, queries, [q.input for q in queries]),
        "without": asked(port, "lm", spec, queries, [render(spec, [], q.query) for q in queries]),
        "evaluate": [spec.verbalise(a.prediction) for a in answers],
    }
    right = [(spec.verbalise(q.output), *q.references) for q in queries]
    points = {way: per_example(spec.metric, own, right, [q.input for q in queries]) for way, own in texts.items()}
    found = {way: round(100 * float(np.mean(own)), 1) for way, own in points.items()}
    return found | {"p_front_evaluate": round(paired_permutation(points["front"], points["evaluate"], 0), 3)}


def accuracy(lm: str, run: str, tasks: str = ",".join(TASKS)) -> None:
    config = load_config(RunConfig, Path(run) / "config.yaml")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        words = ("--served-model-name", "lm")
        upstream = stack.enter_context(vllm_server(Path(lm), folder / "vllm.log", *words, dtype="auto"))
        settings = {"tokenizers": {"lm": lm}, "retrievers": {"trained": f"{run}/retriever"}}
        told = {name: json.dumps(value) for name, value in settings.items()}
        port, _ = stack.enter_context(service(folder, "none", upstream=upstream.url, **told))
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}", timeout=600))
        for task in tasks.split(","):
            data = open_task(task, config.data)
            k = config.evaluation.k_generation if data.spec.kind == "generation" else config.evaluation.k
            reserve = data.spec.max_new_tokens if data.spec.kind == "generation" else 8
            front = {"budget": config.evaluation.budget, "tokenizer": "lm", "k": k, "reserve": reserve}
            fill_task(client, data, front)
            found[task] = compared(port, data, read_answers(Path(run) / "evaluation" / "udr" / f"{task}.jsonl"))
            print(task, found[task], flush=True)
    mean = {way: round(float(np.mean([t[way] for t in found.values()])), 1) for way in ("front", "without", "evaluate")}
    print(mean)
    write_result("front_accuracy", {"tasks": found, "average": mean})


PARTS: dict[str, Callable[..., None]] = {"latency": latency, "accuracy": accuracy}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    PARTS[sys.argv[1]](**{key: int(value) if key == "count" else value for key, value in given.items()})
