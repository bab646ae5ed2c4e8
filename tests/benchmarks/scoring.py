"""What LM feedback costs: the engine against plain ways of scoring, its distance to the floor, and how it grows.

    python tests/benchmarks/scoring.py PART data=FOLDER lm=FOLDER [server=URL] [pairs=N] [key=value ...]

contenders  the same pairs by (a) one padded forward with full logits for every (z, x, label), (b) a server's
            prompt_logprobs, one request each, (c) the engine in process, (d) the engine through the server
shortcuts   what first_token and halving save, and what they lose against exact feedback
growth      seconds for 1k, 10k and 100k pairs
memory      peak memory with a million pairs queued, on an LM without weights
cache       ten million entries: opening, look-ups, processes at once
Results: results/scoring_NAME.json.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from udr.data import TaskData, open_task
from udr.draw import seeded
from udr.mining import choose_queries, drop_long, pairs_of, propose_bm25, sample
from udr.prompt import render
from udr.scoring.cache import CachedScorer, ScoreCache, score_key
from udr.scoring.feedback import Pair, normalise, score_pairs
from udr.types import LogLikelihoods

CLASSIFICATION, GENERATION = ("question_type", "fever"), ("common_gen", "wikidata_qa")
POOL, QUERIES, CANDIDATES, MAX_TOKENS = 600, 450, 6, 320  # as main.yaml mines
BATCH = 16  # of the plain loop
FLYING = 16  # requests to the server at once, in (b) and in (d)


def pairs_for(data: TaskData, tokenizer: Any, count: int) -> list[Pair]:
    """Pairs as a first round proposes them: all that belong to some of the demonstrations."""
    fitting = drop_long(data.spec, data.train, tokenizer, MAX_TOKENS)
    pool, queries = choose_queries(fitting, POOL, 1), choose_queries(fitting, QUERIES, 0)
    lists = sample(propose_bm25(data.spec, pool, queries, 50), CANDIDATES, 0)
    pairs = sorted(pairs_of(data, lists), key=lambda pair: (pair[0].id, pair[1].id))
    while len(pairs) < count:  # of a small task: the same texts under other queries' names
        pairs = pairs + pairs
    return pairs[:count]


def flat(data: TaskData, pairs: Sequence[Pair]) -> tuple[list[str], list[str], list[int]]:
    """Every (context, continuation) of the pairs, and how many belong to each."""
    spec = data.spec
    contexts, continuations, counts = [], [], []
    for z, x in pairs:
        options = spec.options(x.choices) if spec.kind != "generation" else (spec.verbalise(x.output),)
        contexts += [render(spec, [z], x.query)] * len(options)
        continuations += options
        counts.append(len(options))
    return contexts, continuations, counts


def shares(
    data: TaskData, pairs: Sequence[Pair], nats: Sequence[float], tokens: Sequence[int], counts: list[int]
) -> np.ndarray:
    """log s(z) of each pair from the log-likelihoods of its options."""
    if data.spec.kind == "generation":
        return np.array(nats)
    scores = []
    for (_, x), own, length in zip(
        pairs,
        np.split(np.array(nats), np.cumsum(counts)[:-1]),
        np.split(np.array(tokens), np.cumsum(counts)[:-1]),
        strict=True,
    ):
        values = normalise(LogLikelihoods(own, length), data.spec.normalisation)
        gold = data.spec.options(x.choices).index(data.spec.verbalise(x.output))
        scores.append(values[gold] - np.logaddexp.reduce(values))
    return np.array(scores)


def plain_loop(lm: Any, contexts: list[str], continuations: list[str]) -> np.ndarray:
    """One padded forward with full logits for every batch of (z, x, label), in the order they come."""
    import torch

    nats = []
    for start in range(0, len(contexts), BATCH):
        part = [
            lm.tokens.token_ids(a, b)
            for a, b in zip(contexts[start : start + BATCH], continuations[start : start + BATCH], strict=True)
        ]
        width = max(len(a) + len(b) for a, b in part)
        ids = torch.tensor([a + b + [0] * (width - len(a) - len(b)) for a, b in part])
        mask = torch.tensor([[1] * (len(a) + len(b)) + [0] * (width - len(a) - len(b)) for a, b in part])
        with torch.inference_mode():
            logs = lm.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for row, (a, b) in enumerate(part):
            nats.append(sum(float(logs[row, len(a) - 1 + i, t]) for i, t in enumerate(b)))
    return np.array(nats)


def one_by_one(lm: Any, contexts: list[str], continuations: list[str]) -> np.ndarray:
    """The reference: one forward a request, with the attention the engine uses; nats (n,)."""
    import torch

    nats = []
    for context, continuation in zip(contexts, continuations, strict=True):
        start, end = lm.tokens.token_ids(context, continuation)
        with torch.inference_mode():
            logs = lm.model(input_ids=torch.tensor([start + end])).logits[0].float().log_softmax(-1)
        nats.append(sum(float(logs[len(start) - 1 + i, t]) for i, t in enumerate(end)))
    return np.array(nats)


def plain_server(url: str, model: str, lm: Any, contexts: list[str], continuations: list[str]) -> np.ndarray:
    """One request with prompt_logprobs for every (z, x, label)."""
    import httpx2

    client = httpx2.Client(base_url=url, timeout=600, limits=httpx2.Limits(max_connections=FLYING))

    def one(pair: tuple[str, str]) -> float:
        a, b = lm.tokens.token_ids(*pair)
        body = {"model": model, "prompt": a + b, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        rows = client.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
        return sum(row[str(t)]["logprob"] for row, t in zip(rows[-len(b) :], b, strict=True))

    with ThreadPoolExecutor(FLYING) as pool:
        return np.array(list(pool.map(one, zip(contexts, continuations, strict=True))))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def gemm_rate(dtype: Any) -> float:
    """Multiply-adds a second of large matrix products, the best of some tries."""
    import torch

    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    best = 0.0
    for _ in range(12):
        seconds, _ = timed(lambda: torch.nn.functional.linear(a, b))
        best = max(best, 2048**3 / seconds)
    return best


def must_be_done(lm: Any, contexts: list[str], continuations: list[str]) -> float:
    """Multiply-adds of the weights, were every text that requests begin with alike computed once."""
    body = sum(p.numel() for n, p in lm.model.named_parameters() if "embed" not in n and "lm_head" not in n)
    config = lm.model.config.get_text_config()
    head = config.vocab_size * config.hidden_size
    nodes: set[tuple[int, ...]] = set()
    read: set[tuple[int, ...]] = set()
    for a, b in zip(contexts, continuations, strict=True):
        start, end = lm.tokens.token_ids(a, b)
        whole = tuple(start + end[:-1])
        nodes.update(whole[: i + 1] for i in range(len(whole)))
        read.update(whole[:i] for i in range(len(start), len(whole) + 1))
    return float(len(nodes) * body + len(read) * head)


def ranks_alike(data: TaskData, pairs: Sequence[Pair], a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Shares of (queries' lists with the same ranks, pairs of candidates in the same order)."""
    of_query: dict[str, list[int]] = {}
    for i, (_, x) in enumerate(pairs):
        of_query.setdefault(x.id, []).append(i)
    lists = [own for own in of_query.values() if len(own) > 1]
    same = [list(np.argsort(-a[own], kind="stable")) == list(np.argsort(-b[own], kind="stable")) for own in lists]
    order = [np.sign(a[i] - a[j]) == np.sign(b[i] - b[j]) for own in lists for n, i in enumerate(own) for j in own[:n]]
    return float(np.mean(same)), float(np.mean(order))


def contenders(settings: dict[str, str]) -> dict[str, Any]:
    from udr.scoring.causal_lm import build_causal_lm
    from udr.scoring.served_lm import build_served_lm

    count = int(settings.get("pairs", "240"))
    lm = build_causal_lm(settings["lm"], dtype=settings.get("dtype", "auto"))
    served = build_served_lm(settings["lm"], [settings["server"]], in_flight=FLYING) if "server" in settings else None
    rate = gemm_rate(lm.model.dtype)
    rows: dict[str, Any] = {}
    for name in CLASSIFICATION + GENERATION:
        data = open_task(name, Path(settings["data"]))
        pairs = pairs_for(data, lm, count)
        contexts, continuations, counts = flat(data, pairs)
        tokens = [len(lm.tokens.token_ids(a, b)[1]) for a, b in zip(contexts, continuations, strict=True)]
        found: dict[str, tuple[float, np.ndarray]] = {}
        lm.loglikelihood(contexts[:8], continuations[:8])  # warm
        found["engine"] = timed(lambda d=data, p=pairs: score_pairs(d.spec, lm, p))
        if served:
            # ours first: what it leaves in the server's prefix cache is of no use to prompt_logprobs, which reads none
            found["engine_server"] = timed(lambda d=data, p=pairs: score_pairs(d.spec, served, p))
            seconds, nats = timed(
                lambda c=contexts, y=continuations: plain_server(
                    settings["server"], served.reader.endpoints[0].model, lm, c, y
                )
            )
            found["server"] = seconds, shares(data, pairs, nats, tokens, counts)
        plain_loop(lm, contexts[:BATCH], continuations[:BATCH])
        seconds, nats = timed(lambda c=contexts, y=continuations: plain_loop(lm, c, y))
        found["loop"] = seconds, shares(data, pairs, nats, tokens, counts)
        work = must_be_done(lm, contexts, continuations)
        some = range(0, len(contexts), max(1, len(contexts) // 100))
        asked = [contexts[i] for i in some], [continuations[i] for i in some]
        singly = one_by_one(lm, *asked)
        reference = found["loop"][1]
        row = {
            "kind": data.spec.kind,
            "labels": max(counts),
            "pairs": len(pairs),
            "seconds": {k: round(s, 2) for k, (s, _) in found.items()},
            "pairs_per_second": {k: round(len(pairs) / s, 2) for k, (s, _) in found.items()},
            "engine_over_loop": round(found["loop"][0] / found["engine"][0], 2),
            "floor_seconds": round(work / rate, 2),
            "share_of_floor": round(work / rate / found["engine"][0], 3),
            # of log-likelihoods from one forward a request, and of pairs' scores from the padded loop's
            "largest_difference_one_by_one": float(np.abs(lm.loglikelihood(*asked).nats - singly).max()),
            "largest_difference": {k: float(np.abs(v - reference).max()) for k, (_, v) in found.items()},
            "lists_ranked_alike": {k: ranks_alike(data, pairs, v, reference)[0] for k, (_, v) in found.items()},
        }
        if served:
            row["engine_server_over_server"] = round(found["server"][0] / found["engine_server"][0], 2)
        print(name, json.dumps(row), flush=True)
        rows[name] = row
    return {"dtype": str(lm.model.dtype), "gemm_gigamacs": round(rate / 1e9, 1), "tasks": rows}


def shortcuts(settings: dict[str, str]) -> dict[str, Any]:
    from udr.scoring.causal_lm import build_causal_lm

    lm = build_causal_lm(settings["lm"], dtype=settings.get("dtype", "auto"))
    rows = {}
    for name in settings.get("tasks", "question_type,fever,intent").split(","):
        data = open_task(name, Path(settings["data"]))
        pairs = pairs_for(data, lm, int(settings.get("pairs", "900")))
        rows[name] = {}
        exact: np.ndarray | None = None
        for shortcut in ("none", "first_token", "halving"):
            seconds, scores = timed(lambda s=shortcut, d=data, p=pairs: score_pairs(d.spec, lm, p, shortcut=s))  # type: ignore[arg-type]
            exact = scores if exact is None else exact
            alike, order = ranks_alike(data, pairs, scores, exact)
            rows[name][shortcut] = {
                "seconds": round(seconds, 2),
                "pairs_ordered_alike": round(order, 4),
                "lists_ranked_alike": round(alike, 4),
                "best_kept": round(best_kept(pairs, scores, exact), 4),
            }
            print(name, shortcut, rows[name][shortcut], flush=True)
    return {"dtype": str(lm.model.dtype), "tasks": rows}


def best_kept(pairs: Sequence[Pair], scores: np.ndarray, exact: np.ndarray) -> float:
    """Share of lists whose best candidate is the same."""
    of_query: dict[str, list[int]] = {}
    for i, (_, x) in enumerate(pairs):
        of_query.setdefault(x.id, []).append(i)
    lists = [own for own in of_query.values() if len(own) > 1]
    return float(np.mean([scores[own].argmax() == exact[own].argmax() for own in lists]))


def growth(settings: dict[str, str]) -> dict[str, Any]:
    from udr.scoring.causal_lm import build_causal_lm

    lm = build_causal_lm(settings["lm"], dtype=settings.get("dtype", "auto"))
    data = open_task(settings.get("task", "question_type"), Path(settings["data"]))
    rows = {}
    for count in map(int, settings.get("counts", "1000,10000,100000").split(",")):
        with tempfile.TemporaryDirectory() as folder:
            cache = ScoreCache(Path(folder) / "scores.sqlite")
            everything = list(data.train)
            rng = seeded("growth", count)
            chosen = [
                (everything[i], everything[j])
                for i, j in rng.integers(0, min(len(everything), count // 50 + 50), (count, 2))
            ]
            seconds, _ = timed(lambda p=chosen, c=cache: score_pairs(data.spec, CachedScorer(lm, c), p))
            cache.close()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows[str(count)] = {
            "seconds": round(seconds, 1),
            "pairs_per_second": round(count / seconds, 1),
            "peak_gb": round(peak, 2),
        }
        print(count, rows[str(count)], flush=True)
    return {"dtype": str(lm.model.dtype), "pairs": rows}


class Idle:
    """An LM that answers at once, so that only the machinery around it is measured."""

    fingerprint, context_length, prompts_per_call, tokens_computed = "idle", 10**6, 512, 0

    def count_tokens(self, contexts: Sequence[str], continuations: Sequence[str]) -> int:
        return len(contexts)

    def beginnings(self, before: str, options: Sequence[str]) -> tuple[str, ...]:
        return tuple(options)

    def loglikelihood(self, contexts: Sequence[str], continuations: Sequence[str]) -> LogLikelihoods:
        return LogLikelihoods(np.full(len(contexts), -1.0, np.float32), np.ones(len(contexts), np.int64))


def memory(settings: dict[str, str]) -> dict[str, Any]:
    from udr.mining import score_lists
    from udr.types import Candidate, CandidateList

    count, k = int(settings.get("pairs", "1000000")), 50
    data = open_task(settings.get("task", "question_type"), Path(settings["data"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rng = seeded("memory", 0)
    pool = data.train
    lists = [
        CandidateList(
            data.spec.name,
            pool[i % len(pool)].id,
            tuple(Candidate(pool[j].id, 0.0) for j in rng.integers(0, len(pool), k)),
        )
        for i in range(count // k)
    ]
    with tempfile.TemporaryDirectory() as folder:
        cache = ScoreCache(Path(folder) / "scores.sqlite")
        seconds, _ = timed(lambda: score_lists(data, lists, CachedScorer(Idle(), cache)))
        stored = len(cache)
        cache.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "pairs": count,
        "seconds": round(seconds, 1),
        "scores_stored": stored,
        "gb_before": round(before, 2),
        "peak_gb": round(peak, 2),
    }


def _reader(path: str, count: int, looked_up: int, out: Any) -> None:
    cache = ScoreCache(Path(path))
    rng = np.random.default_rng(1)
    keys = [score_key("bench", str(i), "x") for i in rng.integers(0, 2 * count, looked_up)]
    seconds, found = timed(lambda: cache.get(keys))
    out.put((seconds, len(found)))


def cache(settings: dict[str, str]) -> dict[str, Any]:
    count, looked_up = int(settings.get("entries", "10000000")), 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.sqlite"
        filling = ScoreCache(path)

        def fill() -> None:
            for start in range(0, count, 100_000):
                filling.put(
                    [(score_key("bench", str(i), "x"), -1.0, 1) for i in range(start, start + 100_000)], "bench"
                )

        filled, _ = timed(fill)
        filling.close()
        opened, again = timed(lambda: ScoreCache(path))
        rng = np.random.default_rng(0)
        keys = [score_key("bench", str(i), "x") for i in rng.integers(0, 2 * count, looked_up)]
        seconds, found = timed(lambda: again.get(keys))
        told, stats = timed(again.stats)
        context = get_context("spawn")
        out = context.Queue()
        processes = [context.Process(target=_reader, args=(str(path), count, looked_up, out)) for _ in range(4)]
        for process in processes:
            process.start()
        readings = [out.get() for _ in processes]
        for process in processes:
            process.join()
        size = path.stat().st_size / 1e6
        again.close()
    return {
        "entries": count,
        "megabytes": round(size),
        "fill_seconds": round(filled, 1),
        "open_seconds": round(opened, 4),
        "lookups_per_second": round(looked_up / seconds),
        "found_share": round(len(found) / looked_up, 3),
        "stats_seconds": round(told, 2),
        "counted": sum(m.scores for m in stats),
        "four_processes_lookups_per_second": [round(looked_up / s) for s, _ in readings],
    }


def main() -> None:
    part, *words = sys.argv[1:]
    settings = dict(word.split("=", 1) for word in words)
    work = {"contenders": contenders, "shortcuts": shortcuts, "growth": growth, "memory": memory, "cache": cache}[part]
    seconds, figures = timed(lambda: work(settings))
    print(write_result(f"scoring_{part}", {"seconds": round(seconds), **figures}))


if __name__ == "__main__":
    main()
