"""The commands of video encoders, cross-modal ones and translators: `udr localise`, `udr codes`, `udr translate`; and
their parts of `udr probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.printing import Json, check_out, print_result

__all__ = ["add_commands", "probe_directions", "probe_videos"]

console = Console(stderr=True)
SHEET = 100  # rows of a sheet at most
EncoderFolder = Annotated[str, typer.Option(metavar="artifact:FOLDER", help="Of ours.")]


def probe_videos(
    data: Path,
    encoder: str,
    split: str,
    asked: str,
    k: int,
    *,
    untrained: bool,
    seed: int,
    cache: Path,
    as_json: bool,
) -> None:
    """Recall, kNN and linear accuracy of a video encoder, beside an untrained one and raw pixels; then how well it
    answers the questions of its training."""
    from embed.video import load_video_encoder
    from training.probe_videos import answer_questions
    from training.probe_videos import probe_videos as probe
    from training.progress import reporting

    folder = Path(encoder.partition(":")[2])
    with reporting(console) as report:
        own = load_video_encoder(folder)
        told = answer_questions(data, folder, own, split, asked, cache, seed=seed, progress=report("reading"))
        rows = probe(data, own, split, asked, k, untrained=untrained, seed=seed, progress=report("encoding"))
    columns = list(rows["encoder"])
    lines = [" ".join([f"{'':10}", *(f"{column:>11}" for column in columns)])]
    lines += [" ".join([f"{title:10}", *(f"{row[c]:11.4f}" for c in columns)]) for title, row in rows.items()]
    lines += [f"{name:10} {row['accuracy']:11.4f}   by chance {row['chance']:.4f}" for name, row in told.items()]
    print_result({**rows, "questions": told} if told else rows, as_json, "\n".join(lines))


def probe_directions(data: Path, encoder: str, split: str, language: str, voice: str, as_json: bool) -> None:
    """Recall of a cross-modal encoder, from every modality to every other."""
    from embed.cross_modal import load_cross_modal
    from training.captioned import read_captioned
    from training.retrieval import check_asked, directions

    opened, rows = load_cross_modal(Path(encoder.partition(":")[2])), read_captioned(data, split)
    check_asked(data, rows, opened.modalities, language, voice)
    found = directions(opened, rows, language, voice)
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
    word: Annotated[str, typer.Option(help="Draw where it lies in pictures and sounds; with --heat.")] = "",
    heat: Annotated[Path | None, typer.Option(metavar="FILE.png", help="The sheet of --word.")] = None,
) -> None:
    """What each code of a cross-modal encoder means, in pictures and words, and how purely.

    Also how many codes are in use, and how often modalities agree. --word and --heat: a sheet of where a word lies.
    """
    from embed.cross_modal import load_cross_modal
    from training.captioned import read_captioned
    from training.codes import agreement, code_meanings, draw_heat, perplexity, report_html, summary
    from training.progress import hush_transformers
    from training.retrieval import check_asked
    from training.sheets import check_png
    from udr.artifacts import write_atomically
    from udr.errors import ConfigError

    hush_transformers()
    kind, _, name = encoder.partition(":")
    if kind != "artifact":
        raise ConfigError("--encoder: codes are of encoders of ours, artifact:FOLDER")
    if out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out {out}: expected a name that ends in .html or .json")
    if bool(word.strip()) != (heat is not None):
        raise ConfigError("--word, --heat: a word, and the file that shows where it lies; give both or neither")
    check_out(out, data)
    if heat is not None:
        check_png(heat, "--heat")
        check_out(heat, data, option="--heat")
    opened, rows = load_cross_modal(Path(name)), read_captioned(data, split)
    check_asked(data, rows, opened.modalities, language, voice)
    meanings = code_meanings(opened, rows, language, voice)
    used, agreed = perplexity(opened, rows, language, voice), agreement(opened, rows, language, voice)
    said = summary(used, len(meanings), agreed)
    if out.suffix == ".json":
        told = {"perplexity": used, "agreement": agreed, "codes": [m.as_dict() for m in meanings]}
        written = json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    else:
        written = report_html(meanings, rows, opened.side, f"Codes of {name}", said)
    write_atomically(out, written.encode())
    lines = [f"{out}: {sum(any(m.used.values()) for m in meanings)} of {len(meanings)} codes in use", *said]
    if heat is not None:
        lines.append(f"{heat}: {draw_heat(opened, rows, word, heat, language, voice)} things")
    typer.echo("\n".join(lines))


def translate(
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="A folder, a .parquet, or one picture.")],
    translator: Annotated[Path, typer.Option(metavar="FOLDER", help="OUT/encoder of method drit.")],
    to: Annotated[str, typer.Option(metavar="STYLE", help="The name of one of its two styles.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The sheet.")],
    draws: Annotated[int, typer.Option(min=0, max=12, help="Attributes drawn for each picture.")] = 4,
    like: Annotated[
        Path | None, typer.Option(metavar="PICTURES", help="Take the attributes of these pictures instead.")
    ] = None,
    into: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the made pictures there, too.")] = None,
    show: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures, drawn at random where there are more.")] = 8,
    split: Annotated[str | None, typer.Option(help="Split of PICTURES, where they are a table.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of both draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Pictures in another style: with their own attribute, drawn ones, or those of other pictures; a sheet of them."""
    from embed.translation import load_translator
    from training.neighbours import sample_rows
    from training.progress import hush_transformers
    from training.sheets import check_png, draw_rows
    from training.translate import attributes_for, read_rows, translate_rows, write_pictures

    hush_transformers()
    check_png(out)
    check_out(out, pictures, like)
    own = load_translator(translator)
    style = own.number_of(to)
    rows, pixels, wrong = read_rows(sample_rows(pictures, split, show, seed), own.size)
    others = None if like is None else read_rows(sample_rows(like, None, 12, seed), own.size)
    for line in wrong + (others[2] if others else []):
        typer.echo(f"udr: left out: {line}", err=True)
    made = translate_rows(
        own, pixels, style, attributes_for(own, pixels, style, draws, others[1] if others else None, seed)
    )
    names = [row[0] for row in others[0]] if others else [f"drawn {i + 1}" for i in range(draws)]
    shown = list(zip(pixels[:SHEET], *(part[:SHEET] for part in made), strict=True))
    draw_rows(shown, ["picture", "own attribute", *names], out, f"{pictures.name} as {to}")
    written = write_pictures(rows, made, into) if into else 0
    found = {"sheet": str(out), "pictures": len(rows), "translations": len(made), "written": written}
    told = f"{out}: {len(rows)} pictures as {to}, {len(made)} times each"
    print_result(found, as_json, told + (f"; {written} files in {into}" if into else ""))


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (localise, codes, translate):
        app.command()(command)
