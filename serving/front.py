"""What the OpenAI-compatible front reads in a request and changes of it: the query, and the demonstrations put in.

`model` is `POOL@MODEL`; everything that is not named here goes through as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from serving.schemas import NO_TEXT, FrontBody, MediaBody, is_text
from udr.errors import ConfigError
from udr.prompt import as_messages
from udr.tasks.spec import TaskSpec
from udr.types import Prompt, Query

__all__ = [
    "FIELD",
    "Addressed",
    "addressed",
    "chat_media",
    "chat_query",
    "completion_queries",
    "front_of",
    "with_prompts",
    "with_text",
    "with_turns",
]

FIELD = "udr"  # of a request: settings of the pool's front, for it alone
_SYSTEM = ("system", "developer")
_MOST = 64  # parts that a query may have; others go on all the same
_SHOWN: tuple[Literal["image", "video"], ...] = ("image", "video")  # what parts of messages show, as KIND_url


class Addressed(NamedTuple):
    """Whom a request is for."""

    pool: str  # "": no demonstrations are wanted
    model: str  # as the LLM server knows it


def addressed(body: dict[str, Any], header: str | None = None) -> Addressed:
    """Take `POOL@MODEL` apart; where `header` names the pool ("": none), `model` is the LLM server's own name.

    Raises:
        ConfigError: the pool or the model is missing.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ConfigError("model: expected POOL@MODEL, or the LLM server's own name for a model")
    if header is not None:
        return Addressed(header, model)
    pool, at, upstream = model.partition("@")
    if not at:
        return Addressed("", model)
    if not pool or not upstream:
        raise ConfigError(f"model {model!r}: expected POOL@MODEL; GET /v1/models lists them")
    return Addressed(pool, upstream)


def front_of(kept: Mapping[str, Any] | None, own: Any) -> FrontBody:
    """The settings of a pool's front, and over them those of the request.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    if own is not None and not isinstance(own, dict):
        raise ConfigError(f"{FIELD}: expected an object of settings")
    try:
        return FrontBody.model_validate({**(kept or {}), **(own or {})})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{FIELD}.{where}: {first['msg']}") from None


# -- chat


def chat_query(body: dict[str, Any]) -> str:
    """The text of the last user's turn; "" where it shows or plays something and says nothing.

    Raises:
        ConfigError: no turn of a user holds anything, or its text cannot be read.
    """
    text = _text(_messages(body)[_last_user(_messages(body))])
    if not is_text(text):
        raise ConfigError(f"messages: {NO_TEXT}")
    return text


def chat_media(body: dict[str, Any]) -> list[MediaBody]:
    """What the last user's turn shows and plays, where it came as data-URIs; the rest is the LLM server's to fetch."""
    message = _messages(body)[_last_user(_messages(body))]
    content = message.get("content")
    found = []
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, dict):
            continue
        for kind, uri in _embedded(part):
            if isinstance(uri, str) and uri[:5].lower() == "data:":
                with suppress(ValidationError):  # one too large to be read here goes on all the same
                    found.append(MediaBody(kind=kind, uri=uri))
    return found[:_MOST]


def _embedded(part: dict[str, Any]) -> Iterator[tuple[Literal["image", "video", "audio"], Any]]:
    """The addresses of a part's picture and clip, and its sound as a data-URI."""
    sound = part.get("input_audio")
    if isinstance(sound, dict) and isinstance(sound.get("data"), str):
        yield "audio", f"data:audio/{sound.get('format', 'wav')};base64,{sound['data']}"
    for kind in _SHOWN:
        shown = part.get(f"{kind}_url")
        if isinstance(shown, dict):
            yield kind, shown.get("url")


def with_turns(body: dict[str, Any], spec: TaskSpec, prompt: Prompt) -> dict[str, Any]:
    """Demonstrations as turns between the system's messages and the conversation."""
    messages = _messages(body)
    start = next((i for i, m in enumerate(messages) if m.get("role") not in _SYSTEM), len(messages))
    turns = as_messages(spec, prompt.demonstrations, Query("", ""))[:-1]
    whole = [*messages[:start], *turns, *messages[start:]]
    if spec.template.input_prefix:
        last = _last_user(messages) + len(turns)
        whole[last] = _with_text(whole[last], spec.template.input_prefix + _text(whole[last]))
    return {**body, "messages": whole}


def with_text(body: dict[str, Any], prompt: Prompt) -> dict[str, Any]:
    """The finished prompt in the place of the last user's text."""
    messages = list(_messages(body))
    last = _last_user(messages)
    messages[last] = _with_text(messages[last], prompt.text)
    return {**body, "messages": messages}


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ConfigError("messages: expected a list of messages")
    return messages


def _last_user(messages: Sequence[dict[str, Any]]) -> int:
    found = [i for i, m in enumerate(messages) if m.get("role") == "user" and (_text(m) or _shows(m))]
    if not found:
        raise ConfigError(
            "messages: none of a user with text, a picture or a sound, so there is nothing to retrieve for"
        )
    return found[-1]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def _shows(message: dict[str, Any]) -> bool:
    """True where it holds a picture, clip or sound, wherever that is."""
    content = message.get("content")
    parts = [p for p in content if isinstance(p, dict)] if isinstance(content, list) else []
    return any(isinstance(uri, str) for part in parts for _, uri in _embedded(part))


def _with_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    """The same message with another text; pictures and other parts stay where they are."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    parts, placed = [], False
    for part in content:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
            parts.append(part)
        elif not placed:
            parts.append({**part, "text": text})
            placed = True
    if not placed:  # a turn that is a picture or a sound alone
        parts.append({"type": "text", "text": text})
    return {**message, "content": parts}


# -- completions


def completion_queries(body: dict[str, Any]) -> list[str]:
    """The prompts, each a query.

    Raises:
        ConfigError: they are not texts.
    """
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ConfigError("prompt: expected a text or a list of texts; token ids have no demonstrations")
    if not all(map(is_text, prompts)):
        raise ConfigError(f"prompt: {NO_TEXT}")
    return prompts


def with_prompts(body: dict[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The finished prompts in the place of the queries."""
    texts = [p.text for p in prompts]
    return {**body, "prompt": texts[0] if isinstance(body["prompt"], str) else texts}
