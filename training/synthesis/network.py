"""A small text-to-image diffusion network: words by a small transformer, pictures by diffusers' U-Net with
cross-attention; the latents are the pixels themselves, some of a square stacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from udr.errors import ConfigError

__all__ = ["TextToImageNet", "TextTower", "build_network", "build_scheduler", "to_latents", "to_pixels"]

GAIN = 2.0  # of ink, so that latents vary about as much as the noise
WHITE = 1.0
HEADS, GROUPS = 2, 8


def to_latents(pictures: Tensor, patch: int) -> Tensor:
    """Pictures from 0 to 1 as latents: ink (0 where the ground is white) of patch × patch pixels in each cell.

    Shape: (n, 3, s, s) -> (n, 3 · patch², s / patch, s / patch).
    """
    return F.pixel_unshuffle((WHITE - pictures) * GAIN, patch)


def to_pixels(latents: Tensor, patch: int) -> Tensor:
    """What `to_latents` was given, within 0 and 1."""
    return (WHITE - F.pixel_shuffle(latents, patch) / GAIN).clamp(0, 1)


class TextTower(nn.Module):
    """Ids (n, l) -> features of each place (n, l, dim); places after the prompt's end are read as well.

    Args:
        ids: how many there are.
        length: places.
        dim: of features.
        layers: of the transformer; 0: words do not know each other.
    """

    def __init__(self, ids: int, length: int, dim: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, dim)
        self.places = nn.Parameter(0.02 * torch.randn(length, dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, HEADS, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.embedding(ids) + self.places
        for layer in self.layers:
            found = layer(found)
        features: Tensor = self.norm(found)
        return features


class TextToImageNet(nn.Module):
    """Velocities of noisy latents, by their time and by words."""

    def __init__(self, text: TextTower, unet: nn.Module) -> None:
        super().__init__()
        self.text, self.unet = text, unet

    def forward(self, latents: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        """Latents (n, c, h, w), times (n,) and ids (n, l) -> (n, c, h, w)."""
        found: Tensor = self.unet(latents, times, self.text(ids)).sample
        return found


def build_network(
    *,
    size: int,
    patch: int,
    ids: int,
    length: int,
    widths: Sequence[int],
    attention: Sequence[int],
    text_dim: int,
    text_layers: int,
) -> TextToImageNet:
    """An untrained network.

    Args:
        size: pixels of a side.
        patch: pixels of a side that go into a cell of the latents.
        ids: of words, see `Vocabulary`.
        length: ids of a prompt.
        widths: channels of each level, the first at the latents' own size, each next at half of it.
        attention: levels, from 0, that read words.
        text_dim, text_layers: of the words' transformer.

    Raises:
        ConfigError: sizes that do not divide, or widths that do not fall into groups and heads.
    """
    levels = len(widths)
    if size % (patch * 2 ** (levels - 1)):
        raise ConfigError(f"size: {size} pixels are no multiple of {patch * 2 ** (levels - 1)} (patch and levels)")
    if any(width % GROUPS for width in widths) or text_dim % HEADS:
        raise ConfigError(f"diffusion.widths: expected multiples of {GROUPS}; text_dim: of {HEADS}")
    if not set(attention) <= set(range(levels)) or not attention:
        raise ConfigError(f"diffusion.attention: expected levels from 0 to {levels - 1}")
    reads = [level in attention for level in range(levels)]
    unet = UNet2DConditionModel(
        sample_size=size // patch,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        layers_per_block=1,
        block_out_channels=tuple(widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if r else "DownBlock2D" for r in reads),
        up_block_types=tuple("CrossAttnUpBlock2D" if r else "UpBlock2D" for r in reversed(reads)),
        mid_block_type=None,  # self-attention beside the cross-attention sees the whole picture already
        cross_attention_dim=text_dim,
        attention_head_dim=HEADS,
        norm_num_groups=GROUPS,
    )
    unet.set_attn_processor(AttnProcessor())  # on a CPU quicker to learn with than the fused one
    return TextToImageNet(TextTower(ids, length, text_dim, text_layers), unet)


def build_scheduler() -> Any:
    """Stable Diffusion's times, the last of which leaves a little of the picture (√ᾱ_T = 0.068), and velocities.

    Where nothing were left, the first step of sampling could not see in its noise where things will be.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
