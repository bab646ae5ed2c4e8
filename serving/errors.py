"""Errors as HTTP answers: RFC 9457 problem bodies with a stable `type`; the one table from error to status."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from udr.errors import (
    ArtifactError,
    ConfigError,
    ConflictError,
    DataError,
    FingerprintMismatch,
    IndexNotReady,
    MissingDependencyError,
    NotFoundError,
    Overloaded,
    PreconditionFailed,
    PromptTooLong,
    QuotaExceeded,
    ScorerUnavailable,
    StoreUnavailable,
    UDRError,
    UnknownNameError,
    UpstreamTimeout,
    UpstreamUnavailable,
)

__all__ = ["OPENAI_PATHS", "OPENAI_PROBLEMS", "PROBLEMS", "STATUS", "add_error_handlers", "problem", "problem_of"]

STATUS: dict[type[UDRError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    FingerprintMismatch: 409,
    PreconditionFailed: 412,
    ConfigError: 422,
    UnknownNameError: 422,
    DataError: 422,
    PromptTooLong: 422,
    QuotaExceeded: 403,
    Overloaded: 429,
    ArtifactError: 500,
    MissingDependencyError: 501,
    IndexNotReady: 503,
    ScorerUnavailable: 503,
    StoreUnavailable: 503,
    UpstreamUnavailable: 502,
    UpstreamTimeout: 504,
    UDRError: 500,
}


_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "A stable name of the kind of error."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One line that says what, where and what to do."},
    },
}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "properties": {"message": {"type": "string"}}}},
}


def _stated(kind: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    words = {"4XX": "The request cannot be met.", "5XX": "The service cannot meet it now."}
    return {status: {"description": said, "content": {kind: {"schema": schema}}} for status, said in words.items()}


PROBLEMS = _stated("application/problem+json", _PROBLEM)
"""What the OpenAPI schema says of every route's errors."""
OPENAI_PROBLEMS = _stated("application/json", _OPENAI_ERROR)
"""And of those of the OpenAI-compatible routes."""


OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models")


class Problem(JSONResponse):
    """A problem body; to clients of the OpenAI API, which read no other, an error in its form."""

    def __init__(self, status: int, kind: str, detail: str, headers: dict[str, str] | None, more: Any) -> None:
        body = {"type": f"urn:udr:{kind}", "title": kind.replace("-", " "), "status": status, "detail": detail, **more}
        super().__init__(body, status, headers, media_type="application/problem+json")
        error = {"error": {"message": detail, "type": f"urn:udr:{kind}", "param": None, "code": kind}}
        self._openai = JSONResponse(error, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(OPENAI_PATHS):
            await self._openai(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Problem:
    """One problem body; `kind` is its stable name."""
    return Problem(status, kind, detail, headers, more)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error that a route may raise on purpose with a problem body."""
    app.add_exception_handler(UDRError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def problem_of(error: UDRError) -> Problem:
    """The answer to an error that was raised on purpose."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    name = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(error).__name__).strip("-")
    wait = error.retry_after if isinstance(error, Overloaded | ConflictError) else None
    headers = None if wait is None else {"Retry-After": str(wait)}
    return problem(status, name.replace("u-d-r", "udr"), " ".join(str(error).split()), headers)


async def _known(request: Request, error: Exception) -> Problem:
    assert isinstance(error, UDRError)
    return problem_of(error)


async def _invalid(request: Request, error: Exception) -> Problem:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, "invalid-request", f"{where}: {first['msg']}", where=where)


async def _http(request: Request, error: Exception) -> Problem:
    assert isinstance(error, HTTPException)
    kind = {401: "unauthorized", 403: "forbidden", 404: "no-such-route", 405: "method-not-allowed", 413: "too-large"}
    return problem(
        error.status_code, kind.get(error.status_code, "http-error"), str(error.detail), dict(error.headers or {})
    )
