"""A bi-encoder run by ONNX Runtime, which is quicker than torch on a CPU: the same vectors, or near ones in int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from udr.devices import multiplies_int8
from udr.encoder import PADDED_TOKENS, PADDING, BiEncoder, ReadOutputs, length_batches
from udr.errors import ConfigError
from udr.onnx_graph import TOLERANCE, import_onnx, open_graph, quiet, write_graph
from udr.types import Demonstration, FloatArray, Query

__all__ = ["OnnxEncoder"]

_INPUTS = ("input_ids", "attention_mask")


class OnnxEncoder:
    """A bi-encoder's two towers as ONNX graphs.

    In float32 the vectors are torch's but for rounding, so its indexes serve these too and the fingerprint is the same.
    In int8 (weights by channel, activations as they come) vectors lie a little beside their place: good for queries.

    Args:
        encoder: whose vectors these are; float32.
        precision: of the graphs.
        threads: of one pass.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        ConfigError: the encoder is not float32, or its graph computes something else than torch does.
    """

    def __init__(
        self, encoder: BiEncoder, *, precision: Literal["float32", "int8"] = "float32", threads: int = 1
    ) -> None:
        if encoder.precision != "float32":
            raise ConfigError(f"ONNX runs float32 encoders, and this one is {encoder.precision}")
        self._encoder = encoder
        self._precision = precision
        towers = {id(t): t for t in (encoder.query_tower, encoder.demonstration_tower)}
        with TemporaryDirectory(prefix="udr-onnx-") as folder:
            files = {key: _export(tower, Path(folder) / f"{key}.onnx") for key, tower in towers.items()}
            sessions = {key: open_graph(file, threads) for key, file in files.items()}
            for key, tower in towers.items():
                _check(sessions[key], tower)
            if precision == "int8":
                sessions = {key: open_graph(_quantize(file), threads) for key, file in files.items()}
        self._queries = sessions[id(encoder.query_tower)]
        self._demonstrations = sessions[id(encoder.demonstration_tower)]

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint + ("-int8" if self._precision == "int8" else "")

    @property
    def read_outputs(self) -> ReadOutputs:
        return self._encoder.read_outputs

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries, float32 (n, d)."""
        return self._encode(self._encoder.query_ids(queries, instruction), self._queries)

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations, float32 (m, d)."""
        return self._encode(self._encoder.demonstration_ids(demonstrations, instruction), self._demonstrations)

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Tokens of each text (n,) that are left out because it is too long."""
        return self._encoder.tokens_cut(texts, instruction)

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """Tokens of each query (n,) that the tower reads, its frame and the instruction among them."""
        return self._encoder.tokens_read(queries, instruction)

    def _encode(self, ids: Sequence[Sequence[int]], session: Any) -> FloatArray:
        vectors = np.empty((len(ids), self.dim), dtype=np.float32)
        for batch in length_batches(ids, PADDED_TOKENS[0], PADDING[0]):
            width = max(len(ids[i]) for i in batch)
            tokens = np.zeros((len(batch), width), dtype=np.int64)
            mask = np.zeros((len(batch), width), dtype=np.int64)
            for row, i in enumerate(batch):
                tokens[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            (hidden,) = session.run(None, dict(zip(_INPUTS, (tokens, mask), strict=True)))  # (n, t, d)
            if self._encoder.pooling == "cls":
                vectors[batch] = hidden[:, 0]
            else:
                vectors[batch] = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        if self._encoder.unit_norm:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


class _Hidden(nn.Module):
    """A tower with the two inputs and the one output that a graph of it has."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.tower(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def _export(tower: nn.Module, file: Path) -> Path:
    example = torch.ones((2, 9), dtype=torch.long)
    was_training = tower.training
    write_graph(_Hidden(tower).eval(), dict.fromkeys(_INPUTS, example), ["hidden"], {0: "n", 1: "t"}, file)
    tower.train(was_training)
    return file


@torch.inference_mode()
def _check(session: Any, tower: nn.Module) -> None:
    """Other shapes than the one that was traced, with padding, must come out as in torch."""
    rng = np.random.default_rng(0)
    size = int(tower.config.vocab_size)  # type: ignore[union-attr, arg-type]
    was_training = tower.training
    tower.eval()
    for n, t in ((1, 5), (3, 30)):
        tokens, mask = rng.integers(size, size=(n, t)), np.ones((n, t), dtype=np.int64)
        mask[-1, t // 2 + 1 :] = 0
        (found,) = session.run(None, {"input_ids": tokens, "attention_mask": mask})
        hidden = tower(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask)).last_hidden_state
        off = np.abs(found - hidden.numpy())[mask.astype(bool)].max()
        if not off <= TOLERANCE:
            raise ConfigError(f"the ONNX graph of this encoder is off by {off:.2g}; torch runs it")
    tower.train(was_training)


def _quantize(file: Path) -> Path:
    quantization = import_onnx("onnxruntime.quantization")
    small = file.with_suffix(".int8.onnx")
    with quiet():
        quantization.quantize_dynamic(
            str(file),
            str(small),
            per_channel=True,
            reduce_range=not multiplies_int8(),  # 7 bits, whose products do not saturate where int8 is emulated
            weight_type=quantization.QuantType.QInt8,
        )
    return small
