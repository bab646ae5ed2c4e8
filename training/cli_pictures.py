"""The commands of image encoders: `udr pretrain`, `udr probe`, `udr embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from training.printing import Json, print_result
from udr.config import load_config

__all__ = ["add_commands"]

console = Console(stderr=True)
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
EncoderAddress = Annotated[str, typer.Option(metavar="KIND:NAME", help="artifact:FOLDER, hf:NAME or st:NAME.")]
Split = Annotated[str | None, typer.Option(help="Split of a Parquet table.")]


def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML settings of the pre-training.")],
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
) -> None:
    """Learn an image encoder from unlabelled pictures. Run again to resume.

    Several processes or GPUs share every batch: accelerate launch -m training.cli pretrain CONFIG ...
    """
    from training.pretrain import join_processes
    from training.pretrain import pretrain as train
    from training.pretrain_settings import PretrainConfig
    from training.progress import hush_transformers, reporting
    from training.run import alone_in, silent

    hush_transformers()
    settings = load_config(PretrainConfig, config, overrides or ())
    if not join_processes(device):
        train(settings, device, silent)
        return
    with reporting(console) as report, alone_in(settings.out):
        typer.echo(str(train(settings, device, report)))


def probe(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Labelled pictures.")],
    encoder: EncoderAddress,
    split: Annotated[str, typer.Option(help="Split that is known.")] = "train",
    asked: Annotated[str, typer.Option(help="Split that is asked.")] = "test",
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 20,
    cache: Annotated[Path, typer.Option(help="Folder for the pictures as arrays.")] = Path("runs/pictures"),
    as_json: Json = False,
) -> None:
    """kNN and linear accuracy of a frozen encoder, beside raw pixels."""
    from embed.image import load_image_encoder
    from training.pictures import prepare_pictures
    from training.probes import features, knn_accuracy, linear_accuracy
    from training.progress import hush_transformers, reporting
    from udr.errors import ConfigError

    hush_transformers()
    kind, _, name = encoder.partition(":")
    if kind != "artifact":
        raise ConfigError("--encoder: probes read encoders of ours, artifact:FOLDER")
    backbone = load_image_encoder(Path(name)).backbone
    with reporting(console) as report:
        known, queries = (
            prepare_pictures(data, backbone.size, cache, part, progress=report(f"reading {part}"))
            for part in (split, asked)
        )
    names = {label: i for i, label in enumerate(sorted({*(known.labels or ()), *(queries.labels or ())}))}
    y, z = (np.array([names[label] for label in part.labels or ()], np.int64) for part in (known, queries))
    _ = known.classes, queries.classes  # pictures without labels are told here
    rows = {}
    flat = [(part.pixels.reshape(len(part), -1) / np.float32(255)).astype(np.float32) for part in (known, queries)]
    own = [features(backbone, part.pixels) for part in (known, queries)]
    for title, (bank, asking) in (("pixels", flat), ("encoder", own)):
        rows[title] = {
            "knn": round(knn_accuracy(bank, y, asking, z, k), 4),
            "linear": round(linear_accuracy(bank, y, asking, z), 4),
        }
    lines = [f"{'':10} {'kNN':>8} {'linear':>8}"]
    lines += [f"{title:10} {row['knn']:8.4f} {row['linear']:8.4f}" for title, row in rows.items()]
    print_result(rows, as_json, "\n".join(lines))


def embed(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Pictures.")],
    encoder: EncoderAddress,
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="A table of names and vectors.")],
    split: Split = None,
) -> None:
    """Vectors of pictures, one row each; what is no picture is left out and counted."""
    from training.embed_pictures import embed_pictures
    from training.progress import hush_transformers, reporting

    hush_transformers()
    with reporting(console) as report:
        written, unread = embed_pictures(data, encoder, out, split, report("encoding"))
    typer.echo(f"{out}: {written} pictures" + (f"; {unread} could not be read" if unread else ""))


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (pretrain, probe, embed):
        app.command()(command)
