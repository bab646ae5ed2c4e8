"""Folders of what was learnt: weights, and beside them a file of facts that names their fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from udr.artifacts import replacing, write_json

__all__ = ["WEIGHTS", "Fingerprint", "save_folder", "shape_of"]

WEIGHTS = "model.safetensors"
Fingerprint = Callable[[Path, Mapping[str, Any]], str]  # of a folder whose facts are these


def save_folder(net: nn.Module, folder: Path, facts: Mapping[str, Any], file: str, fingerprint: Fingerprint) -> None:
    """Write weights, then FOLDER/FILE with the facts: where that stands, the folder is whole.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    write_json(folder / file, {**facts, "fingerprint": fingerprint(folder, facts)})


def shape_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a folder's network is made by; empty where a damaged file says nothing of it."""
    shape = facts.get("shape")
    return shape if isinstance(shape, Mapping) else {}
