"""What views are made of: colours changed in place, and resampling and blurs as small matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CHANGES", "along_both", "blurring", "grey_of", "resampling"]

GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue in a grey (ITU-R BT.601)


def resampling(spans: Tensor, size: int) -> Tensor:
    """Matrices that scale a span of pixels of one axis to `size` pixels, bilinearly; borders are the span's own.

    Shape: spans (n, 2), first pixel and how many, whole numbers; the result is (n, size, size): row i holds the shares
    of the old pixels in the new pixel i.
    """
    first, length = spans[:, :1], spans[:, 1:]
    new = torch.arange(size, device=spans.device)
    at = (new + 0.5) * length / size - 0.5
    at = first + torch.minimum(at.clamp_min(0), length - 1)  # (n, size), of old pixels
    return (1 - (at[:, :, None] - new).abs_()).clamp_min_(0)


def blurring(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """Matrices of a Gaussian blur along one axis, borders mirrored; of a sigma of 0 the identity.

    Shape: sigma (n,) in pixels, kernel odd and at most 2 · size − 1; the result is (n, size, size).
    """
    reach = torch.arange(kernel, device=sigma.device) - kernel // 2
    shares = torch.exp(-0.5 * (reach / sigma.clamp_min(1e-2)[:, None]) ** 2)  # of 0.01 pixels none but its own is left
    shares = shares / shares.sum(1, keepdim=True)
    places = torch.arange(size, device=sigma.device)[:, None] + reach  # (size, kernel)
    places = places.abs()
    places = torch.where(places >= size, 2 * (size - 1) - places, places)
    found = torch.zeros(len(sigma), size, size, device=sigma.device)
    return found.scatter_add_(2, places.expand(len(sigma), -1, -1), shares[:, None].expand(-1, size, -1))


def along_both(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows · picture · columnsᵀ of every channel: pictures (n, c, s, s), matrices (n, s, s)."""
    return rows[:, None] @ (pictures @ columns.transpose(1, 2)[:, None])


def grey_of(pictures: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 1, h, w)."""
    red, green, blue = pictures.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])[:, None]


def _brighten(pictures: Tensor, factors: Tensor) -> None:
    """Times a factor (n,)."""
    pictures.mul_(_wide(factors)).clamp_(0, 1)


def _contrast(pictures: Tensor, factors: Tensor) -> None:
    """Away from the mean grey of each picture, by a factor (n,)."""
    factors = _wide(factors)
    mean = grey_of(pictures).mean((1, 2, 3), keepdim=True)
    pictures.mul_(factors).add_(mean * (1 - factors)).clamp_(0, 1)


def _saturate(pictures: Tensor, factors: Tensor) -> None:
    """Away from each pixel's grey, by a factor (n,)."""
    pictures.lerp_(grey_of(pictures), 1 - _wide(factors)).clamp_(0, 1)


def _turn_hue(pictures: Tensor, turns: Tensor) -> None:
    """Turn the hue of HSV, by a share of the circle (n,)."""
    red, green, blue = pictures.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    per = chroma.clamp_min(1e-8).reciprocal_()
    hue = (red - green).mul_(per).add_(4)  # in sixths of the circle
    hue = torch.where(value == green, (blue - red).mul_(per).add_(2), hue)
    hue = torch.where(value == red, (green - blue).mul_(per), hue)
    hue.add_(6 * turns.view(-1, 1, 1)).remainder_(6)
    # each colour falls by the chroma times how far the hue is from it, within bounds
    torch.addcmul(value, (hue - 3).abs_().sub_(2).clamp_(-1, 0), chroma, out=red)
    torch.addcmul(value, (hue - 2).abs_().neg_().add_(1).clamp_(-1, 0), chroma, out=green)
    torch.addcmul(value, (hue - 4).abs_().neg_().add_(1).clamp_(-1, 0), chroma, out=blue)


CHANGES: tuple[Callable[[Tensor, Tensor], None], ...] = (_brighten, _contrast, _saturate, _turn_hue)  # in place


def _wide(factors: Tensor) -> Tensor:
    return factors.view(-1, 1, 1, 1)
