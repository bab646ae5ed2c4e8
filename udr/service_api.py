"""What the service's HTTP API takes and gives, as typed calls; `udr.client` sends them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from udr.types import Demonstration, Dropped, Media, Query

__all__ = [
    "BuiltPrompt",
    "Call",
    "Found",
    "Hit",
    "Job",
    "Page",
    "PassedOver",
    "add",
    "cancel",
    "changes",
    "create_key",
    "create_pool",
    "delete",
    "delete_key",
    "delete_pool",
    "demonstrations",
    "embeddings",
    "export",
    "export_outcomes",
    "feedback",
    "get",
    "job_of",
    "jobs",
    "keys",
    "load",
    "outcomes",
    "pool",
    "pools",
    "prompt",
    "put",
    "retrieve",
    "retrievers",
    "review",
    "roll_back",
    "set_front",
    "switch",
    "tag",
]

T = TypeVar("T")


class Hit(NamedTuple):
    """A demonstration and how near it stands to the query; rank 1 is the nearest."""

    demonstration: Demonstration
    similarity: float
    rank: int
    tokens: int | None  # of it alone, where `explain` asked


class PassedOver(NamedTuple):
    """A near demonstration that was not chosen, and why."""

    id: str
    similarity: float
    rank: int
    reason: str


class Found(NamedTuple):
    """The demonstrations of one query, best first unless another `order` was asked for."""

    hits: list[Hit]
    tokens_cut: int  # of the query, that the encoder did not read
    passed_over: list[PassedOver]  # the nearest that were not chosen, where `explain` asked
    retriever: str  # what ranked
    fingerprint: str | None  # of the encoding that ranked; None: words alone did
    seq: int  # the pool's number of changes, as of which this was answered


class BuiltPrompt(NamedTuple):
    """A finished prompt: as text and as chat messages; `hits` in the order in which they stand in it."""

    text: str
    messages: list[dict[str, Any]]
    tokens: int
    budget: int
    hits: list[Hit]
    dropped: list[Dropped]
    truncated: bool
    tokens_cut: int  # the rest as of Found
    passed_over: list[PassedOver]
    retriever: str
    fingerprint: str | None
    seq: int


class Page(NamedTuple):
    """Some demonstrations of a pool, and the cursor behind them; "": no more."""

    demonstrations: list[Demonstration]
    next: str


class Job(NamedTuple):
    """Work that outlives a request."""

    id: str
    kind: str  # load, switch
    state: str
    done: int
    total: int
    errors: list[tuple[int | None, str]]  # the line and what is wrong with it; None: with what is stored
    error: str | None
    counts: dict[str, int]

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read: its JSON, or, where it is no JSON alone, the `whole` of it."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    kind: str = "application/json"
    match: str = ""  # the ETag that what is changed must have
    whole: bool = False

    def as_request(self) -> dict[str, Any]:
        content = self.content if self.body is None else json.dumps(self.body).encode()
        headers = {} if content is None else {"Content-Type": self.kind}
        if self.match:
            headers["If-Match"] = self.match
        if self.method != "GET":
            headers["Idempotency-Key"] = uuid.uuid4().hex  # one for all attempts
        return {
            "method": self.method,
            "url": self.path,
            "content": content,
            "params": {k: v for k, v in self.params.items() if v not in (None, "")},
            "headers": headers,
        }


def create_pool(
    name: str, task: Mapping[str, Any] | None = None, *, front: Mapping[str, Any] | None = None
) -> Call[dict[str, Any]]:
    """Make an empty pool; `task` holds the fields of a task file."""
    body = {"name": name, "task": dict(task or {})} | ({"front": dict(front)} if front else {})
    return Call("POST", "/v1/pools", _same, body)


def pools(*, cursor: str = "", limit: int = 100) -> Call[tuple[list[dict[str, Any]], str]]:
    """Pools by name, and the cursor behind them; "": no more."""
    params = {"cursor": cursor, "limit": limit}
    return Call("GET", "/v1/pools", lambda a: (list(a["pools"]), a["next"] or ""), params=params)


def pool(name: str) -> Call[dict[str, Any]]:
    """A pool, its task, and the retriever that answers."""
    return Call("GET", _at(name), _same)


def delete_pool(name: str, *, match: str = "") -> Call[None]:
    """Forget a pool and all its demonstrations; `match`: only if that is its `tag` still."""
    return Call("DELETE", _at(name), _nothing, match=match)


def set_front(pool: str, front: Mapping[str, Any], *, match: str = "") -> Call[dict[str, Any]]:
    """Say how requests to the LLM server get a pool's demonstrations; `match`: only if that is its `tag` still."""
    return Call("PUT", f"{_at(pool)}/front", _same, dict(front), match=match)


def tag(pool: str, key: str = "") -> Call[str]:
    """The ETag of a demonstration, or of the pool.

    Read it before what you are to change, and give it as `match`: what others have changed since is refused with
    PreconditionFailed.
    """
    return Call("GET", _demonstration_at(pool, key) if key else _at(pool), lambda a: str(a.headers["etag"]), whole=True)


def add(
    pool: str, demonstrations: Sequence[Demonstration], *, mode: Literal["add", "upsert"] = "add"
) -> Call[list[str]]:
    """Store demonstrations, all or none, and give their ids."""
    body = {"demonstrations": [_as_json(d) for d in demonstrations], "mode": mode}
    return Call("POST", f"{_at(pool)}/demonstrations", lambda a: list(a["ids"]), body)


def put(pool: str, demonstration: Demonstration, *, match: str = "") -> Call[Demonstration]:
    """Store one under its id, in the place of what stood there; `match`: only if that is its `tag` still."""
    body = _as_json(demonstration)
    return Call("PUT", _demonstration_at(pool, demonstration.id), _demonstration, body, match=match)


def get(pool: str, key: str) -> Call[Demonstration]:
    """One demonstration by its id."""
    return Call("GET", _demonstration_at(pool, key), _demonstration)


def delete(pool: str, key: str, *, match: str = "") -> Call[None]:
    """Forget one demonstration; `match`: only if that is its `tag` still."""
    return Call("DELETE", _demonstration_at(pool, key), _nothing, match=match)


def demonstrations(
    pool: str, *, cursor: str = "", limit: int = 100, where: Mapping[str, Any] | None = None
) -> Call[Page]:
    """Demonstrations in the order they came."""
    params = {"cursor": cursor, "limit": limit, "where": json.dumps(dict(where)) if where else ""}
    return Call("GET", f"{_at(pool)}/demonstrations", _page, params=params)


def load(
    pool: str,
    payload: bytes,
    *,
    format: Literal["ndjson", "parquet"] = "ndjson",  # noqa: A002 - the word that the service uses
    mode: Literal["add", "upsert"] = "add",
) -> Call[Job]:
    """Load many demonstrations in the background; `wait` tells when they are there."""
    kind = {"ndjson": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}[format]
    return Call("POST", f"{_at(pool)}/load", _job, params={"mode": mode}, content=payload, kind=kind)


def export(pool: str) -> Call[bytes]:
    """All demonstrations as NDJSON, which `load` takes back."""
    return Call("GET", f"{_at(pool)}/export", _content, whole=True)


def retrievers() -> Call[dict[str, list[str]]]:
    """The names of the service's retrievers and tokenizers."""
    return Call("GET", "/v1/retrievers", _same)


def switch(pool: str, retriever: str) -> Call[Job]:
    """Encode the pool under another retriever in the background; it answers once all is encoded."""
    return Call("PUT", f"{_at(pool)}/retriever", _job, {"retriever": retriever})


def roll_back(pool: str) -> Call[dict[str, Any]]:
    """Let the retriever answer that did before the last switch."""
    return Call("POST", f"{_at(pool)}/retriever/rollback", _same)


def job_of(job_id: str) -> Call[Job]:
    """How far a job is."""
    return Call("GET", f"/v1/jobs/{quote(job_id, safe='')}", _job)


def jobs(pool: str) -> Call[list[Job]]:
    """The last hundred jobs of a pool, the newest first."""
    return Call("GET", f"{_at(pool)}/jobs", lambda a: [_job(j) for j in a["jobs"]])


def cancel(job_id: str) -> Call[Job]:
    """Stop a job; what it has stored stays."""
    return Call("DELETE", f"/v1/jobs/{quote(job_id, safe='')}", _job)


def retrieve(pool: str, queries: Sequence[str | Query], k: int = 8, **more: Any) -> Call[list[Found]]:
    """The demonstrations that suit each query; `more` is what else /v1/retrieve takes (where, selection, …)."""
    body = {"pool": pool, "queries": [_query(q) for q in queries], "k": k, **more}
    return Call("POST", "/v1/retrieve", lambda a: [_found(r, a) for r in a["results"]], body)


def prompt(
    pool: str, queries: Sequence[str | Query], k: int = 8, budget: int = 2048, **more: Any
) -> Call[list[BuiltPrompt]]:
    """The finished prompt of each query; `more` is what else /v1/prompt takes (tokenizer, reserve, order, …)."""
    body = {"pool": pool, "queries": [_query(q) for q in queries], "k": k, "budget": budget, **more}
    return Call("POST", "/v1/prompt", lambda a: [_built(r, a) for r in a["results"]], body)


def embeddings(model: str, inputs: Sequence[str]) -> Call[list[list[float]]]:
    """Vectors of texts and data-URIs as queries, by a retriever or, as `POOL@`, by that of a pool."""
    body = {"model": model, "input": list(inputs)}
    return Call("POST", "/v1/embeddings", lambda a: [row["embedding"] for row in a["data"]], body)


def feedback(
    pool: str,
    input: str,  # noqa: A002 - the word that the service uses
    demonstrations: Sequence[str] = (),
    *,
    output: str | None = None,
    score: float | None = None,
    correct: bool | None = None,
    corrected_output: str | None = None,
    choices: Sequence[str] = (),
) -> Call[int]:
    """Record what came of a prompt with these demonstrations (their ids), and give its number."""
    outcome = {
        "input": input,
        "choices": list(choices),
        "demonstrations": list(demonstrations),
        "output": output,
        "score": score,
        "correct": correct,
        "corrected_output": corrected_output,
    }
    return Call("POST", "/v1/feedback", lambda a: int(a["ids"][0]), {"pool": pool, "outcomes": [outcome]})


def outcomes(
    pool: str, *, state: str = "", cursor: str = "", limit: int = 100
) -> Call[tuple[list[dict[str, Any]], str]]:
    """What came of prompts, in the order it came, and the cursor behind it; state "waiting" is the review queue."""
    params = {"state": state, "cursor": cursor, "limit": limit}
    return Call("GET", f"{_at(pool)}/feedback", lambda a: (list(a["feedback"]), a["next"] or ""), params=params)


def review(pool: str, number: int, accept: bool, output: str | None = None) -> Call[dict[str, Any]]:
    """Accept a corrected output (or a better `output`), which becomes a demonstration, or reject it."""
    body = {"accept": accept} | ({} if output is None else {"output": output})
    return Call("POST", f"{_at(pool)}/feedback/{number}/review", _same, body)


def export_outcomes(pool: str, *, state: str = "") -> Call[bytes]:
    """All outcomes as NDJSON, which `udr train --feedback` learns from."""
    return Call("GET", f"{_at(pool)}/feedback/export", _content, params={"state": state}, whole=True)


def create_key(
    name: str,
    role: Literal["read", "write", "admin"] = "read",
    *,
    pools: Sequence[str] | None = None,
    days: float | None = None,
) -> Call[dict[str, Any]]:
    """Make a key, whose secret `key` is told this once; for some pools or all, for some days or for good."""
    body = {"name": name, "role": role, "pools": None if pools is None else list(pools), "days": days}
    return Call("POST", "/v1/keys", _same, body)


def keys() -> Call[list[dict[str, Any]]]:
    """All keys, without their secrets."""
    return Call("GET", "/v1/keys", lambda a: list(a["keys"]))


def delete_key(name: str) -> Call[None]:
    """Revoke a key."""
    return Call("DELETE", f"/v1/keys/{quote(name, safe='')}", _nothing)


def changes(*, pool: str = "", cursor: str = "", limit: int = 100) -> Call[tuple[list[dict[str, Any]], str]]:
    """Who changed what, the newest first, and the cursor behind it."""
    params = {"pool": pool, "cursor": cursor, "limit": limit}
    return Call("GET", "/v1/audit", lambda a: (list(a["changes"]), a["next"] or ""), params=params)


# -- JSON and back


def _at(pool: str) -> str:
    return f"/v1/pools/{quote(pool, safe='')}"


def _demonstration_at(pool: str, key: str) -> str:
    return f"{_at(pool)}/demonstrations/{quote(key, safe='')}"


def _content(answer: Any) -> bytes:
    return bytes(answer.content)


def _same(answer: Any) -> dict[str, Any]:
    return dict(answer)


def _nothing(answer: Any) -> None:
    return None


def _media(of: Sequence[Media]) -> list[dict[str, str]]:
    return [{"kind": m.kind, "uri": m.address} for m in of]


def _query(query: str | Query) -> str | dict[str, Any]:
    if isinstance(query, str):
        return query
    return {"input": query.input, "choices": list(query.choices), "media": _media(query.media)}


def _as_json(d: Demonstration) -> dict[str, Any]:
    return {
        "id": d.id or None,
        "input": d.input,
        "output": d.output,
        "choices": list(d.choices),
        "references": list(d.references),
        "media": _media(d.media),
        "metadata": dict(d.metadata),
    }


def _demonstration(row: Mapping[str, Any]) -> Demonstration:
    return Demonstration(
        row["id"],
        row["input"],
        row["output"],
        tuple(row.get("choices", ())),
        tuple(row.get("references", ())),
        tuple(Media(m["kind"], m["uri"]) for m in row.get("media", ())),
        {key: str(value) for key, value in row.get("metadata", {}).items()},
    )


def _page(answer: Mapping[str, Any]) -> Page:
    return Page([_demonstration(row) for row in answer["demonstrations"]], answer["next"] or "")


def _hits(rows: Sequence[Mapping[str, Any]]) -> list[Hit]:
    return [Hit(_demonstration(row), row["similarity"], row["rank"], row.get("tokens")) for row in rows]


def _found(result: Mapping[str, Any], answer: Mapping[str, Any]) -> Found:
    """A result and what the whole answer says of all."""
    passed = [PassedOver(p["id"], p["similarity"], p["rank"], p["reason"]) for p in result.get("passed_over", ())]
    whole = (answer["retriever"], answer["fingerprint"], answer["seq"])
    return Found(_hits(result["demonstrations"]), result.get("tokens_cut", 0), passed, *whole)


def _built(result: Mapping[str, Any], answer: Mapping[str, Any]) -> BuiltPrompt:
    found = _found(result, answer)
    return BuiltPrompt(
        result["text"],
        result["messages"],
        result["tokens"],
        result["budget"],
        found.hits,
        [Dropped(d["id"], d["reason"], d["tokens"]) for d in result["dropped"]],
        result["truncated"],
        *found[1:],
    )


def _job(answer: Mapping[str, Any]) -> Job:
    names = ("created", "replaced", "unchanged", "refused", "encoded", "cut")
    return Job(
        answer["id"],
        answer["kind"],
        answer["state"],
        answer["done"],
        answer["total"],
        [(e["line"], e["detail"]) for e in answer["errors"]],
        answer["error"],
        {name: answer[name] for name in names if name in answer},
    )
