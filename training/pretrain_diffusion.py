"""Train a text-to-image model on canvases that are made on the spot: the stages of `udr pretrain` for diffusion."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from training.captioned import Captioned, read_captioned
from training.loop import fit
from training.methods.diffusion import Diffusion
from training.plots import plot_metrics
from training.pretrain_settings import PretrainConfig
from training.run import Report
from training.sheets import draw_rows
from training.synthesis.canvases import Canvases
from training.synthesis.model import own_model, save_text_to_image
from training.synthesis.network import build_network
from training.synthesis.vocabulary import Vocabulary, words_of
from udr.errors import MissingDependencyError

__all__ = ["build_diffusion", "network_shape", "read_canvases", "train_diffusion"]

SHOWN = 6  # rows of the sheet


def read_canvases(config: PretrainConfig, things: list[Captioned]) -> Canvases:
    """Where pictures are drawn from.

    Raises:
        DataError: a thing without a name.
        ConfigError: things that do not fit on a canvas.
    """
    own = config.diffusion
    return Canvases(things, config.size, own.sides, own.things, own.canvases)


def network_shape(config: PretrainConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the network is made by (`build_network`)."""
    own = config.diffusion.model_dump(include={"patch", "widths", "attention", "text_dim", "text_layers", "length"})
    return {"size": config.size, "ids": len(vocabulary), **own}


def build_diffusion(config: PretrainConfig, canvases: Canvases) -> tuple[Diffusion, Vocabulary]:
    """The method with its untrained network, drawn from the seed, and the words that it reads.

    Raises:
        ConfigError: sizes that do not fit each other, or captions that are longer than what is read.
    """
    vocabulary = Vocabulary.of(canvases.names, config.diffusion.length)
    longest = sorted(canvases.names, key=lambda name: len(words_of(name)))[-config.diffusion.things :]
    vocabulary.padded(" and ".join(f"a {name}" for name in longest))
    torch.manual_seed(config.seed)
    net = build_network(**network_shape(config, vocabulary))
    own = config.diffusion.model_dump(include={"patch", "captions_dropped", "momentum"})
    return Diffusion(net, canvases, vocabulary, **own), vocabulary


def train_diffusion(config: PretrainConfig, folder: Path, device: str, report: Report) -> None:
    """Train, and save the model in `folder`, with a sheet of what it makes.

    Raises:
        ConfigError: settings that do not fit.
        DataError: no captioned things.
        TrainingStopped: training diverged.
    """
    canvases = read_canvases(config, read_captioned(config.data, config.split))
    method, vocabulary = build_diffusion(config, canvases)
    told = report(f"diffusion on canvases of {len(canvases.things)} things")
    lines = fit(method, canvases, config.loop, config.out, config.seed, None, device, told)
    with suppress(MissingDependencyError):  # pictures are worth no extra
        plot_metrics(lines, config.out / "metrics.png")
        _draw_samples(method, vocabulary, config)
    facts = {"method": "diffusion", "things": len(canvases.things), "steps": lines[-1]["step"] + 1}
    shape = network_shape(config, vocabulary)
    save_text_to_image(method.backbone, folder, shape, vocabulary.words, {**facts, "seed": config.seed})


def _draw_samples(method: Diffusion, vocabulary: Vocabulary, config: PretrainConfig) -> None:
    """Draw canvases beside pictures of their captions, one seed a column."""
    model = own_model(method.backbone, vocabulary, config.size, config.diffusion.patch, "in training")
    torch.manual_seed(config.seed)
    made = method.canvases.drawn(SHOWN)
    seeds = range(4)
    rows = []
    for canvas in made:
        noise = torch.stack([model.noise(seed) for seed in seeds])
        rows.append([canvas.pixels, *model.decode(model.paint(noise, [canvas.caption] * len(noise)))])
    titles = ["a canvas", *(f"seed {seed}" for seed in seeds)]
    draw_rows(rows, titles, config.out / "samples.png", "canvases, and what their captions become")
