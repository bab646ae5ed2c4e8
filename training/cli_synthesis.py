"""The commands that make pictures: `udr synthesize`, `udr repaint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from training.printing import Json, check_out, print_result

__all__ = ["add_commands"]

console = Console(stderr=True)
Model = Annotated[str, typer.Option(metavar="KIND:NAME", help="artifact:FOLDER of ours, or sd:NAME through diffusers.")]
Steps = Annotated[int | None, typer.Option(min=2, help="Of DDIM, a divisor of 1000; none: the model's own.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Classifier-free; none: the model's own.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the noise.")]


def synthesize(
    model: Model,
    layout: Annotated[Path, typer.Option(metavar="FILE", help="YAML or JSON: scenes of a prompt and its boxes.")],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="A table of labelled pictures with boxes.")],
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="A sheet of what was made.")] = None,
    pool: Annotated[
        Path | None, typer.Option(metavar="FILE.ndjson", help="Demonstrations for a service's pool.")
    ] = None,
    move: Annotated[Literal["sorted", "exchange", "none"], typer.Option(help="How noise is edited.")] = "sorted",
    seed: Seed = 0,
    tries: Annotated[int, typer.Option(min=1, help="Noises for a picture at most.")] = 8,
    least: Annotated[float, typer.Option(min=0, max=1, help="How much of every phrase must lie in its box.")] = 0.5,
    steps: Steps = None,
    guidance: Guidance = None,
    layer: Annotated[str | None, typer.Option(help="Whose maps are read; none: the last on the way down.")] = None,
    as_json: Json = False,
) -> None:
    """Pictures whose things lie in given boxes, by noise that is edited: what a pool lacks, labels and boxes known."""
    from training.progress import hush_transformers, reporting
    from training.sheets import check_png
    from training.synthesis.layouts import read_layouts
    from training.synthesis.model import check_steps
    from training.synthesis.registry import open_text_to_image
    from training.synthesis.synthesize import synthesize as make
    from training.synthesis.tables import as_json as told
    from training.synthesis.tables import check_writable, draw_made, write_pool, write_table
    from udr.errors import ConfigError

    hush_transformers()
    if sheet is not None:
        check_png(sheet)
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: expected FILE.parquet")
    if steps is not None:
        check_steps(steps)
    for option, path in (("--out", out), ("--pool", pool), ("--sheet", sheet)):
        if path is not None:
            check_writable(path)
            check_out(path, layout, option=option)
    scenes, opened = read_layouts(layout).scenes, open_text_to_image(model)
    with reporting(console) as report:
        found = make(
            opened,
            scenes,
            move=move,
            seed=seed,
            tries=tries,
            least=least,
            steps=steps,
            guidance=guidance,
            layer=layer,
            progress=report("making pictures"),
        )
    try:
        written = write_table(out, found, scenes, f"{model} {opened.fingerprint}")
        if pool is not None:
            write_pool(pool, found, scenes)
    finally:  # last, as it needs an extra; and it shows what is wrong where nothing is accepted
        if sheet is not None:
            draw_made(found, scenes, sheet, f"{model}, noise {move}; crossed out: a thing out of its box")
    facts = told(found, scenes)
    lines = [f"{out}: {written} of {len(found)} pictures"]
    for line in facts["scenes"]:
        per = "none accepted" if line["tries_per_accepted"] is None else f"{line['tries_per_accepted']} tries each"
        lines.append(f"{line['accepted']:4d} of {line['wanted']:4d}  {per:15}  {line['label']}: {line['prompt']}")
    print_result(facts, as_json, "\n".join(lines))


def repaint(
    prompt: Annotated[str, typer.Argument(help="What is painted.")],
    model: Model,
    region: Annotated[str, typer.Option(metavar="X0,Y0,X1,Y1", help="What is painted anew, as shares of the sides.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="A sheet: the picture, and each try.")],
    seed: Seed = 0,
    tries: Annotated[int, typer.Option(min=1, max=64, help="Pictures beside the first one.")] = 7,
    steps: Steps = None,
    guidance: Guidance = None,
    as_json: Json = False,
) -> None:
    """A picture with one region painted anew: new noise under it, the same noise elsewhere, the same prompt."""
    from training.progress import hush_transformers
    from training.sheets import check_png
    from training.synthesis.model import check_steps
    from training.synthesis.registry import open_text_to_image
    from training.synthesis.repaints import draw_repaints, parse_shares
    from training.synthesis.tables import check_writable

    hush_transformers()
    check_png(out)
    if steps is not None:
        check_steps(steps)
    check_writable(out)
    share = parse_shares(region)
    rows = draw_repaints(open_text_to_image(model), prompt, share, seed, tries, steps, guidance, out)
    lines = [f"{out}: {tries} tries"]
    lines += [f"seed {r['seed']:10d}  changed inside {r['inside']:.4f}  outside {r['outside']:.4f}" for r in rows]
    print_result(rows, as_json, "\n".join(lines))


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (synthesize, repaint):
        app.command()(command)
