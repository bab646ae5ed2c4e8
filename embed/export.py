"""Encoders that are learnt here, as files for other programs: the weights alone, or a graph with its parity check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from embed.backbones import MEAN, SPREAD, Backbone
from embed.image import ImageEncoder, load_image_encoder
from udr.artifacts import read_json, replacing
from udr.errors import ConfigError
from udr.onnx_graph import TOLERANCE, import_onnx, open_graph, write_graph

__all__ = ["export_onnx", "export_safetensors"]

READS = "float32 (n, 3, size, size) from 0 to 1, RGB, of the middle square scaled bicubically"
BATCHES = (1, 5)  # of the parity check; the graph is traced with two pictures


def export_safetensors(folder: Path, out: Path) -> dict[str, str]:
    """Write an encoder folder's weights with its facts as the file's metadata; give the facts.

    A network of transformers keeps the names that it has there, and `transformers_config` makes it again.

    Raises:
        ArtifactError: no image encoder, a damaged one, or `out` cannot be written.
    """
    encoder = load_image_encoder(folder, "cpu")
    facts = _facts(folder)
    network, config = _network(encoder.backbone)
    if config is not None:
        facts["transformers_config"] = json.dumps(config)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with replacing(out) as temporary:
        save_file(weights, temporary, metadata=facts)
    return facts


def export_onnx(folder: Path, out: Path, threads: int = 1) -> float:
    """Write an encoder as an ONNX graph, if ONNX Runtime finds torch's vectors by it; give how far they are off.

    Its input is `pixels`, its outputs `vectors` (n, d) and `regions` (n, cells, d), row by row, all of length 1.

    The vectors of random pictures may differ by `TOLERANCE`, relative to the largest number among them: sums of float32
    in another order leave about 1e-6 after some fifty layers, and a graph that computes something else is off by more
    than 1e-2. Pictures differ in colour and contrast, so that their vectors do too.

    Returns:
        The largest difference of a number of the vectors or regions.

    Raises:
        ArtifactError: no image encoder, a damaged one, or `out` cannot be written.
        ConfigError: the graph computes something else than torch does; nothing is written.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    encoder = load_image_encoder(folder, "cpu")
    backbone = encoder.backbone
    with TemporaryDirectory(prefix="udr-onnx-") as scratch:
        pixels = torch.rand(2, 3, backbone.size, backbone.size)
        graph = Path(scratch) / "graph.onnx"
        write_graph(_Vectors(backbone).eval(), {"pixels": pixels}, ["vectors", "regions"], {0: "n"}, graph)
        off = _parity(open_graph(graph, threads), encoder)
        with replacing(out) as temporary:
            _with_facts(graph, _facts(folder), temporary)
    return off


class _Vectors(nn.Module):
    """A backbone with the outputs that an encoder gives."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.backbone(pixels)
        return F.normalize(cells.mean((2, 3)), dim=1), F.normalize(cells.flatten(2).transpose(1, 2), dim=2)


def _parity(session: Any, encoder: ImageEncoder) -> float:
    """How far a graph is off.

    Raises:
        ConfigError: too far.
    """
    worst = 0.0
    for number, count in enumerate(BATCHES):
        pixels = _random_pictures(count, encoder.backbone.size, number)
        found = session.run(["vectors", "regions"], {"pixels": pixels.astype(np.float32) / 255})
        for mine, own in zip(found, (encoder.encode_pixels(pixels), encoder.encode_regions(pixels)), strict=True):
            off = float(np.abs(mine - own).max()) if mine.shape == own.shape else np.inf
            if not off <= TOLERANCE * np.abs(own).max():
                raise ConfigError(
                    f"the ONNX graph of {encoder.backbone.name} is off by {off:.2g} of {np.abs(own).max():.2g}; "
                    "nothing was written, torch runs it"
                )
            worst = max(worst, off)
    return worst


def _random_pictures(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Noise of any contrast on grounds of any colour, (count, 3, size, size)."""
    rng = np.random.default_rng(seed)
    ground, contrast = rng.uniform(0, 255, (count, 3, 1, 1)), rng.uniform(10, 120, (count, 1, 1, 1))
    pixels = ground + contrast * rng.normal(size=(count, 3, size, size))
    return pixels.clip(0, 255).astype(np.uint8)


def _facts(folder: Path) -> dict[str, str]:
    """What is known of an encoder, and what its pixels have to be."""
    known: Mapping[str, Any] = read_json(folder / "encoder.json")
    facts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
    return facts | {"pixels": READS, "mean": json.dumps(MEAN), "std": json.dumps(SPREAD)}


def _network(backbone: Backbone) -> tuple[nn.Module, dict[str, Any] | None]:
    """The module whose weights are given away, and the settings that make it in transformers, if it is one's."""
    model = getattr(backbone.body, "model", None)
    if model is None:
        return backbone, None
    from transformers import AutoModel

    own = {name: value.shape for name, value in model.state_dict().items()}
    with torch.device("meta"):
        made = {name: value.shape for name, value in AutoModel.from_config(model.config).state_dict().items()}
    if any(made.get(name) != shape for name, shape in own.items()):
        return backbone, None  # its first layer is another, for small pictures
    config: dict[str, Any] = model.config.to_dict()
    return model, config


def _with_facts(graph: Path, facts: Mapping[str, str], out: Path) -> None:
    """Copy a graph, with facts as its metadata."""
    onnx = import_onnx("onnx")
    model = onnx.load(str(graph))
    onnx.helper.set_model_props(model, dict(facts))
    onnx.save(model, str(out))
