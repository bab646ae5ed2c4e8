"""Stable Diffusion, and its kin with one text encoder, through diffusers: the same edits of noise on a large model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.synthesis.model import TextToImage, last_cross_attention
from udr.devices import choose_device
from udr.errors import ConfigError, MissingDependencyError

__all__ = ["load_stable_diffusion", "of_pipeline"]

GUIDANCE, STEPS = 7.5, 50  # the authors'


def load_stable_diffusion(name: str, device: str = "auto") -> TextToImage:
    """Load a pipeline of diffusers by its folder or hub name, with DDIM in the place of its scheduler.

    On a GPU the networks compute in float16 but for the decoder, whose pictures would become black now and then. Its
    safety checker is not loaded: what is made is looked at by who asked for it.

    Raises:
        ConfigError: it cannot be loaded, or is no such pipeline.
        MissingDependencyError: diffusers is absent.
    """
    try:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging
    except ImportError:
        raise MissingDependencyError("diffusers", "synthesize") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the commands have their own
    where = choose_device(device)
    half = where.startswith("cuda")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts of pipelines that are not ours to mend
            pipeline = StableDiffusionPipeline.from_pretrained(
                name,
                torch_dtype=torch.float16 if half else torch.float32,
                safety_checker=None,
                requires_safety_checker=False,
            )
    except Exception as error:  # diffusers and the hub's client raise many unrelated types; the user needs one line
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"sd:{name}: cannot be loaded ({type(error).__name__}: {reason})") from None
    pipeline.to(where)
    pipeline.vae.float()
    return of_pipeline(pipeline, name)


def of_pipeline(pipeline: Any, name: str) -> TextToImage:
    """A loaded pipeline at work.

    Raises:
        ConfigError: its U-Net wants more than noise and one prompt, or its maps are no squares.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    unet, tokenizer, encoder = pipeline.unet, pipeline.tokenizer, pipeline.text_encoder
    channels, side = unet.config.in_channels, unet.config.sample_size
    if channels != pipeline.vae.config.latent_channels or not isinstance(side, int):
        raise ConfigError(f"sd:{name}: its U-Net takes more than the noise of a square picture")
    length: int = tokenizer.model_max_length

    @torch.inference_mode()
    def embed(prompts: Sequence[str]) -> Tensor:
        read = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        found: Tensor = encoder(read.to(encoder.device))[0]
        return found.to(unet.dtype)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    @torch.inference_mode()
    def decode(latents: Tensor) -> NDArray[np.uint8]:
        decoded = pipeline.vae.decode(latents.float() / pipeline.vae.config.scaling_factor).sample
        found: NDArray[np.uint8] = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()
        return found

    return TextToImage(
        unet.eval(),
        DDIMScheduler.from_config(pipeline.scheduler.config),
        (channels, side, side),
        embed,
        ids,
        1,  # its tokenizer puts one token before the first word
        length,
        decode,
        _layer(unet),
        GUIDANCE,
        STEPS,
        f"sd-{name}@{getattr(unet.config, '_commit_hash', None)}",
    )


def _layer(unet: Any) -> str:
    """The authors' layer, input_blocks.8.1 of Stable Diffusion: the last that reads words on the way down."""
    name = last_cross_attention(unet)
    assert re.match(r"down_blocks\.\d+\.attentions\.\d+\.", name)
    return name
