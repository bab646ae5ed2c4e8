"""Text-to-image models by address: `artifact:FOLDER` is ours, `sd:NAME` a Stable Diffusion of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.synthesis.model import TextToImage, load_text_to_image
from training.synthesis.stable_diffusion import load_stable_diffusion
from udr.errors import ConfigError, UnknownNameError

__all__ = ["KINDS", "open_text_to_image"]


def _artifact(name: str, device: str) -> TextToImage:
    return load_text_to_image(Path(name), device)


KINDS: dict[str, Callable[[str, str], TextToImage]] = {"artifact": _artifact, "sd": load_stable_diffusion}


def open_text_to_image(address: str, device: str = "auto") -> TextToImage:
    """Open the model at `KIND:NAME`.

    Raises:
        UnknownNameError: no such kind.
        ConfigError: no address, or a model that cannot be loaded.
        ArtifactError: a folder of ours that is damaged.
    """
    kind, colon, name = address.partition(":")
    if not colon or not name:
        raise ConfigError(f"{address!r} is no model's address; expected {', '.join(f'{k}:NAME' for k in KINDS)}")
    if kind not in KINDS:
        raise UnknownNameError("kind of text-to-image model", kind, KINDS)
    return KINDS[kind](name, device)
