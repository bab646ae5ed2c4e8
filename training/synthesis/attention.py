"""Where a U-Net looks for a word: maps of its cross-attention, taken while it runs, without changing what it makes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.synthesis.model import TextToImage
from udr.errors import UnknownNameError
from udr.types import FloatArray

__all__ = ["cross_attentions", "layer_side", "preference_maps", "watching", "word_maps"]


class _Watch:
    """An attention processor that keeps the probabilities, and lets the one that was there compute."""

    def __init__(self, inner: Any, seen: list[Tensor]) -> None:
        self.inner, self.seen = inner, seen

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *words: Any,
        **named: Any,
    ) -> Tensor:
        assert encoder_hidden_states is not None  # of cross-attention
        read = attn.norm_encoder_hidden_states(encoder_hidden_states) if attn.norm_cross else encoder_hidden_states
        query, key = (attn.head_to_batch_dim(part) for part in (attn.to_q(hidden_states), attn.to_k(read)))
        mask = attn.prepare_attention_mask(attention_mask, read.shape[1], len(read))
        probabilities = attn.get_attention_scores(query, key, mask)  # (n · heads, cells, places), softmax over places
        heads = probabilities.reshape(len(read), -1, *probabilities.shape[1:])
        self.seen.append(heads.mean(1).float())
        found: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, *words, **named)
        return found


def cross_attentions(unet: nn.Module) -> list[str]:
    """Names of a U-Net's layers that read words, in the order of its parts."""
    return [name for name, _ in unet.named_modules() if name.endswith(".attn2")]


@contextmanager
def watching(unet: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Within, each run of the U-Net adds the layer's map to the list: (n, cells, places), the mean over its heads.

    Raises:
        UnknownNameError: no such layer.
    """
    known = cross_attentions(unet)
    if layer not in known:
        raise UnknownNameError("layer of cross-attention", layer, known)
    attention: Any = unet.get_submodule(layer)
    seen: list[Tensor] = []
    inner = attention.processor
    attention.processor = _Watch(inner, seen)  # not set_processor, which tells of weights that are none
    try:
        yield seen
    finally:
        attention.processor = inner


def word_maps(seen: Tensor, places: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, FloatArray]]:
    """Of each picture and phrase its map, float32 (side, side): the mean over the phrase's places in its prompt.

    Shape: maps (n, cells, places), and n mappings.
    """
    side = math.isqrt(seen.shape[1])
    maps = seen.cpu().numpy()
    return [
        {phrase: row[:, list(own)].mean(1).reshape(side, side) for phrase, own in named.items()}
        for row, named in zip(maps, places, strict=True)
    ]


@torch.inference_mode()
def preference_maps(
    model: TextToImage,
    latents: Tensor,
    prompts: Sequence[str],
    phrases: Sequence[Sequence[str]],
    steps: int | None = None,
    layer: str | None = None,
) -> list[dict[str, FloatArray]]:
    """Where noise would rather become what a phrase says: cross-attention of the first step alone, with the prompt.

    Source: Mao et al. 2023, "Guided Image Synthesis via Initial Image Editing in Diffusion Model", arXiv 2305.03382.
    The softmax is over the prompt's places, the mean over heads. What is without the prompt is not run: its half of
    the batch changes nothing in this one.

    Args:
        latents: (n, c, h, w).
        prompts: of each picture.
        phrases: of each picture, as its prompt holds them.

    Returns:
        Of each picture and phrase a map, float32 (side, side).

    Raises:
        ConfigError: a prompt does not hold a phrase.
        UnknownNameError: no such layer.
    """
    places = [{p: model.places(prompt, p) for p in own} for prompt, own in zip(prompts, phrases, strict=True)]
    features = model.embed(prompts)
    first = model.times(steps)[0]
    read = latents.to(model.device, features.dtype) * model.scheduler.init_noise_sigma
    with watching(model.unet, layer or model.layer) as seen:
        model.unet(model.scheduler.scale_model_input(read, first), first, features)
    return word_maps(seen[0], places)


def layer_side(model: TextToImage, layer: str | None = None) -> int:
    """Cells of a side of a layer's map."""
    with torch.inference_mode(), watching(model.unet, layer or model.layer) as seen:
        noise = model.noise(0)[None].to(model.device)
        features = model.embed([""])
        model.unet(noise.to(features.dtype), model.times(1)[0], features)
    return int(np.sqrt(seen[0].shape[1]))
