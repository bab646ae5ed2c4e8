"""An LLM server in this process: the OpenAI API over a tiny causal LM, with faults to switch on."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch

from udr.scoring.causal_lm import CausalLM

Body = dict[str, Any]
Answer = tuple[int, Body | bytes, dict[str, str]]


class LLMServer:
    """Answers /v1/models, /tokenize, /v1/completions and /generative_scoring as vLLM does, or llama.cpp.

    `offers` are the ways of scoring it knows; `fault(number, path, body)` may answer request `number` in its place, or
    drop the connection by giving None after `drop()`.
    """

    def __init__(self, lm: CausalLM, name: str, offers: set[str], context_length: int = 256) -> None:
        self.lm, self.name, self.offers, self.context_length = lm, name, offers, context_length
        self.asked: list[tuple[str, Body]] = []
        self.connections: list[socket.socket] = []
        self.busy = self.most_at_once = 0
        self.fault: Callable[[int, str, Body], Answer | str | None] = lambda number, path, body: None
        self.lock = threading.Lock()

    @property
    def reads(self) -> list[Body]:
        """Bodies of the completions asked for."""
        return [body for path, body in self.asked if path == "/v1/completions"]

    def answer(self, method: str, path: str, body: Body) -> Answer:
        if path == "/v1/models":
            row = {"id": self.name, "object": "model", "owned_by": "vllm", "max_model_len": self.context_length}
            if "top_logprobs" in self.offers:
                meta = {"n_ctx": self.context_length, "ftype": "Q4_K - Medium"}
                row = {"id": self.name, "object": "model", "owned_by": "llamacpp", "meta": meta}
            return 200, {"data": [row]}, {}
        if body.get("model") != self.name:
            return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}}, {}
        if path == "/tokenize" and "tokenize" in self.offers:
            if "top_logprobs" in self.offers:
                ids = self.lm.tokenizer(body["content"], add_special_tokens=body.get("add_special", False))["input_ids"]
                return 200, {"tokens": list(ids)}, {}
            return 200, {"tokens": list(self.lm.tokenizer(body["prompt"])["input_ids"])}, {}
        if path == "/v1/completions":
            return self.complete(body)
        if path == "/generative_scoring" and "generative_scoring" in self.offers:
            data = [{"score": float(np.exp(self.logs(body["query"] + item)[-1][body["label_token_ids"][0]]))}
                    for item in body["items"]]  # fmt: skip
            return 200, {"data": data}, {}
        return 404, {"detail": "Not Found"}, {}

    def logs(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self.lm.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()
        return found

    def complete(self, body: Body) -> Answer:
        for feature in ("logprob_token_ids", "prompt_logprobs", "echo"):
            if feature in body and feature not in self.offers:
                if "top_logprobs" in self.offers:
                    body.pop(feature)  # llama.cpp passes over what it does not know
                    continue
                return 400, {"error": {"message": f"{feature} is not supported"}}, {}
        choices = []
        for index, ids in enumerate(body["prompt"]):
            if len(ids) + body["max_tokens"] > self.context_length:
                said = f"This model's maximum context length is {self.context_length} tokens."
                if "top_logprobs" in self.offers:
                    said = f"request ({len(ids)} tokens) exceeds the available context size, try increasing it"
                return 400, {"error": {"message": said}}, {}
            choices.append({"index": index, **self.choice(ids, body)})
        return 200, {"choices": choices[::-1]}, {}

    def choice(self, ids: list[int], body: Body) -> Body:
        if body["max_tokens"] > 1:
            text = self.lm.generate([self.lm.tokenizer.decode(ids, skip_special_tokens=True)], body["max_tokens"])[0]
            return {"text": f" {text}"}
        logs = self.logs(ids)
        if "logprob_token_ids" in body:
            row = {f"token_id:{t}": float(logs[-1, t]) for t in body["logprob_token_ids"]}
            return {"text": "x", "logprobs": {"top_logprobs": [row]}}
        if "top_logprobs" in self.offers:
            best = np.argsort(-logs[-1], kind="stable")[: body.get("logprobs", 0)]
            rows = [{"id": int(t), "token": "x", "logprob": float(logs[-1, t])} for t in best]
            return {"text": "x", "logprobs": {"content": [{**rows[0], "top_logprobs": rows}]} if rows else None}
        own = [None] + [float(logs[i, t]) for i, t in enumerate(ids[1:])]
        if "prompt_logprobs" in body:
            rows = [v if v is None else {str(t): {"logprob": v}} for t, v in zip(ids, own, strict=True)]
            return {"text": "x", "prompt_logprobs": rows}
        return {"text": "x", "logprobs": {"token_logprobs": [*own, -1.0]}}


def _handler(server: LLMServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def setup(self) -> None:
            super().setup()
            with server.lock:
                server.connections.append(self.connection)

        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            self._do("GET", {})

        def do_POST(self) -> None:
            self._do("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _do(self, method: str, body: Body) -> None:
            with server.lock:
                server.asked.append((self.path, body))
                number = len(server.asked)
                server.busy += 1
                server.most_at_once = max(server.most_at_once, server.busy)
            try:
                found = server.fault(number, self.path, body) or server.answer(method, self.path, body)
                if found == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                assert not isinstance(found, str)
                status, content, headers = found
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with server.lock:
                    server.busy -= 1

    return Handler


@contextmanager
def serving(server: LLMServer, port: int = 0) -> Iterator[str]:
    """Serve on a free port (or a given one); gives the address. The server is gone at the end, as if killed."""
    http = ThreadingHTTPServer(("127.0.0.1", port), _handler(server))
    http.daemon_threads = True
    http.block_on_close = False
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
        for connection in server.connections:  # a killed process leaves none open
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
