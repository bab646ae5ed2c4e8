"""What was made for layouts, as files: a table of labelled pictures with boxes, a pool's demonstrations, a sheet."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from training.captioned import SCHEMA
from training.pool_lines import picture_entry, pool_line
from training.sheets import SIDE, draw_rows
from training.synthesis.layouts import Scene
from training.synthesis.synthesize import Made
from udr.artifacts import replacing, write_atomically
from udr.errors import ArtifactError, DataError

__all__ = ["BOXES", "as_json", "check_writable", "draw_made", "write_pool", "write_table"]

BOXES = pa.list_(pa.struct([("phrase", pa.string()), *((edge, pa.float32()) for edge in ("x0", "y0", "x1", "y1"))]))
INKS = ("#b8450a", "#00795a", "#1f6feb", "#8250df")  # of boxes; told apart in every kind of colour vision
IN_ROW, ROWS = 8, 16  # pictures of a row of the sheet, and rows at most


def check_writable(*paths: Path) -> None:
    """Raise ArtifactError where a file could not be written, before minutes are spent on what it is to hold."""
    for path in paths:
        above = next((folder for folder in path.absolute().parents if folder.exists()), path.parent)
        if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
            raise ArtifactError(f"{path}: cannot be written")


def id_of(made: Made) -> str:
    """Of a picture, by its layout and its number there."""
    return f"made-{made.scene}-{made.number}-{made.seed}"


def png_of(made: Made) -> bytes:
    """Its pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(made.pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_table(out: Path, found: Sequence[Made], scenes: Sequence[Scene], model: str) -> int:
    """Write pictures that were accepted, as `udr pretrain`, `udr probe`, `udr embed` and captioned tables are read.

    Beside `id`, `image`, `captions`, `label` and `split` stand `boxes` (phrase, and shares of the sides), `seed`,
    `tries` and `placed`. The table's metadata names the model.

    Raises:
        ArtifactError: the file cannot be written.
        DataError: nothing was accepted.
    """
    if not any(made.accepted for made in found):
        raise DataError(
            f"none of {len(found)} pictures has its things in their boxes after {found[0].tries} tries each; "
            "try larger boxes, more --tries or a lower --least, and look at --sheet FILE.png"
        )
    more = [("boxes", BOXES), ("seed", pa.int64()), ("tries", pa.int32()), ("placed", pa.float32())]
    schema = pa.schema([*SCHEMA, *more], metadata={"model": model})
    rows = []
    for made in found:
        if made.accepted:
            scene = scenes[made.scene]
            row: dict[str, Any] = {"id": id_of(made), "image": png_of(made), "sounds": []}
            row |= {"captions": [{"language": "en", "text": scene.prompt}], "label": scene.title, "split": scene.split}
            row["boxes"] = [
                {"phrase": p, **dict(zip(("x0", "y0", "x1", "y1"), b, strict=True))} for p, b in scene.boxes.items()
            ]
            rows.append(row | {"seed": made.seed, "tries": made.tries, "placed": min(made.placed.values())})
    with replacing(out) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    return len(rows)


def write_pool(out: Path, found: Sequence[Made], scenes: Sequence[Scene]) -> None:
    """Write accepted pictures as demonstrations (NDJSON) that a pool of the service loads: picture, label, boxes.

    Raises:
        ArtifactError: the file cannot be written.
    """
    lines = []
    for made in found:
        if made.accepted:
            scene = scenes[made.scene]
            row: dict[str, Any] = {"id": id_of(made), "input": scene.prompt, "output": scene.title}
            row["media"] = [picture_entry(png_of(made), row["id"])]
            row["metadata"] = {"made": "true", "seed": str(made.seed), "boxes": json.dumps(scene.boxes)}
            lines.append(pool_line(row, row["id"]))
    write_atomically(out, b"".join(lines))


def as_json(found: Sequence[Made], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Of each layout how many pictures there are and how many tries one took, and of each picture how it came about."""
    told = []
    for index, scene in enumerate(scenes):
        own = [made for made in found if made.scene == index]
        accepted = [made for made in own if made.accepted]
        line: dict[str, Any] = {"prompt": scene.prompt, "label": scene.title, "wanted": len(own)}
        line |= {"accepted": len(accepted), "tries": sum(made.tries for made in own)}
        line["tries_per_accepted"] = round(line["tries"] / len(accepted), 2) if accepted else None
        told.append(line)
    pictures = [
        {"id": id_of(m), "scene": m.scene, "seed": m.seed, "tries": m.tries, "accepted": m.accepted}
        | {"placed": {phrase: round(value, 3) for phrase, value in m.placed.items()}}
        for m in found
    ]
    return {"scenes": told, "pictures": pictures}


def draw_made(found: Sequence[Made], scenes: Sequence[Scene], out: Path, title: str) -> None:
    """A sheet: a row of pictures for each layout, its boxes drawn in; what was not accepted is crossed out.

    Raises:
        ArtifactError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    rows = []
    for index, scene in enumerate(scenes):
        own = [made for made in found if made.scene == index][: IN_ROW * max(1, ROWS // len(scenes))]
        for start in range(0, len(own), IN_ROW):
            rows.append([_boxed(made, scene) for made in own[start : start + IN_ROW]])
    draw_rows(rows[:ROWS], [str(i + 1) for i in range(max(map(len, rows)))], out, title)


def _boxed(made: Made, scene: Scene) -> np.ndarray:
    """Pixels (3, SIDE, SIDE) with boxes."""
    picture = Image.fromarray(made.pixels.transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for i, box in enumerate(scene.boxes.values()):
        edges = [round(value * (SIDE - 1)) for value in box]
        draw.rectangle(edges, outline=INKS[i % len(INKS)], width=2)
    if not made.accepted:
        draw.line((0, 0, SIDE, SIDE), fill="#59636e", width=2)
        draw.line((0, SIDE, SIDE, 0), fill="#59636e", width=2)
    return np.asarray(picture).transpose(2, 0, 1)
