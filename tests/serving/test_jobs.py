"""Loads of many demonstrations: NDJSON and Parquet, bad lines, repeats, interruptions."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

import serving.loading
import serving.sql.jobs
from serving.app import create_app
from serving.background import Background
from serving.retrievers import PoolEncoder
from serving.settings import Settings
from serving.sql.jobs import JobLost, JobRow, Jobs, LineError, Step
from serving.sql.store import Store
from serving.sql.tables import job as job_table
from tests.serving.tools import finished, refused
from udr.errors import ConflictError, DataError
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

NDJSON, PARQUET = {"content-type": "application/x-ndjson"}, {"content-type": "application/vnd.apache.parquet"}

SPEC = TaskSpec(name="p", family="custom", kind="generation", metric="rouge_l")


@pytest.fixture
def place(client: TestClient) -> str:
    client.post("/v1/pools", json={"name": "p"})
    return "/v1/pools/p/load"


def rows(n: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "input": f"text {i}", "output": "y", "metadata": {"i": i}} for i in range(n)]


def lines(of: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in of)


def stored(client: TestClient) -> dict[str, str]:
    exported = client.get("/v1/pools/p/export").text.splitlines()
    return {d["id"]: d["input"] for d in map(json.loads, exported)}


def test_lines_are_stored_and_bad_ones_are_told_by_their_number(client: TestClient, place: str) -> None:
    own = rows(5)
    body = b"\n".join(
        [
            json.dumps(own[0]).encode(),
            b"{",
            json.dumps(own[1]).encode(),
            b"",
            b'{"input": "no answer"}',
            json.dumps({**own[2], "colour": 1}).encode(),
            b"\xff\xfe",
            json.dumps({**own[0], "input": "another"}).encode(),
            json.dumps(own[1]).encode(),
            json.dumps({"input": "a\x00", "output": "y"}).encode(),
            json.dumps(own[3]).encode(),
        ]
    )
    job = finished(client, client.post(place, content=body, headers=NDJSON))
    assert [job[name] for name in ("created", "unchanged", "refused", "encoded")] == [3, 1, 6, 3]
    assert [e["line"] for e in job["errors"]] == [2, 5, 6, 7, 8, 10]
    words = ["JSON", "output", "colour", "", "another demonstration", "NUL"]
    assert all(word in e["detail"] and "\n" not in e["detail"] for word, e in zip(words, job["errors"], strict=True))
    assert stored(client) == {f"r{i}": f"text {i}" for i in (0, 1, 3)}
    assert (job["done"], job["total"]) == (len(body), len(body))
    job = finished(client, client.post(f"{place}?mode=upsert", content=body, headers=NDJSON))
    assert [job[name] for name in ("created", "replaced", "unchanged", "refused")] == [0, 1, 4, 5]
    assert stored(client)["r0"] == "another"


def test_parquet_rows_are_loaded_as_lines_are(client: TestClient, place: str) -> None:
    own = [{"id": f"r{i}", "input": f"text {i}", "output": "y", "choices": ["y", "n"][: i % 3]} for i in range(2500)]
    table = pa.Table.from_pylist([{**row, "metadata": {"i": str(i), "odd": None}} for i, row in enumerate(own)])
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=700)
    job = finished(client, client.post(place, content=file.getvalue(), headers=PARQUET))
    assert [job[name] for name in ("created", "refused", "encoded")] == [2500, 0, 2500]
    assert (job["done"], job["total"]) == (2500, 2500)
    assert client.get("/v1/pools/p/demonstrations/r7").json() == {**own[7], "metadata": {"i": "7"}}
    found = client.post("/v1/retrieve", json={"pool": "p", "queries": ["text 77"], "k": 1}).json()
    assert found["results"][0]["demonstrations"][0]["id"] == "r77"
    broken = finished(client, client.post(place, content=file.getvalue()[:-9], headers=PARQUET), "failed")
    assert "Parquet" in broken["error"]
    refused(client.post(place, content=b"a,b", headers={"content-type": "text/csv"}), 415, "ndjson")


def test_a_job_counts_what_was_not_read_to_its_end(
    client: TestClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PoolEncoder, "tokens_cut", lambda _, texts: [5 * (t.input == "text 1") for t in texts])
    job = finished(client, client.post(place, content=lines(rows(3)), headers=NDJSON))
    assert (job["encoded"], job["cut"]) == (3, 1)


def as_file(table: pa.Table, **how: Any) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **how)
    return file


def test_parquet_rows_read_the_same_whatever_their_columns_are() -> None:
    """By Arrow alone, and in parts that keep shared texts once."""
    n = 700
    table = pa.table(
        {
            "input": pa.array([f"text {i % 7}" * 3000 for i in range(n)], pa.large_string()),
            "category": pa.array([None if i % 5 == 0 else "xy"[i % 2] for i in range(n)]).dictionary_encode(),
            "number": pa.array([i % 3 for i in range(n)]).dictionary_encode(),
            "raw": pa.array([None if i % 4 == 0 else b"%d" % i for i in range(n)]),
            "media": [[{"kind": "image", "uri": "u" * 9000}] * (i % 3) if i % 4 else None for i in range(n)],
            "metadata": pa.array(
                [[("k", "v" * (i % 9))] * (i % 2) for i in range(n)], pa.map_(pa.string(), pa.string())
            ),
            "pair": pa.array([["a", str(i)] for i in range(n)], pa.list_(pa.string(), 2)),
            "struct": [{"a": "x", "b": i} if i % 6 else None for i in range(n)],
        }
    )
    plain = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
    for groups in (n, 100):
        found = list(serving.loading._parquet(as_file(table, row_group_size=groups), 150))
        assert found == [(row, i) for i, row in enumerate(plain, 1) if i > 150]


def test_a_batch_of_a_load_is_bounded_in_bytes_too() -> None:
    """Of media, and of a text that a file holds once and its rows name often."""
    uri, n = "data:image/png;base64," + "A" * 1_000_000, 40
    own = [{"id": str(i), "input": "a", "output": "y", "media": [{"kind": "image", "uri": uri}]} for i in range(n)]
    file = as_file(pa.Table.from_pylist(own))
    assert len(file.getvalue()) < 1_000_000
    for form, payload in (("parquet", file), ("ndjson", io.BytesIO(lines(own)))):
        read = list(serving.loading.batches(payload, form, 0, 0, SPEC, 1000))
        assert sum(len(batch.demonstrations) for batch in read) == n
        assert max(len(batch.demonstrations) for batch in read) <= 5
    records = next(pq.ParquetFile(file, read_dictionary=["input"]).iter_batches())
    assert max(map(len, serving.loading._parts(records))) <= 4


def test_a_row_that_unpacks_to_much_is_refused() -> None:
    many = [{"input": "a", "output": "y", "media": [{"kind": "image", "uri": "u" * 1_000_000}] * 100}]
    file = as_file(pa.Table.from_pylist([{"input": "a", "output": "y", "media": []}, *many]))
    with pytest.raises(DataError, match="row 2: 100000"):
        list(serving.loading.batches(file, "parquet", 0, 0, SPEC, 1000))


@pytest.mark.parametrize("others", [{}, {"year": 2020}])
def test_a_parquet_row_whose_metadata_are_no_mapping_is_told(
    client: TestClient, place: str, others: dict[str, Any]
) -> None:
    rows_without = [{**rows(2)[1], "metadata": None, **others}]
    for stated in ("text", "", 7, 0, False, 1.5, ["a", "b"], [["a", "b"]], [{"key": "a", "value": "b"}]):
        table = pa.Table.from_pylist([{**row, "metadata": stated, **others} for row in rows(1)] + rows_without)
        file = as_file(table)
        job = finished(client, client.post(f"{place}?mode=upsert", content=file.getvalue(), headers=PARQUET))
        assert job["errors"] == [{"line": 1, "detail": "metadata: expected a map or a struct"}], stated
    assert list(stored(client)) == ["r1"]
    kind = pa.schema({"input": pa.string(), "output": pa.string(), "metadata": pa.map_(pa.string(), pa.string())})
    file = as_file(pa.Table.from_pylist([{"input": "a", "output": "y", "metadata": {"b": "c"}}], kind))
    assert finished(client, client.post(place, content=file.getvalue(), headers=PARQUET))["created"] == 1
    assert json.loads(client.get("/v1/pools/p/export").text.splitlines()[-1])["metadata"] == {"b": "c"}


def test_one_key_loads_one_payload_once(client: TestClient, place: str) -> None:
    key = {**NDJSON, "idempotency-key": "a"}
    first = client.post(place, content=lines(rows(3)), headers=key)
    assert client.post(place, content=lines(rows(3)), headers=key).json()["id"] == first.json()["id"]
    refused(client.post(place, content=lines(rows(4)), headers=key), 409, "another body")
    finished(client, first)
    assert len(client.get("/v1/pools/p/jobs").json()["jobs"]) == 1
    assert len(stored(client)) == 3


def test_a_load_that_a_restart_interrupts_goes_on_where_it_was(
    settings: Settings, client: TestClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.loading, "_ROWS", 5)
    body = lines([*rows(1500), {"bad": 1}])
    begun = client.post(place, content=body, headers=NDJSON)
    job = f"/v1/jobs/{begun.json()['id']}"
    while not (before := client.get(job).json())["created"]:
        assert before["state"] in ("queued", "running")
    client.__exit__(None, None, None)
    with TestClient(create_app(settings)) as again:
        job = finished(again, begun)
        assert before["created"] < 1500
        assert [job[name] for name in ("created", "unchanged", "refused", "encoded")] == [1500, 0, 1, 1500]
        assert job["errors"][0]["line"] == 1501
        assert len(stored(again)) == 1500
    client.__enter__()


def test_a_load_keeps_to_the_limit_of_the_pool(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_pool": 2}))) as client:
        client.post("/v1/pools", json={"name": "p"})
        begun = client.post("/v1/pools/p/load", content=lines(rows(3)), headers=NDJSON)
        assert "limit is 2" in finished(client, begun, "failed")["error"]
    with TestClient(create_app(settings.model_copy(update={"max_load": 100}))) as client:
        refused(client.post("/v1/pools/p/load", content=b"x" * 101, headers=NDJSON), 413, "100 bytes")
        refused(client.post("/v1/pools/p/load", content=(b"x" * 60 for _ in range(2)), headers=NDJSON), 413, "100")


def test_an_upload_does_not_bring_a_cancelled_job_back(store: Store) -> None:
    jobs = Jobs(store.database)
    job = jobs.create(store.create_pool("a", {}).id, "load", {}, state="receiving")
    jobs.add_part(job.id, 0, b"a")
    jobs.cancel(job.id)
    with pytest.raises(ConflictError, match="cancelled"):
        jobs.add_part(job.id, 1, b"b")
    with pytest.raises(ConflictError, match="cancelled"):
        jobs.received(job.id, 2, "key", "fingerprint")
    assert jobs.get(job.id).state == "cancelled"
    assert list(jobs.parts(job.id)) == []
    assert jobs.claim("one") is None


def test_a_client_is_told_that_its_upload_was_cancelled(
    client: TestClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Jobs.add_part

    def cancelled_before(self: Jobs, job_id: str, number: int, data: bytes) -> None:
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
        add(self, job_id, number, data)

    monkeypatch.setattr(Jobs, "add_part", cancelled_before)
    refused(client.post(place, content=lines(rows(3)), headers=NDJSON), 409, "cancelled")
    assert [job["state"] for job in client.get("/v1/pools/p/jobs").json()["jobs"]] == ["cancelled"]


def test_a_job_lost_to_another_process_writes_nothing_more(store: Store) -> None:
    jobs = Jobs(store.database)
    pool = store.create_pool("a", {}).id
    job = jobs.create(pool, "load", {})
    assert jobs.claim("one") is not None
    assert jobs.claim("two") is None
    own = Demonstration("k", "t", "y")
    step = Step(job.id, "one", 1, 1, 1, (LineError(1, "bad"),), lines={"k": 2})
    store.write(pool, [own], {}, clash="skip", step=step)
    jobs.release("one")
    taken = jobs.claim("two")
    assert taken is not None
    assert (taken.position, taken.counts["created"], taken.counts["refused"]) == (1, 1, 1)
    with pytest.raises(JobLost):
        store.write(pool, [Demonstration("l", "t", "y")], {}, clash="skip", step=step)
    assert store.pool_of(pool).size == 1
    other = Demonstration("k", "another", "y")
    store.write(pool, [other], {}, clash="skip", step=step._replace(owner="two", refused=()))
    assert jobs.get(job.id).errors[-1][0] == 2


def test_two_threads_of_one_process_are_never_at_one_job(
    client: TestClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners, taken_over, run = [], threading.Event(), Background._run

    def held(self: Background, job: JobRow, owner: str) -> None:
        owners.append(owner)
        if len(owners) > 1:
            taken_over.set()
        assert taken_over.wait(30)  # the first goes on when the second is at it
        run(self, job, owner)

    monkeypatch.setattr(Background, "_run", held)
    begun = client.post(place, content=lines(rows(20)), headers=NDJSON)
    parts = client.app.state.parts  # type: ignore[attr-defined]
    while not taken_over.is_set():  # nothing is heard of the first, as when the database was away for long
        with parts.database.write() as c:
            c.execute(sa.update(job_table).values(beat=0.0))
        parts.background.wake()
        time.sleep(0.02)
    job = finished(client, begun)
    assert [job[name] for name in ("created", "unchanged", "encoded")] == [20, 0, 20]
    assert len(set(owners)) == 2


def test_a_job_that_ends_every_process_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(store.database)
    job = jobs.create(store.create_pool("a", {}).id, "load", {}, state="receiving")
    jobs.add_part(job.id, 0, b"what ends them")
    jobs.received(job.id, 14, None, "fingerprint")
    monkeypatch.setattr(serving.sql.jobs, "_SILENT", -1.0)  # every process that is at a job is taken for dead at once
    assert [jobs.claim(owner) is not None for owner in ("one", "two", "three", "four", "five")] == [True] * 3 + [
        False
    ] * 2
    given_up = jobs.get(job.id)
    assert given_up.state == "failed"
    assert "3 processes" in str(given_up.error)
    assert list(jobs.parts(job.id)) == []


def test_a_job_that_goes_on_may_lose_many_processes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(store.database)
    job = jobs.create(store.create_pool("a", {}).id, "load", {})
    monkeypatch.setattr(serving.sql.jobs, "_SILENT", -1.0)
    for n in range(6):
        assert jobs.claim(str(n)) is not None
        jobs.advance(Step(job.id, str(n), n, n, n))


def test_a_parquet_file_that_unpacks_to_much_is_refused_unread(
    client: TestClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.loading, "_GROUP", 100_000)
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"input": "a" * 1000, "output": "y"}] * 1000), file, use_dictionary=False)
    assert len(file.getvalue()) < 100_000  # a hundredth of what it says it holds
    job = finished(client, client.post(place, content=file.getvalue(), headers=PARQUET), "failed")
    assert "row group" in job["error"]
    assert stored(client) == {}
