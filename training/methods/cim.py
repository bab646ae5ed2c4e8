"""CIM: a small generator corrupts pictures by sampling tokens, and the backbone restores them or finds what changed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.backbones import Backbone
from training.augment import Views
from training.heads import in_full
from training.losses.cim import generator_loss, replaced_loss, restored_loss
from training.tokenizer import PictureTokenizer
from udr.distributed import own_rows, processes
from udr.errors import ConfigError

__all__ = ["CIM", "Generator"]

Objective = Literal["restore", "detect"]
Draw = Literal["sample", "argmax", "uniform"]


class Generator(nn.Module):
    """A small BEiT: patches, of which some are masked, -> logits of all cells' tokens (n, cells, codes)."""

    def __init__(self, size: int, patch: int, codes: int, dim: int, layers: int) -> None:
        super().__init__()
        cells = (size // patch) ** 2
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.mask = nn.Parameter(torch.zeros(dim))
        self.places = nn.Parameter(torch.zeros(cells, dim))
        nn.init.trunc_normal_(self.places, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, max(1, dim // 32), 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, codes))

    def forward(self, pictures: Tensor, masked: Tensor) -> Tensor:
        cells = self.patches(pictures * 2 - 1).flatten(2).transpose(1, 2)
        cells = torch.where(masked[..., None], self.mask.to(cells.dtype), cells)
        logits: Tensor = self.out(self.layers(cells + self.places))
        return logits


def _own_noise(shape: torch.Size, device: torch.device) -> Tensor:
    """Uniform numbers for pictures (n, …), drawn for those of all processes alike, so that each takes its own."""
    count = shape[0] * processes()
    return torch.rand(count, *shape[1:], device=device)[own_rows(count)]


class CIM(nn.Module):
    """Source: Fang et al. 2023, arXiv 2202.03382. No gradient passes from the enhancer to the generator.

    Args:
        backbone: the enhancer, which is learnt; transformers and convolutional networks alike.
        views: makes one of each picture.
        tokenizer: trained before, and not changed.
        objective: restore pixels (ResPix) or detect replaced tokens (RevDet).
        tokens: how masked cells get their tokens: sampled as published, or, to compare, the likeliest or any.
        masked: share of cells, drawn between the two for each batch.
        window: of normalised pixels.
        weight: of the enhancer's loss; 0: 1 to restore, 10 to detect.
        generator_dim, generator_layers: of the generator.
    """

    shares_batches = True

    def __init__(
        self,
        backbone: Backbone,
        views: Views,
        tokenizer: PictureTokenizer,
        *,
        objective: Objective = "restore",
        tokens: Draw = "sample",
        masked: tuple[float, float] = (0.5, 0.6),
        window: int = 8,
        weight: float = 0.0,
        generator_dim: int = 128,
        generator_layers: int = 2,
    ) -> None:
        super().__init__()
        self.backbone, self.views, self.tokenizer = backbone, views, tokenizer.requires_grad_(False)
        self.objective, self.draw, self.masked, self.window = objective, tokens, masked, window
        self.weight = weight or (1.0 if objective == "restore" else 10.0)
        codes, stride = tokenizer.quantizer.codes, tokenizer.STRIDE
        self.generator = Generator(backbone.size, stride, codes, generator_dim, generator_layers)
        self.side = backbone.size // stride
        with torch.no_grad():
            cells = backbone.eval()(torch.zeros(1, 3, backbone.size, backbone.size)).shape[2]
        if backbone.size % cells:
            raise ConfigError(f"size: {backbone.size} pixels are no multiple of the {cells} cells of {backbone.name}")
        if window > backbone.size:
            raise ConfigError(f"cim.window: {window} pixels, and pictures have {backbone.size}")
        self.pixels = backbone.size // cells  # of a cell's side
        self.tokens = math.ceil(self.side / cells)  # of a cell's side, where the tokens are finer
        self.head = nn.Conv2d(backbone.dim, 3 * self.pixels**2 if objective == "restore" else self.tokens**2, 1)

    def forward(self, views: tuple[Tensor, ...], progress: float) -> dict[str, Tensor]:
        (view,) = views
        corrupted, sampled, golden, masked, logits = self.corrupt(view)
        found = self.head(self.backbone(corrupted)).float()
        with in_full(view):
            generator = generator_loss(logits.float(), golden, masked)
            if self.objective == "restore":
                enhancer = restored_loss(F.pixel_shuffle(found, self.pixels), view, self.window)
            else:
                enhancer = replaced_loss(self.detected(found), sampled, golden)
        return {"loss": generator + self.weight * enhancer, "generator": generator, "enhancer": enhancer}

    def corrupt(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The corrupted pictures, their tokens and the golden ones, the masked cells, and the generator's logits."""
        self.tokenizer.eval()
        with in_full(view):
            golden = self.tokenizer.tokens(view)
        masked = self._mask(golden)
        logits = self.generator(view, masked)
        sampled = torch.where(masked, self._draw(logits.detach().float()), golden)
        with in_full(view):
            return self.tokenizer.pictures(sampled), sampled, golden, masked, logits

    def detected(self, found: Tensor) -> Tensor:
        """One logit a token, (n, t², h, w) -> (n, tokens): interpolated only where cells do not divide the tokens."""
        fine = F.pixel_shuffle(found, self.tokens)
        return F.interpolate(fine, size=(self.side, self.side), mode="bilinear", align_corners=False).flatten(1)

    def _mask(self, golden: Tensor) -> Tensor:
        """The same share of cells in every picture, drawn at random."""
        low, high = self.masked
        count = math.ceil(golden.shape[1] * (low + (high - low) * float(torch.rand(()))))
        return _own_noise(golden.shape, golden.device).argsort(1) < count

    def _draw(self, logits: Tensor) -> Tensor:
        if self.draw == "argmax":
            return logits.argmax(2)
        noise = _own_noise(logits.shape[:2], logits.device)
        if self.draw == "uniform":
            return (noise * logits.shape[2]).long()
        # the code at which the sum of probabilities passes a uniform number
        sums = logits.softmax(2).cumsum(2)
        return torch.searchsorted(sums, noise[..., None] * sums[..., -1:], right=True)[..., 0].clamp_max(
            logits.shape[2] - 1
        )

    def after_step(self, progress: float) -> None:
        pass
