"""Labels one after another: maps of labels over the parts of a thing, attention by what was said, and an LSTM.

The parts are the cells of a picture or the words of a text; the head is the same.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from embed.backbones import Backbone, build_backbone
from embed.towers import TextTower
from udr.errors import ConfigError, UnknownNameError

__all__ = ["READS", "LabelNet", "Seen", "State", "build_label_net", "next_log_p", "pooled_maps"]

Reads = Literal["image", "text"]
READS: tuple[Reads, ...] = ("image", "text")
SHARPNESS = 4.0  # of the mean over parts: 0 is their mean, ∞ the largest of them


class Seen(NamedTuple):
    """What is known of n things before a label is said."""

    maps: Tensor  # (n, l, c) what speaks for each label in each part
    valid: Tensor  # (n, l) parts that there are
    preliminary: Tensor  # (n, c) logits of the labels, each by itself
    keys: Tensor  # (n, l, a) what attention compares with the state

    def rows(self, places: Tensor) -> Seen:
        """Those of some things (m,), which may stand there more than once."""
        return Seen(self.maps[places], self.valid[places], self.preliminary[places], self.keys[places])


class State(NamedTuple):
    """Of the LSTM, (n, hidden) each."""

    hidden: Tensor
    cell: Tensor


class TokenFeatures(nn.Module):
    """Features of tokens (n, l, d) of an encoder that does not change -> features (n, l, width); 0 is no token."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(tokens), (tokens != 0).any(2)


class LabelNet(nn.Module):
    """Things -> labels said one by one, until the end is said.

    Maps of labels and preliminary probabilities; e_i = f(v_i, h_{t−1}) over the parts i and their softmax α;
    z_t = Σ α_i v_i; an LSTM of [z_t, p_{t−1}], where p_0 are the preliminary probabilities; the next label by its
    state. Source: Chen et al. 2018, "Order-Free RNN with Visual Attention for Multi-Label Classification", arXiv
    1707.05495; what of z_t the LSTM is given is gated by its state: Xu et al. 2015, arXiv 1502.03044, section 4.2.1.

    Three things are ours, so that a label is looked for where it is. p_{t−1} is 1 at the label that was said, and each
    path of a search goes on from its own choice. f is a scaled product of a part's features with those of the state and
    of what was said last, without which attention would stay where that was. And z_t, which lies in the space of
    labels, speaks for them directly, beside the state.

    Args:
        features: a `Backbone`, a `TextTower`, or `TokenFeatures`.
        dim: its features of a part.
        count: labels, c; the end is number c.
        hidden: of the LSTM.
        attention: features in which parts and state are compared.
        embedding: of what was said last.
    """

    def __init__(
        self,
        features: nn.Module,
        dim: int,
        count: int,
        *,
        hidden: int = 256,
        attention: int = 128,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        self.features, self.count, self.dim = features, count, dim
        self.maps = nn.Linear(dim, count)
        self.of_part, self.of_state = nn.Linear(count, attention), nn.Linear(hidden + embedding, attention)
        self.gate = nn.Linear(hidden, count)
        self.said = nn.Linear(count, embedding)
        self.lstm = nn.LSTMCell(count + embedding, hidden)
        self.last = nn.Linear(hidden, count + 1)

    @property
    def device(self) -> torch.device:
        return self.last.weight.device

    def parts(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, l, dim), and valid parts (n, l), of what `features` reads.

        Shape: pixels (n, 3, s, s) from 0 to 1, letter groups (n, w, g), or features of tokens (n, l, d).
        """
        if isinstance(self.features, Backbone):
            cells = self.features(inputs).flatten(2).transpose(1, 2)
            return cells, torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)
        found: tuple[Tensor, Tensor] = self.features(inputs)
        return found

    def pooled(self, inputs: Tensor) -> Tensor:
        """The mean over parts, (n, dim)."""
        parts, valid = self.parts(inputs)
        mean: Tensor = (parts * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
        return mean

    def see(self, inputs: Tensor) -> Seen:
        """Maps and preliminary logits, float32."""
        parts, valid = self.parts(inputs)
        maps = self.maps(parts).float()
        return Seen(maps, valid, pooled_maps(maps, valid), self.of_part(maps))

    def begin(self, count: int) -> State:
        """The state before anything is said."""
        hidden = self.last.weight.new_zeros(count, self.lstm.hidden_size)
        return State(hidden, hidden)

    def step(self, seen: Seen, state: State, before: Tensor) -> tuple[Tensor, State, Tensor]:
        """Logits (n, c + 1) of what is said next, the state after it, and the attention (n, l).

        Args:
            seen: what is known.
            state: after what was said last.
            before: (n, c) the preliminary probabilities at first, then 1 at the label that was said last.
        """
        said = self.said(before)
        query = self.of_state(torch.cat([state.hidden, said], 1))[:, None]
        scores = (seen.keys * query).sum(2) / seen.keys.shape[2] ** 0.5
        attention = scores.float().masked_fill(~seen.valid, float("-inf")).softmax(1)
        z = (attention[..., None] * seen.maps).sum(1)
        gated = z.sigmoid() * self.gate(state.hidden).sigmoid()
        after = State(*self.lstm(torch.cat([gated, said], 1), tuple(state)))
        return self.last(after.hidden).float() + nn.functional.pad(z, (0, 1)), after, attention


def pooled_maps(maps: Tensor, valid: Tensor) -> Tensor:
    """A soft maximum of maps (n, l, c) over valid parts (n, l): (1/r) log mean exp(r · v), (n, c).

    A label that stands in one part alone is found by it, and each part has a share in learning. Source: Pinheiro and
    Collobert 2015, arXiv 1411.6228, section 3.2.
    """
    hidden = (SHARPNESS * maps).masked_fill(~valid[..., None], float("-inf"))
    count = valid.sum(1, keepdim=True).clamp_min(1).to(maps.dtype)
    return (hidden.logsumexp(1) - count.log()) / SHARPNESS


def next_log_p(logits: Tensor, said: Tensor) -> Tensor:
    """Log-probabilities (n, c + 1) of what is said next; labels that were said (n, c) have none left."""
    blocked = torch.cat([said, torch.zeros_like(said[:, :1])], 1)
    return logits.masked_fill(blocked, float("-inf")).log_softmax(1)


def build_label_net(
    reads: str,
    count: int,
    *,
    backbone: str = "conv",
    size: int = 32,
    width: int = 128,
    token_dim: int = 0,
    hidden: int = 256,
    attention: int = 128,
    embedding: int = 64,
) -> LabelNet:
    """An untrained net.

    Args:
        reads: image or text.
        count: labels.
        backbone: of pictures (see embed.backbones), for pictures of `size` pixels.
        width: of the network of texts.
        token_dim: features of a token, of an encoder that reads texts for the net; 0: it reads them itself.
        hidden, attention, embedding: see `LabelNet`.

    Raises:
        UnknownNameError: no such backbone or kind of input.
        ConfigError: no labels.
    """
    if reads not in READS:
        raise UnknownNameError("kind of input", reads, READS)
    if count < 1:
        raise ConfigError("no labels to learn")
    features: nn.Module
    if reads == "image":
        features = build_backbone(backbone, size)
    else:
        features = TokenFeatures(token_dim, width) if token_dim else TextTower(width, width)
    dim = features.dim if isinstance(features, Backbone) else width
    return LabelNet(features, dim, count, hidden=hidden, attention=attention, embedding=embedding)
