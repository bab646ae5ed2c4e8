"""What image encoders learn from unlabelled pictures: probes against an untrained backbone and raw pixels; the gates.

    python tests/benchmarks/pictures.py methods data=FILE.parquet name=cifar10 out=FOLDER [epochs=…] [seeds=0,1,2]
        [only=simclr,mec] [views=PRESET]
    python tests/benchmarks/pictures.py mec|densecl|cim data=FILE.parquet name=cifar10 out=FOLDER [epochs=…]
    python tests/benchmarks/pictures.py speed data=FILE.parquet

methods   every bundled pre-training: linear and kNN accuracy on split test, with the time it took
mec       the series and the exact form at the same settings: where the former stops
densecl   dense matching, how often a cell's match is the cell that shows the same place, for λ = .5 and 0
cim       the generator's loss, the enhancer's against trivial answers, and how tokens are drawn
speed     pictures a second of each method
Results: results/pictures_METHOD_NAME.json of methods, gates_PART_NAME.json of mec, densecl and cim, and
pictures_speed.json. Run alone.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from record import write_result
from rich.console import Console
from torch import nn

from embed.backbones import Backbone, build_backbone
from embed.image import load_image_encoder
from training.loop import fit
from training.losses.cim import normalised_pixels, replaced_loss, restored_loss
from training.losses.densecl import match_cells
from training.methods.cim import CIM
from training.pictures import Pictures, prepare_pictures
from training.pretrain import build_method, pretrain, train_tokenizer
from training.pretrain_settings import PretrainConfig
from training.probes import features, knn_accuracy, linear_accuracy
from training.progress import hush_transformers, reporting
from training.tokenizer import PictureTokenizer
from udr.config import load_config
from udr.errors import TrainingStopped

CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "pretrain"
METHODS = ("simclr", "densecl", "mec", "cim")


def settings(method: str, data: str, out: Path, *more: str) -> PretrainConfig:
    return load_config(PretrainConfig, CONFIGS / f"{method}.yaml", [f"data={data}", f"out={out}", *more])


def trained(config: PretrainConfig) -> Backbone:
    with reporting(Console(stderr=True)) as report:
        return load_image_encoder(pretrain(config, "cpu", report), "cpu").backbone


def probed(make: Any, known: Pictures, asked: Pictures) -> dict[str, float]:
    names = {label: i for i, label in enumerate(sorted(set(known.labels or ())))}
    y, z = (np.array([names[label] for label in part.labels or ()], np.int64) for part in (known, asked))
    bank, queries = make(known.pixels), make(asked.pixels)
    return {
        "linear": round(100 * linear_accuracy(bank, y, queries, z), 2),
        "knn": round(100 * knn_accuracy(bank, y, queries, z), 2),
    }


def methods(
    data: str, name: str, out: str, epochs: str = "", seeds: str = "0", only: str = ",".join(METHODS), views: str = ""
) -> None:
    cache = Path(out) / "pictures"
    known, asked = (prepare_pictures(Path(data), 32, cache, split) for split in ("train", "test"))
    pixels = probed(lambda p: p, known, asked)
    print("pixels", pixels, flush=True)
    for method in only.split(","):
        rows = []
        for seed in seeds.split(","):
            more = [f"seed={seed}", *([f"loop.epochs={epochs}"] if epochs else [])]
            more += [f"views={views}"] if views and method != "cim" else []  # CIM makes one view of each
            config = settings(method, data, Path(out) / f"{method}-{seed}", *more)
            torch.manual_seed(config.seed)
            untrained = build_backbone(config.backbone, config.size)
            begun = time.perf_counter()
            backbone = trained(config)
            row: dict[str, Any] = {"seconds": round(time.perf_counter() - begun)}
            row |= {
                "untrained": probed(lambda p, b=untrained: features(b, p), known, asked),
                "trained": probed(lambda p, b=backbone: features(b, p), known, asked),
            }
            print(method, seed, row, flush=True)
            rows.append({"seed": int(seed), **row})
        facts = {"pictures": len(known), "asked": len(asked), "epochs": config.loop.epochs, "views": config.views}
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        write_result(f"pictures_{method}_{name}", {**facts, "peak_mb": peak, "pixels": pixels, "runs": rows})


def mec(data: str, name: str, out: str, epochs: str = "5") -> None:
    found: dict[str, Any] = {}
    for mode in ("exact", "taylor"):
        config = settings("mec", data, Path(out) / f"mec-{mode}", f"mec.mode={mode}", f"loop.epochs={epochs}")
        try:
            trained(config)
            found[mode] = "went to its end"
        except TrainingStopped as error:
            found[mode] = str(error)
        print(mode, found[mode], flush=True)
    write_result(f"gates_mec_{name}", found)


def matching(backbone: Backbone, pixels: np.ndarray, shift: int = 8) -> float:
    """Share of cells whose match in the same picture, moved by `shift` pixels, is the cell that it moved to."""
    wide = torch.from_numpy(np.array(pixels)).float() / 255
    with torch.inference_mode():
        cells, moved = backbone.eval()(wide), backbone(wide.roll(shift, 3))
    by = shift * cells.shape[3] // wide.shape[3]
    side = cells.shape[3]
    matched = match_cells(cells.flatten(2), moved.flatten(2)).view(-1, side, side)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    right = matched == rows * side + (columns + by)
    return float(right[:, :, : side - by].float().mean())


def densecl(data: str, name: str, out: str, epochs: str = "10") -> None:
    cache = Path(out) / "pictures"
    known, asked = (prepare_pictures(Path(data), 32, cache, split) for split in ("train", "test"))
    torch.manual_seed(0)
    untrained = build_backbone("conv_wide", 32)
    found: dict[str, Any] = {"untrained": {"matching": round(100 * matching(untrained, asked.pixels), 1)}}
    for weight in ("0.5", "0"):
        more = (f"densecl.dense_weight={weight}", f"loop.epochs={epochs}")
        backbone = trained(settings("densecl", data, Path(out) / f"densecl-{weight}", *more))
        row: dict[str, Any] = {"matching": round(100 * matching(backbone, asked.pixels), 1)}
        found[f"weight_{weight}"] = row | probed(lambda p, b=backbone: features(b, p), known, asked)
        print(weight, found[f"weight_{weight}"], flush=True)
    write_result(f"gates_densecl_{name}", found)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive scores above a negative."""
    order = scores.argsort()
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    count = positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def held_out(method: CIM, pictures: torch.Tensor) -> dict[str, float]:
    """Losses on pictures that were not learnt from, beside trivial answers."""
    torch.manual_seed(0)
    method.eval()
    with torch.inference_mode():
        corrupted, sampled, golden, masked, logits = method.corrupt(pictures)
        used = torch.bincount(golden.flatten(), minlength=logits.shape[2]).float() / golden.numel()
        own = nn.functional.cross_entropy(logits[masked], golden[masked])
        found = {
            "generator": float(own),
            "unigram_entropy": float(-(used * used.clamp_min(1e-10).log()).sum()),
            "uniform": float(np.log(logits.shape[2])),
            "replaced": float((sampled != golden).float().mean()),
        }
        out = method.head(method.backbone(corrupted))
        if method.objective == "restore":
            restored = nn.functional.pixel_shuffle(out, method.pixels)
            found |= {
                "restored": float(restored_loss(restored, pictures, method.window)),
                "zero": float(restored_loss(torch.zeros_like(pictures), pictures, method.window)),
                "copy": float(restored_loss(normalised_pixels(corrupted, method.window), pictures, method.window)),
            }
        else:
            scores = method.detected(out)
            found["detected"] = float(replaced_loss(scores, sampled, golden))
            found["auc"] = auc(scores.flatten().numpy(), (sampled != golden).flatten().numpy())
    return {key: round(value, 4) for key, value in found.items()}


def cim(data: str, name: str, out: str, epochs: str = "8") -> None:
    cache = Path(out) / "pictures"
    known, asked = (prepare_pictures(Path(data), 32, cache, split) for split in ("train", "test"))
    pictures = torch.from_numpy(np.array(asked.pixels[:1000])).float() / 255
    found: dict[str, Any] = {}
    ways = [("restore", "sample", b) for b in ("vit_tiny_4", "conv_wide")] + [
        ("detect", tokens, "vit_tiny_4") for tokens in ("sample", "argmax", "uniform")
    ]
    for objective, tokens, backbone in (*ways, ("detect", "sample", "conv_wide")):
        title = f"{objective}_{tokens}_{backbone}"
        more = [f"cim.objective={objective}", f"cim.tokens={tokens}", f"backbone={backbone}", f"loop.epochs={epochs}"]
        config = settings("cim", data, Path(out) / f"cim-{title}", *more)
        tokenizer = PictureTokenizer(config.cim.codes)
        shared = Path(out) / "cim-tokenizer.pt"
        with reporting(Console(stderr=True)) as report:
            if shared.is_file():
                tokenizer.load_state_dict(torch.load(shared, weights_only=True))
            else:
                tokenizer = train_tokenizer(config, known, "cpu", report)
                torch.save(tokenizer.state_dict(), shared)
            method = cast(CIM, build_method(config, tokenizer))
            fit(method, known, config.loop, config.out, 0, None, "cpu", report(title))
        found[title] = held_out(method, pictures) | probed(lambda p, b=method.backbone: features(b, p), known, asked)
        print(title, found[title], flush=True)
    write_result(f"gates_cim_{name}", found)


def speed(data: str, steps: str = "30") -> None:
    pictures = prepare_pictures(Path(data), 32, Path("runs/pictures"), "train")
    found = {}
    for method in METHODS:
        config = settings(method, data, Path("runs") / "speed" / method)
        made = build_method(config, PictureTokenizer(config.cim.codes))
        share = int(steps) / (len(pictures) // config.loop.batch)
        loop = config.loop.model_copy(update={"epochs": share})
        lines = fit(cast(nn.Module, made), pictures, loop, config.out, device="cpu")
        found[method] = round(float(np.median([line["pictures_per_s"] for line in lines[1:]])), 1)
        print(method, found[method], flush=True)
    write_result("pictures_speed", found)


PARTS = {"methods": methods, "mec": mec, "densecl": densecl, "cim": cim, "speed": speed}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    hush_transformers()
    PARTS[sys.argv[1]](**dict(argument.split("=", 1) for argument in sys.argv[2:]))
