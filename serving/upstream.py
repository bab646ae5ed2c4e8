"""The LLM server behind the service: requests go to it, and its answers come back byte for byte as it sends them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
import httpx2
import structlog
from prometheus_client import Counter, Histogram
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.errors import problem_of
from udr.errors import UDRError, UpstreamTimeout, UpstreamUnavailable

__all__ = ["Relay", "Upstream"]

_CONNECTING = 5.0  # seconds
_CLOSING = 5.0  # seconds
# of one connection, not of the message that it carries (RFC 9110, section 7.6.1); the server names itself and the date
_CONNECTION = (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection")
_OWN = frozenset(
    (
        *_CONNECTION,
        b"proxy-authenticate",
        b"proxy-authorization",
        b"host",
        b"content-length",
        b"cookie",
        b"date",
        b"server",
    )
)
Headers = Iterable[tuple[bytes, bytes]]
_FIRST = Histogram(
    "udr_upstream_seconds",
    "Time until the LLM server begins to answer.",
    buckets=(0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
_ENDS = Counter("udr_upstream_total", "How requests to the LLM server ended.", ["end"])
_log: Any = structlog.get_logger("udr.serving")


class Upstream:
    """An OpenAI-compatible server.

    Args:
        url: its address, with or without /v1.
        key: that it wants; "" hands the caller's own on.
        timeout: seconds that it may be silent.
    """

    def __init__(self, url: str, key: str = "", timeout: float = 600.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = key.encode()
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(timeout, connect=_CONNECTING, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
            headers={"accept-encoding": "identity"},  # where the caller says nothing: answers go on as they come
            trust_env=False,  # a proxy of the machine's is no way to a server beside it
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def models(self, headers: Headers) -> dict[str, Any]:
        """What it says of the models that it serves: under `data` a list, and whatever else it tells.

        Raises:
            UpstreamUnavailable: it cannot be reached, or answers something else.
        """
        try:
            # read here, so not in an encoding of the caller's choice
            own = [(name, value) for name, value in self._headers(headers) if name.lower() != b"accept-encoding"]
            answer = await self._client.get(f"{self.url}/v1/models", headers=own)
            said = answer.json() if answer.status_code == 200 else None
        except httpx2.HTTPError as error:
            raise _error(self.url, error) from None
        except ValueError:
            said = None
        if not isinstance(said, dict) or not isinstance(said.get("data"), list):
            raise UpstreamUnavailable(f"the LLM server {self.url} does not tell its models ({answer.status_code})")
        return said

    def request(self, path: str, body: bytes, headers: Headers) -> httpx2.Request:
        """A POST with the caller's headers."""
        return self._client.build_request("POST", self.url + path, content=body, headers=self._headers(headers))

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send it, and wait until the answer begins.

        Raises:
            UpstreamUnavailable: it cannot be reached.
            UpstreamTimeout: it is silent.
        """
        started = time.perf_counter()
        try:
            answer = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _error(self.url, error) from None
        _FIRST.observe(time.perf_counter() - started)
        return answer

    def _headers(self, given: Headers) -> list[tuple[bytes, bytes]]:
        kept = [(name, value) for name, value in given if name.lower() not in _OWN]
        if not self._key:
            return kept
        others = [(name, value) for name, value in kept if name.lower() != b"authorization"]
        return [*others, (b"authorization", b"Bearer " + self._key)]


class Relay(Response):
    """The answer of the LLM server: its status, headers and bytes, as they come.

    If the caller goes, the request to the LLM server is given up. If that server breaks off, so does this answer: the
    caller sees what it would have seen there.

    Args:
        upstream: the server.
        request: to send to it.
        told: headers of ours beside its own; they stand for others of the same names.
    """

    def __init__(self, upstream: Upstream, request: httpx2.Request, told: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.upstream = upstream
        self.request = request
        self.told = told
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["relayed"] = True  # counted apart, for its time and its refusals are the LLM server's
        end = "caller gone"
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            end = await self._relay(scope, receive, send)
            tasks.cancel_scope.cancel()
        _ENDS.labels(end).inc()

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> str:
        """Pass the answer on, and say how it ended."""
        try:
            answer = await self.upstream.send(self.request)
        except UDRError as error:
            await problem_of(error)(scope, receive, send)
            return "timeout" if isinstance(error, UpstreamTimeout) else "unreachable"
        try:
            ours = {name for name, _ in self.told}
            headers = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in ours]
            kept = [(name, value) for name, value in headers if name == b"content-length" or name not in _OWN]
            start = {"type": "http.response.start", "status": answer.status_code, "headers": [*kept, *self.told]}
            await send(start)
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except httpx2.HTTPError as error:  # nothing more is sent, and so the server closes the connection
            _log.warning("the LLM server broke off", error=f"{type(error).__name__}: {error}")
            return "broken off"
        finally:
            with anyio.move_on_after(_CLOSING, shield=True):
                await answer.aclose()
        return "whole"


def _error(url: str, error: httpx2.HTTPError) -> UpstreamUnavailable:
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return UpstreamTimeout(f"the LLM server {url} was silent for too long ({type(error).__name__})")
    return UpstreamUnavailable(f"the LLM server {url} cannot be reached ({error or type(error).__name__})")
