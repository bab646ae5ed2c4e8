"""Labelled pictures from packages become tables, and damaged ones are told."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.picture_tables import cifar10_table, idx_table
from training.pictures import prepare_pictures
from udr.errors import DataError


def idx(pixels: np.ndarray, labels: np.ndarray, folder: Path, part: str) -> None:
    folder.mkdir(exist_ok=True)
    images = struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes()
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())
    )


def test_mnists_format_becomes_a_table_of_the_same_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (7, 28, 28), dtype=np.uint8), rng.integers(0, 9, 7, dtype=np.uint8)
    idx(pixels[:5], labels[:5], tmp_path / "idx", "train")
    idx(pixels[5:], labels[5:], tmp_path / "idx", "t10k")
    assert idx_table(tmp_path / "idx", tmp_path / "t.parquet") == 7
    found = prepare_pictures(tmp_path / "t.parquet", 28, tmp_path / "cache", "train")
    np.testing.assert_array_equal(found.pixels[:, 0], pixels[:5])
    assert found.labels == tuple(map(str, labels[:5]))
    assert len(prepare_pictures(tmp_path / "t.parquet", 28, tmp_path / "cache", "test")) == 2


def test_damaged_files_of_mnists_format_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (3, 28, 28), dtype=np.uint8), np.zeros(3, np.uint8)
    for part in ("train", "t10k"):
        idx(pixels, labels, tmp_path, part)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for raw, words in (
        (whole[:40], "damaged"),
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"123"), "not in MNIST"),
        (gzip.compress(gzip.decompress(whole)[:-1]), "not in MNIST"),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=words):
            idx_table(tmp_path, tmp_path / "t.parquet")
        assert not (tmp_path / "t.parquet").exists()
    idx(pixels[:2], labels, tmp_path, "t10k")
    with pytest.raises(DataError, match="2 pictures and 3 labels of t10k"):
        idx_table(tmp_path, tmp_path / "t.parquet")


def test_cifar10_is_split_evenly_over_the_classes(tmp_path: Path) -> None:
    examples = []
    for i in range(604):
        file = io.BytesIO()
        Image.fromarray(np.full((2, 2, 3), (i % 256, i // 256, 7), np.uint8)).save(file, "PNG")
        targets = {"cat": int(i % 2 == 0), "dog": int(i % 2)}
        examples.append({"input": base64.b64encode(file.getvalue()).decode(), "target_scores": targets})
    task = json.dumps({"examples": examples}).encode()
    archive = tmp_path / "bigbench.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/base64/task.json")
        info.size = len(task)
        tar.addfile(info, io.BytesIO(task))
    assert cifar10_table(archive, tmp_path / "c.parquet") == 604
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    assert Counter((r["label"], r["split"]) for r in rows) == {
        ("cat", "test"): 200, ("cat", "train"): 102, ("dog", "test"): 200, ("dog", "train"): 102,
    }  # fmt: skip
    assert len({r["image"] for r in rows}) == 604
