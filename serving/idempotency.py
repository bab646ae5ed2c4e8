"""Requests that are sent again under one Idempotency-Key are done once and answered alike."""

from __future__ import annotations

import hashlib
import re

from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Caller
from serving.errors import problem, problem_of
from serving.sql.keys import Answers, Kept
from udr.errors import ConfigError, UDRError

__all__ = ["Idempotency", "is_load", "key_of"]

_LONGEST = 255
_WRITES = ("POST", "PUT", "DELETE")
# POST /v1/keys is left out: its answer is a secret, which is stored nowhere
_WRITING = ("/v1/pools", "/v1/feedback", "/v1/jobs/", "/v1/keys/")
_LOAD = re.compile("/v1/pools/[^/]+/load")


class Idempotency:
    """Keeps the answers of requests that write; loads keep their own keys, for their bodies are large."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        concerned = scope["type"] == "http" and scope["method"] in _WRITES and path.startswith(_WRITING)
        if not concerned or is_load(scope):
            await self.app(scope, receive, send)
            return
        try:
            key = key_of(scope)
        except UDRError as error:
            await problem_of(error)(scope, receive, send)
            return
        if key is None:
            await self.app(scope, receive, send)
            return
        try:
            body = await _body(receive)
        except HTTPException as error:  # too large; no handler of the application stands around this
            await problem(error.status_code, "too-large", str(error.detail))(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        request = b"\n".join((scope["method"].encode(), path.encode(), scope["query_string"], body))
        answers: Answers = scope["app"].state.parts.answers
        try:
            kept = await run_sync(answers.begin, key, hashlib.sha256(request).hexdigest())
        except UDRError as error:
            await problem_of(error)(scope, receive, send)
            return
        if kept is not None:
            kind = "application/json" if kept.status < 400 else "application/problem+json"
            replayed = {"Idempotent-Replayed": "true"} | ({"Content-Type": kind} if kept.body else {})
            await Response(kept.body, kept.status, replayed)(scope, receive, send)
            return
        status, parts = 500, list[bytes]()

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, _again(body, receive), noted_send)
        finally:
            lasting = status < 500 and status != 429  # what failed may go well the next time
            await run_sync(answers.keep, key, Kept(status, b"".join(parts)) if lasting else None)


def is_load(scope: Scope) -> bool:
    """True for the one request whose body may be large, and is read piece by piece."""
    return scope["method"] == "POST" and _LOAD.fullmatch(scope["path"]) is not None


def key_of(scope: Scope) -> str | None:
    """The request's key, made the caller's own; None where it has none.

    Raises:
        ConfigError: it is empty or too long.
    """
    given = next((value for name, value in scope["headers"] if name == b"idempotency-key"), None)
    if given is None:
        return None
    if not 0 < len(given) <= _LONGEST:
        raise ConfigError(f"Idempotency-Key: expected 1 to {_LONGEST} characters")
    caller: Caller = scope["state"]["caller"]
    return hashlib.sha256(f"{caller.name}\n".encode() + given).hexdigest()


async def _body(receive: Receive) -> bytes | None:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
