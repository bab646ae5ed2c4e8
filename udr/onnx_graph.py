"""ONNX graphs: written from modules of torch, run by ONNX Runtime."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from udr.errors import MissingDependencyError

__all__ = ["TOLERANCE", "import_onnx", "open_graph", "quiet", "write_graph"]

TOLERANCE = 1e-4  # between a number here and in torch; both round in float32, in another order
OPSET = 17


_alone = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and lines that exporters make; one thread at a time, for both are the whole process's."""
    with _alone, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # that the exporter is to be replaced; the newer one's graphs are wrong here
        yield


def write_graph(
    module: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[int, str], file: Path
) -> Path:
    """Write what a module in evaluation mode computes.

    Args:
        module: takes the examples in their order, and gives one tensor or a tuple of them.
        examples: by the names of the graph's inputs.
        outputs: names.
        axes: of all inputs and outputs, that may have any length, and their names.
        file: where to.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    import torch

    import_onnx("onnx")
    with quiet():
        torch.onnx.export(
            module,
            tuple(examples.values()),
            str(file),
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name in (*examples, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    return file


def open_graph(file: Path, threads: int = 1) -> Any:
    """A session of ONNX Runtime on the CPU, of so many threads.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = import_onnx("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def import_onnx(name: str) -> Any:
    """A module of onnx or onnxruntime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise MissingDependencyError(name.partition(".")[0], "serve") from None
