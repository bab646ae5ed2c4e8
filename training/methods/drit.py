"""DRIT++: pictures of two styles, unpaired, are taken apart into content and attribute, and translated either way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.translation_nets import STYLES, TranslationNet
from training.heads import in_full
from training.judges import ContentJudge, PictureJudge
from training.losses import drit as losses
from training.turns import Turn

__all__ = ["DRIT"]

BETAS = (0.5, 0.999)  # of Adam


class _Crossed(NamedTuple):
    """What becomes of a pair of batches; each a list by style.

    Args:
        content, mean, log_variance, attribute: of the pictures.
        made: pictures in a style with the other style's contents and this style's attributes.
        again: pictures put together from their own parts.
    """

    content: list[Tensor]
    mean: list[Tensor]
    log_variance: list[Tensor]
    attribute: list[Tensor]
    made: list[Tensor]
    again: list[Tensor]


class DRIT(nn.Module):
    """Two encoders and a generator for each style, and judges of pictures and of contents, which learn by turns.

    Source: Lee et al. 2018, "Diverse Image-to-Image Translation via Disentangled Representations", arXiv 1808.00948,
    and 2020, "DRIT++", arXiv 1905.01270. Of a batch one half is taken apart; the other is what the second pair of
    judges knows as real, beside pictures with attributes that were drawn.

    Args:
        net: which is learnt and serves.
        judge_width, judge_layers, judge_scales: of the judges of pictures.
        judge_every: steps of which all but one move the judge of contents alone.
        judge_rate, judge_clip: its rate, a share of the others', and how long its gradient may be.
        style, passing, cycle, reconstruction, kl, content_size, latent, mode_seeking: weights of the losses.
        mirror: whether half of the pictures are mirrored.
        shift: pixels that pictures are moved by at most, their edges repeated.
    """

    def __init__(
        self,
        net: TranslationNet,
        *,
        judge_width: int,
        judge_layers: int,
        judge_scales: int,
        judge_every: int = 3,
        judge_rate: float = 0.4,
        judge_clip: float = 5.0,
        style: float = 1.0,
        passing: float = 1.0,
        cycle: float = 10.0,
        reconstruction: float = 10.0,
        kl: float = 0.01,
        content_size: float = 0.01,
        latent: float = 10.0,
        mode_seeking: float = 1.0,
        mirror: bool = True,
        shift: int = 2,
    ) -> None:
        super().__init__()
        self.net = net
        shape = net.size, judge_width, judge_layers, judge_scales
        self.judges = nn.ModuleList(PictureJudge(*shape) for _ in range(STYLES))
        self.judges_of_drawn = nn.ModuleList(PictureJudge(*shape) for _ in range(STYLES))
        self.content_judge = ContentJudge(4 * net.width, net.size // 4)
        self.judge_every, self.judge_rate, self.judge_clip = judge_every, judge_rate, judge_clip
        self.weights = {"style": style, "passing": passing, "cycle": cycle, "reconstruction": reconstruction}
        self.weights |= {"kl": kl, "content_size": content_size}
        self.weights_alone = {"passing_drawn": passing, "latent": latent, "mode_seeking": mode_seeking}
        self.mirror, self.shift = mirror, shift

    @property
    def backbone(self) -> TranslationNet:
        return self.net

    def optimizers(self, lr: float, weight_decay: float) -> dict[str, torch.optim.Optimizer]:
        """Adam for each group of networks; the decay is of the kind that is added to gradients."""
        net = self.net
        networks: dict[str, list[nn.Module]] = {
            "content": [net.content, net.content_shared],
            "attribute": [net.attribute],
            "generator": [net.generator, net.generator_shared],
            "judges": [self.judges, self.judges_of_drawn],
            "content_judge": [self.content_judge],
        }
        found: dict[str, torch.optim.Optimizer] = {}
        for name, modules in networks.items():
            group: dict[str, Any] = {"params": [p for module in modules for p in module.parameters()]}
            if name == "content_judge":
                group |= {"scale": self.judge_rate, "clip": self.judge_clip}
            found[name] = torch.optim.Adam([group], lr, BETAS, weight_decay=weight_decay)
        return found

    def turns(self, batch: Tensor, step: int) -> Iterator[Turn]:
        """The judge of contents alone, or all of it; of a batch (n, 2, 3, s, s) from 0 to 1, n even."""
        with torch.no_grad():
            real = [self._varied(part) for part in batch.unbind(1)]
        if (step + 1) % self.judge_every:
            with torch.no_grad():
                contents = [self.net.contents(pictures, i) for i, pictures in enumerate(real)]
            found = self._style_loss(contents)
            yield Turn({"loss": found, "judge_style": found}, ("content_judge",))
            return
        half = len(batch) // 2
        known, others = ([pictures[part] for pictures in real] for part in (slice(half), slice(half, None)))
        drawn = torch.randn(2, half, self.net.attributes, device=batch.device)  # the same for both styles
        crossed = self._cross(known)
        yield self._judges_turn(crossed, known, others, drawn)
        with _still(self.judges, self.judges_of_drawn, self.content_judge):
            yield self._crossed_turn(crossed, known)
            yield self._drawn_turn(known, drawn)

    def after_step(self, progress: float) -> None:
        """Nothing follows."""

    def _varied(self, pictures: Tensor) -> Tensor:
        """Mirrored and moved pictures (n, 3, s, s), from -1 to 1, in an order that is drawn."""
        count, size, device = len(pictures), pictures.shape[2], pictures.device
        found = pictures[torch.randperm(count).to(device)] * 2 - 1
        if self.shift:
            wide = F.pad(found, (self.shift,) * 4, mode="replicate")
            by = torch.randint(2 * self.shift + 1, (2, count, 1)).to(device) + torch.arange(size, device=device)
            numbers = torch.arange(count, device=device)[:, None, None]
            found = wide[numbers, :, by[0][:, :, None], by[1][:, None, :]].permute(0, 3, 1, 2)
        if self.mirror:
            found = torch.where((torch.rand(count) < 0.5).to(device)[:, None, None, None], found.flip(3), found)
        return found.contiguous(memory_format=torch.channels_last)

    def _cross(self, known: list[Tensor]) -> _Crossed:
        net = self.net
        content = [net.contents(pictures, i) for i, pictures in enumerate(known)]
        read = [net.attribute_of(pictures, i) for i, pictures in enumerate(known)]
        mean, log_variance = ([both[part].float() for both in read] for part in (0, 1))
        attribute = [_drawn_from(m, v) for m, v in zip(mean, log_variance, strict=True)]
        made, again = [], []
        for i in range(STYLES):  # both at once: a style's generator takes either style's contents
            both = net.pictures(torch.cat([content[1 - i], content[i]]), attribute[i].repeat(2, 1), i)
            made.append(both[: len(known[0])].float())
            again.append(both[len(known[0]) :].float())
        return _Crossed(content, mean, log_variance, attribute, made, again)

    def _judges_turn(self, crossed: _Crossed, known: list[Tensor], others: list[Tensor], drawn: Tensor) -> Turn:
        found: dict[str, Tensor] = {"judge_style": self._style_loss([c.detach() for c in crossed.content])}
        with torch.no_grad():
            made = self._draw([c.detach() for c in crossed.content], drawn)
        by_scale = [
            losses.judge_loss(_full(self.judges[i](known[i])), _full(self.judges[i](crossed.made[i].detach())))
            for i in range(STYLES)
        ]
        for i in range(STYLES):
            real = _full(self.judges_of_drawn[i](others[i]))
            by_scale += [losses.judge_loss(real, _full(self.judges_of_drawn[i](pictures))) for pictures in made[i]]
        found["judge_pictures"] = torch.stack(by_scale).sum()
        return Turn({"loss": found["judge_style"] + found["judge_pictures"], **found}, ("judges", "content_judge"))

    def _crossed_turn(self, crossed: _Crossed, known: list[Tensor]) -> Turn:
        """Encoders and generators: contents without style, pictures that pass, ways back, small codes."""
        back = self._cross(crossed.made)  # a picture in style i holds the contents of style 1 - i
        told = [self.content_judge(c).float() for c in crossed.content]
        passed = [_full(self.judges[i](crossed.made[i])) for i in range(STYLES)]
        with in_full(known[0]):
            found = {
                "style": losses.content_loss(told),
                "passing": _total([losses.passing_loss(x) for x in passed]),
                "cycle": _total([F.l1_loss(back.made[i], known[i]) for i in range(STYLES)]),
                "reconstruction": _total([F.l1_loss(crossed.again[i], known[i]) for i in range(STYLES)]),
                "kl": _total([losses.kl_loss(*pair) for pair in zip(crossed.mean, crossed.log_variance, strict=True)]),
                "content_size": _total([losses.content_size(c.float()) for c in crossed.content]),
            }
        return Turn(_weighted(found, self.weights), ("content", "attribute", "generator"))

    def _drawn_turn(self, known: list[Tensor], drawn: Tensor) -> Turn:
        """Content encoders and generators alone: attributes that were drawn are seen in what is made with them."""
        made = self._draw([self.net.contents(pictures, i) for i, pictures in enumerate(known)], drawn)
        read = [self.net.attribute_of(made[i][0], i)[0].float() for i in range(STYLES)]
        passed = [_full(self.judges_of_drawn[i](made[i][0])) for i in range(STYLES)]
        with in_full(known[0]):
            found = {
                "passing_drawn": _total([losses.passing_loss(x) for x in passed]),
                "latent": _total([losses.regression_loss(read[i], drawn[0]) for i in range(STYLES)]),
                "mode_seeking": _total([losses.mode_seeking_loss(*made[i], drawn[0], drawn[1]) for i in range(STYLES)]),
            }
        return Turn(_weighted(found, self.weights_alone), ("content", "generator"))

    def _draw(self, contents: list[Tensor], drawn: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each style pictures of the other's contents with the first and the second attribute of `drawn`."""
        found = []
        for i in range(STYLES):
            first, second = self.net.pictures(contents[1 - i].repeat(2, 1, 1, 1), drawn.flatten(0, 1), i).chunk(2)
            found.append((first.float(), second.float()))
        return found

    def _style_loss(self, contents: list[Tensor]) -> Tensor:
        return losses.style_loss([self.content_judge(c).float() for c in contents])


class _still:
    """Gradients of these networks' weights are not computed meanwhile; those of what they are given are."""

    def __init__(self, *networks: nn.Module) -> None:
        self.networks = networks

    def __enter__(self) -> None:
        for network in self.networks:
            network.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for network in self.networks:
            network.requires_grad_(True)


def _drawn_from(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * (log_variance / 2).exp()


def _full(logits: list[Tensor]) -> list[Tensor]:
    return [x.float() for x in logits]


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum()


def _weighted(found: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    return {"loss": _total([weights[name] * value for name, value in found.items()]), **found}
