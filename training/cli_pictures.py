"""The commands of image and video encoders: `udr pretrain`, `udr probe`, `udr embed`, `udr localise`."""

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
    """Learn an image encoder from unlabelled pictures, or a video encoder from videos. Run again to resume."""
    from training.pretrain import pretrain as train
    from training.pretrain_settings import PretrainConfig
    from training.progress import hush_transformers, reporting
    from training.run import alone_in

    hush_transformers()
    settings = load_config(PretrainConfig, config, overrides or ())
    with reporting(console) as report, alone_in(settings.out):
        typer.echo(str(train(settings, device, report)))


def probe(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Labelled pictures, or a folder of videos.")],
    encoder: EncoderAddress,
    split: Annotated[str, typer.Option(help="Split that is known.")] = "train",
    asked: Annotated[str, typer.Option(help="Split that is asked.")] = "test",
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 20,
    cache: Annotated[Path, typer.Option(help="Folder for the pictures as arrays.")] = Path("runs/pictures"),
    as_json: Json = False,
) -> None:
    """kNN and linear accuracy of a frozen encoder, beside raw pixels (and of videos an untrained encoder)."""
    from embed.registry import reads_videos

    if reads_videos(encoder):
        _probe_videos(data, encoder, split, asked, k, as_json)
        return
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


def _probe_videos(data: Path, encoder: str, split: str, asked: str, k: int, as_json: bool) -> None:
    from embed.video import load_video_encoder
    from training.probe_videos import probe_videos
    from training.progress import reporting

    with reporting(console) as report:
        own = load_video_encoder(Path(encoder.partition(":")[2]))
        rows = probe_videos(data, own, split, asked, k, report("encoding"))
    lines = [f"{'':10} {'R@1':>8} {'kNN':>8} {'linear':>8}"]
    lines += [f"{title:10} {r['r@1']:8.4f} {r['knn']:8.4f} {r['linear']:8.4f}" for title, r in rows.items()]
    print_result(rows, as_json, "\n".join(lines))


def embed(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET|CLIP", help="Pictures, or videos.")],
    encoder: EncoderAddress,
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="A table of names and vectors.")],
    split: Split = None,
) -> None:
    """Vectors of pictures or videos, one row each; what cannot be read is left out and counted."""
    from embed.registry import reads_videos
    from training.embed_pictures import embed_pictures
    from training.embed_videos import embed_videos
    from training.progress import hush_transformers, reporting

    hush_transformers()
    of_videos = reads_videos(encoder)
    with reporting(console) as report:
        write = embed_videos if of_videos else embed_pictures
        written, unread = write(data, encoder, out, split, report("encoding"))
    things = "videos" if of_videos else "pictures"
    typer.echo(f"{out}: {written} {things}" + (f"; {unread} could not be read" if unread else ""))


def localise(
    query: Annotated[Path, typer.Argument(metavar="CLIP", help="What is looked for.")],
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A longer video.")],
    encoder: Annotated[str, typer.Option(metavar="artifact:FOLDER", help="A video encoder.")],
    top: Annotated[int, typer.Option(min=1, help="Segments.")] = 1,
    as_json: Json = False,
) -> None:
    """Where in a video a clip's like is: the best segments of its length, in seconds."""
    from embed.localise import localise as find
    from embed.registry import reads_videos
    from embed.video import load_video_encoder
    from training.progress import reporting
    from udr.errors import ConfigError

    if not reads_videos(encoder):
        raise ConfigError(f"--encoder {encoder}: no video encoder; expected artifact:FOLDER")
    with reporting(console) as report:
        own = load_video_encoder(Path(encoder.partition(":")[2]))
        found = find(own, query, video, top, report("reading"))
    rows = [segment._asdict() for segment in found]
    lines = [f"{s.begin:9.2f} s to {s.end:9.2f} s   similarity {s.score:.4f}" for s in found]
    print_result(rows, as_json, "\n".join(lines))


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (pretrain, probe, embed, localise):
        app.command()(command)
