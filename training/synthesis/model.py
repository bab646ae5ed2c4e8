"""A text-to-image model at work, ours or another: latents to pictures, and the folder that ours is kept in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from embed.folders import WEIGHTS, save_folder, shape_of
from training.synthesis.network import TextToImageNet, build_network, build_scheduler, to_pixels
from training.synthesis.vocabulary import BEGIN, Vocabulary
from udr.artifacts import fingerprint_files, read_json
from udr.devices import choose_device
from udr.errors import ArtifactError, ConfigError

__all__ = ["KIND", "TextToImage", "load_text_to_image", "own_model", "save_text_to_image"]

KIND = "text_to_image"  # of a model folder
TIMES = 1000  # that schedulers count noise by
SUCH_STEPS = "20, 25, 40, 50 or 100"


@dataclass(frozen=True)
class TextToImage:
    """What prompts and noise become pictures by.

    Args:
        unet: diffusers' U-Net with cross-attention.
        scheduler: diffusers' DDIM, of which one step at a time is asked.
        shape: of the latents of a picture, (c, h, w).
        embed: prompts -> features of their places (n, l, d), as the U-Net reads them.
        ids: the ids of a prompt's words, as `embed` reads them, without a begin or an end.
        begin: places before the first word.
        length: places of a prompt.
        decode: latents (n, c, h, w) -> pixels uint8 (n, 3, s, s).
        layer: the cross-attention whose maps of the first step tell where things will be.
        guidance: how much more than the prompt asks for, by default.
        steps: of DDIM, by default.
        fingerprint: of all weights.
    """

    unet: nn.Module
    scheduler: Any
    shape: tuple[int, int, int]
    embed: Callable[[Sequence[str]], Tensor]
    ids: Callable[[str], list[int]]
    begin: int
    length: int
    decode: Callable[[Tensor], NDArray[np.uint8]]
    layer: str
    guidance: float
    steps: int
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def noise(self, seed: int) -> Tensor:
        """Where a picture begins, N(0, 1) of (c, h, w): the same for a seed on every device."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))

    def places(self, prompt: str, phrase: str) -> list[int]:
        """The places of a prompt that hold a phrase, its begin counted; the first time that it stands there.

        Raises:
            ConfigError: the prompt does not hold the phrase, or not within what the model reads.
        """
        whole, part = self.ids(prompt), self.ids(phrase)
        for start in range(len(whole) - len(part) + 1):
            if part and whole[start : start + len(part)] == part:
                found = [self.begin + start + i for i in range(len(part))]
                if found[-1] < self.length - 1:  # the last place holds the end, which is no word
                    return found
        raise ConfigError(f"the prompt {prompt[:80]!r} does not hold {phrase!r}")

    def times(self, steps: int | None = None) -> Tensor:
        """The times of so many steps (none: the model's own), the first one first.

        Raises:
            ConfigError: as `check_steps`.
        """
        if steps is None:
            steps = self.steps
        check_steps(steps)
        self.scheduler.set_timesteps(steps, device=self.device)
        found: Tensor = self.scheduler.timesteps
        return found

    @torch.inference_mode()
    def paint(
        self,
        latents: Tensor,
        prompts: Sequence[str],
        steps: int | None = None,
        guidance: float | None = None,
        after_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Latents of pictures from latents of noise (n, c, h, w), by DDIM without noise of its own (η = 0).

        Each step runs the U-Net on both halves at once, without and with the prompts.

        Source: Song et al. 2020, "Denoising Diffusion Implicit Models", arXiv 2010.02502; classifier-free guidance by
        Ho & Salimans 2022, arXiv 2207.12598.

        Args:
            after_step: told the number of each step that is done, and the latents after it.
        """
        scale = self.guidance if guidance is None else guidance
        features = torch.cat([self.embed([""] * len(prompts)), self.embed(prompts)])
        latents = latents.to(self.device, features.dtype) * self.scheduler.init_noise_sigma
        for number, time in enumerate(self.times(steps)):
            read = self.scheduler.scale_model_input(torch.cat([latents, latents]), time)
            without, within = self.unet(read, time, features).sample.chunk(2)
            latents = self.scheduler.step(without + scale * (within - without), time, latents, eta=0.0).prev_sample
            if after_step:
                after_step(number, latents)
        return latents


def check_steps(steps: int) -> None:
    """Raise ConfigError where steps of sampling would not lie evenly on the times that were learnt."""
    if not 1 <= steps <= TIMES // 2 or TIMES % steps:  # of as many as times some schedulers step past the last one
        raise ConfigError(f"--steps {steps}: expected a divisor of {TIMES} up to {TIMES // 2}, such as {SUCH_STEPS}")


def own_model(net: TextToImageNet, vocabulary: Vocabulary, size: int, patch: int, fingerprint: str) -> TextToImage:
    """A network of ours at work, on the device that it lies on."""
    net.eval()
    device = next(net.parameters()).device

    def embed(prompts: Sequence[str]) -> Tensor:
        found: Tensor = net.text(torch.tensor([vocabulary.padded(p) for p in prompts], device=device))
        return found

    def decode(latents: Tensor) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = (to_pixels(latents, patch) * 255).round().byte().cpu().numpy()
        return found

    return TextToImage(
        net.unet,
        build_scheduler(),
        (3 * patch**2, size // patch, size // patch),
        embed,
        vocabulary.ids,
        len([BEGIN]),
        vocabulary.length,
        decode,
        last_cross_attention(net.unet),
        3.0,
        25,
        fingerprint,
    )


def last_cross_attention(unet: nn.Module) -> str:
    """The name of the last layer on the way down that reads words, as the authors take it of Stable Diffusion."""
    names: list[str] = [
        name for name, _ in unet.named_modules() if name.startswith("down_blocks") and name.endswith(".attn2")
    ]
    if not names:
        raise ConfigError("the U-Net has no cross-attention on its way down")
    return names[-1]


def save_text_to_image(
    net: TextToImageNet, folder: Path, shape: Mapping[str, Any], words: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Write a model folder; `shape` is what `build_network` was given, `facts` say how it was made.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    known = {"kind": KIND, "shape": dict(shape), "words": list(words), **facts}
    save_folder(net, folder, known, "model.json", _fingerprint)


def load_text_to_image(folder: Path, device: str = "auto") -> TextToImage:
    """Open what `save_text_to_image` wrote.

    Raises:
        ArtifactError: no such folder, or files that differ from what was saved.
    """
    saved = read_json(folder / "model.json")
    if saved.get("kind") != KIND:
        raise ArtifactError(f"{folder}: no text-to-image model")
    if not (folder / WEIGHTS).is_file() or _fingerprint(folder, saved) != saved.get("fingerprint"):
        raise ArtifactError(f"{folder}: the model's files differ from what was saved; restore or train it again")
    shape = saved["shape"]
    try:
        net = build_network(**shape)
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError, LookupError) as error:
        raise ArtifactError(f"{folder}: not the weights of such a model ({str(error).splitlines()[0]})") from None
    vocabulary = Vocabulary(saved["words"], shape["length"])
    net = net.to(choose_device(device))
    return own_model(net, vocabulary, shape["size"], shape["patch"], str(saved["fingerprint"]))


def _fingerprint(folder: Path, saved: Mapping[str, Any]) -> str:
    """Of the weights and of the words that ids stand for."""
    words = " ".join(saved.get("words") or ())
    shape = shape_of(saved)
    return f"{fingerprint_files(folder, ('.safetensors',))}-{shape.get('size')}-{shape.get('patch')}-{words}"
