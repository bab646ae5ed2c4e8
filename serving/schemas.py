"""Bodies of requests and answers; unknown fields are refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)

from serving.choosing import PassedOver
from serving.sql.feedback import FeedbackRow
from serving.sql.jobs import COUNTS, JobRow
from serving.sql.keys import Role
from udr.errors import ConfigError, DataError
from udr.filters import as_text, parse_filter
from udr.outcomes import Outcome
from udr.retriever import Retrieved
from udr.selection import ORDERS, SELECTIONS
from udr.types import LARGEST, LONGEST_ADDRESS, Demonstration, Media, Prompt, Query

__all__ = [
    "MOST_METADATA",
    "NO_TEXT",
    "AddBody",
    "Body",
    "DemonstrationBody",
    "FeedbackBody",
    "FittedBody",
    "FrontBody",
    "Id",
    "KeyBody",
    "PoolBody",
    "PromptAnswer",
    "PromptBody",
    "QueryBody",
    "RetrieveAnswer",
    "RetrieveBody",
    "ReviewBody",
    "SwitchBody",
    "demonstration_json",
    "feedback_json",
    "is_text",
    "job_json",
    "passed_over_json",
    "prompt_json",
    "retrieved_json",
]

MOST_METADATA = 64  # keys of a demonstration
NO_TEXT = "a text holds NUL or half a surrogate pair"
Key = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _can_be_addressed(key: str) -> str:
    if key in (".", ".."):
        raise ValueError(f"{key!r} is no id, for clients and proxies take it out of addresses")
    return key


Id = Annotated[Key, AfterValidator(_can_be_addressed)]
MetadataValue = StrictBool | int | float | str


class Body(BaseModel):
    """A JSON object that refuses fields it does not know, and texts that no store keeps and no encoder reads."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _texts_can_be_kept(cls, value: Any) -> Any:
        waiting = [("", value)]
        while waiting:
            place, one = waiting.pop()
            if isinstance(one, str):
                if not is_text(one):
                    raise ValueError(f"{place}{NO_TEXT}")
            elif isinstance(one, list):
                waiting += [(f"{place}{i}: ", part) for i, part in enumerate(one)]
            elif isinstance(one, dict):
                waiting += [(f"{place}{key}: ", part) for key, part in one.items()]
                waiting += [(place, key) for key in one]  # looked at first, for the places are made of them
        return value


def is_text(text: str) -> bool:
    """False for what UTF-8 or PostgreSQL cannot hold: half a surrogate pair, NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


_ADDRESS = 4096  # characters of an address at most; data-URIs hold the bytes themselves


class MediaBody(Body):
    """A picture, clip or sound: its own bytes as a data-URI, or an address, which is kept and never fetched."""

    kind: Literal["image", "video", "audio"]
    uri: str = Field(
        max_length=max(LONGEST_ADDRESS.values()),
        description="data:image/png;base64,… or data:audio/wav;base64,… of up to 1,500,000 characters, "
        "data:video/mp4;base64,… of 8,000,000 (x-max-length: of each kind), or an address of up to 4096.",
        json_schema_extra={"x-max-length": {**LONGEST_ADDRESS}},
    )

    @field_validator("uri")
    @classmethod
    def _addresses_are_short(cls, uri: str) -> str:
        if len(uri) > _ADDRESS and uri[:5].lower() != "data:":
            raise ValueError(f"an address has at most {_ADDRESS} characters")
        return uri

    @model_validator(mode="after")
    def _pictures_are_shorter_than_clips(self) -> MediaBody:
        if len(self.uri) > LONGEST_ADDRESS[self.kind]:
            raise ValueError(f"a data-URI of kind {self.kind} has at most {LONGEST_ADDRESS[self.kind]} characters")
        return self


class DemonstrationBody(Body):
    """A solved example; without an id it goes by the hash of its text."""

    id: Id | None = None
    input: str
    output: str
    choices: list[str] = Field([], max_length=1000)
    references: list[str] = Field([], max_length=1000)
    media: list[MediaBody] = Field([], max_length=64)
    metadata: dict[Key, MetadataValue] = Field({}, max_length=MOST_METADATA)

    def demonstration(self) -> Demonstration:
        """The same as the library knows it."""
        found = Demonstration(
            self.id or "",
            self.input,
            self.output,
            tuple(self.choices),
            tuple(self.references),
            tuple(Media(m.kind, m.uri) for m in self.media),
            {key: as_text(value, f"metadata {key!r}") for key, value in self.metadata.items()},
        )
        if self.id:
            return found
        return Demonstration(**{f: getattr(found, f) for f in found.__slots__} | {"id": found.content_hash})


PoolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]


class AddBody(Body):
    """Demonstrations to store; `upsert` lets a new one take the place of another under its id."""

    demonstrations: list[DemonstrationBody] = Field(min_length=1)
    mode: Literal["add", "upsert"] = "add"


class SwitchBody(Body):
    """The retriever that is to answer."""

    retriever: str


class KeyBody(Body):
    """A key that is to be made."""

    name: PoolName
    role: Role = Field("read", description="read: retrieval and lists; write: demonstrations; admin: pools and keys.")
    pools: list[PoolName] | None = Field(None, max_length=1000, description="The only pools it may touch.")
    days: float | None = Field(None, gt=0, le=36_500, description="Until it expires.")


class QueryBody(Body):
    """An input that wants an answer."""

    input: str
    choices: list[str] = Field([], max_length=1000)
    media: list[MediaBody] = Field([], max_length=64)

    def query(self, number: int) -> Query:
        """The same as the library knows it."""
        media = tuple(Media(m.kind, m.uri) for m in self.media)
        return Query(f"query-{number}", self.input, tuple(self.choices), media)


class ChoiceBody(Body):
    """How demonstrations are chosen."""

    k: int = Field(8, ge=1, le=1000)
    retriever: str = Field(
        "", description="Empty: the pool's own. bm25, hybrid (both), or the one that answered before a switch."
    )
    where: dict[str, Any] = Field({}, description="Conditions on the metadata, all of which must hold.")
    threshold: float | None = None
    selection: Literal[tuple(SELECTIONS)] = "top_k"  # type: ignore[valid-type]
    considered: int = Field(100, ge=1, le=1000, description="Nearest ones that other selections choose among.")
    without_copies: bool = Field(False, description="Leave out demonstrations whose input is the query's.")
    order: Literal[tuple(ORDERS)] = Field(  # type: ignore[valid-type]
        "descending", description="In which the chosen ones are given; descending: the best first."
    )
    tokenizer: str = Field(
        "bytes", description="Whose tokens the budget and `explain` count; bytes: no more tokens than that."
    )


class FittedBody(ChoiceBody):
    """How demonstrations are chosen, and how much of them fits the prompt."""

    budget: int = Field(2048, ge=1, le=LARGEST, description="Tokens of the prompt and of `reserve`.")
    reserve: int = Field(0, ge=0, le=LARGEST, description="Tokens kept for the answer.")
    order: Literal[tuple(ORDERS)] = Field(  # type: ignore[valid-type]
        "ascending", description="In which they stand in the prompt; ascending: the best next to the query."
    )


class RetrieveBody(ChoiceBody):
    """What to retrieve for one or many queries."""

    pool: str
    queries: list[QueryBody | str] = Field(min_length=1)
    explain: bool = Field(False, description="Tell of the nearest ones that were not chosen, and why.")

    def parsed_queries(self) -> list[Query]:
        return [
            (QueryBody(input=q, choices=[], media=[]) if isinstance(q, str) else q).query(i)
            for i, q in enumerate(self.queries)
        ]


class PromptBody(FittedBody, RetrieveBody):
    """What to retrieve, and how much of it fits the prompt."""


class FrontBody(FittedBody):
    """How requests that go through to the LLM server get a pool's demonstrations."""

    style: Literal["turns", "text"] = Field(
        "turns", description="turns: each demonstration is a turn of the chat; text: all stand in the user's message."
    )
    budget: int = Field(
        8192,
        ge=1,
        le=LARGEST,
        description="Tokens of demonstrations and query together, and of `reserve`.",
    )

    def checked(self) -> dict[str, Any]:
        """What was stated of it, to be kept with a pool.

        Raises:
            ConfigError: conditions that no metadata can meet, or that cannot be kept.
        """
        parse_filter(self.where)
        stated = self.model_dump(mode="json", exclude_unset=True)
        try:
            orjson.dumps(stated)
        except TypeError:
            raise ConfigError("where: a number of more than 64 bits; put it in quotes") from None
        return stated


class PoolBody(Body):
    """A pool and its task; words left out are those of a plain task: input, tab, output."""

    name: PoolName
    task: dict[str, Any] = Field({}, description="Fields of a task file: instruction, template, verbaliser, …")
    front: FrontBody | None = Field(None, description="How requests to the LLM server get its demonstrations.")

    def spec(self) -> dict[str, Any]:
        """The fields of a TaskSpec."""
        kind = self.task.get("kind") or ("classification" if self.task.get("verbaliser") else "generation")
        metric = "accuracy" if kind != "generation" else "rouge_l"
        return {"family": "custom", "kind": kind, "metric": metric, **self.task, "name": self.name}


class OutcomeBody(Body):
    """What came of one prompt: how good the answer was, or what it should have been, or both."""

    input: str
    choices: list[str] = Field([], max_length=1000)
    demonstrations: list[Key] = Field([], max_length=1000, description="Ids of those in the prompt.")
    output: str | None = Field(None, description="What the LM answered.")
    score: float | None = Field(None, ge=0, le=1, description="From 0, wrong, to 1, right.")
    correct: bool | None = Field(None, description="The same as a score of 1 or 0.")
    corrected_output: str | None = Field(None, description="What it should have answered; waits for a reviewer.")

    def outcome(self, where: str) -> Outcome:
        """The same as the store knows it.

        Raises:
            DataError: it is of no input, says nothing of how good the answer was, or two things at once.
        """
        if not self.input.strip():
            raise DataError(f"{where}: input is empty; nothing can be learnt for no query")
        if self.score is not None and self.correct is not None and self.score != float(self.correct):
            raise DataError(f"{where}: score {self.score} and correct {self.correct} say two things")
        if self.score is None and self.correct is None and self.corrected_output is None:
            raise DataError(f"{where}: needs a score, correct, or corrected_output")
        score = float(self.correct) if self.score is None and self.correct is not None else self.score
        shown = tuple(self.demonstrations)
        return Outcome(self.input, tuple(self.choices), shown, self.output, score, self.corrected_output)


class FeedbackBody(Body):
    """What came of prompts of a pool."""

    pool: str
    outcomes: list[OutcomeBody] = Field(min_length=1)


class ReviewBody(Body):
    """What becomes of a correction."""

    accept: bool
    output: str | None = Field(None, description="Takes the place of the correction; empty: it stays as it is.")


# answers, as the OpenAPI schema states them


class PassedOverAnswer(BaseModel):
    id: str
    similarity: float
    rank: int
    reason: str


class RetrievedAnswer(DemonstrationBody):
    """A demonstration and how near it stands to the query; rank 1 is the nearest."""

    similarity: float
    rank: int
    tokens: int | None = Field(None, description="Of it alone by the `tokenizer`, where `explain` asks.")


class _ResultAnswer(BaseModel):
    demonstrations: list[RetrievedAnswer]
    tokens_cut: int = Field(0, description="Tokens of the query that the encoder did not read.")
    passed_over: list[PassedOverAnswer] = Field([], description="The nearest that were not chosen (`explain`).")


class DroppedAnswer(BaseModel):
    id: str
    reason: str
    tokens: int


class MessageAnswer(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]  # parts, where there are pictures, clips or sounds


class PromptResultAnswer(_ResultAnswer):
    """A finished prompt: as text, as chat messages, and what it is made of."""

    text: str
    messages: list[MessageAnswer]
    tokens: int
    budget: int
    dropped: list[DroppedAnswer] = Field(description="Demonstrations that did not fit.")
    truncated: bool


class _Answer(BaseModel):
    pool: str
    seq: int = Field(description="The pool's number of changes, as of which this was answered.")
    retriever: str
    fingerprint: str | None = Field(description="Of the encoding that ranked; null: words alone did.")


class RetrieveAnswer(_Answer):
    """The demonstrations of each query, in the order asked for."""

    results: list[_ResultAnswer]


class PromptAnswer(_Answer):
    """The prompt of each query."""

    results: list[PromptResultAnswer]


def demonstration_json(d: Demonstration) -> dict[str, Any]:
    """A demonstration in an answer; empty fields are left out."""
    found: dict[str, Any] = {"id": d.id, "input": d.input, "output": d.output}
    more = {
        "choices": list(d.choices),
        "references": list(d.references),
        "media": [{"kind": m.kind, "uri": m.uri} for m in d.media],
        "metadata": dict(d.metadata),
    }
    return found | {key: value for key, value in more.items() if value}


def retrieved_json(found: Retrieved) -> dict[str, Any]:
    """A demonstration and how near it stands to the query; rank 1 is the nearest."""
    return {**demonstration_json(found.demonstration), "similarity": found.similarity, "rank": found.rank}


def passed_over_json(one: PassedOver) -> dict[str, Any]:
    """A near demonstration that was not chosen, and why."""
    found = one.retrieved
    return {"id": found.demonstration.id, "similarity": found.similarity, "rank": found.rank, "reason": one.reason}


def prompt_json(prompt: Prompt, messages: list[dict[str, Any]], found: Sequence[Retrieved]) -> dict[str, Any]:
    """A finished prompt: as text, as chat messages, and what it is made of."""
    retrieved = {f.demonstration.id: f for f in found}
    return {
        "text": prompt.text,
        "messages": messages,
        "tokens": prompt.tokens,
        "budget": prompt.budget,
        "demonstrations": [retrieved_json(retrieved[d.id]) for d in prompt.demonstrations],
        "dropped": [{"id": d.demonstration_id, "reason": d.reason, "tokens": d.tokens} for d in prompt.dropped],
        "truncated": prompt.truncated,
    }


def feedback_json(row: FeedbackRow) -> dict[str, Any]:
    """An outcome in an answer; what was not stated is left out."""
    number, state, o = row.recorded
    found: dict[str, Any] = {"id": number, "at": row.at, "caller": row.caller, "state": state, "input": o.input}
    more = {"choices": list(o.choices), "demonstrations": list(o.shown)}
    stated = {"output": o.output, "score": o.score, "corrected_output": o.corrected}
    return found | {k: v for k, v in more.items() if v} | {k: v for k, v in stated.items() if v is not None}


def job_json(job: JobRow) -> dict[str, Any]:
    """A job and how far it is: of a load in bytes (NDJSON) or rows (Parquet), else in demonstrations."""
    elapsed = (job.finished or time.time()) - job.created
    left = elapsed / job.done * (job.total - job.done) if job.state == "running" and 0 < job.done < job.total else None
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        **job.spec,
        "done": job.done,
        "total": job.total,
        "seconds": round(elapsed, 3),
        "seconds_left": None if left is None else round(left, 1),
        **{name: job.counts.get(name, 0) for name in (COUNTS if job.kind == "load" else ("cut",))},
        "errors": [{"line": line, "detail": detail} for line, detail in job.errors],
        "error": job.error,
        "begun": job.created,
    }
