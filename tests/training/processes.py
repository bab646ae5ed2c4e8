"""The `udr` command in processes that may be killed or run out of disk.

They are forked from a server that has imported everything already: a process of its own for each try, without the
seconds that importing torch takes.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "training.cli",
    "training.evaluate",
    "training.plots",
    "training.progress",
    "transformers.models.bert.modeling_bert",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.pyplot",
    "faiss",
    "bm25s",
]
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(PRELOADED)


def start(errors: Path, *words: object, file_limit: int = 0, moves: int = 0, after: bool = False) -> BaseProcess:
    """Start `udr WORDS` with its messages in the file `errors`.

    With `file_limit` no file may grow beyond so many bytes, as if the disk were full; with `moves` the process kills
    itself at the file it would put into place as number `moves`: before that move, or `after` it.
    """
    process = forkserver.Process(target=_child, args=(str(errors), [str(w) for w in words], file_limit, moves, after))
    process.start()
    return process


def _child(errors: str, words: list[str], file_limit: int, moves: int, after: bool) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 — it lives as long as the process
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with an error instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if moves:
        left = [moves]
        os.replace = _killing(os.replace, left, after)
        os.rename = _killing(os.rename, left, after)
    from training.cli import main

    sys.argv = ["udr", *words]
    main()


def _killing(move: Callable[..., None], left: list[int], after: bool) -> Callable[..., None]:
    """The same move, at whose last count the process dies as by kill -9."""

    def counted(*paths: Any, **more: Any) -> None:
        left[0] -= 1
        if not left[0] and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        move(*paths, **more)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return counted
