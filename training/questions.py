"""The questions that a video encoder learnt by, kept beside it: how well it answers them of videos never seen."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from embed.folders import WEIGHTS, save_folder
from embed.video_backbones import VideoBackbone
from training.clips import Videos, prepare_videos
from training.methods.stor import QUESTIONS, STOR
from udr.artifacts import fingerprint_files, read_json
from udr.errors import ArtifactError
from udr.types import Progress

__all__ = ["answered", "load_questions", "question_accuracies", "save_questions"]

FOLDER, FILE = "questions", "questions.json"  # within an encoder's folder
DRAWS = 4  # pairs of clips of each video that are asked of
AT_ONCE = 60  # pairs in one forward pass


def save_questions(method: STOR, folder: Path, *, side: int, rate: float, longest: float) -> None:
    """Write the heads into an encoder's folder, and how videos were read; nothing where no question was asked.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    if method.heads:
        facts = {"questions": list(method.heads), "paces": method.paces, "side": side, "rate": rate, "longest": longest}
        save_folder(
            method.heads, folder / FOLDER, facts, FILE, lambda own, _: fingerprint_files(own, (".safetensors",))
        )


def load_questions(folder: Path, backbone: VideoBackbone) -> STOR | None:
    """What `save_questions` wrote, over the encoder's backbone; None: the encoder has no questions.

    Raises:
        ArtifactError: files that differ from what was saved.
    """
    own = folder / FOLDER
    if not (own / FILE).is_file():
        return None
    saved = read_json(own / FILE)
    if not (own / WEIGHTS).is_file() or fingerprint_files(own, (".safetensors",)) != saved.get("fingerprint"):
        raise ArtifactError(f"{own}: the questions' files differ from what was saved; restore or delete the folder")
    try:
        asked = {name: float(name in saved["questions"]) for name in QUESTIONS}
        method = STOR(
            backbone,
            contrastive=0.0,
            spatial=asked["spatial"],
            temporal=asked["temporal"],
            pace=asked["pace"],
            rotation=asked["rotation"],
            paces=int(saved["paces"]),
        )
        method.heads.load_state_dict(load_file(own / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError, ValueError, LookupError) as error:
        raise ArtifactError(f"{own}: not the heads of such an encoder ({str(error).splitlines()[0]})") from None
    return method.to(backbone.device)


def question_accuracies(method: STOR, videos: Videos, seed: int = 0) -> dict[str, float]:
    """Accuracy of each question on pairs of clips of videos, turned and cut as in training but not augmented further.

    The same seed draws the same pairs.
    """
    method.eval()
    method.read_from(videos)
    device = method.backbone.device
    right: dict[str, list[float]] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in range(DRAWS):
            for part in torch.split(torch.arange(len(videos)), AT_ONCE):
                clips = method.draw(part, 0.0)
                answers = method.answers(*(method.backbone.pooled(c) for c in (clips.first, clips.second)))
                for name, logits in answers.items():
                    labels = clips.labels[name].reshape(len(logits), -1)
                    hits = torch.stack([x.argmax(1) for x in logits]) == labels
                    right.setdefault(name, []).extend(hits.float().mean(0).tolist())
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def answered(
    folder: Path,
    backbone: VideoBackbone,
    source: Path,
    names: Collection[str],
    cache: Path,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Of each question that an encoder's folder holds its accuracy on some videos of a folder, beside chance.

    Raises:
        ArtifactError: a damaged folder.
        DataError: no video can be read.
    """
    method = load_questions(folder, backbone)
    if method is None:
        return {}
    saved = read_json(folder / FOLDER / FILE)
    videos = prepare_videos(
        source, int(saved["side"]), float(saved["rate"]), float(saved["longest"]), cache, progress=progress, names=names
    )
    accuracies = question_accuracies(method, videos, seed)
    chances = {name: 1 / classes for name, classes in method.classes.items()}
    return {name: {"accuracy": value, "chance": chances[name]} for name, value in accuracies.items()}
