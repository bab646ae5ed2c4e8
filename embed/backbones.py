"""Networks that turn pixels into a grid of features: small ones of our own, and those of transformers, untrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from udr.errors import ConfigError, UnknownNameError

__all__ = ["BACKBONES", "Backbone", "build_backbone"]

MEAN, SPREAD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of pixels from 0 to 1, roughly, whatever they show


class Backbone(nn.Module):
    """Pixels (n, 3, size, size) from 0 to 1 -> features (n, dim, h, w).

    Args:
        name: under which it is built.
        size: pixels of a side.
        body: the network, from pixels about 0.
        dim: features of a cell.
    """

    def __init__(self, name: str, size: int, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.name, self.size, self.dim = name, size, dim
        self.body = body
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        cells: Tensor = self.body((pixels - self.mean) / self.spread)  # type: ignore[operator]
        return cells

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    def pooled(self, pixels: Tensor) -> Tensor:
        """The mean over cells, (n, dim)."""
        cells: Tensor = self(pixels)
        return cells.mean((2, 3))


def _conv(widths: Sequence[int], strides: Sequence[int]) -> tuple[nn.Module, int]:
    """Convolutions of 3 x 3 with batch normalisation, one a width."""
    layers: list[nn.Module] = []
    for before, width, stride in zip((3, *widths), widths, strides, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers), widths[-1]


class _LastHiddenState(nn.Module):
    """A convolutional model of transformers, by its last feature map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        cells: Tensor = self.model(pixels).last_hidden_state
        return cells


class _Tokens(nn.Module):
    """A vision transformer by its patches, laid out as the grid that they are."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixels).last_hidden_state[:, 1:]  # without [CLS]
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, self.side, self.side)


def _resnet(depths: Sequence[int], layer: str, widths: Sequence[int], small: bool) -> tuple[nn.Module, int]:
    """`small`: for pictures of some 32 pixels the first layer keeps the resolution (Chen et al. 2020, appendix B.9)."""
    from transformers import ResNetConfig, ResNetModel
    from transformers.models.resnet.modeling_resnet import ResNetConvLayer

    config = ResNetConfig(embedding_size=64, depths=list(depths), hidden_sizes=list(widths), layer_type=layer)
    model: Any = ResNetModel(config)
    if small:
        model.embedder.embedder = ResNetConvLayer(3, 64, kernel_size=3, stride=1)
        model.embedder.pooler = nn.Identity()
    model.pooler = nn.Identity()
    return _LastHiddenState(model), widths[-1]


def _vit(size: int, patch: int, dim: int, layers: int, heads: int) -> tuple[nn.Module, int]:
    from transformers import ViTConfig, ViTModel

    if size % patch:
        raise ConfigError(f"size {size}: no multiple of the patches' {patch} pixels")
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _Tokens(ViTModel(config, add_pooling_layer=False), size // patch), dim


def _convnext(patch: int, depths: Sequence[int], widths: Sequence[int]) -> tuple[nn.Module, int]:
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(patch_size=patch, depths=list(depths), hidden_sizes=list(widths))
    model: Any = ConvNextModel(config)
    model.layernorm = nn.Identity()  # of the pooled output, which is not asked for
    return _LastHiddenState(model), widths[-1]


WIDE = (64, 128, 256, 512)
BACKBONES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "conv": lambda size: _conv((24, 48, 96, 96), (2, 2, 2, 1)),
    "conv_mid": lambda size: _conv((32, 64, 128, 128), (2, 2, 2, 1)),
    "conv_wide": lambda size: _conv((32, 64, 128, 128), (1, 2, 2, 2)),
    "resnet18_small": lambda size: _resnet((2, 2, 2, 2), "basic", WIDE, small=True),
    "resnet18": lambda size: _resnet((2, 2, 2, 2), "basic", WIDE, small=False),
    "resnet50": lambda size: _resnet((3, 4, 6, 3), "bottleneck", (256, 512, 1024, 2048), small=False),
    "vit_tiny_4": lambda size: _vit(size, 4, 192, 4, 3),
    "vit_small_16": lambda size: _vit(size, 16, 384, 12, 6),
    "vit_base_16": lambda size: _vit(size, 16, 768, 12, 12),
    "convnext_small_2": lambda size: _convnext(2, (1, 1, 2, 1), (32, 64, 128, 192)),
    "convnext_tiny": lambda size: _convnext(4, (3, 3, 9, 3), (96, 192, 384, 768)),
}


def build_backbone(name: str, size: int) -> Backbone:
    """Make an untrained backbone for pictures of `size` pixels.

    Raises:
        UnknownNameError: no such backbone (lists the near names).
        ConfigError: one that pictures of this size do not fit.
    """
    if name not in BACKBONES:
        raise UnknownNameError("backbone", name, BACKBONES)
    body, dim = BACKBONES[name](size)
    backbone = Backbone(name, size, body, dim)
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"backbone {name}: pictures of {size} pixels do not fit it ({reason})") from None
    return backbone.train()
