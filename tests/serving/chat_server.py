"""An LLM server whose answers are written down beforehand, streamed word by word, with faults to switch on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["It ", "is ", "a ", "Printer", "."]


class ChatServer:
    """Keeps what it was asked.

    `fault` is one of: "" none; "refuse": 429 with Retry-After; "hang": silence; "break": the connection is dropped
    after two words; "error": so is an error told of in the stream; "slow": a word every `pause` seconds.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.fault, self.pause = "", 0.05
        self.streaming = self.given_up = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.url = ""
        self.models: Any = {"object": "list", "data": [{"id": "gemma", "object": "model", "owned_by": "test"}]}
        self.model_headers: dict[str, str] = {}  # of the last request for them

    @property
    def body(self) -> dict[str, Any]:
        """Of the last request."""
        return self.asked[-1][2]


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    own = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: Any, **headers: str) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self) -> None:
            own.model_headers = {k.lower(): v for k, v in self.headers.items()}
            self.answer(200, own.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with own.lock:
                own.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            if own.fault == "refuse":
                error = {"error": {"message": "too much to do", "type": "rate_limit", "code": "busy"}}
                self.answer(429, error, **{"Retry-After": "7"})
            elif own.fault == "hang":
                own.stopping.wait(30)
                self.close_connection = True
            elif body.get("stream"):
                self.stream(body)
            elif own.fault == "slow":
                try:
                    while not own.stopping.wait(own.pause):
                        if self.gone():
                            raise BrokenPipeError
                except OSError:
                    with own.lock:
                        own.given_up += 1
                self.close_connection = True
            else:
                text = "".join(WORDS)
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                self.answer(
                    200,
                    self.frame("chat.completion", {**choice, "text": text}),
                    **{"X-Upstream": "yes", "X-Request-Id": "x-1"},
                )

        def gone(self) -> bool:
            """True when the other side has closed the connection."""
            self.connection.setblocking(False)
            try:
                return self.connection.recv(1) == b""
            except BlockingIOError:
                return False
            finally:
                self.connection.setblocking(True)

        def frame(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
            return {
                "id": "x-1",
                "object": kind,
                "created": 1,
                "model": "gemma",
                "choices": [choice],
                "odd": {"kept": 1},
            }

        def stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with own.lock:
                own.streaming += 1
            try:
                for i in range(10_000 if own.fault == "slow" else len(WORDS)):
                    if own.fault == "break" and i == 2:
                        own.stopping.wait(own.pause)  # the two words are read before the end is
                        self.close_connection = True
                        return
                    if own.fault == "error" and i == 2:
                        self.chunk(
                            'data: {"error": {"message": "out of memory", "type": "server_error", "code": 500}}\n\n'
                        )
                        break
                    choice = {"index": 0, "delta": {"content": WORDS[i % len(WORDS)]}, "finish_reason": None}
                    self.chunk(f"data: {json.dumps(self.frame('chat.completion.chunk', choice))}\n\n")
                    if own.fault == "slow" and own.stopping.wait(own.pause):
                        return
                self.chunk("data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                with own.lock:
                    own.given_up += 1
                self.close_connection = True
            finally:
                with own.lock:
                    own.streaming -= 1

        def chunk(self, text: str) -> None:
            raw = text.encode()
            self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            self.wfile.flush()

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 256

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    own.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield own
    finally:
        own.stopping.set()
        server.shutdown()
        server.server_close()
