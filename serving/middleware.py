"""What every request passes: its id, the key, the size of its body, and the clock."""

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

from serving.dependencies import authorised
from serving.errors import problem

__all__ = ["Gate"]

_OPEN = ("/livez", "/readyz")  # asked by whoever starts and stops the service; they tell nothing
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SECONDS = Histogram(
    "udr_request_seconds",
    "Time from a request's arrival to the end of its answer.",
    ["route", "method"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
_ANSWERS = Counter("udr_answers_total", "Answers by route and status.", ["route", "method", "status"])
_log: Any = structlog.get_logger("udr.serving")


class Gate:
    """Checks the key before a byte of the body is read, bounds the body, and logs and counts the answer."""

    def __init__(self, app: ASGIApp, key: str, max_body: int) -> None:
        self.app = app
        self.key = key
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        started, status, read = time.perf_counter(), 500, 0

        async def counted_receive() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body:
                raise HTTPException(413, self._too_large)
            return message

        async def told_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(request)
            if refusal is not None:
                await refusal(scope, receive, told_send)
            else:
                await self.app(scope, counted_receive, told_send)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            _SECONDS.labels(route, scope["method"]).observe(seconds)
            _ANSWERS.labels(route, scope["method"], str(status)).inc()
            _log.info(
                "answered",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1000, 2),
            )

    def _refusal(self, request: Request) -> Response | None:
        if request.url.path not in _OPEN and not authorised(self.key, request.headers.get("authorization")):
            headers = {"WWW-Authenticate": "Bearer"}
            return problem(401, "unauthorized", "send the key as `Authorization: Bearer KEY`", headers)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.max_body:
            return problem(413, "too-large", self._too_large)
        return None

    @property
    def _too_large(self) -> str:
        return f"the body exceeds {self.max_body} bytes; send it in parts"
