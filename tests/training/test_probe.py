"""Probes: fine-tuning, cells of canvases, and what is held in memory while pictures are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scenes import png, scenes
from torch import nn

import training.finetune
import training.probes
from embed.backbones import Backbone, build_backbone
from embed.image import save_backbone
from training.dense_probe import canvases, cells_of, dense_accuracy, pixels_of_cells
from training.finetune import balanced, finetuned_accuracy
from training.pictures import Pictures
from training.probe import probe_encoder
from training.probes import knn_accuracy, linear_accuracy
from udr.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def taught(known: Pictures, steps: int = 150) -> Backbone:
    """A backbone that has learnt the classes themselves: the best that a pre-training could be."""
    torch.manual_seed(1)
    backbone = build_backbone("conv", 16)
    head = nn.Linear(backbone.dim, 4)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], 3e-3)
    pixels, classes = torch.from_numpy(np.array(known.pixels)).float() / 255, torch.from_numpy(known.classes)
    for _ in range(steps):
        rows = torch.randint(len(pixels), (64,))
        loss = nn.functional.cross_entropy(head(backbone.pooled(pixels[rows])), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return backbone.eval()


@pytest.fixture(scope="module")
def known() -> Pictures:
    return scenes(800)


@pytest.fixture(scope="module")
def teacher(known: Pictures) -> Backbone:
    return taught(known)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, known: Pictures) -> Path:
    path, asked = tmp_path_factory.mktemp("table") / "pictures.parquet", scenes(80, seed=1)
    rows = [png(p.transpose(1, 2, 0)) for part in (known, asked) for p in part.pixels[: 160 if part is known else 80]]
    labels = [*(known.labels or ())[:160], *(asked.labels or ())]
    pq.write_table(pa.table({"image": rows, "label": labels, "split": ["train"] * 160 + ["test"] * 80}), path)
    return path


# -- frozen features


def test_rows_are_read_some_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    classes, answers = RNG.integers(0, 3, 90), RNG.integers(0, 3, 40)
    centres = RNG.normal(size=(3, 12))
    bank, queries = (centres[c] + RNG.normal(size=(len(c), 12)) for c in (classes, answers))
    words = bank.astype(np.float32), classes, queries.astype(np.float32), answers
    whole = knn_accuracy(*words, k=9), linear_accuracy(*words)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(training.probes, "CHUNK", 7)
    assert knn_accuracy(*words, k=9, progress=lambda *at: told.append(at)) == whole[0]
    assert linear_accuracy(*words, progress=lambda *at: told.append(at)) == pytest.approx(whole[1], abs=0.026)
    assert told[5] == (40, 40)
    assert told[-1] == (3, 3)


def test_a_bank_beyond_the_bound_is_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by class, as folders are: the first rows alone would know one class."""
    classes = np.repeat([0, 1, 2], 200)
    bank = np.eye(3, dtype=np.float32)[classes] + RNG.normal(size=(600, 3)).astype(np.float32) * 0.1
    held: list[int] = []
    fitted = training.probes._fitted

    def counted(x: torch.Tensor, *rest: Any) -> nn.Linear:
        held.append(x.numel())
        return fitted(x, *rest)

    monkeypatch.setattr(training.probes, "_fitted", counted)
    monkeypatch.setattr(training.probes, "NUMBERS", 180)
    assert linear_accuracy(bank, classes, bank, classes) > 0.98
    assert set(held) == {180}


# -- fine-tuning


def test_subsets_have_as_many_pictures_of_each_class() -> None:
    classes = RNG.permutation(np.repeat([0, 1, 2, 5], [100, 60, 30, 10]))
    rows = balanced(classes, 0.1, seed=3)
    assert np.unique(classes[rows], return_counts=True)[1].tolist() == [5, 5, 5, 5]
    assert len(set(rows)) == 20
    assert rows.tolist() == balanced(classes, 0.1, seed=3).tolist()
    assert rows.tolist() != balanced(classes, 0.1, seed=4).tolist()
    assert len(balanced(classes, 0.001)) == 4
    with pytest.raises(DataError, match="class 2 has 30 pictures; 40 of each are wanted for 80%"):
        balanced(classes, 0.8)


def test_few_labels_go_further_from_learnt_weights(
    known: Pictures, teacher: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.finetune, "STEPS", 60)
    asked, rows = scenes(200, seed=1), balanced(known.classes, 0.02)
    torch.manual_seed(0)
    untrained, before = build_backbone("conv", 16), teacher.state_dict()["body.0.weight"].clone()
    words = known.pixels[rows], known.classes[rows], asked.pixels, asked.classes
    learnt, random = (finetuned_accuracy(network, *words) for network in (teacher, untrained))
    assert learnt > random + 0.1
    assert learnt == finetuned_accuracy(teacher, *words)  # the seed is all that is drawn by
    assert teacher.state_dict()["body.0.weight"].equal(before)  # a copy is trained


def test_the_whole_network_is_trained(known: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    classifier = training.finetune._Classifier

    def kept(*words: Any) -> Any:
        made.append(classifier(*words))
        return made[-1]

    monkeypatch.setattr(training.finetune, "STEPS", 3)
    monkeypatch.setattr(training.finetune, "_Classifier", kept)
    backbone = build_backbone("conv", 16)
    finetuned_accuracy(backbone, known.pixels[:64], known.classes[:64], known.pixels[:9], known.classes[:9])
    for name, weights in made[0].backbone.named_parameters():
        assert not weights.equal(dict(backbone.named_parameters())[name]), name


# -- cells


def test_a_canvas_shows_four_pictures_at_half_their_size_each_once() -> None:
    pixels = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.full((9, 3, 8, 8), 20, np.uint8)
    made, truth = canvases(pixels, np.arange(9))
    assert made.shape == (2, 3, 8, 8)
    assert len(set(truth.ravel().tolist())) == 8
    for canvas, labels in zip(made, truth, strict=True):
        for row in (0, 1):
            for column in (0, 1):
                tile = canvas[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert (tile == 20 * labels[row, column]).all()
    with pytest.raises(ConfigError, match="no half"):
        canvases(np.zeros((8, 3, 9, 9), np.uint8), np.zeros(8, np.int64))
    with pytest.raises(DataError, match="has four pictures, and there are 3"):
        canvases(pixels[:3], np.arange(3))


def test_cells_are_asked_about_the_picture_that_they_lie_in() -> None:
    """Cells that hold their class alone are told apart; those of an odd grid's middle lie in two and do not count."""
    for side in (2, 4, 5):
        truth, answers = RNG.integers(0, 3, (60, 2, 2)), RNG.integers(0, 3, (30, 2, 2))
        sides = []
        for labels in (truth, answers):
            cells = np.full((len(labels), side, side, 3), 9, np.float32)
            half = side // 2
            for row, rows in ((0, slice(0, half)), (1, slice(side - half, side))):
                for column, columns in ((0, slice(0, half)), (1, slice(side - half, side))):
                    cells[:, rows, columns] = np.eye(3, dtype=np.float32)[labels[:, row, column]][:, None, None]
            sides.append(cells)
        assert dense_accuracy(sides[0], truth, sides[1], answers) == 1
        assert dense_accuracy(sides[0], truth[::-1], sides[1], answers) < 0.6
    with pytest.raises(ConfigError, match="one cell, which is the whole picture"):
        dense_accuracy(sides[0][:, :1, :1], truth, sides[1][:, :1, :1], answers)


def test_the_pixels_of_a_cell_are_those_of_its_square() -> None:
    pixels = RNG.integers(0, 255, (2, 3, 8, 8), dtype=np.uint8)
    found = pixels_of_cells(pixels, 4)
    for row in range(4):
        for column in range(4):
            square = pixels[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(found[1, row, column], square.ravel())


def test_cells_of_a_network_that_knows_the_classes_tell_more(known: Pictures, teacher: Backbone) -> None:
    torch.manual_seed(0)
    networks = (teacher, build_backbone("conv", 32))
    sides = []
    for part in (known, scenes(400, seed=1)):
        twice = part.pixels.repeat(2, 2).repeat(2, 3)  # so that the canvas shows them as the teacher saw them
        sides.append(canvases(twice, part.classes))
    (bank, truth), (asked, answers) = sides
    found = [dense_accuracy(cells_of(n, bank), truth, cells_of(n, asked), answers) for n in networks]
    pixels = dense_accuracy(pixels_of_cells(bank, 4), truth, pixels_of_cells(asked, 4), answers)
    assert found[0] > found[1] + 0.05
    assert found[0] > pixels + 0.05


# -- the command


def test_the_command_tells_of_every_probe_and_row(
    table: Path, teacher: Backbone, tmp_path: Path, udr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.finetune, "STEPS", 30)
    save_backbone(teacher, tmp_path / "encoder", {})
    words = ("probe", table, "--encoder", f"artifact:{tmp_path / 'encoder'}", "--cache", tmp_path / "cache")
    found = json.loads(udr(*words, "--probes", "dense,finetune,linear,knn", "--json").out)
    probes = {"knn", "linear", "finetune 1 %", "finetune 10 %", "dense"}
    assert set(found) == {"pixels", "untrained", "encoder"}
    assert set(found["encoder"]) == set(found["untrained"]) == probes
    assert set(found["pixels"]) == {"knn", "linear", "dense"}
    for probe in ("knn", "linear", "finetune 10 %"):
        assert found["encoder"][probe] > found["untrained"][probe], probe
    lines = udr(*words, "--no-untrained").out.splitlines()
    assert [line.split()[0] for line in lines] == ["knn", "pixels", "encoder"]
    assert "did you mean linear" in udr(*words, "--probes", "linaer").complaint


def test_any_encoder_is_probed_and_what_it_has_no_network_for_is_refused(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Colour:
        """The mean colour of a picture."""

        dim, fingerprint = 3, "colour"

        def encode_queries(self, queries: Any, instruction: str = "") -> np.ndarray:
            from embed.media import media_of, open_picture

            return np.stack([np.asarray(open_picture(media_of(q, "image")), np.float32).mean((0, 1)) for q in queries])

    monkeypatch.setattr("training.probe.open_picture_encoder", lambda address: Colour())
    found = probe_encoder(table, "hf:any", cache=tmp_path)
    assert set(found) == {"pixels", "encoder"}
    assert 0.2 < found["encoder"]["linear"] <= 1
    for wrong in ({"probes": ("finetune",)}, {"probes": ("dense",)}, {"untrained": True}):
        with pytest.raises(ConfigError, match="need a network of ours"):
            probe_encoder(table, "hf:any", cache=tmp_path, **wrong)  # type: ignore[arg-type]
