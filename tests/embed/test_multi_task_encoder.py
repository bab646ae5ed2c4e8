"""The multi-task encoder: whom a loss moves, what tasks tell each other, one pass for all, and its folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from embed.mti import Distillation, Propagation
from embed.multi_task import MultiTaskEncoder, load_multi_task, save_multi_task
from embed.multi_task_nets import BranchedNet, MTINet, MultiTaskNet, build_multi_task_net
from embed.registry import artifact_kind, open_encoder
from udr.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from udr.types import Demonstration, Encoder, Media, Query

DENSE = {"semseg": 4, "depth": 1, "edges": 1}
KINDS: Any = {"semseg": "segmentation", "depth": "depth", "edges": "edges"}
ATTRIBUTES = {"ground": 3, "objects": 2}
CLASSES = {"ground": ["blue", "green", "red"], "objects": ["1", "2"]}
BRANCHING = [
    [["semseg", "depth", "edges", "ground", "objects"]],
    [["semseg", "ground", "objects"], ["depth", "edges"]],
    [["semseg", "ground", "objects"], ["depth"], ["edges"]],
    [["ground", "objects"], ["semseg"], ["depth"], ["edges"]],
]
SHAPE: dict[str, Any] = {"backbone": "pyramid_small", "size": 32, "dense": DENSE, "attributes": ATTRIBUTES}
NETWORKS = ("shared", "branched", "mti")


def built(network: str) -> MultiTaskNet:
    torch.manual_seed(0)
    return build_multi_task_net(network, **SHAPE, branching=BRANCHING if network == "branched" else None, width=8)


def picture(number: int, side: int = 32) -> Query:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side + 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Query(f"q{number}", "", media=(Media("image", data=file.getvalue()),))


@pytest.fixture(scope="module", params=NETWORKS)
def encoder(request: pytest.FixtureRequest) -> MultiTaskEncoder:
    net = built(request.param)
    with torch.no_grad():
        for module in net.modules():  # running statistics of nothing would make maps alike
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.fill_(0.3)  # type: ignore[union-attr]
    return MultiTaskEncoder(net, KINDS, CLASSES, "of a test")


# -- networks


@pytest.mark.parametrize("network", NETWORKS)
def test_maps_have_the_pictures_size_and_attributes_a_logit_a_word(network: str) -> None:
    outputs = built(network)(torch.rand(3, 3, 32, 32))
    assert {task: tuple(found.shape) for task, found in outputs.tasks.items()} == {
        "semseg": (3, 4, 32, 32),
        "depth": (3, 1, 32, 32),
        "edges": (3, 1, 32, 32),
        "ground": (3, 3),
        "objects": (3, 2),
    }
    assert outputs.embedding.shape == (3, built(network).dim)
    assert {task: [tuple(e.shape) for e in own] for task, own in outputs.early.items()} == (
        {task: [(3, out, 32, 32)] * 4 for task, out in DENSE.items()} if network == "mti" else {}
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_shared_parameters_are_those_that_several_losses_move(network: str) -> None:
    net = built(network)
    outputs = net(torch.rand(3, 3, 32, 32))
    moved: dict[int, int] = {}
    for task in net.tasks:
        net.zero_grad()
        outputs.tasks[task].square().sum().backward(retain_graph=True)
        for weights in net.parameters():
            if weights.grad is not None and weights.grad.abs().sum() > 0:
                moved[id(weights)] = moved.get(id(weights), 0) + 1
    several = {number for number, count in moved.items() if count > 1}
    shared = {id(weights) for weights in net.shared()}
    if isinstance(net, MTINet):  # its first predictions have losses of their own
        several |= {id(w) for first in net.first for w in first.predictions.parameters()}  # type: ignore[union-attr]
    assert several == shared
    assert not {id(w) for part in ("heads", "classifiers") for w in getattr(net, part).parameters()} & shared


def test_a_task_moves_its_own_path_through_the_branches_alone() -> None:
    net = built("branched")
    assert isinstance(net, BranchedNet)
    net(torch.rand(3, 3, 32, 32)).tasks["edges"].sum().backward()
    path = [[["edges" in group] for group in level] for level in BRANCHING]
    for level, stages in zip(path, net.copies, strict=True):
        for (own,), stage in zip(level, stages, strict=True):
            assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in stage.parameters()) == own


def test_distillation_is_its_formula_for_each_pair() -> None:
    torch.manual_seed(1)
    tasks, width = ["a", "b", "c"], 4
    module = Distillation(tasks, width)
    own = {task: torch.randn(2, width, 5, 5) for task in tasks}
    found = module(own)
    for t, listener in enumerate(tasks):
        expected = own[listener].clone()
        for a, teller in enumerate(tasks):
            if teller == listener:
                continue
            place = t if t < a else t - 1  # among those that the teller tells
            weight, bias = module.tell[teller].weight, module.tell[teller].bias
            part = slice(2 * width * place, 2 * width * (place + 1))
            told = nn.functional.conv2d(own[teller], weight[part], bias[part], padding=1)  # type: ignore[index]
            expected = expected + told[:, :width] * torch.sigmoid(told[:, width:])
        torch.testing.assert_close(found[listener], expected)


def test_propagation_weighs_tasks_against_each_other_and_adds_its_own() -> None:
    torch.manual_seed(1)
    module = Propagation(["a", "b"], 4).eval()
    own = {task: torch.randn(2, 4, 6, 6) for task in ("a", "b")}
    found = module(own)
    logits = module.weigh(torch.cat([own["a"], own["b"]], 1))
    first, second = logits[:, :4].exp(), logits[:, 4:].exp()  # feature by feature, a task against the other
    shared = torch.cat([own["a"] * first / (first + second), own["b"] * second / (first + second)], 1)
    for task in ("a", "b"):
        reduced = module.reduce[task](shared)
        gate = module.gates[task](reduced)
        assert gate.shape == (2, 4, 1, 1)
        torch.testing.assert_close(found[task], reduced * gate + own[task])


def test_a_coarser_scale_and_other_tasks_are_heard_in_mti_net() -> None:
    net = built("mti").eval()
    assert isinstance(net, MTINet)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = net(pixels)
        for weights in net.first[-1].own["edges"].parameters():  # type: ignore[union-attr,operator]
            weights += 0.3
        after = net(pixels)
    assert not torch.allclose(before.tasks["depth"], after.tasks["depth"])  # by distillation and propagation
    assert torch.allclose(before.early["depth"][-1], after.early["depth"][-1])  # the coarsest hears nobody
    assert not torch.allclose(before.early["depth"][-2], after.early["depth"][-2])
    assert torch.allclose(before.embedding, after.embedding)


# -- the encoder


def test_one_pass_gives_the_vector_and_the_attributes(encoder: MultiTaskEncoder) -> None:
    queries = [picture(i, 20 + 5 * i) for i in range(5)]
    vectors, told = encoder.encode_described(queries)
    assert isinstance(encoder, Encoder)
    assert vectors.shape == (5, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, encoder.encode_queries(queries))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    for i, query in enumerate(queries):
        alone, own = encoder.encode_described([query])
        np.testing.assert_allclose(alone[0], vectors[i], atol=1e-5)
        for name, words in CLASSES.items():
            assert told[i][name].value == own[0][name].value
            assert told[i][name].value in words
            assert 1 / len(words) <= told[i][name].probability <= 1
    demonstration = Demonstration("d", "a text", "an answer", media=queries[0].media)
    np.testing.assert_allclose(encoder.encode_demonstrations([demonstration])[0], vectors[0], atol=1e-5)
    assert encoder.encode_queries([]).shape == (0, encoder.dim)
    assert encoder.encode_described([])[1] == []
    assert encoder.tokens_cut(queries) == [0] * 5
    with pytest.raises(DataError, match="no picture"):
        encoder.encode_described([Query("t", "words alone")])


def test_maps_are_classes_depths_and_probabilities(encoder: MultiTaskEncoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32), dtype=np.uint8)
    maps = encoder.maps(pixels)
    assert {task: (found.shape, str(found.dtype)) for task, found in maps.items()} == {
        "semseg": ((2, 32, 32), "uint8"),
        "depth": ((2, 32, 32), "float32"),
        "edges": ((2, 32, 32), "float32"),
    }
    assert maps["semseg"].max() < 4
    assert 0 <= maps["edges"].min() <= maps["edges"].max() <= 1


@pytest.mark.parametrize("network", NETWORKS)
def test_a_saved_encoder_is_the_same_one_and_a_damaged_one_is_refused(tmp_path: Path, network: str) -> None:
    net = built(network)
    shape = {"network": network, **SHAPE, "branching": BRANCHING if network == "branched" else None, "width": 8}
    save_multi_task(net, tmp_path, shape | {"kinds": KINDS, "classes": CLASSES}, {"seed": 3})
    assert artifact_kind(f"artifact:{tmp_path}") == "multi_task"
    opened = open_encoder(f"artifact:{tmp_path}", "cpu")
    assert isinstance(opened, MultiTaskEncoder)
    assert opened.kinds == KINDS
    assert opened.classes == {name: tuple(words) for name, words in CLASSES.items()}
    queries = [picture(i) for i in range(3)]
    before = MultiTaskEncoder(net, KINDS, CLASSES, "")
    np.testing.assert_array_equal(opened.encode_queries(queries), before.encode_queries(queries))
    saved = json.loads((tmp_path / "encoder.json").read_text())
    other = saved | {"shape": saved["shape"] | {"dense": {"semseg": 5}}}
    (tmp_path / "encoder.json").write_text(json.dumps(other))
    with pytest.raises(ArtifactError, match="not the weights of such an encoder"):
        load_multi_task(tmp_path, "cpu")
    (tmp_path / "encoder.json").write_text(json.dumps(saved | {"shape": 5}))
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_multi_task(tmp_path, "cpu")
    (tmp_path / "encoder.json").write_text(json.dumps(saved | {"kind": "image"}))
    with pytest.raises(ArtifactError, match="no multi-task encoder"):
        load_multi_task(tmp_path, "cpu")
    (tmp_path / "encoder.json").write_text(json.dumps(saved))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_multi_task(tmp_path, "cpu")


def test_networks_that_cannot_be_are_one_line() -> None:
    def refused(network: str, error: type[Exception], words: str, **changed: Any) -> None:
        with pytest.raises(error, match=words):
            build_multi_task_net(network, **SHAPE | changed)

    refused("mtii", UnknownNameError, "did you mean mti")
    refused("shared", UnknownNameError, "did you mean pyramid_small", backbone="pyramid_smal")
    refused("shared", ConfigError, "size 40: a pyramid wants a multiple of 16", size=40)
    refused("shared", ConfigError, "one task at least", dense={}, attributes={})
    refused("mti", ConfigError, "two dense tasks at least", dense={"depth": 1})
    refused("branched", ConfigError, "give the branching")
    refused("branched", ConfigError, "3 stages, and the network has 4", branching=BRANCHING[:3])
    refused("branched", ConfigError, "stage 0 must hold each of", branching=[[["semseg"]]] * 4)
    late = [*BRANCHING[:2], *[[["depth", "semseg"], ["edges", "ground", "objects"]]] * 2]
    refused("branched", ConfigError, "depth, semseg meet at stage 2", branching=late)
