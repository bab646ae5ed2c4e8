"""How commands print: words for people, JSON for programs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["Json", "print_result"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_result(value: Any, as_json: bool, text: str) -> None:
    """Print the value as JSON, or the text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)
