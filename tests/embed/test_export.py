"""What is exported is the encoder: read by safetensors, transformers and ONNX Runtime without anything of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from embed import export
from embed.backbones import BACKBONES, MEAN, SPREAD, build_backbone
from embed.export import export_onnx, export_safetensors
from embed.image import ImageEncoder, load_image_encoder, save_backbone
from udr.errors import ArtifactError, ConfigError

LARGE = ("resnet18", "resnet50", "vit_small_16", "vit_base_16", "convnext_tiny")
QUICK = ("conv", "conv_wide", "resnet18", "vit_tiny_4", "convnext_small_2")  # of each family
FAMILIES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in BACKBONES]


def saved(folder: Path, name: str = "conv") -> ImageEncoder:
    """An encoder whose normalisations have statistics of their own, as after training."""
    torch.manual_seed(0)
    backbone = build_backbone(name, 64 if name in LARGE else 32)
    backbone.train()(torch.rand(4, 3, backbone.size, backbone.size))
    save_backbone(backbone, folder, {"method": "none", "pictures": 7})
    return load_image_encoder(folder, "cpu")


def pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (count, 3, size, size), dtype=np.uint8)


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_finds_the_same_vectors_and_regions_for_any_number_of_pictures(tmp_path: Path, name: str) -> None:
    encoder = saved(tmp_path / "m", name)
    off = export_onnx(tmp_path / "m", tmp_path / "m.onnx")
    assert 0 <= off < 1e-5
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more of them wait for each other on a busy machine
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    for count in (1, 2, 6):
        pixels = pictures(count, encoder.backbone.size)
        vectors, regions = session.run(["vectors", "regions"], {"pixels": pixels.astype(np.float32) / 255})
        np.testing.assert_allclose(vectors, encoder.encode_pixels(pixels), atol=1e-5)
        np.testing.assert_allclose(regions, encoder.encode_regions(pixels), atol=1e-5)
    props = {p.key: p.value for p in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert (props["backbone"], props["fingerprint"]) == (name, encoder.fingerprint)
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize("change", ["weights", "shape"])
def test_a_graph_that_computes_something_else_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    saved(tmp_path / "m")
    write = export.write_graph

    def wrong(module: torch.nn.Module, examples: Any, *rest: Any) -> Path:
        if change == "shape":
            return write(torch.nn.Sequential(module, First()).eval(), examples, *rest)
        weights = next(module.parameters())
        kept = weights.detach().clone()
        with torch.no_grad():
            weights[0].mul_(1.01)  # of twenty-four filters one is a hundredth larger
            file = write(module, examples, *rest)
            weights.copy_(kept)
        return file

    monkeypatch.setattr(export, "write_graph", wrong)
    with pytest.raises(ConfigError, match="the ONNX graph of conv is off by"):
        export_onnx(tmp_path / "m", tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


class First(torch.nn.Module):
    """The first picture's alone."""

    def forward(self, found: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return found[0][:1], found[1][:1]


def test_weights_come_with_their_facts_and_make_the_same_backbone(tmp_path: Path) -> None:
    encoder = saved(tmp_path / "m")
    facts = export_safetensors(tmp_path / "m", tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == facts
    assert {"backbone": "conv", "size": "32", "method": "none", "pictures": "7"}.items() <= facts.items()
    assert facts["fingerprint"] == encoder.fingerprint
    backbone = build_backbone(facts["backbone"], int(facts["size"])).eval()
    backbone.load_state_dict(load_file(tmp_path / "m.safetensors"))
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(backbone(pixels), encoder.backbone(pixels))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_4", "convnext_small_2"])
def test_networks_of_transformers_are_read_by_transformers_alone(tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig, AutoModel

    encoder = saved(tmp_path / "m", name)
    facts = export_safetensors(tmp_path / "m", tmp_path / "m.safetensors")
    config = json.loads(facts["transformers_config"])
    model = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    left = model.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=False)
    assert left.unexpected_keys == []
    assert all(key.startswith(("pooler.", "layernorm.")) and name != "resnet18" for key in left.missing_keys)
    pixels = torch.rand(2, 3, encoder.backbone.size, encoder.backbone.size)
    mean, std = (torch.tensor(json.loads(facts[key])).view(1, 3, 1, 1) for key in ("mean", "std"))
    hidden = model((pixels - mean) / std).last_hidden_state
    if name == "vit_tiny_4":
        hidden = hidden[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(hidden, encoder.backbone(pixels))


def test_a_first_layer_for_small_pictures_is_none_of_transformers(tmp_path: Path) -> None:
    saved(tmp_path / "m", "resnet18_small")
    facts = export_safetensors(tmp_path / "m", tmp_path / "m.safetensors")
    assert "transformers_config" not in facts
    assert (json.loads(facts["mean"]), json.loads(facts["std"])) == (list(MEAN), list(SPREAD))
    build_backbone("resnet18_small", 32).load_state_dict(load_file(tmp_path / "m.safetensors"))


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    for write in (export_onnx, export_safetensors):
        with pytest.raises(ArtifactError, match=r"encoder\.json: cannot be read"):
            write(tmp_path, tmp_path / "x")
