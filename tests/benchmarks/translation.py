r"""Translation between Google's and Twitter's emoji, learnt unpaired and scored by pairs that training never saw.

    udr data styles --out runs/styles
    python -m tests.benchmarks.translation run data=runs/styles out=runs/drit [seeds=0] [name=32] [KEY=VALUE ...]
    python -m tests.benchmarks.translation score data=runs/styles run=runs/drit/0 [name=32]
    python -m tests.benchmarks.translation augment data=runs/styles out=runs/drit translator=runs/drit/0/encoder \
        [seeds=0] [epochs=40] [share=0.5]

run      trains (run it again to go on), and asks of unseen emoji: is the pair found, by pixels, by the pixels of the
         translation, by the content's vector; what a linear classifier reads of the style; how far two draws differ.
         Further KEY=VALUE are settings of the pre-training.
score    the same of a run as far as it is, unfinished ones by their last checkpoint.
augment  SimCLR on both styles, with views of translated pictures and without, one after the other.
Results: results/translation_NAME.json with every gate and whether it is passed, and results/translation_augment.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Console

from embed.backbones import build_backbone
from embed.image import load_image_encoder
from embed.translation import Translator, calibrate, load_translator
from embed.translation_nets import CELLS
from tests.benchmarks.record import write_result
from training.pictures import prepare_pictures
from training.pretrain import pretrain
from training.pretrain_settings import PretrainConfig
from training.pretrain_translation import build_drit, distance_of_draws
from training.probes import features, linear_accuracy
from training.progress import hush_transformers, reporting
from udr.config import load_config
from udr.types import FloatArray

CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "pretrain"
STYLES = ("google", "twitter")
DRAWS = 8  # attributes that a translation is averaged over
READ, UNREAD, DIFFERENT = 0.9, 0.6, 4.0  # gates: accuracies of a probe of two styles; steps of 255 between two draws
Pixels = NDArray[np.uint8]


def recall(queries: NDArray[Any], gallery: NDArray[Any]) -> dict[str, float]:
    """R@1 and R@10 by cosines of rows whose pair has the same number, in percent."""
    asked, known = (x.reshape(len(x), -1).astype(np.float32) for x in (queries, gallery))
    asked, known = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (asked, known))
    sims = asked @ known.T
    better = (sims > np.diag(sims)[:, None]).sum(1)
    return {f"R@{k}": round(100 * float((better < k).mean()), 1) for k in (1, 10)}


def both_ways(found: Callable[[int], tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, dict[str, float]]:
    """`found(style)` gives queries of a style and the gallery of the other one."""
    return {f"{STYLES[i]} -> {STYLES[1 - i]}": recall(*found(i)) for i in (0, 1)}


def read(data: Path, out: Path, size: int) -> dict[str, list[Pixels]]:
    """Pixels of both styles, of each split."""
    found = {}
    for split in ("train", "test"):
        parts = [prepare_pictures(data / f"{style}.parquet", size, out / "pictures", split) for style in STYLES]
        assert parts[0].labels == parts[1].labels
        found[split] = [np.array(part.pixels) for part in parts]
    return found


def translated(own: Translator, pixels: Sequence[Pixels], style: int, draws: int) -> NDArray[Any]:
    """Pictures of a style in the other one: with their own attribute, or the mean over drawn ones (`draws` > 0)."""
    rng, source, to = np.random.default_rng(0), pixels[style], 1 - style
    if not draws:
        return own.translate(source, to, own.attributes_in(source, to))
    shape = (len(source), own.net.attributes)
    made = [own.translate(source, to, rng.standard_normal(shape, np.float32)) for _ in range(draws)]
    mean: NDArray[Any] = np.mean([m.astype(np.float32) for m in made], 0)
    return mean


def raw_contents(own: Translator, pixels: Pixels, style: int) -> FloatArray:
    """Content codes as the encoder of their own style gives them, nothing taken off."""
    with torch.inference_mode():
        part = torch.from_numpy(pixels).float() / 127.5 - 1
        cells = own.net.contents(part, style)
        return torch.nn.functional.adaptive_avg_pool2d(cells, CELLS).flatten(1).numpy()


def same_style(own: Translator, asked: Sequence[Pixels], k: int = 10) -> float:
    """Share of the nearest by attribute that have the query's style, its own pair left out; half by chance."""
    vectors, count = np.concatenate([own.attributes(part) for part in asked]), len(asked[0])
    styles, numbers = np.repeat([0, 1], count), np.tile(np.arange(count), 2)
    sims = np.where(numbers[:, None] == numbers, -np.inf, vectors @ vectors.T)
    return round(float((styles[np.argsort(-sims, 1)[:, :k]] == styles[:, None]).mean()), 4)


def style_accuracy(make: Callable[[Pixels, int], FloatArray], pixels: dict[str, list[Pixels]]) -> float:
    """Share of unseen pictures whose style a linear classifier of `make(pixels, style)` tells, learnt on seen ones."""
    sides = []
    for split in ("train", "test"):
        rows = np.concatenate([make(part, style) for style, part in enumerate(pixels[split])])
        labels = np.repeat(np.arange(2), [len(part) for part in pixels[split]])
        order = np.random.default_rng(0).permutation(len(rows))
        sides += [rows[order], labels[order]]
    return round(linear_accuracy(*sides), 4)


def scored(own: Translator, pixels: dict[str, list[Pixels]]) -> dict[str, Any]:
    asked = pixels["test"]
    return {
        "translated, own attribute": both_ways(lambda i: (translated(own, asked, i, 0), asked[1 - i])),
        "translated, drawn attributes": both_ways(lambda i: (translated(own, asked, i, DRAWS), asked[1 - i])),
        "content": both_ways(lambda i: (own.contents(asked[i]), own.contents(asked[1 - i]))),
        "attribute": both_ways(lambda i: (own.attributes(asked[i]), own.attributes(asked[1 - i]))),
        "attribute: same style among 10": same_style(own, asked),
        "style read from": {
            "attribute": style_accuracy(lambda p, _: own.attributes(p), pixels),
            "content, as the judge left it": style_accuracy(lambda p, i: raw_contents(own, p, i), pixels),
            "content, as it is indexed": style_accuracy(lambda p, _: own.contents(p), pixels),
        },
        "distance of two draws": round(distance_of_draws(own, asked[0], 1), 2),
    }


def gates(pixels: dict[str, Any], found: dict[str, Any]) -> dict[str, bool]:
    def above(title: str) -> bool:
        return all(found[title][way][k] > pixels[way][k] for way in pixels for k in ("R@1", "R@10"))

    probes = found["style read from"]
    return {
        "translated retrieval above raw pixels": above("translated, own attribute"),
        "content finds the pair better than raw pixels": above("content"),
        f"style is read from the attribute ({READ:.0%})": probes["attribute"] >= READ,
        f"and not from the content as the judge left it ({UNREAD:.0%})": probes["content, as the judge left it"]
        <= UNREAD,
        f"nor from the content as it is indexed ({UNREAD:.0%})": probes["content, as it is indexed"] <= UNREAD,
        f"two draws differ ({DIFFERENT} of 255)": found["distance of two draws"] >= DIFFERENT,
    }


def run(data: str, out: str, seeds: str = "0", name: str = "32", **more: str) -> None:
    rows = []
    for seed in seeds.split(","):
        given = [f"data={data}/google.parquet", f"drit.other={data}/twitter.parquet", f"out={out}/{seed}"]
        given += [f"seed={seed}", *(f"{key}={value}" for key, value in more.items())]
        config = load_config(PretrainConfig, CONFIGS / "drit.yaml", given)
        with reporting(Console(stderr=True)) as report:
            pretrain(config, "cpu", report)
        rows.append(row_of(config, Path(data)))
    _write(config, name, rows)


def score(data: str, run: str, name: str = "32") -> None:
    config = load_config(PretrainConfig, Path(run) / "config.yaml")
    _write(config, name, [row_of(config, Path(data))])


def row_of(config: PretrainConfig, data: Path) -> dict[str, Any]:
    """What a run is worth, by its encoder or, before it is finished, by its checkpoint."""
    pixels = read(data, config.out, config.size)
    asked, means = pixels["test"], [part.mean(0, dtype=np.float32) for part in pixels["train"]]
    raw = both_ways(lambda i: (asked[i], asked[1 - i]))
    untrained = build_drit(config).net
    calibrate(untrained, pixels["train"])
    before = Translator(untrained, STYLES, "")
    row: dict[str, Any] = {"seed": config.seed}
    if (config.out / "encoder" / "encoder.json").is_file():
        own = load_translator(config.out / "encoder", "cpu")
        lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
        row["of_steps"] = lines[-1]["step"] + 1
    else:
        state, method = torch.load(config.out / "checkpoint", weights_only=True), build_drit(config)
        method.load_state_dict(state["method"])
        calibrate(method.net, pixels["train"])
        own, lines = Translator(method.net, STYLES, ""), json.loads(state["lines"])
        row["of_steps"] = state["steps"]
    row |= {
        "steps": lines[-1]["step"] + 1,
        "seconds": seconds(lines, config.loop.batch),
        "pictures": {split: len(parts[0]) for split, parts in pixels.items()},
        "pixels": raw,
        "pixels less their style's mean": both_ways(lambda i: (asked[i] - means[i], asked[1 - i] - means[1 - i])),
        "untrained": {"content": both_ways(lambda i: (before.contents(asked[i]), before.contents(asked[1 - i])))},
        **scored(own, pixels),
    }
    row["gates"] = gates(raw, row)
    print(json.dumps(row, indent=1), flush=True)
    return row


def _write(config: PretrainConfig, name: str, rows: list[dict[str, Any]]) -> None:
    settings = {"size": config.size, "loop": config.loop.model_dump(mode="json")}
    settings |= {"drit": config.drit.model_dump(mode="json", exclude={"other"})}
    write_result(f"translation_{name}", {"settings": settings, "runs": rows})


def seconds(lines: list[dict[str, Any]], batch: int) -> int:
    """Of training, over all its calls, as its metrics tell its speed."""
    steps = np.diff([-1, *(line["step"] for line in lines)])
    return round(sum(n * batch / line["pictures_per_s"] for n, line in zip(steps, lines, strict=True)))


def augment(data: str, out: str, translator: str, seeds: str = "0", epochs: str = "40", share: str = "0.5") -> None:
    own, folder = load_translator(Path(translator), "cpu"), Path(out)
    pixels = read(Path(data), folder, own.size)
    both = folder / "both.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(Path(data) / f"{style}.parquet") for style in STYLES]), both)
    rows = []
    for seed in seeds.split(","):
        row: dict[str, Any] = {"seed": int(seed)}
        for title, more in (("plain", []), ("translated", [f"translator={translator}", f"translated={share}"])):
            given = [f"data={both}", f"out={folder}/{title}-{seed}", f"seed={seed}", f"loop.epochs={epochs}", *more]
            given += [f"size={own.size}", "backbone=conv", "loop.batch=128", "loop.knn=1"]
            config = load_config(PretrainConfig, CONFIGS / "simclr.yaml", given)
            torch.manual_seed(config.seed)
            row["untrained"] = _of_backbone(build_backbone(config.backbone, config.size), pixels)
            with reporting(Console(stderr=True)) as report:
                row[title] = _of_backbone(load_image_encoder(pretrain(config, "cpu", report), "cpu").backbone, pixels)
            print(seed, title, row[title], flush=True)
        rows.append(row)
    facts = {"epochs": float(epochs), "share": float(share)}
    raw = both_ways(lambda i: (pixels["test"][i], pixels["test"][1 - i]))
    write_result("translation_augment", {**facts, "pixels": raw, "runs": rows})


def _of_backbone(backbone: Any, pixels: dict[str, list[Pixels]]) -> dict[str, Any]:
    vectors = [features(backbone, part) for part in pixels["test"]]
    probe = style_accuracy(lambda p, _: features(backbone, p), pixels)
    return {**both_ways(lambda i: (vectors[i], vectors[1 - i])), "style read": probe}


if __name__ == "__main__":
    hush_transformers()
    command, given = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])
    {"run": run, "score": score, "augment": augment}[command](**given)
