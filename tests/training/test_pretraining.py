"""Pre-training from pictures: every method steps, resumes bit by bit, learns, and says when it cannot."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scenes import png, scenes
from tiny_encoder import write_encoder
from torch import nn

import training.loop
from embed.backbones import build_backbone
from embed.image import load_image_encoder
from embed.quantizer import Quantizer
from training.augment import PRESETS, build_views
from training.heads import follow, rising
from training.lars import LARS
from training.loop import Probe, fit, order_of, rate_at
from training.methods.cim import CIM
from training.methods.densecl import DenseCL
from training.methods.mec import MEC
from training.pretrain import build_method, pretrain
from training.pretrain_settings import LoopSettings, PretrainConfig
from training.probes import features, knn_accuracy, linear_accuracy, spread
from training.tokenizer import PictureTokenizer
from udr.encoder import autocast
from udr.errors import ArtifactError, ConfigError, TrainingStopped, UnknownNameError

METHODS = ("simclr", "densecl", "mec", "cim")
SMALL: dict[str, Any] = {
    "densecl": {"queue": 64},
    "mec": {"hidden": 32, "out": 32, "predictor": 16},
    "cim": {"codes": 16, "generator_dim": 32, "generator_layers": 1, "tokenizer_epochs": 2},
}


def config(tmp_path: Path, method: str, **loop: Any) -> PretrainConfig:
    table = tmp_path / "pictures.parquet"
    if not table.is_file():
        own = scenes(48)
        rows = [png(p.transpose(1, 2, 0)) for p in own.pixels]
        pq.write_table(pa.table({"image": rows, "label": list(own.labels or ()), "split": ["train"] * 48}), table)
    settings = {"epochs": 2, "batch": 16, "lr": 1e-3, "checkpoint_every": 2, "precision": "float32", **loop}
    return PretrainConfig.parse(
        {
            "out": tmp_path / method,
            "method": method,
            "data": table,
            "size": 16,
            "views": "beit_small" if method == "cim" else "simclr_small",
            "loop": settings,
            **SMALL,
        },
        "test",
    )


# -- the loop


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_its_backbone_and_leaves_an_encoder(tmp_path: Path, method: str) -> None:
    own = config(tmp_path, method)
    with pytest.raises(UnknownNameError):  # what never began keeps nobody from other settings
        pretrain(own.model_copy(update={"backbone": "convv"}), "cpu")
    folder = pretrain(own, "cpu")
    assert {path.name for path in own.out.glob("*.png")} == {"metrics.png", *(["samples.png"] * (method == "cim"))}
    encoder = load_image_encoder(folder, "cpu")
    torch.manual_seed(own.seed)
    untrained = build_backbone(own.backbone, own.size).state_dict()
    moved = [
        n for n, w in encoder.backbone.state_dict().items() if "num_batches" not in n and not w.equal(untrained[n])
    ]
    assert len(moved) == len([n for n in untrained if "num_batches" not in n])
    lines = [json.loads(line) for line in (own.out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 5
    assert 0 <= lines[-1]["knn"] <= 1
    assert (own.out / "metrics.png").is_file()
    assert not (own.out / "checkpoint").exists()
    before = {p: p.stat().st_mtime_ns for p in own.out.rglob("*") if p.is_file()}
    assert pretrain(own, "cpu") == folder  # finished: nothing is done again
    assert {p: p.stat().st_mtime_ns for p in own.out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_computed_in_full_while_networks_multiply_in_half(tmp_path: Path, method: str) -> None:
    own, tokenizer = config(tmp_path, method), PictureTokenizer(16)
    pictures = torch.rand(12, 3, 16, 16)
    found = []
    for mixed in (False, True):
        made = build_method(own, tokenizer)
        torch.manual_seed(1)
        with autocast(torch.device("cpu"), mixed):
            losses = made(made.views(pictures), 0.5)  # type: ignore[attr-defined]
        assert all(value.dtype == torch.float32 for value in losses.values())
        found.append(losses["loss"].item())
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert found[0] != found[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_ends_with_the_same_weights(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_image_encoder(pretrain(config(tmp_path, method, optimizer="lars", accumulate=2), "cpu"), "cpu")
    own = config(tmp_path, method, optimizer="lars", accumulate=2).model_copy(update={"out": tmp_path / "killed"})

    step, taken = training.loop._step, iter(range(100))
    last = 9 if method == "cim" else 3  # CIM's tokenizer goes through the loop first, for six steps

    def dying(*words: Any) -> Any:
        if next(taken) == last:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(training.loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(own, "cpu")
    assert (own.out / "checkpoint").is_file()
    monkeypatch.setattr(training.loop, "_step", step)
    again = load_image_encoder(pretrain(own, "cpu"), "cpu")
    for name, weights in whole.backbone.state_dict().items():
        assert weights.equal(again.backbone.state_dict()[name]), name
    metrics = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in (method, "killed")]
    kept = [
        [{k: v for k, v in json.loads(line).items() if k != "pictures_per_s"} for line in text.splitlines()]
        for text in metrics
    ]
    assert kept[0] == kept[1]


def test_every_picture_is_seen_once_an_epoch_and_the_rate_rises_and_falls() -> None:
    for epoch in (0, 1):
        assert sorted(order_of(epoch, 50, 3)) == list(range(50))
    assert list(order_of(0, 50, 3)) != list(order_of(1, 50, 3))
    rates = [rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[9] == max(rates) == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.01


class Mean(nn.Module):
    """A loss that is a mean over pictures, without batch normalisation."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = build_backbone("conv", 16)
        self.layer = nn.Conv2d(3, 2, 3)
        self.factor = factor

    def forward(self, pictures: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(pictures).square().mean() * self.factor}

    def after_step(self, progress: float) -> None:
        pass


def test_a_batch_in_parts_is_the_batch_itself(tmp_path: Path) -> None:
    ends = []
    for parts in (1, 4):
        method = Mean()
        settings = LoopSettings(epochs=2, batch=16, accumulate=parts, precision="float32")
        fit(method, scenes(48), settings, tmp_path / str(parts), device="cpu")
        ends.append(method.layer.weight.detach())
    torch.testing.assert_close(ends[0], ends[1])
    assert not ends[0].equal(Mean().layer.weight)


def test_training_that_cannot_go_on_stops_with_advice(tmp_path: Path) -> None:
    settings = LoopSettings(epochs=2, batch=16, precision="float32")
    with pytest.raises(TrainingStopped, match=r"step 0: loss is nan; make loop\.lr smaller"):
        fit(Mean(float("nan")), scenes(48), settings, tmp_path / "nan", device="cpu")
    with pytest.raises(ConfigError, match=r"loop\.batch: 16 pictures in a step, and there are 9"):
        fit(Mean(), scenes(9), settings, tmp_path / "few", device="cpu")
    collapsed = Mean()
    nn.init.zeros_(collapsed.backbone.body[0].weight)  # type: ignore[index, arg-type]
    with pytest.raises(TrainingStopped, match="features have collapsed"):
        fit(collapsed, scenes(48), settings, tmp_path / "same", probe=Probe(scenes(48), scenes(9)), device="cpu")
    alike = config(tmp_path, "mec", epochs=4).model_copy(
        update={"mec": config(tmp_path, "mec").mec.model_copy(update={"mode": "taylor", "distortion": 0.001})}
    )
    with pytest.raises(TrainingStopped, match=r"does not converge .* mec\.mode=exact"):
        pretrain(alike, "cpu")


@pytest.mark.parametrize("opposed", [False, True])
def test_the_series_stops_on_either_side_of_the_coding_length(
    tmp_path: Path, opposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that share a mean: the series is far too small, or, where teacher and student oppose, far too large."""
    torch.manual_seed(0)
    shared = torch.ones(32) / 32**0.5
    features = iter([torch.randn(32, 32) * 0.1 + shared for _ in range(4)])
    own = cast(MEC, build_method(config(tmp_path, "mec")))
    own.mode = "taylor"
    views = (torch.zeros(32, 3, 16, 16),) * 2
    sign = -1 if opposed else 1
    monkeypatch.setattr(own.student, "forward", lambda view: next(features))
    monkeypatch.setattr(own.teacher, "forward", lambda view: sign * next(features))
    monkeypatch.setattr(own.predictor, "forward", lambda projected: projected)
    monkeypatch.setattr(own, "distortion", 0.06)
    with pytest.raises(TrainingStopped, match=r"spectral radius [\d.]+, which must be below 1.* mec\.mode=exact"):
        own(views, 1.0)


def test_a_folder_of_other_settings_or_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    own = config(tmp_path, "simclr")
    pretrain(own, "cpu")
    with pytest.raises(ConfigError, match="begun with other settings"):
        pretrain(own.model_copy(update={"seed": 1}), "cpu")
    (own.out / "encoder" / "encoder.json").unlink()
    (own.out / "checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(ArtifactError, match="checkpoint is damaged"):
        pretrain(own, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "densecl", "mec"])
def test_features_of_shapes_are_learnt_beyond_an_untrained_backbone_and_raw_pixels(tmp_path: Path, method: str) -> None:
    known, asked = scenes(1500), scenes(600, seed=1)
    own = config(tmp_path, method, epochs=20, batch=128, lr=2e-3)
    torch.manual_seed(0)
    before = build_backbone("conv", 16)
    trained = build_method(own)
    fit(cast(nn.Module, trained), known, own.loop, tmp_path / "run", device="cpu")

    def points(make: Any) -> float:
        return linear_accuracy(make(known.pixels), known.classes, make(asked.pixels), asked.classes)

    def flat(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).astype(np.float32) / 255

    learnt = points(lambda pixels: features(trained.backbone, pixels))
    assert learnt > points(lambda pixels: features(before, pixels)) + 0.05
    assert learnt > points(flat) + 0.05


# -- parts


def test_lars_is_its_formula_in_plain_numbers() -> None:
    weights = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weights], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0, "adapt": False}]
    optimizer = LARS(groups, lr=0.5, momentum=0.9, trust=0.01)
    w, v, b, u = np.array([3.0, 4.0]), np.zeros(2), 1.0, 0.0
    for gradient in (np.array([1.0, 2.0]), np.array([-2.0, 0.5])):
        weights.grad, bias.grad = torch.tensor(gradient[None], dtype=torch.float32), torch.tensor([0.3])
        optimizer.step()
        g = gradient + 0.1 * w
        g = g * 0.01 * np.linalg.norm(w) / np.linalg.norm(g)
        v = 0.9 * v + 0.5 * g
        w = w - v
        u = 0.9 * u + 0.5 * 0.3
        b = b - u
    np.testing.assert_allclose(weights.detach().numpy()[0], w, rtol=1e-5)
    assert bias.item() == pytest.approx(b)


def test_a_teacher_follows_and_more_slowly_towards_the_end() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), expected)
    assert [rising(0.9, 0), rising(0.9, 0.5), rising(0.9, 1)] == pytest.approx([0.9, 0.95, 1.0])


def test_keys_take_the_places_of_the_oldest(tmp_path: Path) -> None:
    method = cast(DenseCL, build_method(config(tmp_path, "densecl")))
    before = method.queue.clone()
    for step in range(5):
        method(method.views(torch.rand(20, 3, 16, 16)), 0.0)
        method.after_step(0.0)
        torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(64))
        assert int(method.place) == 20 * (step + 1) % 64
    assert not (method.queue == before).all(1).any()  # a hundred keys went through sixty-four places


def test_cim_changes_masked_cells_alone_and_the_enhancer_never_moves_the_generator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = PictureTokenizer(16)
    method = cast(CIM, build_method(config(tmp_path, "cim"), tokenizer))
    view = torch.rand(6, 3, 16, 16)
    corrupted, sampled, golden, masked, logits = method.corrupt(view)
    assert corrupted.shape == view.shape
    assert golden.shape == masked.shape == (6, 16)
    assert set(masked.sum(1).tolist()) <= {8, 9, 10}
    assert sampled[~masked].equal(golden[~masked])
    assert not sampled.equal(golden)
    losses = method((view,), 0.0)
    (losses["enhancer"]).backward()
    assert all(p.grad is None for p in method.generator.parameters())
    assert all(p.grad is None for p in method.tokenizer.parameters())
    # sampling is sampling: over many draws the tokens' shares are the generator's probabilities
    one = logits.detach()[:1, :1].expand(4000, 1, -1)
    shares = torch.bincount(method._draw(one.reshape(1, 4000, -1)).flatten(), minlength=16) / 4000
    torch.testing.assert_close(shares, logits.detach()[0, 0].softmax(0), atol=0.04, rtol=0)


def test_codes_follow_the_features_that_are_nearest_and_idle_ones_are_revived() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(4, 2, decay=0.5)
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
    for _ in range(30):
        noise = 0.1 * torch.randn(8, 16, 2)
        quantizer(centres[torch.randint(4, (8, 16))] + noise)
    distances = torch.cdist(centres, quantizer.codebook)
    assert distances.min(1).values.max() < 0.5  # every centre has a code
    features = torch.randn(3, 5, 2, requires_grad=True)
    codes, tokens, _ = quantizer.eval()(features)
    by_hand = [
        [min(range(4), key=lambda v: (f - quantizer.codebook[v]).norm().item()) for f in row] for row in features
    ]
    assert tokens.tolist() == by_hand
    torch.testing.assert_close(codes, quantizer.codebook[tokens])
    codes.sum().backward()
    torch.testing.assert_close(features.grad, torch.ones_like(features))  # straight through


@pytest.mark.parametrize("name", PRESETS)
def test_views_are_pictures_that_a_seed_repeats(name: str) -> None:
    views = build_views(name, 24)
    pictures = torch.rand(5, 3, 24, 24)
    torch.manual_seed(3)
    first = views(pictures)
    torch.manual_seed(3)
    again = views(pictures)
    for a, b in zip(first, again, strict=True):
        assert a.shape == pictures.shape
        assert a.min() >= 0
        assert a.max() <= 1
        assert a.equal(b)
        assert not torch.allclose(a, pictures)
    if len(first) == 2:
        assert not first[0].equal(first[1])
    with pytest.raises(UnknownNameError, match="did you mean simclr"):
        build_views("simclrr", 24)


# -- probes


def test_probes_find_what_is_there_and_not_what_is_not() -> None:
    rng = np.random.default_rng(0)
    classes, answers = rng.integers(0, 3, 600), rng.integers(0, 3, 200)
    centres = rng.normal(size=(3, 8)) * 3
    bank, queries = (centres[c] + rng.normal(size=(len(c), 8)) for c in (classes, answers))
    bank, queries = bank.astype(np.float32), queries.astype(np.float32)
    for probe in (knn_accuracy, linear_accuracy):
        assert probe(bank, classes, queries, answers) > 0.95  # type: ignore[operator]
        assert probe(bank, rng.permutation(classes), queries, answers) < 0.5  # type: ignore[operator]


def test_knn_is_the_formula_in_plain_loops() -> None:
    rng = np.random.default_rng(1)
    bank, queries = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
    classes, answers = rng.integers(0, 4, 30), rng.integers(0, 4, 12)
    right = 0
    for q, answer in zip(queries, answers, strict=True):
        sims = [float(q @ b / np.linalg.norm(q) / np.linalg.norm(b)) for b in bank]
        votes = [0.0] * 4
        for i in sorted(range(30), key=lambda i: -sims[i])[:7]:
            votes[classes[i]] += np.exp(sims[i] / 0.1)
        right += int(np.argmax(votes)) == answer
    assert knn_accuracy(bank, classes, queries, answers, k=7) == pytest.approx(right / 12)


def test_spread_is_one_on_the_sphere_and_none_in_a_point() -> None:
    rng = np.random.default_rng(0)
    assert spread(rng.normal(size=(4000, 32)).astype(np.float32)) == pytest.approx(1, abs=0.02)
    assert spread(np.ones((100, 32), np.float32)) == pytest.approx(0, abs=1e-5)


# -- what is refused


def test_settings_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    for method, change, words in (
        ("simclr", {"views": "beit_small"}, "makes 1 of each picture, simclr takes 2"),
        ("cim", {"views": "simclr_small"}, "makes 2 of each picture, cim takes 1"),
        ("cim", {"size": 18}, "no multiple of the tokenizer's 4"),
        ("cim", {"cim": {"window": 17}}, r"cim\.window: 17 pixels"),
        ("cim", {"cim": {"masked": [0, 0]}}, "two shares, the smaller first"),
        ("cim", {"cim": {"generator_dim": 100}}, "multiple of 32"),
        ("simclr", {"loop": {"batch": 8, "accumulate": 8}}, "two pictures at least"),
        ("simclr", {"loop": {"batch": 64}}, "64 pictures in a step, and there are 48"),
        ("simclr", {"seed": -1}, "greater than or equal to 0"),
        ("simclr", {"loop": {"epochs": math.inf}}, r"loop\.epochs: Input should be"),
        ("simclr", {"loop": {"epochs": 1e300}}, r"loop\.epochs: Input should be less than"),
        ("simclr", {"loop": {"lr": math.inf}}, r"loop\.lr: Input should be"),
        ("simclr", {"loop": {"lr": 1e300}}, r"loop\.lr: Input should be less than"),
        ("simclr", {"loop": {"weight_decay": math.inf}}, r"loop\.weight_decay: Input should be"),
        ("simclr", {"simclr": {"temperature": math.inf}}, r"temperature: Input should be a finite number"),
        ("cim", {"cim": {"tokenizer_epochs": 1e300}}, r"tokenizer_epochs: Input should be less than"),
        ("simclr", {"video": {"rate": 1e-300}}, r"video\.rate: Input should be greater than"),
        ("simclr", {"size": 8, "backbone": "convnext_small_2"}, "do not fit it"),
    ):
        values = config(tmp_path, method).model_dump(mode="json")
        for key, value in change.items():
            values[key] = values[key] | value if isinstance(value, dict) else value
        with pytest.raises(ConfigError, match=words):
            pretrain(PretrainConfig.parse(values | {"out": tmp_path / "bad" / method}, "test"), "cpu")
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda': not on this machine"):
            pretrain(config(tmp_path, "mec"), "cuda")


def test_a_run_whose_pictures_have_changed_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LoopSettings(epochs=4, batch=16, precision="float32", checkpoint_every=2)
    step, taken = training.loop._step, iter(range(100))

    def dying(*words: Any) -> Any:
        if next(taken) == 5:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(training.loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(Mean(), scenes(48), settings, tmp_path, device="cpu")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="of other pictures or settings"):
        fit(Mean(), scenes(64), settings, tmp_path, device="cpu")


# -- commands


def test_pictures_go_through_the_commands(tmp_path: Path, udr: Any) -> None:
    import yaml

    own = config(tmp_path, "simclr")
    file = tmp_path / "pretrain.yaml"
    file.write_text(yaml.safe_dump(own.model_dump(mode="json")))
    done = udr("pretrain", file, "--device", "cpu")
    assert done.code == 0, done.err
    folder = done.out.strip()
    out = tmp_path / "vectors.parquet"
    embedded = udr("embed", own.data, "--encoder", f"artifact:{folder}", "--out", out)
    assert embedded.out.strip() == f"{out}: 48 pictures"
    table = pq.read_table(out)
    assert table.column_names == ["name", "label", "vector"]
    vectors = np.stack(table["vector"].to_numpy())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert table.schema.metadata[b"fingerprint"].decode() == load_image_encoder(Path(folder), "cpu").fingerprint
    words = ("--cache", tmp_path / "cache", "--json", "--asked", "train")
    probed = json.loads(udr("probe", own.data, "--encoder", f"artifact:{folder}", *words).out)
    assert set(probed) == {"pixels", "untrained", "encoder"}
    assert 0 < probed["encoder"]["linear"] <= 1
    seed = udr("probe", own.data, "--encoder", f"artifact:{folder}", "--seed", 10**23)
    assert (seed.code, "--seed" in seed.err) == (2, True)
    assert "device 'foo'" in udr("pretrain", file, f"out={tmp_path / 'x'}", "--device", "foo").complaint
    assert "did you mean" in udr("pretrain", file, "backbone=convv", f"out={tmp_path / 'x'}").complaint
    text = write_encoder(tmp_path / "text", ["words alone"])
    told = udr("embed", own.data, "--encoder", f"st:{text}", "--out", out)
    assert "reads no pictures" in told.complaint or "cannot be loaded" in told.complaint
    assert "no encoder folder" in udr("embed", own.data, "--encoder", f"artifact:{tmp_path}", "--out", out).complaint
