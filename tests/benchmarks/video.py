"""What a video encoder learns from unlabelled videos whose class is a motion; the gates, and how fast it is.

    python tests/benchmarks/video.py motion out=FOLDER [seeds=0,1,2] [steps=1000] [videos=480] [only=stor,byol,shuffled]
    python tests/benchmarks/video.py ablation out=FOLDER [steps=1000] [videos=480] [only=…]
    python tests/benchmarks/video.py speed out=FOLDER

motion    rendered videos (moving.py) never seen before: motion class by neighbours and a linear probe, with STOR, with
          its contrastive part alone (BYOL) and untrained; each question beside chance; overlap labels shuffled
ablation  each part of STOR left out, and alone
speed     clips a second: the decoder, and the networks forward, apart
Results: results/video_PART.json. Run alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
from moving import MOTIONS, RATE, SECONDS, SIDE, render
from record import write_result
from torch import Tensor, nn

from embed.video_backbones import VIDEO_BACKBONES, VideoBackbone, build_video_backbone
from embed.video_media import open_video
from training.clip_pairs import RATES, draw_boxes
from training.clips import Videos, middle_clips, prepare_videos
from training.loop import fit
from training.methods.stor import QUESTIONS, STOR, Clips
from training.pretrain_settings import PretrainConfig
from training.probes import features, knn_accuracy, linear_accuracy
from training.questions import question_accuracies
from udr.config import load_config

CONFIG = Path(__file__).parents[2] / "training" / "configs" / "pretrain" / "stor.yaml"
CHANCE = {"spatial": 0.2, "temporal": 0.2, "pace": 0.25, "rotation": 0.25}
NONE = dict.fromkeys(("contrastive", *QUESTIONS), 0.0)
ASKED = 240  # unseen videos


class Shuffled(STOR):
    """Overlap labels go to other pairs of the batch, so that nothing can be learnt of them."""

    def draw(self, numbers: Tensor, strong: float) -> Clips:
        found = super().draw(numbers, strong)
        if self.training:
            for name in ("spatial", "temporal"):
                found.labels[name] = found.labels[name][torch.randperm(len(numbers))]
        return found


def by_size_alone(side: int, draws: int = 20_000) -> float:
    """How often the spatial label can be told by the size of the crops, since small ones alone overlap little."""
    random, sizes, labels = Random(0), [], []
    for _ in range(draws):
        label = random.randrange(len(RATES))
        box = draw_boxes(side, label, random)[0]
        sizes.append(box.width * box.height)
        labels.append(label)
    bins = np.digitize(sizes, np.quantile(sizes, np.linspace(0, 1, 21)[1:-1]))
    best = [np.bincount(np.array(labels)[bins == b]).max(initial=0) for b in range(20)]
    return round(sum(best) / draws, 4)


def probed(backbone: VideoBackbone, known: Videos, asked: Videos, pace: int, frozen: bool = False) -> dict[str, float]:
    """R@1 and linear accuracy of the motion class; `frozen`: of one frame that stands still."""
    parts = []
    for videos in (known, asked):
        clips = middle_clips(videos, np.arange(len(videos)), backbone.frames, pace, backbone.size)
        pixels = np.array(clips.pixels)
        if frozen:
            pixels[:] = pixels[:, :1]
        parts.append((features(backbone, pixels), clips.classes))
    (bank, y), (queries, z) = parts
    return {
        "r1": round(knn_accuracy(bank, y, queries, z, 1), 4),
        "linear": round(linear_accuracy(bank, y, queries, z), 4),
    }


def settings(out: Path, seed: int, steps: int, videos: int) -> PretrainConfig:
    batch = load_config(PretrainConfig, CONFIG, []).loop.batch
    epochs = steps / (videos // batch)
    return load_config(PretrainConfig, CONFIG, [f"data={out}", f"out={out}", f"seed={seed}", f"loop.epochs={epochs}"])


def data(out: Path, config: PretrainConfig, videos: int) -> tuple[Videos, Videos]:
    own = config.video
    return cast(
        tuple[Videos, Videos],
        tuple(
            prepare_videos(render(out / name, count, seed), own.side, own.rate, own.longest, out / "cache")
            for name, count, seed in (("known", videos, 0), ("asked", ASKED, 1))
        ),
    )


def trained(
    name: str, config: PretrainConfig, known: Videos, out: Path, weights: dict[str, float], kind: type[STOR] = STOR
) -> tuple[STOR, float]:
    """A method trained on the videos, and the processor's seconds that it took."""
    torch.manual_seed(config.seed)
    backbone = build_video_backbone(config.backbone, config.size, config.video.frames)
    method = kind(backbone, **(config.stor.model_dump() | weights))
    method.read_from(known)
    begun = time.process_time()
    fit(cast(nn.Module, method), known, config.loop, out / f"{name}-{config.seed}", config.seed, None, "cpu")
    return method, round(time.process_time() - begun, 1)


def kept(
    path: Path,
    name: str,
    config: PretrainConfig,
    known: Videos,
    asked: Videos,
    weights: dict[str, float],
    kind: type[STOR],
) -> dict[str, Any]:
    """Figures of a training, or those that were kept of it: a benchmark that was stopped goes on."""
    if path.is_file():
        return cast(dict[str, Any], json.loads(path.read_text()))
    method, seconds = trained(name, config, known, path.parent, weights, kind)
    pace = config.video.pace
    row: dict[str, Any] = {"cpu_seconds": seconds, "motion": probed(method.backbone, known, asked, pace)}
    row |= {
        "one_frame": probed(method.backbone, known, asked, pace, True),
        "pretext": question_accuracies(method, asked),
    }
    print(name, config.seed, row, flush=True)
    path.write_text(json.dumps(row))
    return row


WAYS: dict[str, tuple[dict[str, float], type[STOR]]] = {
    "stor": ({}, STOR),
    "byol": (NONE | {"contrastive": 1.0}, STOR),
    "shuffled": ({}, Shuffled),
}


def motion(
    out: str, seeds: str = "0,1,2", steps: str = "1000", videos: str = "480", only: str = "stor,byol,shuffled"
) -> None:
    folder, found = Path(out), cast(dict[str, Any], {"untrained": []})
    for seed in map(int, seeds.split(",")):
        config = settings(folder, seed, int(steps), int(videos))
        known, asked = data(folder, config, int(videos))
        torch.manual_seed(seed)
        untrained = build_video_backbone(config.backbone, config.size, config.video.frames)
        found["untrained"].append({"seed": seed, "motion": probed(untrained, known, asked, config.video.pace)})
        for name in only.split(","):
            if name == "shuffled" and seed != 0:
                continue
            row = {"seed": seed} | kept(folder / f"{name}-{seed}.json", name, config, known, asked, *WAYS[name])
            found.setdefault(name, []).append(row)
        write_motion(found, config, int(videos), int(steps))


def write_motion(found: dict[str, Any], config: PretrainConfig, videos: int, steps: int) -> None:
    means = {
        name: {
            **{key: round(float(np.mean([r["motion"][key] for r in rows])), 4) for key in ("r1", "linear")},
            **{q: round(float(np.mean([r["pretext"][q] for r in rows])), 4) for q in rows[0].get("pretext", {})},
        }
        for name, rows in found.items()
    }
    facts = {
        "videos": videos,
        "asked": ASKED,
        "steps": steps,
        "batch": config.loop.batch,
        "backbone": config.backbone,
        "clips": {"frames": config.video.frames, "size": config.size, "pace": config.video.pace},
        "rendered": {"side": SIDE, "rate": RATE, "seconds": SECONDS, "classes": len(MOTIONS)},
        "chance": {**CHANCE, "motion": round(1 / len(MOTIONS), 4)},
        "spatial_by_size_alone": by_size_alone(config.video.side),
    }
    write_result("video_motion", {**facts, "means": means, **found})


def ablation(out: str, steps: str = "1000", videos: str = "480", only: str = "") -> None:
    folder = Path(out)
    config = settings(folder, 0, int(steps), int(videos))
    known, asked = data(folder, config, int(videos))
    parts = tuple(NONE)
    ways = {"all": {}} | {f"without_{p}": {p: 0.0} for p in parts} | {f"{p}_alone": NONE | {p: 1.0} for p in parts}
    found: dict[str, Any] = {}
    for name in only.split(",") if only else ways:
        found[name] = kept(folder / "ablation" / f"{name}.json", name, config, known, asked, ways[name], STOR)
        write_result("video_ablation", {"videos": len(known), "steps": int(steps), "seed": 0, **found})


def speed(out: str, clips: str = "64") -> None:
    """One thread: what one core does."""
    torch.set_num_threads(1)
    count, found = int(clips), cast(dict[str, Any], {})
    files = sorted(render(Path(out) / "asked", ASKED, 1).rglob("*.mp4"))[:count]
    begun = time.process_time()
    for path in files:
        with open_video(path) as video:
            video.frames(np.linspace(1, 3, 16).tolist(), 112)
    rate = round(len(files) / (time.process_time() - begun), 1)
    found["decoder"] = {"clips_per_s": rate, "of": f"{SIDE} px, 16 frames"}
    for name in VIDEO_BACKBONES:
        size, frames = (24, 8) if name.endswith(("tiny", "small")) else (112, 16)
        backbone = build_video_backbone(name, size, frames).eval()
        batch = torch.rand(16 if size < 100 else 1, frames, 3, size, size)
        with torch.inference_mode():
            backbone.pooled(batch)
            begun, times = time.process_time(), 0
            while time.process_time() - begun < 2:
                backbone.pooled(batch)
                times += 1
        rate = round(times * len(batch) / (time.process_time() - begun), 2)
        found[name] = {"clips_per_s": rate, "of": f"{size} px, {frames} frames"}
        print(name, found[name], flush=True)
    write_result("video_speed", {"threads": 1, **found})


PARTS = {"motion": motion, "ablation": ablation, "speed": speed}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    PARTS[sys.argv[1]](**dict(argument.split("=", 1) for argument in sys.argv[2:]))
