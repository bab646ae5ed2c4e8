"""SimCLR and DenseCL beside lightly's: same pictures, network, epochs, batch, rates and seeds, same probes afterwards.

    python tests/benchmarks/pictures_lightly.py data=FILE.parquet name=cifar10 out=FOLDER python=LIGHTLY/bin/python
        [epochs=10] [seeds=0,1,2] [methods=simclr,densecl] [probes=yes]

One after another: a process of ours (`training.pretrain`), then one of lightly (`lightly_peer.py`, in its environment:
pip install torch==2.14.1 torchvision==0.29.1 lightly). Memory is the most that a process and its workers held together,
what they share counted once (PSS); seconds are of whole processes, their start and last features included. `probes=no`
leaves the probes out, for a short run that only measures speed; run that one alone. Results:
results/pictures_lightly_NAME.json, with probes=no results/pictures_lightly_speed_NAME.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from embed.image import load_image_encoder
from training.pictures import Pictures, prepare_pictures
from training.pretrain import pretrain
from training.pretrain_settings import PretrainConfig
from training.probes import features, knn_accuracy, linear_accuracy
from udr.config import load_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "pretrain"


def settings(method: str, data: str, out: Path, epochs: str, seed: str) -> PretrainConfig:
    words = [f"data={data}", f"out={out}", f"loop.epochs={epochs}", f"seed={seed}"]
    return load_config(PretrainConfig, CONFIGS / f"{method}.yaml", words)


def own(method: str, data: str, out: str, epochs: str, seed: str, cache: str) -> None:
    """Run by itself, as the peer is."""
    config = settings(method, data, Path(out), epochs, seed)
    backbone = load_image_encoder(pretrain(config, "cpu"), "cpu").backbone
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    a_epoch = lines[-1]["step"] // int(epochs)
    rates = [line["pictures_per_s"] for line in lines if line["step"] >= a_epoch // 3]
    told = {"loss": lines[-1]["loss"], "steady": rates}
    (Path(out) / "told.json").write_text(json.dumps(told))
    for part in ("known", "asked"):
        np.save(Path(out) / f"{part}.npy", features(backbone, np.load(f"{cache}/{part}-pixels.npy", mmap_mode="r")))


def memory(pid: int) -> float:
    """MB of a process and those below it, shared pages once."""
    total, below = 0.0, [pid]
    while below:
        one = below.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += next(float(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1000
            for task in Path(f"/proc/{one}/task").iterdir():
                below += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, StopIteration):  # it has just ended
            continue
    return total


def watched(command: list[str]) -> dict[str, float]:
    began, most, before = time.perf_counter(), 0.0, resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"peak_mb": round(most), "seconds": round(time.perf_counter() - began), "cpu_seconds": round(cpu)}


def probed(folder: Path, known: Pictures, asked: Pictures) -> dict[str, float]:
    names = {label: i for i, label in enumerate(sorted(set(known.labels or ())))}
    y, z = (np.array([names[label] for label in part.labels or ()], np.int64) for part in (known, asked))
    bank, queries = np.load(folder / "known.npy"), np.load(folder / "asked.npy")
    return {
        "linear": round(100 * linear_accuracy(bank, y, queries, z), 2),
        "knn": round(100 * knn_accuracy(bank, y, queries, z), 2),
    }


def main(
    data: str,
    name: str,
    out: str,
    python: str,
    epochs: str = "10",
    seeds: str = "0",
    methods: str = "simclr,densecl",
    probes: str = "yes",
) -> None:
    cache = Path(out) / "pictures"
    known, asked = (prepare_pictures(Path(data), 32, cache, split) for split in ("train", "test"))
    for title, part in (("known", known), ("asked", asked)):
        np.save(cache / f"{title}-pixels.npy", part.pixels)
    learnt, tested = str(cache / "known-pixels.npy"), str(cache / "asked-pixels.npy")
    found: dict[str, Any] = {"pictures": len(known), "epochs": int(epochs)}
    for method in methods.split(","):
        rows: list[dict[str, Any]] = []
        for seed in seeds.split(","):
            folders = {side: Path(out) / f"{side}-{method}-{seed}-{epochs}" for side in ("ours", "lightly")}
            config = settings(method, data, folders["ours"], epochs, seed)
            given = {k: getattr(config.loop, k) for k in ("batch", "lr", "weight_decay", "warmup")}
            given |= {"epochs": int(epochs), "seed": int(seed), "temperature": getattr(config, method).temperature}
            script, peer = Path(__file__), Path(__file__).with_name("lightly_peer.py")
            commands = {
                "ours": [
                    sys.executable,
                    str(script),
                    "own",
                    method,
                    data,
                    str(folders["ours"]),
                    epochs,
                    seed,
                    str(cache),
                ],
                "lightly": [
                    python,
                    str(peer),
                    method,
                    learnt,
                    learnt,
                    tested,
                    str(folders["lightly"]),
                    json.dumps(given),
                ],
            }
            row: dict[str, Any] = {"seed": int(seed)}
            for side, command in commands.items():
                spent = watched(command)
                told = json.loads((folders[side] / "told.json").read_text())
                row[side] = {"pictures_per_s": round(float(np.median(told["steady"]))), **spent}
                if probes == "yes":
                    row[side] |= probed(folders[side], known, asked)
                print(method, seed, side, row[side], flush=True)
            rows.append(row)
        found[method] = rows
        write_result(f"pictures_lightly_{'' if probes == 'yes' else 'speed_'}{name}", found)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "own":
        own(*sys.argv[2:])
    elif len(sys.argv) < 2:
        raise SystemExit(__doc__)
    else:
        main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
