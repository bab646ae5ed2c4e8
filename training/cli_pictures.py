"""The commands of image encoders and cross-modal ones: `udr pretrain`, `udr probe`, `udr embed`, `udr codes`."""

from __future__ import annotations

import json
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
    """Learn an image encoder from unlabelled pictures. Run again to resume."""
    from training.pretrain import pretrain as train
    from training.pretrain_settings import PretrainConfig
    from training.progress import hush_transformers, reporting
    from training.run import alone_in

    hush_transformers()
    settings = load_config(PretrainConfig, config, overrides or ())
    with reporting(console) as report, alone_in(settings.out):
        typer.echo(str(train(settings, device, report)))


def probe(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Labelled pictures.")],
    encoder: EncoderAddress,
    split: Annotated[str, typer.Option(help="Split that is known.")] = "train",
    asked: Annotated[str, typer.Option(help="Split that is asked.")] = "test",
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 20,
    cache: Annotated[Path, typer.Option(help="Folder for the pictures as arrays.")] = Path("runs/pictures"),
    language: Annotated[str, typer.Option(help="Of captions and speech, for a cross-modal encoder; none: any.")] = "",
    voice: Annotated[str, typer.Option(help="Who speaks (human, espeak-m7); none: anyone.")] = "",
    as_json: Json = False,
) -> None:
    """kNN and linear accuracy of a frozen image encoder beside raw pixels; recall of a cross-modal one."""
    from embed.image import load_image_encoder
    from training.pictures import prepare_pictures
    from training.probes import features, knn_accuracy, linear_accuracy
    from training.progress import hush_transformers, reporting
    from udr.artifacts import read_json
    from udr.errors import ConfigError

    hush_transformers()
    kind, _, name = encoder.partition(":")
    if kind != "artifact":
        raise ConfigError("--encoder: probes read encoders of ours, artifact:FOLDER")
    if read_json(Path(name) / "encoder.json").get("kind") == "cross_modal":
        _probe_directions(Path(name), data, asked, language, voice, as_json)
        return
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


def _probe_directions(encoder: Path, data: Path, split: str, language: str, voice: str, as_json: bool) -> None:
    from embed.cross_modal import load_cross_modal
    from training.captioned import read_captioned
    from training.retrieval import directions

    rows = read_captioned(data, split)
    found = directions(load_cross_modal(encoder), rows, language, voice)
    lines = [f"{'':14} {'R@1':>7} {'R@5':>7} {'R@10':>7} {'median':>7} {'of':>5}"]
    lines += [
        f"{title:14} {row['R@1']:7.4f} {row['R@5']:7.4f} {row['R@10']:7.4f} {row['median_rank']:7.1f} {row['n']:5.0f}"
        for title, row in found.items()
    ]
    print_result(found, as_json, "\n".join(lines))


def codes(
    data: Annotated[Path, typer.Argument(metavar="PARQUET", help="Pictures with captions.")],
    encoder: EncoderAddress,
    out: Annotated[Path, typer.Option(metavar="FILE.html|FILE.json", help="The report.")],
    split: Split = None,
    language: Annotated[str, typer.Option(help="Of captions and speech; none: any.")] = "",
    voice: Annotated[str, typer.Option(help="Who speaks; none: anyone.")] = "",
) -> None:
    """What each code of a cross-modal encoder means, in pictures and words, and how purely."""
    from embed.cross_modal import load_cross_modal
    from training.captioned import read_captioned
    from training.codes import code_meanings, report_html
    from training.progress import hush_transformers
    from udr.artifacts import write_atomically
    from udr.errors import ConfigError

    hush_transformers()
    kind, _, name = encoder.partition(":")
    if kind != "artifact":
        raise ConfigError("--encoder: codes are of encoders of ours, artifact:FOLDER")
    if out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out {out}: expected a name that ends in .html or .json")
    opened, rows = load_cross_modal(Path(name)), read_captioned(data, split)
    meanings = code_meanings(opened, rows, language, voice)
    if out.suffix == ".json":
        written = json.dumps([m.as_dict() for m in meanings], ensure_ascii=False, indent=1) + "\n"
    else:
        written = report_html(meanings, rows, opened.side, f"Codes of {name}")
    write_atomically(out, written.encode())
    used = sum(any(m.used.values()) for m in meanings)
    typer.echo(f"{out}: {used} of {len(meanings)} codes in use")


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
    for command in (pretrain, probe, embed, codes):
        app.command()(command)
