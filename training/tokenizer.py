"""A discrete tokenizer of pictures that is learnt here: a VQ-VAE whose codes follow by moving averages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.quantizer import Quantizer

__all__ = ["PictureTokenizer"]


class PictureTokenizer(nn.Module):
    """Pictures (n, 3, s, s) from 0 to 1 -> tokens (n, s/4 · s/4) and back.

    A VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) that stands where CIM has DALL-E's: four pixels of a side go
    into a token, so a picture of 32 pixels is 64 tokens.

    Args:
        codes: of the codebook.
        width: of the convolutions.
        dim: of a code.
    """

    STRIDE = 4

    def __init__(self, codes: int = 256, width: int = 64, dim: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, dim, 1),
        )  # fmt: skip
        self.quantizer = Quantizer(codes, dim)
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Losses of reconstruction and commitment; the codes follow while in training mode."""
        features = self.encoder(pictures * 2 - 1)
        quantised, tokens, commitment = self.quantizer(features.permute(0, 2, 3, 1).flatten(1, 2))
        decoded = self._decode(quantised, features.shape[2])
        error = F.mse_loss(decoded, pictures)
        used = torch.bincount(tokens.flatten(), minlength=self.quantizer.codes).float() / tokens.numel()
        entropy = -(used * used.clamp_min(1e-10).log()).sum()
        return {"loss": error + 0.25 * commitment, "error": error, "perplexity": entropy.exp()}

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:
        """Of pictures, (n, cells), row by row."""
        features = self.encoder(pictures * 2 - 1).permute(0, 2, 3, 1).flatten(1, 2)
        return self.quantizer.nearest(features)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> Tensor:
        """Of tokens (n, cells), from 0 to 1."""
        return self._decode(self.quantizer.codebook[tokens], round(tokens.shape[1] ** 0.5)).clamp(0, 1)

    def _decode(self, codes: Tensor, side: int) -> Tensor:
        grid = codes.transpose(1, 2).reshape(len(codes), -1, side, side)
        pixels: Tensor = self.decoder(grid)
        return (pixels + 1) / 2
