"""Train a cross-modal encoder from captioned things: the stages of `udr pretrain` for method cross_modal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embed.cross_modal import CrossModalEncoder, CrossModalNet, build_net, open_frozen, save_cross_modal
from training.captioned import Captioned, read_captioned
from training.loop import fit
from training.material import Material, prepare_material
from training.methods.cross_modal import CrossModal
from training.pictures import tell_left_out
from training.plots import plot_metrics
from training.pretrain_settings import PretrainConfig
from training.retrieval import RetrievalProbe
from training.run import Report
from udr.errors import ConfigError, MissingDependencyError
from udr.types import Encoder

__all__ = ["build_cross_modal", "train_cross_modal"]

PROBED = 300  # things of the online probe at most
OF_METHOD = ("code_matching_weight", "commitment", "warm_start", "temperature", "composed", "words_dropped")


def net_shape(config: PretrainConfig, frozen: dict[Any, Encoder]) -> dict[str, Any]:
    """What the networks are made by (`build_net`)."""
    own = config.cross_modal
    return {
        "modalities": list(own.modalities),
        "backbone": config.backbone,
        "size": config.size,
        "frozen": {modality: encoder.dim for modality, encoder in frozen.items()},
        **own.model_dump(include={"dim", "out", "codes", "width", "slots", "patience"}),
    }


def build_cross_modal(config: PretrainConfig, material: Material, frozen: dict[Any, Encoder]) -> CrossModal:
    """The method with its untrained networks, drawn from the seed.

    Raises:
        UnknownNameError: no such backbone.
    """
    torch.manual_seed(config.seed)
    net = build_net(**net_shape(config, frozen))
    return CrossModal(net, material, config.size, **config.cross_modal.model_dump(include=set(OF_METHOD)))


def train_cross_modal(config: PretrainConfig, folder: Path, device: str, report: Report) -> None:
    """Train, and save the encoder in `folder`.

    Raises:
        ConfigError: settings that do not fit, or a frozen encoder that cannot be loaded.
        DataError: no captioned things.
        TrainingStopped: training diverged or collapsed.
    """
    own = config.cross_modal
    frozen = open_frozen(own.frozen, device)
    material = _material(config, read_captioned(config.data, config.split), frozen, report)
    method = build_cross_modal(config, material, frozen)
    probe = None
    if config.held_out:
        asked = read_captioned(config.data, config.held_out)[:PROBED]
        language = own.languages[0] if own.languages else ""
        probe = RetrievalProbe(lambda: _as_encoder(method.net, config, frozen), asked, language)
    lines = fit(
        method,
        material,
        config.loop,
        config.out,
        config.seed,
        probe,
        device,
        report(f"cross_modal on {len(material)} things"),
    )
    with suppress(MissingDependencyError):  # the picture is worth no extra
        plot_metrics(lines, config.out / "metrics.png")
    facts: dict[str, Any] = {"method": "cross_modal", "things": len(material), "seed": config.seed}
    facts |= {k: v for k, v in lines[-1].items() if k in ("recall_at_10", "spread", "perplexity")}
    kept = {m: {"address": own.frozen[m], "fingerprint": e.fingerprint} for m, e in frozen.items()}
    save_cross_modal(method.net, folder, net_shape(config, frozen) | {"frozen_encoders": kept}, facts)


def _material(config: PretrainConfig, rows: list[Captioned], frozen: dict[Any, Encoder], report: Report) -> Material:
    own = config.cross_modal
    more = [row for table in own.more_data for row in read_captioned(table)]
    progress = report(f"reading {config.data.name}")
    order = np.concatenate([np.tile(np.arange(len(rows)), own.repeat), np.arange(len(rows), len(rows) + len(more))])
    material = prepare_material([*rows, *more], config.size, own.modalities, own.languages, frozen, order, progress)
    tell_left_out(material.left_out, "pictures and sounds")
    if len(material) < config.loop.batch:
        raise ConfigError(f"loop.batch: {config.loop.batch} things in a step, and there are {len(material)}")
    return material


def _as_encoder(net: CrossModalNet, config: PretrainConfig, frozen: dict[Any, Encoder]) -> CrossModalEncoder:
    return CrossModalEncoder(net, config.size, frozen, "in training")
