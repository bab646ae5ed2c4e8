"""The commands of video and cross-modal encoders: `udr localise`, `udr codes`; and their parts of `udr probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.printing import Json, print_result

__all__ = ["add_commands", "probe_directions", "probe_videos"]

console = Console(stderr=True)
EncoderFolder = Annotated[str, typer.Option(metavar="artifact:FOLDER", help="Of ours.")]


def probe_videos(data: Path, encoder: str, split: str, asked: str, k: int, as_json: bool) -> None:
    """R@1, kNN and linear accuracy of a video encoder, beside an untrained one and raw pixels."""
    from embed.video import load_video_encoder
    from training.probe_videos import probe_videos as probe
    from training.progress import reporting

    with reporting(console) as report:
        own = load_video_encoder(Path(encoder.partition(":")[2]))
        rows = probe(data, own, split, asked, k, report("encoding"))
    lines = [f"{'':10} {'R@1':>8} {'kNN':>8} {'linear':>8}"]
    lines += [f"{title:10} {r['r@1']:8.4f} {r['knn']:8.4f} {r['linear']:8.4f}" for title, r in rows.items()]
    print_result(rows, as_json, "\n".join(lines))


def probe_directions(data: Path, encoder: str, split: str, language: str, voice: str, as_json: bool) -> None:
    """Recall of a cross-modal encoder, from every modality to every other."""
    from embed.cross_modal import load_cross_modal
    from training.captioned import read_captioned
    from training.retrieval import directions

    rows = read_captioned(data, split)
    found = directions(load_cross_modal(Path(encoder.partition(":")[2])), rows, language, voice)
    lines = [f"{'':14} {'R@1':>7} {'R@5':>7} {'R@10':>7} {'median':>7} {'of':>5}"]
    lines += [
        f"{title:14} {row['R@1']:7.4f} {row['R@5']:7.4f} {row['R@10']:7.4f} {row['median_rank']:7.1f} {row['n']:5.0f}"
        for title, row in found.items()
    ]
    print_result(found, as_json, "\n".join(lines))


def localise(
    query: Annotated[Path, typer.Argument(metavar="CLIP", help="What is looked for.")],
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A longer video.")],
    encoder: EncoderFolder,
    top: Annotated[int, typer.Option(min=1, help="Segments.")] = 1,
    as_json: Json = False,
) -> None:
    """Where in a video a clip's like is: the best segments of its length, in seconds."""
    from embed.localise import localise as find
    from embed.registry import artifact_kind
    from embed.video import load_video_encoder
    from training.progress import reporting
    from udr.errors import ConfigError

    if artifact_kind(encoder) != "video":
        raise ConfigError(f"--encoder {encoder}: no video encoder; expected artifact:FOLDER")
    with reporting(console) as report:
        own = load_video_encoder(Path(encoder.partition(":")[2]))
        found = find(own, query, video, top, report("reading"))
    rows = [segment._asdict() for segment in found]
    lines = [f"{s.begin:9.2f} s to {s.end:9.2f} s   similarity {s.score:.4f}" for s in found]
    print_result(rows, as_json, "\n".join(lines))


def codes(
    data: Annotated[Path, typer.Argument(metavar="PARQUET", help="Pictures with captions.")],
    encoder: EncoderFolder,
    out: Annotated[Path, typer.Option(metavar="FILE.html|FILE.json", help="The report.")],
    split: Annotated[str | None, typer.Option(help="Split of the table.")] = None,
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


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (localise, codes):
        app.command()(command)
