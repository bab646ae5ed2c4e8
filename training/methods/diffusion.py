"""Text-to-image diffusion: the velocity of a noisy canvas is told by its caption."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training.heads import follow, frozen, in_full
from training.losses.diffusion import noised, velocity_loss
from training.synthesis.canvases import Canvases
from training.synthesis.network import TextToImageNet, build_scheduler, to_latents
from training.synthesis.vocabulary import Vocabulary

__all__ = ["Diffusion"]


class Diffusion(nn.Module):
    """L = mean of ‖v − v_θ(x_t, t, caption)‖², with t uniform. The weights that serve follow those that are learnt.

    Source: Ho et al. 2020, arXiv 2006.11239; velocities by Salimans & Ho 2022, arXiv 2202.00512; captions left out for
    classifier-free guidance by Ho & Salimans 2022, arXiv 2207.12598.

    Args:
        net: which is learnt.
        canvases: from which pictures are drawn.
        vocabulary: that reads captions.
        patch: pixels of a side in a cell of the latents.
        captions_dropped: share of pictures whose caption is not read.
        momentum: with which the weights that serve follow; less in the first steps.
    """

    steps: Tensor
    kept: Tensor

    def __init__(
        self,
        net: TextToImageNet,
        canvases: Canvases,
        vocabulary: Vocabulary,
        *,
        patch: int = 4,
        captions_dropped: float = 0.1,
        momentum: float = 0.995,
    ) -> None:
        super().__init__()
        self.net, self.teacher = net, copy.deepcopy(net)
        frozen(self.teacher)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("kept", build_scheduler().alphas_cumprod.float(), persistent=False)
        self.canvases, self._vocabulary = canvases, vocabulary
        self.patch, self.captions_dropped, self.momentum = patch, captions_dropped, momentum

    @property
    def backbone(self) -> TextToImageNet:
        """The weights that serve."""
        return self.teacher

    def forward(self, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """The loss of as many new canvases as there are numbers (n,)."""
        device = rows.device
        made = self.canvases.drawn(len(rows))
        latents = to_latents(self.canvases.pixels(made), self.patch).to(device)
        read = torch.rand(len(made)) >= self.captions_dropped
        captions = [canvas.caption if kept else "" for canvas, kept in zip(made, read.tolist(), strict=True)]
        ids = torch.tensor([self._vocabulary.padded(caption) for caption in captions], device=device)
        times = torch.randint(len(self.kept), (len(made),)).to(device)
        noise = torch.randn(latents.shape).to(device)
        kept = self.kept[times]
        with in_full(latents):
            noisy = noised(latents, noise, kept)
        predicted = self.net(noisy, times, ids)
        with in_full(latents):
            return {"loss": velocity_loss(predicted.float(), latents, noise, kept)}

    def after_step(self, progress: float) -> None:
        self.steps += 1
        steps = float(self.steps)
        follow(self.teacher, self.net, min(self.momentum, steps / (steps + 10)))
