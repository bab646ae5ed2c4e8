"""Pre-train an image encoder from unlabelled pictures: `udr pretrain`.

::

    OUT/config.yaml        the resolved settings; another pre-training's are refused
    OUT/pictures/          the pictures as one array
    OUT/tokenizer.pt       CIM's, once it is trained
    OUT/metrics.jsonl      losses and the online probe, drawn in OUT/metrics.png
    OUT/encoder/           the finished encoder
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from embed.backbones import Backbone, build_backbone
from embed.image import save_backbone
from training.augment import build_views
from training.loop import PROBED, Method, Probe, fit
from training.methods.cim import CIM
from training.methods.densecl import DenseCL
from training.methods.mec import MEC
from training.methods.simclr import SimCLR
from training.pictures import Pictures, prepare_pictures
from training.plots import plot_metrics
from training.pretrain_cross_modal import train_cross_modal
from training.pretrain_settings import LoopSettings, PretrainConfig
from training.run import Report, silent
from training.tokenizer import PictureTokenizer
from udr.artifacts import replacing, write_atomically
from udr.config import load_config
from udr.errors import ArtifactError, ConfigError, MissingDependencyError

__all__ = ["build_method", "pretrain", "train_tokenizer"]


VIEWS = {"simclr": "simclr_small", "densecl": "moco_v2_small", "mec": "moco_v3_small", "cim": "beit_small"}


class _TokenizerMethod(nn.Module):
    """The tokenizer's own training in the loop that methods share."""

    def __init__(self, tokenizer: PictureTokenizer, backbone: Backbone) -> None:
        super().__init__()
        self.tokenizer, self.backbone = tokenizer, backbone

    def forward(self, pictures: Tensor, progress: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.tokenizer(pictures)
        return found

    def after_step(self, progress: float) -> None:
        pass


def build_method(config: PretrainConfig, tokenizer: PictureTokenizer | None = None) -> Method:
    """The method with its untrained networks, drawn from the seed.

    Raises:
        ConfigError: CIM without a tokenizer.
        UnknownNameError: no such backbone or augmentation.
    """
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.backbone, config.size)
    preset, wanted = config.views or VIEWS[config.method], 1 if config.method == "cim" else 2
    views = build_views(preset, config.size)
    if len(views.pipelines) != wanted:
        raise ConfigError(
            f"views: {preset} makes {len(views.pipelines)} of each picture, {config.method} takes {wanted}"
        )
    if config.method == "simclr":
        return SimCLR(backbone, views, **config.simclr.model_dump())
    if config.method == "densecl":
        return DenseCL(backbone, views, **config.densecl.model_dump())
    if config.method == "mec":
        return MEC(backbone, views, **config.mec.model_dump())
    if tokenizer is None:
        raise ConfigError("cim: needs a tokenizer")
    return CIM(backbone, views, tokenizer, **config.cim.model_dump(exclude={"codes", "tokenizer_epochs"}))


def pretrain(config: PretrainConfig, device: str = "auto", report: Report = silent) -> Path:
    """Train, and save the encoder; a finished one is left as it is, and a killed run goes on.

    Raises:
        ConfigError: the folder was begun with other settings.
        DataError: no pictures.
        TrainingStopped: training diverged or collapsed.
    """
    folder = config.out / "encoder"
    finished = (folder / "encoder.json").is_file()
    _hold(config, finished)
    if finished:
        return folder
    if config.method == "cross_modal":
        train_cross_modal(config, folder, device, report)
        (config.out / "checkpoint").unlink(missing_ok=True)
        return folder
    # what cannot be built is told before pictures are read and a tokenizer is trained
    method = build_method(config, PictureTokenizer(config.cim.codes))
    pictures, probe = _pictures(config, report)
    if len(pictures) < config.loop.batch:
        raise ConfigError(f"loop.batch: {config.loop.batch} pictures in a step, and there are {len(pictures)}")
    if config.method == "cim":
        method = build_method(config, train_tokenizer(config, pictures, device, report))
    progress = report(f"{config.method} on {len(pictures)} pictures")
    lines = fit(cast(nn.Module, method), pictures, config.loop, config.out, config.seed, probe, device, progress)
    with suppress(MissingDependencyError):  # the picture is worth no extra
        plot_metrics(lines, config.out / "metrics.png")
    facts: dict[str, Any] = {"method": config.method, "pictures": len(pictures), "seed": config.seed}
    save_backbone(method.backbone, folder, facts | {k: v for k, v in lines[-1].items() if k in ("knn", "spread")})
    (config.out / "checkpoint").unlink(missing_ok=True)
    return folder


def _hold(config: PretrainConfig, finished: bool) -> None:
    """Keep the settings; refuse others once training has begun."""
    path = config.out / "config.yaml"
    begun = finished or any((config.out / name).exists() for name in ("metrics.jsonl", "tokenizer", "tokenizer.pt"))
    if begun and path.is_file() and load_config(PretrainConfig, path) != config:
        raise ConfigError(f"{path}: begun with other settings; give another out=FOLDER")
    if not begun:
        write_atomically(path, config.dump_yaml().encode())


def _pictures(config: PretrainConfig, report: Report) -> tuple[Pictures, Probe]:
    """Those that are learnt from, and what the online probe asks."""
    cache = config.out / "pictures"

    def read(split: str | None) -> Pictures:
        return prepare_pictures(config.data, config.size, cache, split, progress=report(f"reading {config.data.name}"))

    pictures = read(config.split)
    if pictures.unread:
        report(f"{pictures.unread} pictures left out, such as {pictures.left_out[0]}")(0, 0)
    if config.held_out:
        return pictures, Probe(pictures, read(config.held_out))
    # no pictures are kept from training: what is asked is only how it goes
    order = np.random.default_rng(config.seed).permutation(len(pictures))
    cut = max(1, len(order) // 10)
    bank, asked = order[cut:][:PROBED], order[:cut][: PROBED // 5]
    return pictures, Probe(_some(pictures, bank), _some(pictures, asked))


def _some(pictures: Pictures, rows: np.ndarray) -> Pictures:
    labels = None if pictures.labels is None else tuple(pictures.labels[i] for i in rows)
    return replace(pictures, pixels=pictures.pixels[rows], names=tuple(pictures.names[i] for i in rows), labels=labels)


def train_tokenizer(config: PretrainConfig, pictures: Pictures, device: str, report: Report) -> PictureTokenizer:
    """CIM's tokenizer, trained on the same pictures, or as it was kept."""
    if config.size % PictureTokenizer.STRIDE:
        raise ConfigError(f"size: {config.size} pixels are no multiple of the tokenizer's {PictureTokenizer.STRIDE}")
    torch.manual_seed(config.seed)
    tokenizer, path = PictureTokenizer(config.cim.codes), config.out / "tokenizer.pt"
    if path.is_file():
        try:
            tokenizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError, UnpicklingError):
            raise ArtifactError(f"{path}: damaged, or of other settings; delete it to begin anew") from None
        return tokenizer
    method = _TokenizerMethod(tokenizer, build_backbone("conv", config.size))
    settings = LoopSettings(
        epochs=config.cim.tokenizer_epochs, batch=min(config.loop.batch, len(pictures)), warmup=0.02
    )
    out = config.out / "tokenizer"
    lines = fit(method, pictures, settings, out, config.seed, None, device, report("tokenizer"))
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({name: value.cpu() for name, value in tokenizer.state_dict().items()}, file)
    (out / "checkpoint").unlink(missing_ok=True)
    write_atomically(config.out / "tokenizer.json", (json.dumps(lines[-1]) + "\n").encode())
    return tokenizer
