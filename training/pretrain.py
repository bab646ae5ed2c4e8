"""Pre-train an encoder of pictures or videos, of several modalities, tasks or styles, and their like: `udr pretrain`.

::

    OUT/config.yaml        the resolved settings; another pre-training's are refused
    OUT/pictures/          the pictures as one array; OUT/videos/ the videos
    OUT/tokenizer.pt       CIM's, once it is trained
    OUT/metrics.jsonl      losses and the online probe, drawn in OUT/metrics.png
    OUT/samples.png        held-out pictures: CIM's corrupted and restored, DRIT's in the other style, maps of tasks
    OUT/encoder/           the finished encoder, STOR's with the heads of its questions; OUT/labeller/ that of labels,
                           OUT/model/ that of diffusion
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
from accelerate import PartialState
from torch import Tensor, nn

from embed.backbones import Backbone, build_backbone
from embed.image import save_backbone
from embed.translation import load_translator
from embed.video import save_video_backbone
from embed.video_backbones import VideoBackbone, build_video_backbone
from training.augment import build_views
from training.loop import PROBED, Material, Method, Probe, fit
from training.methods.cim import CIM
from training.methods.densecl import DenseCL
from training.methods.mec import MEC
from training.methods.simclr import SimCLR
from training.methods.stor import STOR
from training.pictures import Pictures, prepare_pictures, tell_left_out
from training.plots import plot_metrics
from training.pretrain_cross_modal import train_cross_modal
from training.pretrain_labels import train_labels
from training.pretrain_multi_task import train_multi_task
from training.pretrain_runs import finished_folder, result_folder
from training.pretrain_settings import LoopSettings, PretrainConfig
from training.pretrain_translation import train_translation
from training.pretrain_videos import read_videos, side_of
from training.questions import save_questions
from training.run import Report, silent
from training.samples import draw_samples
from training.tokenizer import PictureTokenizer
from training.translated_views import TranslatedViews
from udr.artifacts import replacing, write_atomically
from udr.config import load_config
from udr.devices import choose_device
from udr.distributed import place
from udr.errors import ArtifactError, ConfigError, MissingDependencyError

__all__ = ["build_method", "join_processes", "pretrain", "train_tokenizer"]


def _train_diffusion(config: PretrainConfig, folder: Path, device: str, report: Report) -> None:
    from training.pretrain_diffusion import train_diffusion  # diffusers is heavy, and no other method's

    train_diffusion(config, folder, device, report)


OF_THEIR_OWN = {  # methods whose material is no set of pictures alone
    "cross_modal": train_cross_modal,
    "multi_task": train_multi_task,
    "labels": train_labels,
    "drit": train_translation,
    "diffusion": _train_diffusion,
}
VIEWS = {"simclr": "simclr_small", "densecl": "moco_v2_small", "mec": "moco_v3_small", "cim": "beit_small"}


class _TokenizerMethod(nn.Module):
    """The tokenizer's own training in the loop that methods share."""

    shares_batches = True

    def __init__(self, tokenizer: PictureTokenizer, backbone: Backbone) -> None:
        super().__init__()
        self.tokenizer, self.backbone = tokenizer, backbone

    def forward(self, pictures: Tensor, progress: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.tokenizer(pictures)
        return found

    def after_step(self, progress: float) -> None:
        pass


def build_method(config: PretrainConfig, tokenizer: PictureTokenizer | None = None, device: str = "auto") -> Method:
    """The method with its untrained networks, drawn from the seed.

    Raises:
        ConfigError: CIM without a tokenizer.
        UnknownNameError: no such backbone or augmentation.
        ArtifactError: no such translator.
    """
    torch.manual_seed(config.seed)
    if config.method == "stor":
        clips = build_video_backbone(config.backbone, config.size, config.video.frames)
        return STOR(clips, **config.stor.model_dump())
    backbone = build_backbone(config.backbone, config.size)
    preset, wanted = config.views or VIEWS[config.method], 1 if config.method == "cim" else 2
    views = build_views(preset, config.size)
    if config.translator:
        views = TranslatedViews(views, load_translator(config.translator, device), config.translated)
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


def join_processes(device: str = "auto") -> bool:
    """Meet the other processes of `accelerate launch`; True in the one that writes and reports."""
    return bool(PartialState(cpu=choose_device(device) == "cpu").is_main_process)


def pretrain(config: PretrainConfig, device: str = "auto", report: Report = silent) -> Path:
    """Train, and save the encoder; a finished one is left as it is, and a killed run goes on.

    Started by `accelerate launch`, the processes share every batch, and the first one writes; methods that cannot share
    one refuse.

    Raises:
        ConfigError: the folder was begun with other settings, or several processes under a method that runs in one.
        DataError: no pictures.
        TrainingStopped: training diverged or collapsed.
    """
    first, everyone = join_processes(device), PartialState()
    folder, finished = result_folder(config), finished_folder(config.out) is not None
    if first:
        _hold(config, finished)
    everyone.wait_for_everyone()
    if finished:
        return folder
    if config.method in OF_THEIR_OWN:
        OF_THEIR_OWN[config.method](config, folder, device, report)
        (config.out / "checkpoint").unlink(missing_ok=True)
        return folder
    # what cannot be built is told before pictures are read and a tokenizer is trained
    method = build_method(config, PictureTokenizer(config.cim.codes), device)
    with everyone.main_process_first():  # the others read what it has prepared
        material, probe = _material(config, method, report)
    things = "videos" if config.method == "stor" else "pictures"
    if len(material) < config.loop.batch:
        raise ConfigError(f"loop.batch: {config.loop.batch} {things} in a step, and there are {len(material)}")
    if config.method == "cim":
        method = build_method(config, train_tokenizer(config, material, device, report), device)
    progress = report(f"{config.method} on {len(material)} {things}")
    lines = fit(cast(nn.Module, method), material, config.loop, config.out, config.seed, probe, device, progress)
    if first:
        with suppress(MissingDependencyError):  # pictures are worth no extra
            plot_metrics(lines, config.out / "metrics.png")
            if isinstance(method, CIM):
                draw_samples(method, probe.queries.pixels, config.seed, config.out / "samples.png")
        facts: dict[str, Any] = {"method": config.method, things: len(material), "seed": config.seed}
        facts |= {k: v for k, v in lines[-1].items() if k in ("knn", "spread")}
        if isinstance(method.backbone, VideoBackbone):
            own = config.video
            save_questions(cast(STOR, method), folder, side=side_of(config), rate=own.rate, longest=own.longest)
            save_video_backbone(method.backbone, folder, facts, rate=own.rate, pace=own.pace, clips=own.clips)
        else:
            save_backbone(cast(Backbone, method.backbone), folder, facts)
        (config.out / "checkpoint").unlink(missing_ok=True)
    everyone.wait_for_everyone()
    return folder


def _hold(config: PretrainConfig, finished: bool) -> None:
    """Keep the settings; refuse others once training has begun."""
    path = config.out / "config.yaml"
    begun = finished or any((config.out / name).exists() for name in ("metrics.jsonl", "tokenizer", "tokenizer.pt"))
    if begun and path.is_file() and load_config(PretrainConfig, path) != config:
        raise ConfigError(f"{path}: begun with other settings; give another out=FOLDER")
    if not begun:
        write_atomically(path, config.dump_yaml().encode())


def _material(config: PretrainConfig, method: Method, report: Report) -> tuple[Material, Probe]:
    if not isinstance(method, STOR):
        return _pictures(config, report)
    videos, probe = read_videos(config, report)
    method.read_from(videos)
    return videos, probe


def _pictures(config: PretrainConfig, report: Report) -> tuple[Pictures, Probe]:
    """Those that are learnt from, and what the online probe asks."""
    cache = config.out / "pictures"

    def read(split: str | None) -> Pictures:
        return prepare_pictures(config.data, config.size, cache, split, progress=report(f"reading {config.data.name}"))

    pictures = read(config.split)
    tell_left_out(pictures.unread, "pictures", pictures.left_out)
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


def train_tokenizer(config: PretrainConfig, pictures: Material, device: str, report: Report) -> PictureTokenizer:
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
    if place() == 0:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({name: value.cpu() for name, value in tokenizer.state_dict().items()}, file)
        (out / "checkpoint").unlink(missing_ok=True)
        write_atomically(config.out / "tokenizer.json", (json.dumps(lines[-1]) + "\n").encode())
    return tokenizer
