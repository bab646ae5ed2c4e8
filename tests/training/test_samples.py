"""What CIM's samples show is what its parts compute, and nothing of the original is in what was restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import scenes

from training.losses.cim import normalised_pixels
from training.methods.cim import CIM
from training.pretrain import build_method
from training.pretrain_settings import PretrainConfig
from training.samples import corrupted_rows, draw_samples
from training.tokenizer import PictureTokenizer


def method(tmp_path: Path, backbone: str = "conv", size: int = 16, **more: Any) -> CIM:
    torch.manual_seed(0)
    settings = {"codes": 16, "generator_dim": 32, "generator_layers": 1, **more}
    values = {"out": tmp_path, "method": "cim", "data": "x", "backbone": backbone, "size": size, "cim": settings}
    return cast(CIM, build_method(PretrainConfig.parse(values, "test"), PictureTokenizer(16)))


def test_restored_pictures_are_the_heads_pixels_put_back_by_the_corrupted_ones_windows(tmp_path: Path) -> None:
    own, pixels = method(tmp_path), scenes(4).pixels
    state = torch.get_rng_state()
    rows = corrupted_rows(own, pixels, seed=3)
    assert own.training
    assert torch.get_rng_state().equal(state)  # whoever draws them leaves training as it would have been
    for before, (original, tokens, masked, corrupted, restored) in zip(pixels, rows, strict=True):
        np.testing.assert_array_equal(original, before)
        grey = (masked == 128).all(0)
        assert 0.45 < grey.mean() < 0.7
        np.testing.assert_array_equal(masked[:, ~grey], original[:, ~grey])
        assert corrupted.shape == restored.shape == (3, 16, 16)
        assert not np.array_equal(corrupted, tokens)
        view = torch.from_numpy(before)[None].float() / 255
        by_hand = own.tokenizer.pictures(own.tokenizer.tokens(view))[0].numpy() * 255
        assert np.abs(by_hand - tokens).max() <= 0.51
    again = corrupted_rows(own, pixels, seed=3)
    assert all(np.array_equal(a, b) for x, y in zip(rows, again, strict=True) for a, b in zip(x, y, strict=True))

    # a backbone that knew the corrupted picture's normalised pixels would give that picture back
    class Knowing(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pixel_unshuffle(normalised_pixels(pictures, own.window), own.pixels)

    own.backbone, own.head = cast(Any, Knowing()), torch.nn.Identity()
    for _, _, _, corrupted, restored in corrupted_rows(own, pixels, seed=3):
        assert np.abs(corrupted.astype(int) - restored).max() <= 1


def test_detection_shows_what_was_replaced_and_how_likely_it_seems(tmp_path: Path) -> None:
    own = method(tmp_path, objective="detect")
    torch.nn.init.zeros_(own.head.weight)
    torch.nn.init.constant_(cast(Any, own.head.bias), float(np.log(3)))
    for _, _, masked, _, replaced, detected in corrupted_rows(own, scenes(4).pixels, seed=3):
        assert set(np.unique(replaced)) <= {0, 255}
        assert (masked == 128).all(0)[replaced[0] > 0].all()  # only masked cells can have been
        np.testing.assert_array_equal(detected, np.full((3, 16, 16), 191))  # the sigmoid of log 3 is three quarters


@pytest.mark.parametrize(("backbone", "cells"), [("conv", 2), ("resnet18", 1), ("vit_tiny_4", 4)])
def test_every_token_has_a_logit_of_its_own_however_coarse_the_backbones_cells(
    tmp_path: Path, backbone: str, cells: int
) -> None:
    own = method(tmp_path, backbone, objective="detect")
    tokens = own.side // cells
    with torch.no_grad():
        found = own.head(own.backbone.eval()(torch.rand(2, 3, 16, 16)))
    assert found.shape == (2, tokens**2, cells, cells)
    rows = found.reshape(2, tokens, tokens, cells, cells).permute(0, 3, 1, 4, 2)  # a cell's logits lie within it
    torch.testing.assert_close(own.detected(found), rows.reshape(2, 16))
    if tokens > 1:  # so neighbours within one cell can be told apart
        board = (torch.arange(tokens)[:, None] + torch.arange(tokens)) % 2 * 2.0 - 1
        torch.nn.init.zeros_(own.head.weight)
        own.head.bias.data = board.flatten()
        seen = own.detected(own.head(torch.rand(1, own.backbone.dim, cells, cells))).view(4, 4)
        assert seen.equal(board.repeat(cells, cells))


def test_cells_that_do_not_divide_the_tokens_are_interpolated(tmp_path: Path) -> None:
    own = method(tmp_path, objective="detect", size=48)  # 12 tokens a side
    own.tokens = 3
    assert own.detected(torch.rand(2, 9, 5, 5)).shape == (2, 144)


@pytest.mark.parametrize(("objective", "columns"), [("restore", 5), ("detect", 6)])
def test_samples_are_a_sheet_of_a_few_rows(tmp_path: Path, objective: str, columns: int) -> None:
    draw_samples(method(tmp_path, objective=objective), scenes(20).pixels, 0, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width >= columns * 112
        assert 8 * 112 < sheet.height < 10 * 150
