"""The commands of image encoders and what they share with others: `udr pretrain`, `udr probe`, `udr embed`,
`udr export`, `udr neighbours`, `udr label`, `udr map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from training.printing import Json, check_out, print_result
from udr.config import load_config

__all__ = ["add_commands"]

console = Console(stderr=True)
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]
EncoderAddress = Annotated[
    str,
    typer.Option(
        metavar="KIND:NAME", help="artifact:FOLDER, hf:NAME, st:NAME; a translator's content:FOLDER, attribute:FOLDER."
    ),
]
Split = Annotated[str | None, typer.Option(help="Split of a Parquet table.")]


def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML settings of the pre-training.")],
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
) -> None:
    """Learn an encoder of pictures, labelled or not, or of videos; a text-to-image model from captioned things.

    Which of them, `method` says. Run again to resume.

    Under simclr, densecl, mec and cim several processes or GPUs share every batch: accelerate launch -m training.cli
    pretrain CONFIG ...
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


PROBED_BY = {  # which options of `udr probe` say something of which encoders
    "pictures": ("probes", "split", "asked", "k", "untrained", "seed", "cache"),
    "videos": ("split", "asked", "k", "untrained", "seed", "cache"),
    "several modalities": ("asked", "language", "voice"),
    "many tasks": ("probes", "asked", "alone"),
}


def _check_options(context: typer.Context, kind: str) -> None:
    """Raise ConfigError where an option was given that says nothing of such encoders."""
    from udr.errors import ConfigError

    named = {
        p.name: p.opts[0] for p in context.command.params if p.name in {n for own in PROBED_BY.values() for n in own}
    }
    for name, option in named.items():
        source = context.get_parameter_source(str(name))
        if name not in PROBED_BY[kind] and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(
                f"{option}: says nothing of an encoder of {kind}, which takes "
                f"{', '.join(named[own] for own in PROBED_BY[kind])}"
            )


def probe(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Labelled pictures, or a folder of videos.")],
    encoder: EncoderAddress,
    probes: Annotated[str, typer.Option(help="Which: knn, linear, finetune, dense; tasks.")] = "knn,linear",
    split: Annotated[str, typer.Option(help="Split that is known.")] = "train",
    asked: Annotated[str, typer.Option(help="Split that is asked.")] = "test",
    k: Annotated[int, typer.Option(min=1, help="Neighbours.")] = 20,
    untrained: Annotated[bool | None, typer.Option(help="A row for the same network, untrained.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of subsets, canvases, clips and untrained weights.")
    ] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for pictures and videos as arrays.")] = Path("runs/pictures"),
    language: Annotated[str, typer.Option(help="Of captions and speech, for a cross-modal encoder; none: any.")] = "",
    voice: Annotated[str, typer.Option(help="Who speaks (human, espeak-m7); none: anyone.")] = "",
    alone: Annotated[
        list[str] | None,
        typer.Option(metavar="artifact:FOLDER", help="With --probes tasks: encoders of one task each, for Δ; repeat."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What an encoder is worth: on labelled pictures or videos beside raw pixels and its untrained network.

    Of a video encoder also how well it answers the questions that it learnt by. Of a cross-modal one: recall in every
    direction. With --probes tasks, of a multi-task one: how well it does each.
    """
    from embed.registry import artifact_kind
    from training.cli_media import probe_directions, probe_videos
    from training.cli_multi_task import probe_tasks
    from training.probe import PROBES, as_table, probe_encoder
    from training.progress import hush_transformers, reporting
    from udr.errors import UnknownNameError

    hush_transformers()
    kind = artifact_kind(encoder)
    if kind == "video":
        _check_options(context, "videos")
        probe_videos(
            data,
            encoder,
            split,
            asked,
            k,
            untrained=untrained is not False,
            seed=seed,
            cache=cache,
            as_json=as_json,
        )
        return
    if kind == "cross_modal":
        _check_options(context, "several modalities")
        probe_directions(data, encoder, asked, language, voice, as_json)
        return
    if probes == "tasks":
        _check_options(context, "many tasks")
        probe_tasks(data, encoder, asked, alone or (), as_json)
        return
    _check_options(context, "pictures")
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
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET|CLIP", help="Pictures, or videos.")],
    encoder: EncoderAddress,
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="A table of names and vectors.")],
    split: Split = None,
    attributes: Annotated[bool, typer.Option("--attributes", help="What a multi-task encoder sees, too.")] = False,
) -> None:
    """Vectors of pictures or videos, one row each; what cannot be read is left out and counted."""
    from embed.registry import artifact_kind
    from training.embed_pictures import embed_pictures
    from training.embed_videos import embed_videos
    from training.progress import hush_transformers, reporting
    from udr.errors import ConfigError

    hush_transformers()
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: expected FILE.parquet")
    check_out(out, data)
    of_videos = artifact_kind(encoder) == "video"
    with reporting(console) as report:
        if of_videos:
            if attributes:
                raise ConfigError(f"--attributes: {encoder} is no multi-task encoder")
            written, unread = embed_videos(data, encoder, out, split, report("encoding"))
        else:
            written, unread = embed_pictures(data, encoder, out, split, report("encoding"), attributes)
    things = "videos" if of_videos else "pictures"
    typer.echo(f"{out}: {written} {things}" + (f"; {unread} could not be read" if unread else ""))


def export(
    folder: Annotated[Path, typer.Argument(metavar="ENCODER_FOLDER", help="An image encoder, as OUT/encoder.")],
    to: Annotated[Literal["safetensors", "onnx"], typer.Option(help="The form.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to.")],
) -> None:
    """An encoder for other programs: its weights, or a graph that is checked against torch before it is kept."""
    from embed.export import export_onnx, export_safetensors
    from embed.folders import WEIGHTS
    from training.progress import hush_transformers

    hush_transformers()
    check_out(out, folder / "encoder.json", folder / WEIGHTS)
    if to == "onnx":
        off = export_onnx(folder, out)
        typer.echo(f"{out}: vectors and regions are torch's, at most {off:.1g} off")
        return
    facts = export_safetensors(folder, out)
    typer.echo(f"{out}: {facts['backbone']} for pictures of {facts['size']} pixels")


def neighbours(
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="A folder, a .parquet, or one picture.")],
    encoder: EncoderAddress,
    pool: Annotated[Path, typer.Option(metavar="FOLDER|PARQUET", help="Pictures that are searched.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The sheet.")],
    k: Annotated[int, typer.Option(min=1, max=50, help="Neighbours of each query.")] = 8,
    show: Annotated[int, typer.Option(min=1, max=200, help="Queries, drawn at random where there are more.")] = 8,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    split: Annotated[str | None, typer.Option(help="Split of QUERIES, where they are a table.")] = None,
    pool_split: Annotated[str | None, typer.Option(help="Split of the pool, where it is a table.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Search by this part of each query, in its pixels.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A sheet of queries beside their nearest pictures, labels marked right or wrong; --region searches by a part."""
    from embed.image import ImageEncoder
    from training.embed_pictures import open_picture_encoder
    from training.neighbours import nearest, nearest_regions, parse_region, sample_rows
    from training.progress import hush_transformers, reporting
    from training.sheets import check_png, draw_answers
    from udr.errors import ConfigError

    hush_transformers()
    check_png(out)
    check_out(out, queries, pool)
    box = None if region is None else parse_region(region)
    rows, opened = sample_rows(queries, split, show, seed), open_picture_encoder(encoder)
    with reporting(console) as report:
        if box is None:
            answers = nearest(rows, pool, pool_split, opened, k, report(f"encoding {pool.name}"))
        elif isinstance(opened, ImageEncoder):
            answers = nearest_regions(rows, box, pool, pool_split, opened, k, report(f"encoding {pool.name}"))
        else:
            raise ConfigError("--region: encoders of ours alone have regions, artifact:FOLDER")
    draw_answers(answers, out, f"{encoder}: the nearest of {pool.name}")
    found = [near for answer in answers for near in answer.neighbours]
    judged = [near for near in found if near.right is not None]
    lines = [f"{out}: {len(answers)} queries, {len(found)} neighbours"]
    if judged:
        lines[0] += f"; {sum(near.right is True for near in judged)} of {len(judged)} have the query's label"
    for answer in answers:
        lines.append(f"# {answer.row[0]}  {answer.row[2] or ''}".rstrip())
        for rank, near in enumerate(answer.neighbours, 1):
            sign = {True: "right", False: "wrong", None: ""}[near.right]
            lines.append(f"{rank:3d}  {near.similarity:7.4f}  {sign:5}  {near.row[2] or '':12}  {near.row[0]}".rstrip())
    print_result([answer.as_json() for answer in answers], as_json, "\n".join(lines))


def pool_map(
    pool: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Pictures, with labels or without.")],
    encoder: EncoderAddress,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The map.")],
    split: Split = None,
    show: Annotated[
        int, typer.Option(min=5, max=20_000, help="Pictures, drawn at random where there are more.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of that draw and of the map.")] = 0,
) -> None:
    """A map of a pool (t-SNE): what the encoder finds alike lies close together, as points by label and as pictures."""
    from training.embed_pictures import open_picture_encoder
    from training.maps import draw_map, encode_sample, plane
    from training.neighbours import sample_rows
    from training.progress import hush_transformers, reporting
    from training.sheets import check_png

    hush_transformers()
    check_png(out)
    check_out(out, pool)
    rows, opened = sample_rows(pool, split, show, seed), open_picture_encoder(encoder)
    with reporting(console) as report:
        rows, vectors = encode_sample(rows, opened, report(f"encoding {pool.name}"))
    draw_map(rows, plane(vectors, seed), out, f"{encoder}: {len(rows)} pictures of {pool.name}; near is alike")
    typer.echo(f"{out}: {len(rows)} pictures")


def label(
    data: Annotated[
        Path, typer.Argument(metavar="FOLDER|TABLE", help="Pictures, or a pool with media or texts (.jsonl, .csv).")
    ],
    labeller: Annotated[Path, typer.Option(metavar="FOLDER", help="OUT/labeller of `udr pretrain`, method labels.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl|FILE.parquet", help="Rows with their labels.")],
    split: Split = None,
    beam: Annotated[int, typer.Option(min=1, max=64, help="Paths of labels that are followed at once.")] = 3,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least confidence of a label.")] = 0.0,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="The first pictures, and where each label was looked for.")
    ] = None,
    show: Annotated[int, typer.Option(min=1, max=200, help="Pictures on the sheet.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: Json = False,
) -> None:
    """Labels with confidences, as metadata that a pool is filtered by: {"label:cat": {"gte": 0.5}}."""
    from embed.labeller import load_labeller
    from training.label_things import draw_labels, label_things
    from training.progress import reporting
    from training.sheets import check_png
    from udr.errors import ConfigError

    check_out(out, data)
    if sheet is not None:
        check_png(sheet, "--sheet")
        check_out(sheet, data, option="--sheet")
    opened = load_labeller(labeller, device)
    if sheet is not None and opened.reads == "text":
        raise ConfigError("--sheet: this labeller reads texts; a sheet shows pictures")
    with reporting(console) as report:
        done = label_things(
            data,
            opened,
            out,
            split=split,
            beam=beam,
            threshold=threshold,
            show=show if sheet else 0,
            keep=as_json,
            progress=report(f"labelling {data.name}"),
        )
    if sheet is not None:
        draw_labels(done.shown, sheet, f"{data.name}: where each label was looked for, and its confidence")
    lines = [f"{out}: {done.things} things, {done.counts.total()} labels, {done.left_out} left out"]
    lines += [f"{count:6d}  {name}" for name, count in done.counts.most_common(20)]
    print_result(done.rows, as_json, "\n".join(lines))


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (pretrain, probe, embed, export, neighbours, label):
        app.command()(command)
    app.command("map")(pool_map)
