"""`udr scores`: what the cache of LM scores holds, shared and forgotten."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from training.printing import Json, print_result
from udr.errors import ConfigError, UnknownNameError

__all__ = ["scores_app"]

scores_app = typer.Typer(no_args_is_help=True, help="The cache of LM scores.")
CacheFile = Annotated[Path, typer.Argument(metavar="CACHE", help="The score cache, scores.sqlite.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Only of this LM (a fingerprint of `stats`).")]


@scores_app.command("stats")
def scores_stats(cache: CacheFile, as_json: Json = False) -> None:
    """How many scores of which LM, and from when."""
    found = _open_scores(cache).stats()
    rows = [m._asdict() | {"first": m.first.isoformat(), "last": m.last.isoformat()} for m in found]
    total = sum(m.scores for m in found)
    size = sum(f.stat().st_size for f in cache.parent.glob(f"{cache.name}*"))
    lines = [f"{m.scores:12,}  {m.first} to {m.last}  {m.fingerprint or '(an unknown LM)'}" for m in found]
    lines.append(f"{total:12,}  in all, {size / 1e6:,.1f} MB")
    print_result({"scores": total, "bytes": size, "models": rows}, as_json, "\n".join(lines))


@scores_app.command("export")
def scores_export(cache: CacheFile, out: Path, model: ModelOption = None) -> None:
    """Write the scores to a Parquet file that others can import."""
    from udr.scoring.exchange import export_scores

    typer.echo(f"{out}: {export_scores(_open_scores(cache, model), out, model):,} scores")


@scores_app.command("import")
def scores_import(
    cache: Annotated[Path, typer.Argument(help="scores.sqlite; made if absent.")], files: list[Path]
) -> None:
    """Add the scores of Parquet files; those that are known already stay as they are."""
    from udr.scoring.cache import ScoreCache
    from udr.scoring.exchange import import_scores

    opened = ScoreCache(cache)
    for file in files:
        found = import_scores(opened, file)
        apart = f", {found.apart:,} of them other than here by more than rounding" if found.apart else ""
        typer.echo(f"{file}: {found.new:,} new, {found.known:,} known{apart}")


@scores_app.command("prune")
def scores_prune(
    cache: CacheFile,
    model: ModelOption = None,
    older_than: Annotated[int | None, typer.Option("--older-than", min=1, max=100_000, help="Days.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
) -> None:
    """Forget the scores of an LM, or old ones, or all."""
    if (model is None and older_than is None) != everything:
        raise ConfigError("udr scores prune: say which: --model FINGERPRINT, --older-than DAYS, or else --all")
    opened = _open_scores(cache, model)
    before = date.today() - timedelta(older_than) if older_than else None
    typer.echo(f"{cache}: {opened.prune(model, before):,} scores forgotten")


def _open_scores(path: Path, model: str | None = None) -> Any:
    """A cache that is there, and holds scores of `model`: a misspelt name must not begin an empty one."""
    from udr.scoring.cache import ScoreCache

    if not path.is_file():
        raise ConfigError(
            f"{path}: no such score cache; the setting `scores` names it (default: beside the run folder)"
        )
    opened = ScoreCache(path)
    if model is not None and model not in (known := [m.fingerprint for m in opened.stats()]):
        raise UnknownNameError("model", model, known)
    return opened
