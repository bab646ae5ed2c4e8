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


def word_maps(seen: Tensor, places: Mapping[str, Sequence[int]]) -> dict[str, FloatArray]:
    """Of each phrase its map, float32 (n, side, side): the mean over its places of maps (n, cells, places)."""
    side = math.isqrt(seen.shape[1])
    columns = {phrase: seen[:, :, list(own)].mean(2) for phrase, own in places.items()}
    return {phrase: own.reshape(len(seen), side, side).cpu().numpy() for phrase, own in columns.items()}


@torch.inference_mode()
def preference_maps(
    model: TextToImage, latents: Tensor, prompt: str, phrases: Sequence[str], steps: int = 25, layer: str | None = None
) -> dict[str, FloatArray]:
    """Where noise would rather become what a phrase says: cross-attention of the first step alone, with the prompt.

    Source: Mao et al. 2023, "Guided Image Synthesis via Initial Image Editing in Diffusion Model", arXiv 2305.03382.
    The softmax is over the prompt's places, the mean over heads. What is without the prompt is not run: its half of
    the batch changes nothing in this one.

    Shape: latents (n, c, h, w) -> of each phrase (n, side, side), float32.

    Raises:
        ConfigError: the prompt does not hold a phrase.
        UnknownNameError: no such layer.
    """
    places = {phrase: model.places(prompt, phrase) for phrase in phrases}
    features = model.embed([prompt] * len(latents))
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
