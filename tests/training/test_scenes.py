"""Rendered scenes: labels agree with the picture and with each other, and a number gives the same scene for ever."""

from __future__ import annotations

import colorsys
import io
import itertools
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.annotated import read_annotated
from training.scenes import GROUNDS, SHAPES, render_scene, scenes_table
from udr.errors import ConfigError, DataError

NUMBERS = range(40)


def test_a_scene_depends_on_its_number_and_seed_alone() -> None:
    first, again, other, reseeded = (render_scene(n, s) for n, s in ((3, 0), (3, 0), (4, 0), (3, 1)))
    for field in ("pixels", "semseg", "depth", "edges", "saliency"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert first.attributes == again.attributes
    assert not np.array_equal(first.pixels, other.pixels)
    assert not np.array_equal(first.pixels, reseeded.pixels)


@pytest.mark.parametrize("size", [32, 48])
def test_labels_are_what_the_things_say_pixel_by_pixel(size: int) -> None:
    for number in NUMBERS:
        scene = render_scene(number, 5, size)
        seen = scene.things
        counts = Counter(seen.ravel().tolist())
        things = sorted(set(counts) - {0})
        assert things == list(range(1, len(things) + 1))
        assert scene.attributes["objects"] == str(len(things))
        kinds = {int(t): set(scene.semseg[seen == t].tolist()) for t in (0, *things)}
        assert kinds[0] == {0}
        assert all(len(own) == 1 and own <= set(range(1, len(SHAPES) + 1)) for t, own in kinds.items() if t)
        most = max(things, key=lambda t: (counts[t], -t))
        assert scene.attributes["shape"] == SHAPES[kinds[most].pop() - 1]
        for y in range(size):
            for x in range(size):
                beside = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
                behind = [seen[b] for b in beside if 0 <= b[0] < size and 0 <= b[1] < size]
                assert scene.edges[y, x] == any(other < seen[y, x] for other in behind)
        (salient,) = set(seen[scene.saliency].tolist())
        assert (scene.saliency == (seen == salient)).all()


def test_depth_is_the_floors_and_the_wall_is_farthest_and_what_hides_is_nearer() -> None:
    for number in NUMBERS:
        scene = render_scene(number)
        assert scene.depth.max() <= 1
        assert scene.depth.min() > 0.15
        ground = scene.things == 0
        assert (scene.depth[0][ground[0]] == 1).all()
        for column in range(48):
            own = scene.depth[:, column][ground[:, column]]
            assert (np.diff(own) <= 0).all()  # the floor comes nearer downwards
        middles = [np.median(scene.depth[scene.things == t]) for t in range(1, int(scene.attributes["objects"]) + 1)]
        assert all(a > b - 0.1 for a, b in itertools.pairwise(middles))  # drawn from the farthest on


def test_the_vivid_thing_stands_out_and_the_ground_has_its_colour() -> None:
    for number in NUMBERS:
        scene = render_scene(number)
        hsv = np.array([[colorsys.rgb_to_hsv(*(p / 255)) for p in row] for row in scene.pixels])
        count = int(scene.attributes["objects"])
        grey = {t: float(np.median(hsv[scene.things == t][:, 1])) for t in range(1, count + 1)}
        (salient,) = set(scene.things[scene.saliency].tolist())
        assert max(grey, key=lambda t: grey[t]) == salient
        wall = scene.pixels[:4].reshape(-1, 3).mean(0) / 255
        hue, saturation, _ = colorsys.rgb_to_hsv(*wall)
        if scene.attributes["ground"] == "grey":
            assert saturation < 0.1
        else:
            off = abs(hue - GROUNDS[scene.attributes["ground"]])
            assert min(off, 1 - off) < 0.06


def test_a_table_holds_the_scenes_and_reads_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "scenes.parquet"
    assert scenes_table(file, 20, seed=2, size=32) == {"train": 16, "test": 4}
    table = pq.read_table(file)
    assert table["split"].to_pylist() == ["train"] * 16 + ["test"] * 4
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(table["image"][7].as_py()))), render_scene(7, 2, 32).pixels)
    kinds = {"semseg": "segmentation", "depth": "depth", "edges": "edges", "saliency": "saliency"}
    read = read_annotated(file, kinds, ["ground", "objects"], 32, "test")  # type: ignore[arg-type]
    assert len(read) == 4
    for i in range(4):
        scene = render_scene(16 + i, 2, 32)
        assert np.array_equal(read.pixels[i], scene.pixels.transpose(2, 0, 1))
        assert np.array_equal(read.dense["semseg"][i], scene.semseg)
        np.testing.assert_allclose(read.dense["depth"][i], scene.depth, atol=1e-3)
        assert np.array_equal(read.dense["edges"][i] > 0, scene.edges)
        assert np.array_equal(read.dense["saliency"][i] > 0, scene.saliency)
        assert read.classes["ground"][read.attributes["ground"][i]] == scene.attributes["ground"]


def test_words_that_training_did_not_know_are_not_known(tmp_path: Path) -> None:
    scenes_table(tmp_path / "scenes.parquet", 20, size=16)
    words = {"objects": ("1", "2")}
    read = read_annotated(tmp_path / "scenes.parquet", {}, ["objects"], 16, classes=words)
    said = [render_scene(i, 0, 16).attributes["objects"] for i in range(20)]
    assert read.attributes["objects"].tolist() == [{"1": 0, "2": 1}.get(word, -1) for word in said]


def test_maps_are_cut_and_scaled_as_pictures_are(tmp_path: Path) -> None:
    import pyarrow as pa

    marks = np.zeros((20, 40), np.uint8)
    marks[:, 10:20] = 255
    pixels = np.repeat(marks[..., None], 3, 2)
    files = []
    for one in (pixels, marks):
        file = io.BytesIO()
        Image.fromarray(one).save(file, "PNG")
        files.append(file.getvalue())
    pq.write_table(pa.table({"image": files[:1], "edges": files[1:]}), tmp_path / "wide.parquet")
    read = read_annotated(tmp_path / "wide.parquet", {"edges": "edges"}, [], 20)
    assert np.array_equal(read.dense["edges"][0], (read.pixels[0, 0] > 127).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "maps", "found"),
    [
        ("segmentation", np.array([[0, 1], [1, 0]], bool), [[0, 1], [1, 0]]),
        ("segmentation", np.array([[0, 7], [254, 255]], np.uint8), [[0, 7], [254, 255]]),
        ("segmentation", np.array([[0, 7], [1, 255]], np.uint16), [[0, 7], [1, 255]]),
        ("segmentation", np.array([[0, 7], [1, 256]], np.uint16), "class 256; 254 is the last"),
        ("edges", np.array([[0, 1], [1, 0]], np.uint8), [[0, 1], [1, 0]]),
        ("edges", np.array([[0, 255], [100, 0]], np.uint8), [[0, 1], [0, 0]]),
        ("saliency", np.array([[0, 1], [1, 0]], bool), [[0, 1], [1, 0]]),
    ],
)
def test_maps_of_every_usual_form_say_the_same(
    tmp_path: Path, kind: Literal["segmentation", "edges", "saliency"], maps: np.ndarray, found: list[list[int]] | str
) -> None:
    import pyarrow as pa

    files = []
    for one in (np.zeros((2, 2, 3), np.uint8), maps):
        file = io.BytesIO()
        Image.fromarray(one).save(file, "PNG")
        files.append(file.getvalue())
    pq.write_table(pa.table({"image": files[:1], "own": files[1:]}), tmp_path / "maps.parquet")
    if isinstance(found, str):
        with pytest.raises(DataError, match=found):
            read_annotated(tmp_path / "maps.parquet", {"own": kind}, [], 2)
    else:
        assert read_annotated(tmp_path / "maps.parquet", {"own": kind}, [], 2).dense["own"][0].tolist() == found


def test_tables_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    import pyarrow as pa

    file = tmp_path / "scenes.parquet"
    scenes_table(file, 10, size=16)
    with pytest.raises(DataError, match="no column 'weather'; it has image"):
        read_annotated(file, {}, ["weather"], 16)
    with pytest.raises(DataError, match=r"expected a \.parquet"):
        read_annotated(tmp_path / "none.parquet", {}, ["ground"], 16)
    with pytest.raises(DataError, match="no pictures of split dev"):
        read_annotated(file, {}, ["ground"], 16, "dev")
    rows = pq.read_table(file).to_pylist()
    for change, words in (
        ({"edges": rows[0]["image"]}, "scenes.parquet:1, edges: a map has one channel, and this is RGB"),
        ({"edges": b"no picture"}, "scenes.parquet:1, edges: no PNG file"),
        ({"edges": rows[0]["edges"][:60]}, "scenes.parquet:1, edges: (a damaged|no) PNG file"),
    ):
        pq.write_table(pa.Table.from_pylist([{**rows[0], **change}, *rows[1:]]), file)
        with pytest.raises(DataError, match=words):
            read_annotated(file, {"edges": "edges"}, [], 16)
    pq.write_table(pa.Table.from_pylist([{**row, "ground": "red"} for row in rows]), file)
    with pytest.raises(DataError, match="'ground' has 1 different words"):
        read_annotated(file, {}, ["ground"], 16)
    pq.write_table(pa.Table.from_pylist([{**row, "image": b"x"} if i else row for i, row in enumerate(rows)]), file)
    read = read_annotated(file, {"edges": "edges"}, [], 16)
    assert (len(read), read.unread) == (1, 9)
    assert "scenes.parquet:2" in read.left_out[0]
    with pytest.raises(ConfigError, match="16 pixels a side at least"):
        render_scene(0, 0, 8)
    with pytest.raises(ConfigError, match="ten scenes at least"):
        scenes_table(file, 9)
