"""Train encoders of content and attribute, and a translator, from two styles: `udr pretrain` for method drit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from embed.translation import Translator, calibrate, save_translator
from embed.translation_nets import TranslationNet
from training.loop import fit
from training.methods.drit import DRIT
from training.pictures import Pictures, prepare_pictures, tell_left_out
from training.plots import plot_metrics
from training.pretrain_settings import PretrainConfig
from training.probes import spread
from training.run import Report
from training.translate import draw_translations
from training.unpaired import Unpaired
from udr.errors import ConfigError, MissingDependencyError

__all__ = ["TranslationProbe", "build_drit", "train_translation"]

PROBED = 100  # pictures of each style that the online probe looks at
SHOWN, DRAWS = 8, 4  # rows of the sheet, and attributes that are drawn for each
OF_NET = ("width", "blocks", "attribute_blocks", "attributes")
OF_DATA = ("other", "styles")


@dataclass(frozen=True)
class TranslationProbe:
    """How far contents spread, and how far apart two pictures of the same content are whose attributes were drawn.

    The distance is the mean absolute one, in steps of 255.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]

    def __call__(self, net: TranslationNet, k: int) -> dict[str, float]:
        was_training = net.training
        calibrate(net, (self.first, self.second))
        translator = Translator(net, ("0", "1"), "in training")
        contents = np.concatenate([translator.contents(self.first), translator.contents(self.second)])
        found = {"spread": spread(contents), "distance": distance_of_draws(translator, self.first, 1)}
        net.train(was_training)
        return found


def distance_of_draws(translator: Translator, pixels: NDArray[np.uint8], style: int, seed: int = 0) -> float:
    """Mean absolute difference, in steps of 255, of pictures (n, 3, s, s) made twice with attributes drawn for each."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((2, len(pixels), translator.net.attributes), np.float32)
    first, second = (translator.translate(pixels, style, z).astype(np.float32) for z in drawn)
    return float(np.abs(first - second).mean())


def shape_of(config: PretrainConfig) -> dict[str, int]:
    """What `TranslationNet` is made by."""
    return {"size": config.size, **config.drit.model_dump(include=set(OF_NET))}


def build_drit(config: PretrainConfig) -> DRIT:
    """The method with its untrained networks, drawn from the seed.

    Raises:
        ConfigError: pictures that do not fit, or a batch without two halves.
    """
    if config.loop.batch % 2:
        raise ConfigError(f"loop.batch: {config.loop.batch} pictures have no two halves, which drit needs")
    torch.manual_seed(config.seed)
    net = TranslationNet(**shape_of(config))
    return DRIT(net, **config.drit.model_dump(exclude={*OF_NET, *OF_DATA}))


def train_translation(config: PretrainConfig, folder: Path, device: str, report: Report) -> None:
    """Train, and save the translator in `folder`, with a sheet of held-out pictures in OUT/samples.png.

    Raises:
        ConfigError: no second style, or settings that do not fit.
        DataError: no pictures.
        TrainingStopped: training diverged or collapsed.
    """
    if config.drit.other is None:
        raise ConfigError("drit.other: where are the pictures of the second style? (`data` holds those of the first)")
    method = build_drit(config)
    sources = (config.data, config.drit.other)
    known = [_read(config, source, config.split, report) for source in sources]
    material = Unpaired(known[0], known[1], config.seed)
    if len(material) < config.loop.batch:
        raise ConfigError(f"loop.batch: {config.loop.batch} pictures in a step, and there are {len(material)}")
    asked = [_read(config, s, config.held_out, report) for s in sources] if config.held_out else known
    probe = TranslationProbe(asked[0].pixels[:PROBED], asked[1].pixels[:PROBED])
    progress = report(f"drit on {len(known[0])} and {len(known[1])} pictures")
    lines = fit(method, material, config.loop, config.out, config.seed, probe, device, progress)
    calibrate(method.net, [part.pixels for part in known])
    facts: dict[str, Any] = {"method": "drit", "pictures": [len(part) for part in known], "seed": config.seed}
    facts |= {name: lines[-1][name] for name in ("spread", "distance") if name in lines[-1]}
    with suppress(MissingDependencyError):  # pictures are worth no extra
        plot_metrics(lines, config.out / "metrics.png")
        _draw(Translator(method.net, config.drit.styles, ""), asked, config)
    save_translator(method.net, config.drit.styles, shape_of(config), folder, facts)


def _read(config: PretrainConfig, source: Path, split: str | None, report: Report) -> Pictures:
    told = report(f"reading {source.name}")
    found = prepare_pictures(source, config.size, config.out / "pictures", split, progress=told)
    tell_left_out(found.unread, f"pictures of {source.name}", found.left_out)
    return found


def _draw(translator: Translator, asked: Sequence[Pictures], config: PretrainConfig) -> None:
    parts = [cast(NDArray[np.uint8], np.array(part.pixels[:SHOWN])) for part in asked]
    title = f"held-out pictures as {' and '.join(reversed(translator.styles))}: their own attribute, and drawn ones"
    draw_translations(translator, parts, DRAWS, config.seed, config.out / "samples.png", title)
