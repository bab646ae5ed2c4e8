"""What every request passes: its id, its caller, the caller's rate, the size of its body, the clock, and what fails."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import structlog
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Access
from serving.errors import problem, problem_of
from serving.idempotency import is_load
from serving.sql.audit import acting
from udr.errors import Overloaded, UDRError, is_out_of_memory

__all__ = ["Gate"]

# without a key: asked by whoever starts and stops the service, and the page, which asks for one; they tell nothing
_OPEN, _PAGE = ("/livez", "/readyz", "/"), "/playground/"
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
_METRICS = "/metrics"  # answered under overload too, of which it tells
# what wants something encoded; under overload such requests are refused before their bodies are read, for reading them
# all would keep the others waiting
_ENCODES = ("/v1/retrieve", "/v1/prompt", "/v1/embeddings")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SECONDS = Histogram(
    "udr_request_seconds",
    "Time from a request's arrival to the end of its answer, without those that the LLM server answers.",
    ["route", "method"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
_ANSWERS = Counter("udr_answers_total", "Answers by route and status.", ["route", "method", "status"])
_RELAYED_SECONDS = Histogram(
    "udr_relayed_seconds",
    "Time from a request's arrival to the end of the LLM server's answer.",
    ["route", "method"],
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500),
)
_RELAYED = Counter("udr_relayed_total", "Answers of the LLM server by route and status.", ["route", "method", "status"])
_log: Any = structlog.get_logger("udr.serving")


class Gate:
    """Finds out who calls before a byte of the body is read, bounds the body, and logs and counts the answer."""

    def __init__(self, app: ASGIApp, max_body: int, max_load: int, max_in_flight: int) -> None:
        self.app = app
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.max_body = max_body
        self.max_load = max_load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        started, status, read, answering = time.perf_counter(), 500, 0, False
        limit = self.max_load if is_load(scope) else self.max_body

        async def counted_receive() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        async def told_send(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                status, answering = message["status"], True
                others = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message["headers"] = [*others, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if scope["path"] in _OPEN or scope["path"].startswith(_PAGE):
                await self.app(scope, receive, told_send)
                return
            if self.in_flight >= self.max_in_flight and scope["path"] != _METRICS:
                full = Overloaded(f"{self.in_flight} requests are being worked on; try again in a second")
                await problem_of(full)(scope, receive, told_send)
                return
            self.in_flight += 1
            try:
                refusal = await self._refusal(request, limit)
                if refusal is not None:
                    await refusal(scope, receive, told_send)
                else:
                    await self.app(scope, counted_receive, told_send)
            finally:
                self.in_flight -= 1
        except Exception as error:
            _log.exception("failed", request_id=request_id, method=scope["method"], path=scope["path"])
            if is_out_of_memory(error):
                scope["app"].state.parts.worker.give_up()
            if answering:  # the server breaks the answer off, so that it is not taken for a whole one
                raise
            why = problem(500, "internal-error", "the service failed; the log says why under this request's id")
            await why(scope, receive, told_send)
        finally:
            seconds = time.perf_counter() - started
            if scope["path"] != _METRICS:  # who reads the counts is not counted
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in _METHODS else "other"  # callers may make up endless ones
                relayed = scope.get("state", {}).get("relayed", False)
                times, answers = (_RELAYED_SECONDS, _RELAYED) if relayed else (_SECONDS, _ANSWERS)
                times.labels(route, method).observe(seconds)
                answers.labels(route, method, str(status)).inc()
            _log.info(
                "answered",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1000, 2),
            )

    async def _refusal(self, request: Request, limit: int) -> Response | None:
        if "\x00" in request.url.path or b"%00" in request.scope["query_string"]:
            return problem(422, "invalid-request", "the address holds NUL, which no name and no database does")
        access: Access = request.app.state.parts.access
        told = request.headers
        if reason := access.from_elsewhere(request.method, told.get("host", ""), told.get("origin")):
            return problem(403, "forbidden", reason)
        try:
            caller = await access.caller(request.headers.get("authorization"))
        except UDRError as error:
            return problem_of(error)
        if caller is None:
            headers = {"WWW-Authenticate": "Bearer"}
            return problem(401, "unauthorized", "send a key that is valid as `Authorization: Bearer KEY`", headers)
        request.state.caller = caller
        acting.set(caller.name)
        if wait := access.seconds_to_wait(caller):
            return problem_of(Overloaded(f"{caller.name}: too many requests; wait {wait} s", wait))
        if request.url.path in _ENCODES and request.app.state.parts.worker.full:
            return problem_of(Overloaded("more queries wait to be encoded than soon can be; try again in a second"))
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > limit:
            return problem(413, "too-large", _too_large(limit))
        return None


def _too_large(limit: int) -> str:
    return f"the body exceeds {limit} bytes; send it in parts"
