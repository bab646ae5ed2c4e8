"""Bodies of requests and answers; unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from udr.filters import as_text
from udr.retriever import Retrieved
from udr.selection import ORDERS, SELECTIONS
from udr.types import Demonstration, Media, Prompt, Query

__all__ = ["AddBody", "DemonstrationBody", "PoolBody", "PromptBody", "QueryBody", "RetrieveBody", "SwitchBody"]

Key = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
MetadataValue = StrictBool | int | float | str


class Body(BaseModel):
    """A JSON object that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


class MediaBody(Body):
    """A picture, clip or sound by its address."""

    kind: Literal["image", "video", "audio"]
    uri: str = Field(max_length=4096)


class DemonstrationBody(Body):
    """A solved example; without an id it goes by the hash of its text."""

    id: Key | None = None
    input: str
    output: str
    choices: list[str] = Field([], max_length=1000)
    references: list[str] = Field([], max_length=1000)
    media: list[MediaBody] = Field([], max_length=64)
    metadata: dict[Key, MetadataValue] = Field({}, max_length=64)

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


class PoolBody(Body):
    """A pool and its task; words left out are those of a plain task: input, tab, output."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)
    task: dict[str, Any] = Field({}, description="Fields of a task file: instruction, template, verbaliser, …")

    def spec(self) -> dict[str, Any]:
        """The fields of a TaskSpec."""
        kind = self.task.get("kind") or ("classification" if self.task.get("verbaliser") else "generation")
        metric = "accuracy" if kind != "generation" else "rouge_l"
        return {"family": "custom", "kind": kind, "metric": metric, **self.task, "name": self.name}


class AddBody(Body):
    """Demonstrations to store; `upsert` lets a new one take the place of another under its id."""

    demonstrations: list[DemonstrationBody] = Field(min_length=1)
    mode: Literal["add", "upsert"] = "add"


class SwitchBody(Body):
    """The retriever that is to answer."""

    retriever: str


class QueryBody(Body):
    """An input that wants an answer."""

    input: str
    choices: list[str] = Field([], max_length=1000)
    media: list[MediaBody] = Field([], max_length=64)

    def query(self, number: int) -> Query:
        """The same as the library knows it."""
        media = tuple(Media(m.kind, m.uri) for m in self.media)
        return Query(f"query-{number}", self.input, tuple(self.choices), media)


class RetrieveBody(Body):
    """What to retrieve for one or many queries."""

    pool: str
    queries: list[QueryBody | str] = Field(min_length=1)
    k: int = Field(8, ge=1, le=1000)
    retriever: str = Field("", description="Empty: the pool's own. bm25, or one that the pool is encoded under.")
    where: dict[str, Any] = Field({}, description="Conditions on the metadata, all of which must hold.")
    threshold: float | None = None
    selection: Literal[tuple(SELECTIONS)] = "top_k"  # type: ignore[valid-type]
    considered: int = Field(100, ge=1, le=1000, description="Nearest ones that other selections choose among.")
    without_copies: bool = Field(False, description="Leave out demonstrations whose input is the query's.")

    def parsed_queries(self) -> list[Query]:
        return [
            (QueryBody(input=q, choices=[], media=[]) if isinstance(q, str) else q).query(i)
            for i, q in enumerate(self.queries)
        ]


class PromptBody(RetrieveBody):
    """What to retrieve, and how much of it fits the prompt."""

    tokenizer: str = Field("bytes", description="Whose tokens the budget counts; bytes: no more tokens than that.")
    budget: int = Field(2048, ge=1, description="Tokens of the prompt and of `reserve`.")
    reserve: int = Field(0, ge=0, description="Tokens kept for the answer.")
    order: Literal[tuple(ORDERS)] = "ascending"  # type: ignore[valid-type]


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


def prompt_json(prompt: Prompt, messages: list[dict[str, str]]) -> dict[str, Any]:
    """A finished prompt: as text, as chat messages, and what it is made of."""
    return {
        "text": prompt.text,
        "messages": messages,
        "tokens": prompt.tokens,
        "budget": prompt.budget,
        "demonstrations": [demonstration_json(d) for d in prompt.demonstrations],
        "dropped": [{"id": d.demonstration_id, "reason": d.reason, "tokens": d.tokens} for d in prompt.dropped],
        "truncated": prompt.truncated,
    }
