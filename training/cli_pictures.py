"""The commands of image encoders: `udr pretrain`, `udr probe`, `udr embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    probes: Annotated[str, typer.Option(help="Which: knn, linear, finetune, dense.")] = "knn,linear",
    split: Annotated[str, typer.Option(help="Split that is known.")] = "train",
    asked: Annotated[str, typer.Option(help="Split that is asked.")] = "test",
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 20,
    untrained: Annotated[bool | None, typer.Option(help="A row for the same network, untrained.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of subsets, canvases and untrained weights.")] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for the pictures as arrays.")] = Path("runs/pictures"),
    as_json: Json = False,
) -> None:
    """What an encoder is worth on labelled pictures, beside raw pixels and its untrained network."""
    from training.probe import PROBES, as_table, probe_encoder
    from training.progress import hush_transformers, reporting
    from udr.errors import UnknownNameError

    hush_transformers()
    chosen = [word.strip() for word in probes.split(",")]
    for word in chosen:
        if word not in PROBES:
            raise UnknownNameError("probe", word, PROBES)
    kinds = [kind for kind in PROBES if kind in chosen]
    with reporting(console) as report:
        rows = probe_encoder(
            data,
            encoder,
            kinds,
            split=split,
            asked=asked,
            k=k,
            untrained=untrained,
            seed=seed,
            cache=cache,
            report=report,
        )
    print_result(rows, as_json, as_table(rows))


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
