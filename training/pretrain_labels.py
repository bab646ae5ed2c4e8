"""Train a labeller from things with labels: the stages of `udr pretrain` for method labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embed.backbones import Backbone
from embed.image import load_image_encoder, save_backbone
from embed.labeller import Label, Labeller, backbone_of, open_text_encoder, save_labeller
from embed.labelling import LabelNet, Reads, build_label_net
from training.label_metrics import label_scores
from training.labelled import LabelledThings, prepare_labelled, read_labelled
from training.loop import fit
from training.methods.labels import Labels
from training.pictures import tell_left_out
from training.plots import plot_metrics
from training.pretrain_settings import PretrainConfig
from training.probes import spread
from training.run import Report
from udr.encoder import BiEncoder
from udr.errors import ConfigError, MissingDependencyError
from udr.types import FloatArray

__all__ = ["LabelProbe", "build_labels", "confidences", "label_shape", "train_labels"]

PROBED = 500  # things of the online probe at most
OF_METHOD = ("order", "preliminary_weight", "preliminary_first", "moved", "words_dropped")


def label_shape(config: PretrainConfig, encoder: BiEncoder | None = None) -> dict[str, Any]:
    """What the net is made by (`build_label_net`); `encoder` reads texts for it."""
    own = config.labels.model_dump(include={"width", "hidden", "attention", "embedding"})
    return {"backbone": config.backbone, "size": config.size, "token_dim": encoder.dim if encoder else 0, **own}


def build_labels(config: PretrainConfig, things: LabelledThings, encoder: BiEncoder | None = None) -> Labels:
    """The method with its untrained net, drawn from the seed, or with a backbone that was learnt before.

    Raises:
        UnknownNameError: no such backbone.
        ConfigError: the encoder to begin from is another network.
    """
    torch.manual_seed(config.seed)
    own = config.labels
    net = build_label_net(own.reads, len(things.names), **label_shape(config, encoder))
    if own.encoder and own.reads == "image":
        _begin_from(net, Path(own.encoder.removeprefix("artifact:")))
    return Labels(net, things, **own.model_dump(include=set(OF_METHOD)))


def _begin_from(net: LabelNet, folder: Path) -> None:
    backbone, learnt = net.features, load_image_encoder(folder, "cpu").backbone
    if not isinstance(backbone, Backbone) or (backbone.name, backbone.size) != (learnt.name, learnt.size):
        raise ConfigError(
            f"labels.encoder: {folder} is a {learnt.name} for pictures of {learnt.size} pixels; "
            f"set backbone={learnt.name} size={learnt.size} labels.reads=image"
        )
    backbone.load_state_dict(learnt.state_dict())


def train_labels(config: PretrainConfig, folder: Path, device: str, report: Report) -> None:
    """Train, and save the labeller in `folder`; one of pictures also as an image encoder beside it.

    Raises:
        ConfigError: settings that do not fit.
        DataError: no labelled things.
        TrainingStopped: training diverged or collapsed.
    """
    own, progress = config.labels, report(f"reading {config.data.name}")
    rows = read_labelled(config.data, config.split)
    encoder = open_text_encoder(own.encoder, device) if own.encoder and own.reads == "text" else None
    things = prepare_labelled(rows, own.reads, config.size, None, own.fewest, encoder, progress)
    tell_left_out(len(things.left_out), "things", things.left_out)
    method = build_labels(config, things, encoder)
    probe = None
    if config.held_out:
        held = read_labelled(config.data, config.held_out)[:PROBED]
        asked = prepare_labelled(held, own.reads, config.size, things.names, encoder=encoder)
        probe = LabelProbe(asked, things.most, own.order != "bce")
    what = f"labels of {len(things)} things"
    lines = fit(method, things, config.loop, config.out, config.seed, probe, device, report(what))
    with suppress(MissingDependencyError):  # the picture is worth no extra
        plot_metrics(lines, config.out / "metrics.png")
    facts: dict[str, Any] = {"method": "labels", "things": len(things), "seed": config.seed, "order": own.order}
    facts |= {k: v for k, v in lines[-1].items() if k in ("cf1", "of1", "spread")}
    labeller = _labeller(method.net, things, config, encoder)
    backbone = backbone_of(labeller)
    if backbone is not None:
        save_backbone(backbone, config.out / "encoder", facts)
    save_labeller(labeller, folder, label_shape(config, encoder), facts, own.encoder)


def _labeller(net: LabelNet, things: LabelledThings, config: PretrainConfig, encoder: BiEncoder | None) -> Labeller:
    own, size = config.labels, config.size
    ordered = own.order != "bce"
    return Labeller(net, own.reads, things.names, size=size, most=things.most, ordered=ordered, encoder=encoder)


def confidences(found: Sequence[Sequence[Label]], names: Sequence[str]) -> FloatArray:
    """Confidences of labels found, (n, c), 0 where one was not."""
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(found), len(names)), np.float32)
    for i, labels in enumerate(found):
        for label in labels:
            table[i, place[label.name]] = label.confidence
    return table


class LabelProbe:
    """The online probe: CF1 and OF1 of the most probable steps, on things that are not learnt from.

    Args:
        things: with their labels, those that are learnt.
        most: labels of a thing at most.
        ordered: labels are said one by one.
    """

    def __init__(self, things: LabelledThings, most: int, ordered: bool) -> None:
        self._things, self._most, self._ordered = things, most, ordered

    @torch.inference_mode()
    def __call__(self, net: LabelNet, k: int) -> dict[str, float]:
        """Scores, and how far features spread."""
        was_training = net.training
        reads: Reads = "image" if self._things.inputs.dtype == torch.uint8 else "text"
        labeller = Labeller(net, reads, self._things.names, most=self._most, ordered=self._ordered)
        table = confidences(labeller.label_inputs(self._things.inputs, beam=1), self._things.names)
        truth: NDArray[np.bool_] = self._things.targets.numpy()
        scores = label_scores(table > 0, truth)
        pooled = labeller.pooled(self._things.inputs)
        net.train(was_training)
        return {"cf1": scores["CF1"], "of1": scores["OF1"], "spread": spread(pooled)}
