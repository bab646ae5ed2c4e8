"""Labelled tables of emoji: tags joined by code points, canvases with boxes, and no emoji on both sides."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.captioned import Captioned, write_captioned
from training.cli import app
from training.label_tables import OBJECTS, SCENES, canvases_table, in_test, read_tags, tagged_table
from training.labelled import read_labelled
from udr.errors import DataError

SHADES = {name: 10 + 12 * i for i, name in enumerate(OBJECTS)}  # what each object is drawn in


def square(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, shade)).save(file, "PNG")
    return file.getvalue()


def emoji(each: int = 30) -> list[Captioned]:
    """Emoji in two styles; the style shows in nothing."""
    rows = []
    for i, (name, kinds) in enumerate(OBJECTS.items()):
        for j in range(each):
            captions = (("en", f"{name} {j}"), ("en+folder", f"Things, {kinds[0]}: {name} {j}"))
            code = f"1F{i:03X}-{j}-FE0F"
            rows += [Captioned(f"emoji/{s}/{code}", square(SHADES[name]), captions) for s in ("google", "twitter")]
    return rows


def archive(path: Path, known: object) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        raw = json.dumps(known).encode()
        info = tarfile.TarInfo("package/en/data.json")
        info.size = len(raw)
        packed.addfile(info, io.BytesIO(raw))
    return path


def test_canvases_show_what_their_labels_say_where_their_boxes_say(tmp_path: Path) -> None:
    out = tmp_path / "c.parquet"
    counts = canvases_table(emoji(), out, count=40, test=20)
    rows = read_labelled(out)
    assert counts == {"canvases": 60, "objects": sum(len(r.labels) for r in rows), "labels": len(OBJECTS)}
    assert [r.split for r in rows] == ["train"] * 40 + ["test"] * 20
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB"))
        covered = np.zeros(pixels.shape[:2], int)
        for label, box in zip(row.labels, row.boxes, strict=True):
            x0, y0, x1, y1 = (round(edge * 48) for edge in box)
            assert 0 <= x0 < x1 <= 48
            assert 0 <= y0 < y1 <= 48
            assert (pixels[y0:y1, x0:x1, 0] == SHADES[label]).all()
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1  # none over another
        assert (pixels[covered == 0] == 255).all()
    again = tmp_path / "again.parquet"
    canvases_table(emoji(), again, count=40, test=20)
    assert read_labelled(again) == rows


def test_objects_of_a_scene_are_seen_together(tmp_path: Path) -> None:
    canvases_table(emoji(), tmp_path / "c.parquet", count=300, test=0, size=24)
    rows = [set(r.labels) for r in read_labelled(tmp_path / "c.parquet")]
    scene = set(SCENES["garden"][1])
    with_fruit = [r for r in rows if "fruit" in r]
    assert np.mean(["plant" in r for r in with_fruit]) > 0.7 > np.mean(["plant" in r for r in rows]) + 0.1
    assert any(not scene >= r for r in with_fruit)  # and sometimes others


def test_test_canvases_are_of_emoji_that_stand_on_no_other(tmp_path: Path) -> None:
    own = []
    for row in emoji():  # drawn in a shade that tells the split
        shade = 200 if in_test(row.id.rpartition("/")[2]) else 20
        own.append(Captioned(row.id, square(shade), row.captions))
    canvases_table(own, tmp_path / "c.parquet", count=30, test=30, size=24)
    for row in read_labelled(tmp_path / "c.parquet"):
        shades = set(np.unique(np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB"))[..., 0]).tolist()) - {255}
        assert shades == ({200} if row.split == "test" else {20})


def test_an_emoji_is_on_one_side_in_every_style_and_with_or_without_a_selector() -> None:
    assert in_test("2764-fe0f") == in_test("2764") == in_test("2764-FE0F")
    share = np.mean([in_test(f"1F{i:03X}") for i in range(3000)])
    assert 0.17 < share < 0.23


def test_tags_are_joined_by_code_points_and_rare_ones_left_out(tmp_path: Path) -> None:
    rows = emoji()
    known = [{"hexcode": row.id.rpartition("/")[2].removesuffix("-FE0F"), "tags": ["thing", f"own {i}"]}
             for i, row in enumerate(rows) if "google" in row.id and i % 4]  # fmt: skip
    tags = read_tags(archive(tmp_path / "t.tgz", known))
    counts = tagged_table(rows, tags, tmp_path / "t.parquet", fewest=3)
    found = read_labelled(tmp_path / "t.parquet")
    assert counts == {"pictures": 2 * len(known), "tags": 1, "test": sum(r.split == "test" for r in found)}
    assert {r.labels for r in found} == {("thing",)}
    sides: dict[str, set[str]] = {}
    for row in found:
        sides.setdefault(row.id.rpartition("/")[2], set()).add(row.split)
        assert row.text
    assert all(len(side) == 1 for side in sides.values())
    assert {s for side in sides.values() for s in side} == {"train", "test"}


def test_damaged_packages_and_missing_objects_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="damaged"):
        read_tags(tmp_path / "bad.tgz")
    with pytest.raises(DataError, match="no emojibase-data package"):
        read_tags(archive(tmp_path / "empty.tgz", []))
    with pytest.raises(DataError, match="draws bug"):
        canvases_table([r for r in emoji() if "bug" not in r.texts(["en"])[0]], tmp_path / "c.parquet", 1, 0)


def test_the_command_writes_canvases(tmp_path: Path) -> None:
    write_captioned(tmp_path / "emoji.parquet", emoji())
    arguments = ["--emoji", tmp_path / "emoji.parquet", "--out", tmp_path / "c.parquet", "--count", 5, "--test", 2]
    done = CliRunner().invoke(app, ["data", "canvases", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "7 canvases" in done.stdout
    assert len(read_labelled(tmp_path / "c.parquet", "test")) == 2
