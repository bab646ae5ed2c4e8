"""How quick the service is, and what it bears: against its peers, as pools grow, and when too much is asked.

    python tests/benchmarks/service.py PART data=FOLDER encoder=FOLDER [python=PEERS_PYTHON] [key=value ...]

peers     one pool of 10,000 real demonstrations: p50, p99 and throughput at 1, 8 and 64 clients, beside LangChain,
          DSPy and sentence-transformers + FAISS (`service_peers.py`, run by `python`)
added     what HTTP, SQL, search and prompt add to the service's own encoder, one query at a time
ingest    demonstrations a second that a load stores durably, before they are encoded
vectors   encodes a million stretches of real texts for `scale` (`out=FILE.npy`)
scale     10k, 100k and 1M vectors: opening, retrieval, recall, filters, memory (`vectors=FILE.npy`)
precision what a query costs in torch and in ONNX Runtime, float32 and int8, and what int8 loses on several tasks
overload  64 clients that send 20 queries a request, more than it lets wait: statuses, /livez, memory
Results: results/service_NAME.json. Run alone: two busy programs on a few cores measure each other.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from udr.data import open_task
from udr.draw import seeded

TASKS = ("fever", "question_type", "vitaminc", "wikidata_qa", "social_iqa", "timedial")
K = 8
_asked = itertools.count()
HERE = Path(__file__).parent


# -- load


class Tally:
    """What some clients saw."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.retry_after: Counter[bool] = Counter()

    def as_json(self, elapsed: float) -> dict[str, Any]:
        own = np.array(self.seconds) * 1000
        return {
            "p50_ms": round(float(np.percentile(own, 50)), 2),
            "p99_ms": round(float(np.percentile(own, 99)), 2),
            "per_second": round(len(own) / elapsed, 1),
            "requests": len(own),
        }


def clients(
    port: int, path: str, body: Callable[[str], Any], queries: Sequence[str], n: int, seconds: float
) -> tuple[Tally, float]:
    """So many clients, each with a connection of its own, asking one after another; no query comes twice in a run.

    Some of the peers remember what they have encoded, which a repeated query would measure and a user's would not.
    """
    tally, lock, stop = Tally(), threading.Lock(), time.perf_counter() + seconds

    def client() -> None:
        own, statuses = list[float](), Counter[int]()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (begun := time.perf_counter()) < stop:
            raw = json.dumps(body(queries[next(_asked) % len(queries)]))
            connection.request("POST", path, raw, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if answer.status == 429:
                tally.retry_after[answer.getheader("retry-after") is not None] += 1
            else:
                own.append(time.perf_counter() - begun)
        connection.close()
        with lock:
            tally.seconds += own
            tally.statuses += statuses

    threads = [threading.Thread(target=client) for _ in range(n)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally, time.perf_counter() - begun


def call(port: int, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body)
    connection.request(method, path, raw, {"Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {content[:500]!r}")
    return json.loads(content) if content else None


# -- servers


@contextmanager
def running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server that is ready, by its process id."""
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command}: ended with {process.returncode}") from None
                time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextmanager
def service(folder: Path, encoder: str, **settings: object) -> Iterator[tuple[int, int]]:
    """`udr serve`, by its port and process id."""
    port = free_port()
    own = {"port": port, "encoder": encoder, "database": f"sqlite:///{folder}/udr.sqlite", **settings}
    environment = {f"UDR_{name.upper()}": str(value) for name, value in own.items()}
    with running([sys.executable, "-m", "training.cli", "serve"], port, environment) as pid:
        yield port, pid


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fill(port: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Load a pool, and wait until it is encoded."""
    call(port, "POST", "/v1/pools", {"name": "p"})
    raw = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    job = call(port, "POST", "/v1/pools/p/load", raw, "application/x-ndjson")
    while job["state"] in ("queued", "running"):
        time.sleep(0.5)
        job = call(port, "GET", f"/v1/jobs/{job['id']}")
    if job["state"] != "done" or job["refused"]:
        raise SystemExit(f"the load failed: {job}")
    found: dict[str, Any] = job
    return found


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


# -- parts


def real_rows(data: str, count: int) -> tuple[list[dict[str, str]], list[str]]:
    """Demonstrations of several tasks, and all the others' inputs as queries."""
    every: dict[str, dict[str, str]] = {}  # no two inputs alike
    for name in TASKS:
        task = open_task(Path(data) / f"{name}.parquet")
        every |= {d.input: {"input": d.input, "output": d.output} for d in (*task.train, *task.test)}
    if len(every) < count:
        raise SystemExit(f"{len(every)} demonstrations, {count} are asked for")
    shuffled = [every[key] for key in seeded("rows").permutation(list(every))]
    return shuffled[:count], [row["input"] for row in shuffled[count:]]


def peers(data: str, encoder: str, python: str = sys.executable, seconds: float = 15.0, count: int = 10_000) -> None:
    rows, queries = real_rows(data, count)
    results: dict[str, Any] = {"demonstrations": len(rows), "k": K, "clients": {}}

    def measure(name: str, port: int, path: str, body: Callable[[str], Any]) -> None:
        clients(port, path, body, queries, 4, 3.0)  # warm
        for n in (1, 8, 64):
            tally, elapsed = clients(port, path, body, queries, n, seconds)
            if set(tally.statuses) != {200}:
                raise SystemExit(f"{name}: {tally.statuses}")
            results["clients"].setdefault(str(n), {})[name] = tally.as_json(elapsed)
            print(name, n, tally.as_json(elapsed), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.jsonl"
        pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with service(Path(folder), encoder) as (port, _):
            fill(port, rows)
            measure("udr", port, "/v1/retrieve", lambda q: {"pool": "p", "queries": [q], "k": K})
            measure("udr_prompt", port, "/v1/prompt", lambda q: {"pool": "p", "queries": [q], "k": K, "budget": 8000})
        for name in ("bare", "plain", "langchain", "dspy"):
            port = free_port()
            with running([python, str(HERE / "service_peers.py"), name, str(port), str(pool), encoder], port):
                measure(name, port, "/retrieve", lambda q: {"query": q})
    many = results["clients"]["64"]
    others = [many[name] for name in ("plain", "langchain", "dspy")]
    results["p99_of_the_best_peer_at_64"] = round(many["udr"]["p99_ms"] / min(o["p99_ms"] for o in others), 3)
    results["throughput_of_the_best_peer_at_64"] = round(
        many["udr"]["per_second"] / max(o["per_second"] for o in others), 2
    )
    write_result("service_peers", results)


def added(data: str, encoder: str) -> None:
    rows, queries = real_rows(data, 10_000)
    write_result("service_added", overhead(encoder, rows, queries))


def overhead(encoder: str, rows: Sequence[dict[str, str]], queries: Sequence[str]) -> dict[str, float]:
    """What HTTP, SQL, search and prompt add to the encoding of one query, one client, in one process after another.

    The encoder alone is the one that the service asks: int8 in ONNX Runtime where the CPU has a unit for it.
    """
    import torch

    from udr.devices import multiplies_int8
    from udr.encoder import build_encoder
    from udr.onnx_encoder import OnnxEncoder
    from udr.types import Query

    torch.set_num_threads(1)
    alone = OnnxEncoder(build_encoder(encoder, device="cpu"), precision="int8" if multiplies_int8() else "float32")
    times = []
    for i, query in enumerate(queries[:400]):
        begun = time.perf_counter()
        alone.encode_queries([Query(str(i), query)])
        times.append(time.perf_counter() - begun)
    found = {"encoder_p50_ms": round(1000 * float(np.median(times[50:])), 2)}
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), encoder) as (port, _):
        fill(port, rows)
        for name, path, more in (("retrieve", "/v1/retrieve", {}), ("prompt", "/v1/prompt", {"budget": 8000})):
            own = []
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for query in queries[:400]:
                raw = json.dumps({"pool": "p", "queries": [query], "k": K, **more})
                begun = time.perf_counter()
                connection.request("POST", path, raw, {"Content-Type": "application/json"})
                connection.getresponse().read()
                own.append(time.perf_counter() - begun)
            found[f"{name}_p50_ms"] = round(1000 * float(np.median(own[50:])), 2)
            found[f"{name}_added_ms"] = round(found[f"{name}_p50_ms"] - found["encoder_p50_ms"], 2)
    print(found, flush=True)
    return found


def ingest(data: str, count: int = 100_000) -> None:
    rows, _ = real_rows(data, 10_000)
    raw = b"".join(
        json.dumps({**rows[i % len(rows)], "id": f"r{i}", "metadata": {"part": i % 10}}).encode() + b"\n"
        for i in range(count)
    )
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), "none") as (port, pid):
        call(port, "POST", "/v1/pools", {"name": "p"})
        begun = time.perf_counter()
        job = call(port, "POST", "/v1/pools/p/load", raw, "application/x-ndjson")
        received = time.perf_counter() - begun
        while job["state"] in ("queued", "running"):
            time.sleep(0.1)
            job = call(port, "GET", f"/v1/jobs/{job['id']}")
        elapsed = time.perf_counter() - begun
        result = {
            "demonstrations": count,
            "megabytes": round(len(raw) / 1e6, 1),
            "received_s": round(received, 2),
            "stored_s": round(elapsed, 2),
            "per_second": round(count / elapsed),
            "service_mb": round(memory_mb(pid)),
        }
    print(result)
    write_result("service_ingest", result)


def overload(data: str, encoder: str, seconds: float = 30.0) -> None:
    rows, queries = real_rows(data, 2000)
    body = {"pool": "p", "k": K}
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), encoder) as (port, pid):
        fill(port, rows)
        clients(port, "/v1/retrieve", lambda q: {**body, "queries": [q]}, queries, 8, 3.0)
        before = memory_mb(pid)
        prober = subprocess.Popen(
            [sys.executable, __file__, "probe", f"port={port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # each request holds twenty queries: sixty-four clients then keep more in the queue than it admits
        tally, elapsed = clients(
            port, "/v1/retrieve", lambda q: {**body, "queries": [q] * 20}, queries, 640 // 10, seconds
        )
        alive = [float(line) for line in prober.communicate("stop")[0].split()]
        result = {
            "statuses": dict(tally.statuses),
            "with_retry_after": tally.retry_after[True],
            "without_retry_after": tally.retry_after[False],
            "answered_queries_per_second": round(20 * tally.statuses[200] / elapsed, 1),
            "livez_p50_ms": round(1000 * float(np.percentile(alive, 50)), 2),
            "livez_p99_ms": round(1000 * float(np.percentile(alive, 99)), 2),
            "memory_before_mb": round(before),
            "memory_after_mb": round(memory_mb(pid)),
        }
    print(result)
    write_result("service_overload", result)


def vectors(data: str, encoder: str, out: str, count: int = 1_000_500, words: int = 12) -> None:
    """Vectors of `words` words each, of the inputs of all tables, no two texts alike; in int8, as the service asks."""
    from udr.encoder import build_encoder
    from udr.onnx_encoder import OnnxEncoder
    from udr.types import Query

    texts: dict[str, None] = {}
    tables = [open_task(str(path)) for path in sorted(Path(data).glob("*.parquet"))]
    inputs = [d.input.split() for task in tables for d in task.train]
    for step in range(words):  # first every text once, then from the next word on
        for own in inputs:
            texts |= dict.fromkeys(" ".join(own[i : i + words]) for i in range(step, len(own), words))
        if len(texts) >= count:
            break
    chosen = seeded("stretches").permutation(list(texts))[:count].tolist()
    if len(chosen) < count:
        raise SystemExit(f"{data}: {len(chosen)} stretches of {words} words, {count} are asked for")
    quick = OnnxEncoder(build_encoder(encoder, device="cpu"), precision="int8", threads=os.cpu_count() or 1)
    file = np.lib.format.open_memmap(out, "w+", np.float32, (count, quick.dim))
    begun = time.perf_counter()
    for start in range(0, count, 4096):
        part = [Query(str(i), text) for i, text in enumerate(chosen[start : start + 4096])]
        file[start : start + len(part)] = quick.encode_queries(part)
        if start % (4096 * 16) == 0:
            left = (time.perf_counter() - begun) * (count / (start + len(part)) - 1)
            print(f"{start + len(part)}/{count}, ETA {left:.0f} s", flush=True)
    file.flush()


def probe(port: str) -> None:
    """Ask /livez until stdin ends, and print how long each took; a process of its own, as whoever watches a service."""
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    while not stopped.wait(0.05):
        begun = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        print(time.perf_counter() - begun)


def scale(vectors: str, sizes: str = "10000,100000,1000000") -> None:
    """An index of real vectors as it grows; queries are vectors that are not in it."""
    from udr.filters import parse_filter
    from udr.live_index import LiveIndex, load_live_index

    every = np.load(vectors, mmap_mode="r")
    queries = np.array(every[:500])
    found: dict[str, Any] = {}
    for size in map(int, sizes.split(",")):
        rows = every[500 : 500 + size]
        if len(rows) < size:
            raise SystemExit(f"{vectors}: {len(every)} vectors, {size + 500} are asked for")
        index = LiveIndex(rows.shape[1], "f")
        begun = time.perf_counter()
        for start in range(0, size, 1 << 16):
            part = np.array(rows[start : start + (1 << 16)])
            ids = np.arange(start, start + len(part))
            index.add(ids, part, [{"part": str(i % 100), "half": str(i % 2)} for i in ids])
        added = time.perf_counter() - begun
        exact = [set(index.search(q[None], 10, "f").rows[0].tolist()) for q in queries[:200]]
        plain = timed(index, queries)
        begun = time.perf_counter()
        while index.improve(os.cpu_count() or 1):
            pass
        built = time.perf_counter() - begun
        near = [set(index.search(q[None], 10, "f").rows[0].tolist()) for q in queries[:200]]
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder), {})
            begun = time.perf_counter()
            load_live_index(Path(folder))
            opened = time.perf_counter() - begun
        found[str(size)] = {
            "add_s": round(added, 2),
            "graph_s": round(built, 1),
            "in_graphs": index.in_graphs,
            "open_s": round(opened, 2),
            "every_row_p50_ms": plain,
            "p50_ms": timed(index, queries),
            "recall_at_10": round(float(np.mean([len(a & b) / 10 for a, b in zip(exact, near, strict=True)])), 4),
            "filter_half_p50_ms": timed(index, queries, parse_filter({"half": "1"})),
            "filter_hundredth_p50_ms": timed(index, queries, parse_filter({"part": "7"})),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        }
        print(size, found[str(size)], flush=True)
    write_result("service_scale", found)


def precision(data: str, encoder: str, count: int = 1000) -> None:
    """One thread; quality is how often the neighbours' outputs are the query's, or share its words."""
    import torch

    from udr.encoder import build_encoder
    from udr.metrics import per_example
    from udr.onnx_encoder import OnnxEncoder

    torch.set_num_threads(1)
    own = build_encoder(encoder, device="cpu")
    kinds: dict[str, Any] = {"torch": own, "onnx": OnnxEncoder(own), "onnx_int8": OnnxEncoder(own, precision="int8")}
    found: dict[str, Any] = {name: {"quality": {}} for name in kinds}
    for task_name in TASKS:
        task = open_task(Path(data) / f"{task_name}.parquet")
        pool, asked = task.train[:count], [d.query for d in task.test[:200]]
        answers = [d.output for d in task.test[:200]]
        index = kinds["onnx"].encode_queries([d.query for d in pool])
        for name, kind in kinds.items():
            near = np.argsort(-(kind.encode_queries(asked) @ index.T), axis=1)[:, :K]
            predictions = [pool[i].output for row in near for i in row]
            references = [[answer] for answer in answers for _ in range(K)]
            metric = "rouge_l" if task.spec.kind == "generation" else "exact_match"
            likeness = per_example(metric, predictions, references)
            found[name]["quality"][task_name] = round(float(np.mean(likeness)), 4)
    for name, kind in kinds.items():
        times = []
        for query in asked * 2:
            begun = time.perf_counter()
            kind.encode_queries([query])
            times.append(time.perf_counter() - begun)
        found[name]["query_p50_ms"] = round(1000 * float(np.median(times)), 2)
        found[name]["mean_quality"] = round(float(np.mean(list(found[name]["quality"].values()))), 4)
    found["int8_of_float32_quality"] = round(found["onnx_int8"]["mean_quality"] / found["onnx"]["mean_quality"], 4)
    print(found)
    write_result("service_precision", found)


def timed(index: Any, queries: Any, conditions: Any = ()) -> float:
    times = []
    for query in queries[:200]:
        begun = time.perf_counter()
        index.search(query[None], 10, "f", conditions)
        times.append(time.perf_counter() - begun)
    return round(1000 * float(np.median(times)), 3)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    kinds = {"seconds": float, "count": int, "words": int}
    PARTS[sys.argv[1]](**{key: kinds.get(key, str)(value) for key, value in given.items()})


PARTS: dict[str, Callable[..., None]] = {
    "peers": peers,
    "added": added,
    "ingest": ingest,
    "precision": precision,
    "vectors": vectors,
    "scale": scale,
    "overload": overload,
    "probe": probe,
}

if __name__ == "__main__":
    main()
