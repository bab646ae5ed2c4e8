r"""Labels said one by one: an order of the model's own beside fixed orders, and beside each label by itself.

    udr data emoji --out runs/emoji --no-synthetic
    udr data canvases --emoji runs/emoji/emoji.parquet --out runs/emoji/canvases.parquet
    udr data canvases --emoji runs/emoji/emoji.parquet --out runs/emoji/loose.parquet --together 0.6
    udr data tags --emoji runs/emoji/emoji.parquet --out runs/emoji/tags.parquet
    python -m tests.benchmarks.labelling canvases data=runs/emoji out=runs/labels [seeds=0,1] [epochs=5]
    python -m tests.benchmarks.labelling loose data=runs/emoji out=runs/labels    # objects are less often together
    python -m tests.benchmarks.labelling tags data=runs/emoji out=runs/labels     # pictures of emoji, 158 tags
    python -m tests.benchmarks.labelling names data=runs/emoji out=runs/labels    # their names, as text

Each training is to take three minutes of one core at most. Test things are of emoji that training never saw in any
style. `bce` is scored at probability 0.5, and at the threshold that is best for the test things themselves, which
no user would know; what says labels one by one has no threshold. Attention is right where the middle of the cell
that is looked at most lies in the box of the label that is said. Beside it stand the share of attention in the box,
the share of the canvas that the box takes, and how often the cell that speaks most for a label lies in its box.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from embed.labeller import Label, Labeller, load_labeller
from tests.benchmarks.record import write_result
from training.label_metrics import label_scores, top_labels
from training.labelled import Labelled, LabelledThings, prepare_labelled, read_labelled
from training.methods.labels import ORDERS
from training.pretrain import pretrain
from training.pretrain_labels import confidences
from training.pretrain_settings import PretrainConfig
from training.progress import hush_transformers, reporting
from udr.config import load_config

CONFIG = Path(__file__).parents[2] / "training/configs/pretrain/labels.yaml"
TABLES: dict[str, tuple[str, list[str]]] = {
    "canvases": ("canvases", ["loop.epochs=5"]),
    "loose": ("loose", ["loop.epochs=5"]),
    "tags": ("tags", ["loop.epochs=8"]),
    "names": ("tags", ["labels.reads=text", "loop.epochs=8"]),
}
BEAMS = (1, 3, 5)
TOP = 3  # labels a thing, for the scores of as many for each


def scored(config: PretrainConfig) -> dict[str, Any]:
    """Train, and score what is not learnt from; figures that stand beside a finished training are kept."""
    path = config.out / "measured.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    began = time.process_time()
    with reporting(Console(stderr=True)) as report:
        labeller = load_labeller(pretrain(config, "cpu", report), "cpu")
    seconds = time.process_time() - began
    rows = read_labelled(config.data, "test")
    things = prepare_labelled(rows, labeller.reads, config.size, labeller.names, encoder=labeller.encoder)
    found = rounded(measured(labeller, things)) | {"processor_seconds": round(seconds), "test_things": len(things)}
    found |= {"labels": len(things.names), "true_labels_a_thing": round(float(things.targets.sum(1).float().mean()), 3)}
    path.write_text(json.dumps(found))
    return found


def best_threshold(probabilities: np.ndarray, truth: np.ndarray, score: str) -> dict[str, float]:
    """The scores at the threshold that is best for these very things."""
    tried = [label_scores(probabilities >= t, truth) | {"threshold": t} for t in np.linspace(0.05, 0.95, 19)]
    return max(tried, key=lambda one: one[score])


def judged(table: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean confidences of right and of wrong labels, and how far confidences lie from shares of right ones."""
    sure, right = table[table > 0], truth[table > 0]
    bins = np.minimum((sure * 10).astype(int), 9)
    error = sum(abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(10)) / max(len(sure), 1)
    means = (float(sure[which].mean()) if which.any() else 0.0 for which in (right, ~right))
    return dict(zip(("of_right", "of_wrong", "calibration_error"), (*means, float(error)), strict=True))


def attended(found: list[tuple[Label, ...]], rows: tuple[Labelled, ...]) -> dict[str, float]:
    """How attention lies to the boxes of true labels that were said."""
    hits, shares, areas, others = [], [], [], []
    for labels, row in zip(found, rows, strict=True):
        boxes = dict(zip(row.labels, row.boxes, strict=True))
        for label in labels:
            if label.name in boxes and label.attention is not None:
                side = len(label.attention)
                y, x = ((place + 0.5) / side for place in divmod(int(label.attention.argmax()), side))
                on = {name for name, (a, b, c, d) in boxes.items() if a <= x < c and b <= y < d}
                x0, y0, x1, y1 = boxes[label.name]
                hits.append(label.name in on)
                others.append(bool(on - {label.name}))
                shares.append(float((label.attention * _cells_in(boxes[label.name], side)).sum()))
                areas.append((x1 - x0) * (y1 - y0))
    if not hits:
        return {}
    means = (float(np.mean(values)) for values in (hits, others, shares, areas))
    return dict(zip(("peak_on_object", "peak_on_another", "share_on_object", "area"), means, strict=True))


def _cells_in(box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """How much of each cell of a grid lies in a box, (side, side)."""
    x0, y0, x1, y1 = (edge * side for edge in box)
    low = np.arange(side)
    wide = np.clip(np.minimum(x1, low + 1) - np.maximum(x0, low), 0, 1)
    tall = np.clip(np.minimum(y1, low + 1) - np.maximum(y0, low), 0, 1)
    return np.outer(tall, wide)


@torch.inference_mode()
def maps_on_objects(labeller: Labeller, things: LabelledThings) -> float:
    """How often the cell whose map speaks most for a true label lies in its box."""
    hits = []
    for pixels, row in zip(things.inputs, things.rows, strict=True):
        maps = labeller.net.see(pixels[None].float() / 255).maps[0]
        side = round(len(maps) ** 0.5)
        for label, (x0, y0, x1, y1) in zip(row.labels, row.boxes, strict=True):
            y, x = ((place + 0.5) / side for place in divmod(int(maps[:, things.names.index(label)].argmax()), side))
            hits.append(y0 <= y < y1 and x0 <= x < x1)
    return float(np.mean(hits))


def measured(labeller: Labeller, things: LabelledThings) -> dict[str, Any]:
    truth = things.targets.numpy()
    preliminary = labeller.preliminary(things.inputs)
    found: dict[str, Any] = {"by_themselves": label_scores(preliminary >= 0.5, truth)}
    found["by_themselves_best"] = best_threshold(preliminary, truth, "OF1")
    found[f"by_themselves_top{TOP}"] = label_scores(top_labels(preliminary, TOP), truth)
    for beam in BEAMS if labeller.ordered else ():
        labels = labeller.label_inputs(things.inputs, beam)
        table = confidences(labels, things.names)
        found[f"beam_{beam}"] = label_scores(table > 0, truth)
        if beam == 3:
            found[f"top{TOP}"] = label_scores(top_labels(table, TOP), truth)
            found["labels_a_thing"] = float((table > 0).sum(1).mean())
            found["confidence"] = judged(table, truth)
            found["exact"] = float(((table > 0) == truth).all(1).mean())
            if things.rows[0].boxes:
                found["attention"] = attended(labels, things.rows)
    if things.rows[0].boxes:
        found["map_on_object"] = maps_on_objects(labeller, things)
    if not labeller.ordered:
        found["exact"] = float(((preliminary >= 0.5) == truth).all(1).mean())
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(float(value), 4) if isinstance(value, float) else value


def run(
    table: str,
    data: str,
    out: str,
    seeds: str = "0,1",
    orders: str = ",".join(ORDERS),
    epochs: str = "",
    name: str = "",
    more: str = "",
) -> None:
    source, given = TABLES[table]
    given = [*given, *([f"loop.epochs={epochs}"] if epochs else []), *(m for m in more.split(",") if m)]
    path = Path(data) / f"{source}.parquet"
    told: dict[str, Any] = {"table": table, "settings": given}
    for seed in seeds.split(","):
        for order in orders.split(","):
            own = [f"data={path}", f"out={Path(out) / f'{table}{name}-{order}-{seed}'}", f"seed={seed}"]
            config = load_config(PretrainConfig, CONFIG, [*given, *own, f"labels.order={order}"])
            told[f"{order}_{seed}"] = scored(config)
            print(order, seed, told[f"{order}_{seed}"], flush=True)
            write_result(f"labelling_{table}{name}", told | {"means": means(told)})


def means(told: dict[str, Any]) -> dict[str, Any]:
    """Of each order over the seeds that there are, the scores that a user gets: beam 3, or probability 0.5."""
    found: dict[str, Any] = {}
    for order in ORDERS:
        runs = [one for key, one in told.items() if key.rpartition("_")[0] == order]
        if runs:
            scores = [one["by_themselves" if order == "bce" else "beam_3"] for one in runs]
            found[order] = {key: round(float(np.mean([s[key] for s in scores])), 4) for key in scores[0]}
            found[order]["exact"] = round(float(np.mean([one["exact"] for one in runs])), 4)
            found[order]["seeds"] = len(runs)
            if order == "bce":
                best = [one["by_themselves_best"] for one in runs]
                found["bce_best_threshold"] = {k: round(float(np.mean([b[k] for b in best])), 4) for k in best[0]}
            elif "attention" in runs[0]:
                on = [one["attention"]["peak_on_object"] for one in runs if one["attention"]]
                found[order]["peak_on_object"] = round(float(np.mean(on)), 4) if on else 0.0
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TABLES:
        raise SystemExit(__doc__)
    hush_transformers()
    run(sys.argv[1], **dict(argument.split("=", 1) for argument in sys.argv[2:]))
