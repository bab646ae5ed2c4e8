"""The commands of multi-task encoders: `udr describe`, `udr branch`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.printing import Json, check_out, print_result

__all__ = ["add_commands", "probe_tasks"]

console = Console(stderr=True)


def describe(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET|NDJSON", help="Pictures, or demonstrations.")],
    encoder: Annotated[str, typer.Option(metavar="artifact:FOLDER", help="A multi-task encoder.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Demonstrations, as pools load them.")],
    split: Annotated[str | None, typer.Option(help="Split of a Parquet table.")] = None,
    least: Annotated[float, typer.Option(min=0, max=1, help="Probability below which an attribute is left out.")] = 0,
) -> None:
    """Write what an encoder sees of pictures into the metadata of demonstrations, by which pools are filtered."""
    from training.describe import describe_pictures
    from training.progress import hush_transformers, reporting

    hush_transformers()
    check_out(out, data)
    with reporting(console) as report:
        described, others = describe_pictures(data, encoder, out, split, least, report("describing"))
    typer.echo(f"{out}: {described} described" + (f"; {others} without a picture that can be read" if others else ""))


def branch(
    data: Annotated[Path, typer.Argument(metavar="FOLDER|PARQUET", help="Pictures, with labels or without.")],
    encoder: Annotated[list[str], typer.Option(metavar="artifact:FOLDER", help="Of one task each; repeat.")],
    budget: Annotated[float, typer.Option(min=1, help="Parameters of all stages, in those of one shared trunk.")] = 2.0,
    split: Annotated[str | None, typer.Option(help="Split of a Parquet table.")] = None,
    pictures: Annotated[int, typer.Option(min=3, help="That tasks are compared on.")] = 200,
    beam: Annotated[int, typer.Option(min=1, help="Branchings kept at each stage.")] = 10,
    as_json: Json = False,
) -> None:
    """Which stages tasks should share, by how alike networks of one task each see pictures: a setting for pretrain."""
    from training.branching import compare_tasks, find_branching
    from training.progress import hush_transformers

    hush_transformers()
    tasks, affinities, sizes = compare_tasks(data, encoder, split, pictures)
    found = find_branching(tasks, affinities, sizes, budget, beam)
    lines = []
    for stage, own in enumerate(affinities):
        lines.append(f"# stage {stage}")
        lines += [f"{task:14} " + " ".join(f"{x:6.3f}" for x in row) for task, row in zip(tasks, own, strict=True)]
    lines.append(f"multi_task.branching={json.dumps(found)}")
    told = {"tasks": tasks, "affinities": [own.tolist() for own in affinities], "branching": found}
    print_result(told, as_json, "\n".join(lines))


def probe_tasks(data: Path, encoder: str, asked: str, alone: Sequence[str], as_json: bool) -> None:
    """How well a multi-task encoder does each of its tasks, on a table that has their columns.

    Beside encoders of one task each also Δ_MTL, what learning the tasks together is worth.
    """
    from embed.multi_task import MultiTaskEncoder
    from embed.registry import open_encoder
    from training.annotated import read_annotated
    from training.multi_task_metrics import delta_mtl, evaluate_tasks, primary
    from udr.errors import ConfigError

    def opened(option: str, address: str) -> MultiTaskEncoder:
        found = open_encoder(address)
        if not isinstance(found, MultiTaskEncoder):
            raise ConfigError(f"{option}: {address} is no multi-task encoder")
        return found

    def measured(own: MultiTaskEncoder) -> dict[str, dict[str, float]]:
        labels = read_annotated(data, own.kinds, list(own.classes), own.net.size, asked, own.classes)
        return evaluate_tasks(own.net, labels, own.kinds)

    own, others = opened("--probes tasks", encoder), [opened("--alone", address) for address in alone]
    for address, other in zip(alone, others, strict=True):
        if len(other.net.tasks) > 1:
            raise ConfigError(f"--alone {address}: expected an encoder that was trained on one task")
    missing = set(own.net.tasks) - {task for other in others for task in other.net.tasks}
    if alone and missing:
        raise ConfigError(f"--alone: no encoder of {', '.join(sorted(missing))}; name one for each task")
    found = measured(own)
    if alone:
        single = {task: value for other in others for task, (value, _) in primary(measured(other), other.kinds).items()}
        found["delta_mtl"] = {"share": delta_mtl(primary(found, own.kinds), single)}
    lines = [
        f"{task:14} " + "  ".join(f"{name} {value:.4f}" for name, value in row.items()) for task, row in found.items()
    ]
    print_result(found, as_json, "\n".join(lines))


def add_commands(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (describe, branch):
        app.command()(command)
