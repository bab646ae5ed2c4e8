"""BIG-bench: from a source archive to tables; the archive here is a few kilobytes and made by hand."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import udr.bigbench
from udr.bigbench import convert_bigbench, fetch_bigbench, task_rows
from udr.errors import DataError, MissingDependencyError, UnknownNameError
from udr.tasks import load_spec

ROOT = "bigbench-1.0.0/bigbench/benchmark_tasks"

SOCIAL = {
    "examples": [
        {"input": f"What will Ash do next, case {i}? ", "target_scores": {"Sleep ": 0, f"Run {i}": 1, "Eat": 0}}
        for i in range(12)
    ]
}
FEVER = {
    "examples": [
        {"id": i, "input": f"Claim {i}", "target_scores": {"true": i % 2, "false": 1 - i % 2}} for i in range(8)
    ]
}
WIKIDATA = {"examples": [{"input": f"The capital of land {i} is", "target": [f"City {i}", f"C{i}"]} for i in range(9)]}
FOLDERS = {"social_iqa": SOCIAL, "fact_checker/fever": FEVER, "qa_wikidata": WIKIDATA}
NAMES = ("wikidata_qa", "social_iqa", "fever")


def write_archive(path: Path, folders: dict[str, Any]) -> Path:
    padding = random.Random(1).randbytes(60_000)  # does not compress, so that half the file lacks the tasks
    members = {"bigbench-1.0.0/README.md": padding, f"{ROOT}/social_iqa/results/task.json": b"{}"}
    members |= {f"{ROOT}/{folder}/task.json": json.dumps(task).encode() for folder, task in folders.items()}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "bigbench.tar.gz", FOLDERS)


def examples(inputs: Sequence[str]) -> dict[str, Any]:
    return {"examples": [{"input": text, "target": f"answer to {text}"} for text in inputs]}


# task_rows


def test_ids_are_those_of_the_published_tables() -> None:
    (row,) = task_rows({"examples": [{"input": "The religion of Vishwanath Pratap Singh is ", "target": ["Hinduism"]}]})
    assert row["id"] == "58bd387e6e4f4aaa"
    claim = "Vera Wang is an Armenian Fashion Designer.\nQ: Was this claim true or false?"
    text = f"On June 2017, the following claim was made: {claim}"
    (row,) = task_rows({"examples": [{"input": text, "target_scores": {"true": 0, "false": 1}}]})
    assert row["id"] == "06cf124a705e50f5"


def test_draw_is_fixed() -> None:
    drawn = task_rows(examples("abcdefgh"))
    assert [(row["input"], row["split"]) for row in drawn] == [
        *((text, "test") for text in "eb"),
        *((text, "train") for text in "fcadhg"),
    ]


@pytest.mark.parametrize(
    ("size", "test", "train"), [(1, 0, 1), (3, 0, 3), (4, 1, 3), (693, 173, 520), (2003, 500, 1503), (4700, 500, 4000)]
)
def test_a_quarter_is_for_testing_and_both_splits_are_capped(size: int, test: int, train: int) -> None:
    splits = [row["split"] for row in task_rows(examples([f"x{i}" for i in range(size)]))]
    assert splits == ["test"] * test + ["train"] * train


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.frozensets(st.sampled_from("pqrs"), min_size=1)), max_size=60)
)
def test_splits_share_no_input_and_no_row_stands_twice(pairs: list[tuple[str, frozenset[str]]]) -> None:
    task = {
        "examples": [{"input": text, "target_scores": dict.fromkeys(sorted(options), 1)} for text, options in pairs]
    }
    table = task_rows(task)
    inputs = {split: {row["input"] for row in table if row["split"] == split} for split in ("train", "test")}
    assert not inputs["train"] & inputs["test"]
    assert len({row["id"] for row in table}) == len(table)
    distinct = len(set(pairs))
    assert sum(row["split"] == "test" for row in table) == distinct // 4
    assert {row["input"] for row in table} == {text for text, _ in pairs}  # nothing is lost but the repeated


@given(st.lists(st.tuples(st.text(max_size=4), st.lists(st.text(max_size=3), max_size=3)), max_size=20))
def test_every_row_has_stripped_text_and_an_answer(pairs: list[tuple[str, list[str]]]) -> None:
    for row in task_rows({"examples": [{"input": text, "target": target} for text, target in pairs]}):
        assert row["input"] == row["input"].strip() != ""
        assert row["output"] == row["references"][0] != ""
        assert row["choices"] == []


def test_options_are_stripped_so_that_the_answer_is_among_them() -> None:
    (row,) = task_rows({"examples": [{"input": "How long?", "target_scores": {"two weeks ": 1, " a day": 0}}]})
    assert (row["output"], row["choices"]) == ("two weeks", ["two weeks", "a day"])


def test_best_scored_options_are_the_references() -> None:
    (row,) = task_rows({"examples": [{"input": "x", "target_scores": {"a": 0.2, "b": 0.9, "c": 0.9}}]})
    assert (row["output"], row["references"]) == ("b", ["b", "c"])


def test_order_of_the_options_does_not_make_a_new_row() -> None:
    first, second = {"a": 1, "b": 0}, {"b": 1, "a": 0}
    (row,) = task_rows({"examples": [{"input": "x", "target_scores": scores} for scores in (first, second)]})
    assert row["output"] == "a"  # the first stays


def test_free_text_answers_of_a_classification_task_get_its_labels_as_choices() -> None:
    (row,) = task_rows({"examples": [{"input": "x", "target": ["Yes."]}]}, ("No.", "Yes."))
    assert row["choices"] == ["No.", "Yes."]


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        ({"input": "x", "target": "Maybe."}, "'Maybe.' is not among the labels No., Yes."),
        ({"input": "x"}, "neither target nor target_scores"),
        ({"input": "x", "target": [1]}, "neither target nor target_scores"),
        ({"input": "x", "target_scores": {}}, "neither target nor target_scores"),
        ({"input": "x", "target_scores": {"a": "b"}}, "neither target nor target_scores"),
        ({"input": ["x"], "target": "Yes."}, "no input"),
        ("x", "no input"),
    ],
)
def test_example_of_another_shape_is_named_by_its_number(example: object, problem: str) -> None:
    task = {"examples": [{"input": "fine", "target": "Yes."}, example]}
    with pytest.raises(DataError) as caught:
        task_rows(task, ("No.", "Yes."), "somewhere")
    assert str(caught.value).startswith("somewhere: example 2: ")
    assert problem in str(caught.value)


# convert_bigbench


def test_tables_and_manifest_agree(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = convert_bigbench(archive, out, NAMES)
    assert [entry["name"] for entry in entries] == list(NAMES)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert sorted(manifest, key=lambda entry: NAMES.index(entry["name"])) == entries
    for entry in entries:
        table = pq.read_table(out / f"{entry['name']}.parquet")
        assert table.column_names == ["id", "input", "output", "choices", "references", "split"]
        splits = table["split"].to_pylist()
        assert (splits.count("train"), splits.count("test")) == (entry["train"], entry["test"])
        spec = load_spec(entry["name"])
        assert (entry["kind"], entry["metric"], entry["labels"]) == (
            spec.kind,
            spec.metric,
            list(spec.verbaliser) or None,
        )


def test_rows_of_the_archive_arrive_whole(archive: Path, tmp_path: Path) -> None:
    convert_bigbench(archive, tmp_path, ["social_iqa"])
    table = {row["input"]: row for row in pq.read_table(tmp_path / "social_iqa.parquet").to_pylist()}
    assert len(table) == 12
    row = table["What will Ash do next, case 3?"]
    assert (row["output"], row["choices"], row["references"]) == ("Run 3", ["Sleep", "Run 3", "Eat"], ["Run 3"])


def test_same_archive_gives_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        convert_bigbench(archive, tmp_path / folder, NAMES)
    for name in (*(f"{name}.parquet" for name in NAMES), "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_second_conversion_keeps_the_other_entries_of_the_manifest(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('[{"name": "mine"}, {"name": "fever", "train": 0}]', encoding="utf-8")
    convert_bigbench(archive, tmp_path, ["fever"])
    manifest = {entry["name"]: entry for entry in json.loads((tmp_path / "manifest.json").read_bytes())}
    assert list(manifest) == ["mine", "fever"]
    assert manifest["fever"]["train"] == 6


def test_no_temporary_file_is_left(archive: Path, tmp_path: Path) -> None:
    convert_bigbench(archive, tmp_path / "out", NAMES)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*(f"{n}.parquet" for n in NAMES), "manifest.json"}


def test_archive_without_the_task_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no bigbench/benchmark_tasks/gem/xsum/task\.json"):
        convert_bigbench(archive, tmp_path / "out", ["xsum"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["half", "not gzip", "bit", "empty", "absent"])
def test_damaged_archive_is_named_in_one_line(damage: str, archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "half": whole[:middle],
        "not gzip": b"<html>" + whole,
        "bit": whole[:middle] + bytes([whole[middle] ^ 0xFF]) * 4000 + whole[middle + 4000 :],
        "empty": b"",
    }
    if damage == "absent":
        archive.unlink()
    else:
        archive.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"bigbench\.tar\.gz: ") as caught:
        convert_bigbench(archive, tmp_path / "out", NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", '{"examples": 3}', "[]"])
def test_task_file_of_another_shape_is_refused(content: str, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "bigbench.tar.gz", {})
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(f"{ROOT}/social_iqa/task.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content.encode()))
    with pytest.raises(DataError, match=r"bigbench\.tar\.gz"):
        convert_bigbench(archive, tmp_path, ["social_iqa"])


def test_name_that_is_no_bigbench_task_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean .*social_iqa"):
        convert_bigbench(archive, tmp_path, ["socialiqa"])
    with pytest.raises(DataError, match="sst2 does not come from BIG-bench"):
        convert_bigbench(archive, tmp_path, ["sst2"])


def test_absent_pyarrow_names_the_extra(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pyarrow .*udr\[train\]"):
        convert_bigbench(archive, tmp_path, ["fever"])


# fetch_bigbench


class Pip:
    """Stands in for pip: writes `content` where it was told to, or fails."""

    def __init__(self, content: bytes | None, stderr: str = "") -> None:
        self.content, self.stderr = content, stderr
        self.commands: list[list[str]] = []
        self.requirements = ""

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.requirements = Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")
        if self.content is None:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        (Path(command[command.index("--dest") + 1]) / "bigbench-1.0.0.tar.gz").write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> bytes:
    content = b"the archive"
    monkeypatch.setattr(udr.bigbench, "SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_archive_is_downloaded_once(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip := Pip(content))
    path = fetch_bigbench(tmp_path / "cache")
    assert fetch_bigbench(tmp_path / "cache") == path
    assert path.read_bytes() == content
    assert len(pip.commands) == 1
    assert list(path.parent.iterdir()) == [path]


def test_pip_is_given_the_hash_and_told_to_insist_on_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip := Pip(content))
    fetch_bigbench(tmp_path)
    assert pip.requirements == f"bigbench==1.0.0 --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
    assert {"--require-hashes", "--no-deps"} <= set(pip.commands[0])


def test_damaged_copy_in_the_cache_is_replaced(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bigbench-1.0.0.tar.gz").write_bytes(b"half of the arch")
    monkeypatch.setattr(subprocess, "run", Pip(content))
    assert fetch_bigbench(tmp_path).read_bytes() == content


@pytest.mark.usefixtures("content")
def test_other_file_under_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(b"something else"))
    with pytest.raises(DataError, match="put it there"):
        fetch_bigbench(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: slow\nERROR: No matching distribution found\n", "ERROR: No matching distribution found"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "no such file"),
    ],
)
def test_failed_download_says_why_in_one_line(
    stderr: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None, stderr))
    with pytest.raises(DataError) as caught:
        fetch_bigbench(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file"):
        fetch_bigbench(tmp_path / "file" / "cache")
