"""How commands print, words for people and JSON for programs; and what they never write to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from udr.errors import ConfigError

__all__ = ["Json", "check_out", "print_result"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_result(value: Any, as_json: bool, text: str) -> None:
    """Print the value as JSON, or the text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def check_out(out: Path, *sources: Path | None, option: str = "--out") -> None:
    """Raise ConfigError where a file that is written would take the place of what is read: a source, or a picture of
    a folder."""
    if not out.exists():
        return
    for source in sources:
        if source is None or not source.exists():
            continue
        if out.samefile(source):
            raise ConfigError(f"{option} {out} is the source; give another name")
        if source.is_dir() and out.suffix.lower() == ".png" and source.resolve() in out.resolve().parents:
            raise ConfigError(f"{option} {out} is a picture of the source; give another name")
