"""Pictures are read once and in order, and what is none is counted or told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scenes import png, scenes

from training.pictures import prepare_pictures, tell_left_out
from udr.errors import DataError, UDRWarning


def test_a_folder_is_read_once_and_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    own = scenes(6)
    for i, pixels in enumerate(own.pixels):
        path = source / (own.labels or ())[i] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels.transpose(1, 2, 0)))
    (source / "disc" / "broken.png").write_bytes(b"no picture")
    (source / "disc" / "empty.jpg").write_bytes(b"")
    (source / "disc" / "notes.txt").write_text("not looked at")
    found = prepare_pictures(source, 16, tmp_path / "cache")
    assert (len(found), found.unread) == (6, 2)
    assert found.left_out[0].startswith("disc/broken.png: no picture")
    by_name = dict(zip(found.names, found.pixels, strict=True))
    np.testing.assert_array_equal(by_name["square/1.png"], own.pixels[1])
    assert sorted(set(found.labels or ())) == ["disc", "square", "stripes"]
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    prepare_pictures(source, 16, tmp_path / "cache")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == stamp
    (source / "disc" / "broken.png").write_bytes(png(own.pixels[0].transpose(1, 2, 0)))  # mended: read anew
    assert len(prepare_pictures(source, 16, tmp_path / "cache")) == 7


def test_many_pictures_are_decoded_by_several_processes_in_their_order(tmp_path: Path) -> None:
    own = scenes(300)
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [png(p.transpose(1, 2, 0)) for p in own.pixels]}), table)
    found = prepare_pictures(table, 16, tmp_path / "cache", workers=2)
    np.testing.assert_array_equal(found.pixels, own.pixels)
    with pytest.raises(DataError, match="the pictures have no labels"):
        _ = found.classes


def test_a_source_without_pictures_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "named.parquet")
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "broken.parquet")
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": ["a", None]}), tmp_path / "half.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "stray" / "class").mkdir(parents=True)
    for path in ("stray/class/a.png", "stray/b.png"):
        (tmp_path / path).write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    for source, split, words in (
        ("nowhere", None, "expected a folder of pictures"),
        ("empty", None, "no pictures"),
        ("empty", "train", "a folder has no splits"),
        ("named.parquet", None, "no column 'image'; it has picture"),
        ("broken.parquet", None, "none of 2 pictures can be read; the first: broken.parquet:1"),
        ("broken.parquet", "train", "no column 'split'"),
        ("half.parquet", None, "some rows have a label and others have none"),
        ("damaged.parquet", None, "not Parquet"),
        ("stray", None, "beside the folders of classes"),
    ):
        with pytest.raises(DataError, match=words):
            prepare_pictures(tmp_path / source, 16, tmp_path / "cache", split)


def test_another_folder_or_another_picture_of_the_same_size_is_read_anew(tmp_path: Path) -> None:
    white, black = (np.full((16, 16, 3), value, np.uint8) for value in (255, 0))
    for name, pixels in (("a", white), ("b", black)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.bmp")
    seen = [prepare_pictures(tmp_path / name, 16, tmp_path / "cache").pixels.mean() for name in "ab"]
    assert seen == [255, 0]
    Image.fromarray(white).save(tmp_path / "b" / "x.bmp")
    assert prepare_pictures(tmp_path / "b", 16, tmp_path / "cache").pixels.mean() == 255


def test_what_is_left_out_of_training_is_warned_of() -> None:
    tell_left_out(0, "pictures")
    with pytest.warns(UDRWarning, match="^2 pictures left out, such as a.png: empty$"):
        tell_left_out(2, "pictures", ("a.png: empty", "b.png: empty"))
    with pytest.warns(UDRWarning, match="^3 pictures and sounds left out$"):
        tell_left_out(3, "pictures and sounds")
