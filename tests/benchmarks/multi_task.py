"""What tasks gain from being learnt together: rendered scenes with exact labels, against networks of one task each.

    python tests/benchmarks/multi_task.py run out=FOLDER [seeds=0,1,2] [epochs=5] [count=2500] [only=equal,mti]
        [minutes=60]
    python tests/benchmarks/multi_task.py table out=FOLDER [name=multi_task]

run    trains what is not yet in FOLDER, seed by seed, and begins nothing after `minutes`: networks of one task (alone),
       plain sharing under every weighting and with factors set by hand, MTI-Net,
       branching by affinity and random branchings of the same size
table  Δ_MTL of each over the four dense tasks, means over seeds, and what was not run: results/multi_task.json
A run takes from 15 to 140 seconds of one core. Options of `run` must be the same each time.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from record import write_result

from embed.multi_task import MultiTaskEncoder, load_multi_task
from embed.multi_task_nets import BranchedNet, Branching
from training.annotated import read_annotated
from training.branching import affinity, branching_cost, find_branching, random_branchings, stage_rdms, stage_sizes
from training.multi_task_metrics import LOWER_IS_BETTER, PRIMARY, delta_mtl, evaluate_tasks
from training.pretrain import pretrain
from training.pretrain_settings import PretrainConfig
from training.scenes import scenes_table
from udr.config import load_config
from udr.weighting import WEIGHTINGS

CONFIG = Path(__file__).parents[2] / "training" / "configs" / "pretrain" / "multi_task.yaml"
DENSE = {"semseg": "segmentation", "depth": "depth", "edges": "edges", "saliency": "saliency"}
FACTORS = {"semseg": 1.0, "depth": 5.0, "edges": 10.0, "saliency": 5.0}  # `fixed`: losses brought to one size by hand
RANDOM = 3  # branchings of each seed beside the one by affinity
BUDGET = 2.0  # of branchings, in trunks
SEEN = 300  # pictures by which affinity is told
VARIANTS = (
    *(f"alone_{task}" for task in DENSE),
    "equal",
    "fixed",
    "mti",
    "mti_fixed",
    "branched_affinity",
    *(f"branched_random_{i}" for i in range(RANDOM)),
    *(f"weighting_{name}" for name in WEIGHTINGS if name != "equal"),
    "attributes",
)


def settings(variant: str, out: Path, seed: int, epochs: str) -> PretrainConfig:
    """Of one run; branchings wait for the networks of one task."""
    dense: dict[str, str] = DENSE
    own: dict[str, Any] = {"attributes": [], "network": "shared", "weighting": "equal"}
    kind, _, name = variant.partition("_")
    if kind == "alone":
        dense = {name: DENSE[name]}
    elif kind == "weighting":
        own["weighting"] = name
    elif kind == "branched":
        own |= {"network": "branched", "branching": branching(name, out, seed)}
    elif kind == "attributes":
        own["attributes"] = ["ground", "objects", "shape"]
    if kind == "mti":
        own["network"] = "mti"
    if variant.endswith("fixed"):
        own["weights"] = FACTORS
    words = [f"multi_task.{key}={json.dumps(value)}" for key, value in (own | {"dense": dense}).items()]
    words += [f"data={out / 'scenes.parquet'}", f"out={out / f'{variant}-{seed}'}", f"seed={seed}"]
    return load_config(PretrainConfig, CONFIG, [*words, f"loop.epochs={epochs}"])


def branching(name: str, out: Path, seed: int) -> Branching:
    """By the affinities of the networks of one task of this seed, or a random one of the same size."""
    file = out / f"branching-{seed}.json"
    if not file.is_file():
        nets = [cast(BranchedNet, opened(f"alone_{task}", out, seed).net) for task in DENSE]
        pixels = read_annotated(out / "scenes.parquet", {}, (), nets[0].size, "test").pixels[:SEEN]
        rdms = [stage_rdms(net, pixels) for net in nets]
        affinities = [affinity([own[stage] for own in rdms]) for stage in range(len(rdms[0]))]
        found = find_branching(list(DENSE), affinities, stage_sizes(nets[0]), BUDGET)
        told = {"affinities": [np.round(own, 4).tolist() for own in affinities], "branching": found}
        file.write_text(json.dumps(told))
    found = json.loads(file.read_text())["branching"]
    kind, _, number = name.partition("_")
    return found if kind == "affinity" else random_branchings(found, RANDOM, np.random.default_rng(seed))[int(number)]


def cost(levels: Branching, out: Path, seed: int) -> float:
    """What the search makes least, of any branching."""
    affinities = [np.array(own) for own in json.loads((out / f"branching-{seed}.json").read_text())["affinities"]]
    names = list(DENSE)
    return branching_cost(
        [tuple(tuple(names.index(task) for task in group) for group in level) for level in levels], affinities
    )


def opened(variant: str, out: Path, seed: int) -> MultiTaskEncoder:
    return load_multi_task(out / f"{variant}-{seed}" / "encoder", "cpu")


def run(
    out: str, seeds: str = "0,1,2", epochs: str = "5", count: str = "2500", only: str = "", minutes: str = "60"
) -> None:
    folder, begun = Path(out), time.monotonic()
    if not (folder / "scenes.parquet").is_file():
        scenes_table(folder / "scenes.parquet", int(count))
    asked = read_annotated(
        folder / "scenes.parquet",
        dict(DENSE),
        ("ground", "objects", "shape"),
        48,
        "test",
    )
    for seed in (int(word) for word in seeds.split(",")):
        for variant in only.split(",") if only else VARIANTS:
            file = folder / f"{variant}-{seed}.json"
            if file.is_file():
                continue
            if time.monotonic() - begun > 60 * float(minutes):
                print("out of time", flush=True)
                return
            config = settings(variant, folder, seed, epochs)
            used, since = time.process_time(), time.perf_counter()
            pretrain(config, "cpu")
            row: dict[str, Any] = {
                "seconds": round(time.perf_counter() - since, 1),
                "cpu_seconds": round(time.process_time() - used, 1),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
                "epochs": float(epochs),
                "steps": round(float(epochs) * (int(count) - int(count) // 5) // config.loop.batch),
            }
            net = opened(variant, folder, seed).net
            row["parameters"] = sum(p.numel() for p in net.parameters())
            if variant.startswith("branched"):
                row["branching"] = config.multi_task.branching
                row["cost"] = round(cost(row["branching"], folder, seed), 4)
            row["measures"] = evaluate_tasks(net, asked, config.multi_task.dense)
            file.write_text(json.dumps(row, indent=1))
            print(variant, seed, row["cpu_seconds"], measures(row), flush=True)


def measures(row: dict[str, Any]) -> dict[str, float]:
    """The measure of each dense task that Δ_MTL takes."""
    found = {task: row["measures"][task][PRIMARY[kind]] for task, kind in DENSE.items() if task in row["measures"]}
    return {task: round(value, 4) for task, value in found.items()}


def table(out: str, name: str = "multi_task") -> None:
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(Path(out).glob("*-*.json")):
        variant, _, seed = file.stem.rpartition("-")
        if variant != "branching":
            rows.setdefault(variant, {})[int(seed)] = json.loads(file.read_text())
    lower = {task: PRIMARY[kind] in LOWER_IS_BETTER for task, kind in DENSE.items()}
    alone = {
        seed: {task: measures(rows[f"alone_{task}"][seed])[task] for task in DENSE}
        for seed in rows["alone_semseg"]
        if all(seed in rows.get(f"alone_{task}", {}) for task in DENSE)
    }
    found: dict[str, Any] = {"alone": {"seeds": sorted(alone), **_means(list(alone.values()))}}
    for variant in VARIANTS:
        own = {seed: row for seed, row in rows.get(variant, {}).items() if seed in alone}
        if variant.startswith("alone") or not own:
            continue
        deltas = [
            delta_mtl({t: (v, lower[t]) for t, v in measures(row).items()}, alone[s]) for s, row in sorted(own.items())
        ]
        line: dict[str, Any] = {
            "seeds": sorted(own),
            "delta_mtl": round(100 * float(np.mean(deltas)), 2),
            "delta_by_seed": [round(100 * delta, 2) for delta in deltas],
            **_means([measures(row) for row in own.values()]),
            "parameters": next(iter(own.values()))["parameters"],
            "cpu_seconds": round(float(np.mean([row["cpu_seconds"] for row in own.values()])), 1),
        }
        for key in ("cost", "branching"):
            if key in next(iter(own.values())):
                line[key] = [own[seed][key] for seed in sorted(own)]
        if variant == "attributes":
            line["accuracy"] = _means(
                [{a: r["measures"][a]["accuracy"] for a in ("ground", "objects", "shape")} for r in own.values()]
            )
        found[variant] = line
        print(f"{variant:24} {line['delta_mtl']:+7.2f} %  {line['delta_by_seed']}", flush=True)
    first = next(iter(rows["alone_semseg"].values()))
    facts = {
        "steps": first["steps"],
        "batch": 16,
        "peak_mb": max(r["peak_mb"] for o in rows.values() for r in o.values()),
    }
    affinities = {
        file.stem.rpartition("-")[2]: json.loads(file.read_text())["affinities"]
        for file in sorted(Path(out).glob("branching-*.json"))
    }
    facts["not_run"] = [variant for variant in VARIANTS if variant not in rows]
    print(write_result(name, {**facts, "tasks": DENSE, "rows": found, "affinities": affinities}))


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]} if rows else {}


PARTS = {"run": run, "table": table}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    PARTS[sys.argv[1]](**dict(argument.split("=", 1) for argument in sys.argv[2:]))
