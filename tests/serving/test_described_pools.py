"""Pools of pictures whose attributes a multi-task encoder has written: found by picture, filtered by what is seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from embed.multi_task import load_multi_task, save_multi_task
from embed.multi_task_nets import build_multi_task_net
from serving.app import create_app
from serving.settings import Settings
from tests.serving.tools import finished
from training.describe import describe_pictures
from training.scenes import render_scene

COUNT = 16
SHAPE = {"network": "shared", "backbone": "pyramid_small", "size": 32, "dense": {}, "attributes": {"ground": 3}}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The folder of a run of `udr pretrain`, whose network is untrained."""
    torch.manual_seed(0)
    shape = SHAPE | {"kinds": {}, "classes": {"ground": ["grass", "sand", "sea"]}}
    save_multi_task(build_multi_task_net(**SHAPE), tmp_path / "run" / "encoder", shape, {})  # type: ignore[arg-type]
    return tmp_path / "run"


def test_a_described_pool_is_loaded_and_filtered_by_what_is_seen(tmp_path: Path, encoder: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(COUNT):
        Image.fromarray(render_scene(i, 0, 32).pixels).save(pictures / f"{i:02d}.png")
    pool = tmp_path / "pool.jsonl"
    assert describe_pictures(pictures, f"artifact:{encoder / 'encoder'}", pool) == (COUNT, 0)
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    seen = {row["id"]: row["metadata"]["ground"] for row in rows}
    wanted = max(set(seen.values()), key=lambda word: list(seen.values()).count(word))
    own = load_multi_task(encoder / "encoder", "cpu")
    vectors = own.encode_pixels(np.stack([render_scene(i, 0, 32).pixels.transpose(2, 0, 1) for i in range(COUNT)]))

    settings = Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="none", retrievers={"seen": str(encoder)})
    with TestClient(create_app(settings)) as client:
        client.post("/v1/pools", json={"name": "things"})
        begun = client.post(
            "/v1/pools/things/load", content=pool.read_bytes(), headers={"content-type": "application/x-ndjson"}
        )
        finished(client, begun)
        finished(client, client.put("/v1/pools/things/retriever", json={"retriever": "seen"}))
        query = {"input": "", "media": rows[3]["media"]}
        body = {"pool": "things", "queries": [query], "k": COUNT, "where": {"ground": wanted}}
        answer = client.post("/v1/retrieve", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()["results"][0]["demonstrations"]
    assert {one["id"] for one in found} == {name for name, word in seen.items() if word == wanted}
    best = sorted((float(vectors[3] @ vectors[int(name[:2])]) for name, w in seen.items() if w == wanted), reverse=True)
    assert [one["similarity"] for one in found] == pytest.approx(best, abs=1e-4)
