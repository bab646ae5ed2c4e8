"""The README keeps its word: its commands exist, its Python compiles, its figures come from the benchmarks' JSON."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from training.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line.startswith("udr ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_udr_command_of_the_readme_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = get_command(app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"no such command: {line}"
    command.make_context("udr", words)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_every_python_block_of_the_readme_compiles(text: str) -> None:
    assert compile(text, "README.md", "exec").co_names


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", README, flags=re.MULTILINE))
    assert named
    assert named <= targets


def test_every_figure_in_a_result_table_stands_in_a_benchmark_result() -> None:
    tables = re.findall(r"<!-- results/(\w+)\.json -->\n\n?((?:\|.*\n)+)", README)
    assert len(tables) == README.count("| p |")  # a table of scores without its source is refused
    for name, table in tables:
        scores = json.loads((ROOT / "tests/benchmarks/results" / f"{name}.json").read_text())["scores"]
        methods = list(scores)
        for line in table.splitlines()[2:]:
            row, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            shown = [cell.strip("*") for cell in cells[: len(methods)]]
            assert shown == [f"{scores[m][row]:.1f}" for m in methods], row
