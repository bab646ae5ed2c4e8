"""Errors as HTTP answers: RFC 9457 problem bodies with a stable `type`; the one table from error to status."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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
    PromptTooLong,
    QuotaExceeded,
    ScorerUnavailable,
    StoreUnavailable,
    UDRError,
    UnknownNameError,
)

__all__ = ["PROBLEMS", "STATUS", "add_error_handlers", "problem", "problem_of"]

STATUS: dict[type[UDRError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    FingerprintMismatch: 409,
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
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/problem+json": {"schema": _PROBLEM}}}
    for status, words in (("4XX", "The request cannot be met."), ("5XX", "The service cannot meet it now."))
}
"""What the OpenAPI schema says of every route's errors."""


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """One problem body; `kind` is its stable name."""
    body = {"type": f"urn:udr:{kind}", "title": kind.replace("-", " "), "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error that a route may raise with a problem body."""
    app.add_exception_handler(UDRError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unknown)


def problem_of(error: UDRError) -> JSONResponse:
    """The answer to an error that was raised on purpose."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    name = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(error).__name__).strip("-")
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Overloaded) else None
    return problem(status, name.replace("u-d-r", "udr"), " ".join(str(error).split()), headers)


async def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UDRError)
    return problem_of(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, "invalid-request", f"{where}: {first['msg']}", where=where)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = {401: "unauthorized", 403: "forbidden", 404: "no-such-route", 405: "method-not-allowed", 413: "too-large"}
    return problem(
        error.status_code, kind.get(error.status_code, "http-error"), str(error.detail), dict(error.headers or {})
    )


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "internal-error", "the service failed; the log says why under this request's id")
