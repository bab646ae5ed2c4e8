"""Every backbone that is listed gives a grid of features of what it says."""

from __future__ import annotations

import pytest
import torch

from embed.backbones import BACKBONES, build_backbone
from udr.errors import ConfigError, UnknownNameError

LARGE = ("resnet18", "resnet50", "vit_small_16", "vit_base_16", "convnext_tiny")  # for pictures of 224 pixels


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_a_grid_and_every_weight_takes_part(name: str) -> None:
    size = 64 if name in LARGE else 32
    backbone = build_backbone(name, size).eval()
    pixels = torch.rand(2, 3, size, size)
    cells = backbone(pixels)
    assert cells.shape[:2] == (2, backbone.dim)
    assert cells.shape[2] == cells.shape[3] > 1
    torch.testing.assert_close(backbone.pooled(pixels), cells.mean((2, 3)))
    (cells.abs().sum() + cells.square().sum()).backward()
    asleep = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert asleep == []  # a weight without a gradient would stop training on several devices


def test_what_cannot_be_built_is_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean resnet18"):
        build_backbone("resnet-18", 32)
    with pytest.raises(ConfigError, match="no multiple"):
        build_backbone("vit_tiny_4", 30)
