"""The page's files and headers, and the map and statistics of a pool, against numpy and plain counting."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

import serving.routes.playground
from serving.app import create_app
from serving.overview import lengths, outputs, principal_plane
from serving.settings import Settings
from tests.serving.tools import refused
from udr.types import LONGEST_ADDRESS

ROOT = Path(__file__).parents[2]
FILES = {f.name: f.read_text(encoding="utf-8") for f in (ROOT / "serving/playground").iterdir()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
ADMIN = {"authorization": "Bearer boss"}


def rows(n: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "input": f"word{i} and word{i % 7}" * (1 + i % 3), "output": "ab"[i % 2]} for i in range(n)]


def test_the_schema_says_how_long_a_picture_may_be(client: TestClient) -> None:
    uri = client.get("/openapi.json").json()["components"]["schemas"]["MediaBody"]["properties"]["uri"]
    limits = uri["x-max-length"]
    assert limits == LONGEST_ADDRESS
    assert uri["maxLength"] == max(limits.values())
    assert '["x-max-length"]?.image' in SCRIPTS["pictures.js"]
    client.post("/v1/pools", json={"name": "p"})
    for kind, limit in limits.items():
        for more, status in ((0, 200), (1, 422)):
            media = [{"kind": kind, "uri": "data:,".ljust(limit + more, "x")}]
            asked = {"pool": "p", "queries": [{"input": "x", "media": media}], "retriever": "bm25"}
            assert client.post("/v1/retrieve", json=asked).status_code == status


def filled(client: TestClient, n: int, name: str = "pool") -> None:
    assert client.post("/v1/pools", json={"name": name}).status_code == 201
    if n:
        assert client.post(f"/v1/pools/{name}/demonstrations", json={"demonstrations": rows(n)}).status_code == 201


# -- files


def test_every_file_comes_with_its_type_and_is_not_sent_twice(client: TestClient) -> None:
    for name, text in FILES.items():
        answer = client.get(f"/playground/{name}")
        assert answer.status_code == 200
        assert answer.text == text
        assert answer.headers["content-type"] == TYPES.get(Path(name).suffix, "image/svg+xml")
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(f"/playground/{name}", headers={"if-none-match": f'"x", W/{answer.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
        other = client.get(f"/playground/{name}", headers={"if-none-match": '"x"'})
        assert other.status_code == 200
    assert client.get("/").text == FILES["index.html"]
    assert client.head("/").headers["content-length"] == str(len(FILES["index.html"].encode()))


def test_the_policy_lets_nothing_in_but_the_pages_own_files(client: TestClient) -> None:
    for path in ("/", "/playground/main.js"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["img-src"] == "'self' data:"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_holds_nothing_that_the_policy_forbids() -> None:
    html = FILES["index.html"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", html)
    for name, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
    asked = re.findall(r'(?:src|href)="(/playground/[^"]+)"', html)
    asked += [f"/playground/{n}" for text in SCRIPTS.values() for n in re.findall(r'from "\./([^"]+)"', text)]
    assert {Path(path).name for path in asked} == FILES.keys() - {"index.html"}  # all are used, and none is missing


def test_other_names_are_no_files(client: TestClient) -> None:
    for name in ("nothing.js", "..%2Fapp.py", "%2e%2e/app.py", ""):
        refused(client.get(f"/playground/{name}", follow_redirects=False), 404, "")
    refused(client.post("/"), 405, "")


def test_a_wheel_contains_the_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("udr", "embed", "serving", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {n.removeprefix("serving/playground/") for n in zipfile.ZipFile(wheel).namelist() if "/playground/" in n}
    assert held == FILES.keys()


# -- keys


def test_the_page_needs_no_key_and_what_it_asks_for_does(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"key": "boss"}))) as client:
        for name in ("own", "other"):
            client.post("/v1/pools", json={"name": name}, headers=ADMIN)
        made = client.post("/v1/keys", json={"name": "reader", "pools": ["own"]}, headers=ADMIN).json()
        reader = {"authorization": f"Bearer {made['key']}"}
        for path in ("/", "/playground/main.js"):
            assert client.get(path).status_code == 200
        for place in ("map", "statistics"):
            refused(client.get(f"/v1/pools/own/{place}"), 401, "send a key")
            assert client.get(f"/v1/pools/own/{place}", headers=reader).status_code == 200
            refused(client.get(f"/v1/pools/other/{place}", headers=reader), 404, "no pool 'other'")
        refused(client.get("/playground"), 401, "send a key")


# -- the map


def vectors_of(client: TestClient, name: str) -> dict[int, Any]:
    """The stored vectors of a pool by row, read in another way than the map does."""
    store = client.app.state.parts.catalog.store  # type: ignore[attr-defined]
    pool = store.pool(name)
    (encoding,) = store.encodings(pool.id)
    changes = store.changes(pool.id, encoding.id, encoding.dim, 0)
    return dict(zip(changes.rows, changes.vectors, strict=True))


def oracle(vectors: Any) -> tuple[Any, Any]:
    """Coordinates (m, 2) and shares (2,) by numpy's SVD."""
    centred = vectors.astype(float) - vectors.astype(float).mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T, (singular**2 / (singular**2).sum())[:2]


def test_the_map_is_that_of_numpys_svd(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        filled(client, 60)
        client.delete("/v1/pools/pool/demonstrations/7")
        found = client.get("/v1/pools/pool/map").json()
        vectors = vectors_of(client, "pool")
    assert [p["id"] for p in found["points"]] == [str(i) for i in range(60) if i != 7]
    assert found["sampled"] == found["demonstrations"] == 59
    assert found["points"][0] == found["points"][0] | {"input": rows(1)[0]["input"], "output": "a"}
    expected, shares = oracle(np.stack([vectors[row] for row in sorted(vectors)]))
    drawn = np.array([[p["x"], p["y"]] for p in found["points"]])
    signs = np.sign((drawn * expected).sum(axis=0))
    np.testing.assert_allclose(drawn, expected * signs, atol=2e-5)
    np.testing.assert_allclose(found["variance"], shares, rtol=1e-6)


@given(m=st.integers(0, 12), d=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_the_plane_keeps_what_variance_two_axes_can(m: int, d: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)
    plane = principal_plane(vectors)
    assert plane.points.shape == (m, 2)
    if m < 2:
        assert plane.shares == (0.0, 0.0)
        return
    expected, shares = oracle(vectors)
    rank = expected.shape[1]
    np.testing.assert_allclose(np.abs(plane.points[:, :rank]), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(plane.shares[:rank], shares[:2], atol=1e-9)
    np.testing.assert_array_equal(principal_plane(vectors).points, plane.points)


def test_a_plane_through_one_place_is_a_point() -> None:
    plane = principal_plane(np.ones((5, 3), dtype=np.float32))
    np.testing.assert_array_equal(plane.points, np.zeros((5, 2)))
    assert plane.shares == (0.0, 0.0)


def test_a_map_changes_with_its_pool_alone(client: TestClient) -> None:
    filled(client, 5)
    tag = client.get("/v1/pools/pool/map").headers["etag"]
    assert client.get("/v1/pools/pool/map", headers={"if-none-match": tag}).status_code == 304
    client.post("/v1/pools/pool/demonstrations", json={"demonstrations": [{"input": "new", "output": "c"}]})
    changed = client.get("/v1/pools/pool/map", headers={"if-none-match": tag})
    assert changed.status_code == 200
    assert len(changed.json()["points"]) == 6


def test_a_pool_without_vectors_has_no_map(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"encoder": "none"}))) as client:
        filled(client, 3)
        refused(client.get("/v1/pools/pool/map"), 409, "has no vectors; PUT /v1/pools/pool/retriever")
        assert client.get("/v1/pools/pool/statistics").json()["sampled"] == 3


def test_long_texts_are_cut_on_the_map(client: TestClient) -> None:
    filled(client, 0)
    client.post("/v1/pools/pool/demonstrations", json={"demonstrations": [{"input": "x" * 5000, "output": "y" * 5000}]})
    (point,) = client.get("/v1/pools/pool/map").json()["points"]
    assert (len(point["input"]), len(point["output"])) == (300, 300)


# -- statistics


def test_statistics_are_those_of_plain_counting(client: TestClient) -> None:
    filled(client, 41)
    found = client.get("/v1/pools/pool/statistics").json()
    texts = [r["input"] for r in rows(41)]
    assert found["demonstrations"] == found["sampled"] == 41
    assert found["outputs"] == {
        "distinct": 2,
        "most_common": [{"output": "a", "count": 21}, {"output": "b", "count": 20}],
    }
    sizes = sorted(map(len, texts))
    stated = found["input_characters"]
    assert (stated["shortest"], stated["median"], stated["longest"]) == (sizes[0], sizes[20], sizes[-1])
    for bar in stated["histogram"]:
        assert bar["count"] == sum(bar["up_to"] / 2 < n <= bar["up_to"] for n in sizes)
    assert sum(bar["count"] for bar in stated["histogram"]) == 41


@given(st.lists(st.text(max_size=70), max_size=30))
def test_every_text_falls_under_one_length(texts: list[str]) -> None:
    found = lengths(texts)
    assert sum(bar["count"] for bar in found["histogram"]) == len(texts)
    for bar in found["histogram"]:
        low = 0 if bar["up_to"] == 1 else bar["up_to"] / 2 + 1
        assert bar["count"] == sum(low <= len(t) <= bar["up_to"] for t in texts)


@given(st.lists(st.sampled_from([str(i) for i in range(90)])))
def test_outputs_are_counted_the_commonest_first(texts: list[str]) -> None:
    found, counts = outputs(texts), Counter(texts)
    assert found["distinct"] == len(counts)
    assert [o["count"] for o in found["most_common"]] == sorted(counts.values(), reverse=True)[:50]
    assert all(counts[o["output"]] == o["count"] for o in found["most_common"])


def test_a_large_pool_is_sampled_evenly_and_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(client, 600)
    monkeypatch.setattr(serving.routes.playground, "_SAMPLED", 100)
    found, counted = (client.get(f"/v1/pools/pool/{place}").json() for place in ("map", "statistics"))
    assert found["sampled"] == counted["sampled"] == len(found["points"]) == 100
    assert found["demonstrations"] == counted["demonstrations"] == 600
    again = client.get("/v1/pools/pool/map").json()
    assert again == found
    shown = [int(p["id"]) for p in found["points"]]
    assert shown == sorted(shown)
    for low in range(0, 600, 100):  # no part of the pool is passed over, nor one of two that alternate
        assert 12 <= sum(low <= i < low + 100 for i in shown) <= 21
    assert counted["outputs"]["most_common"][1]["count"] >= 40
