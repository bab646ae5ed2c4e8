"""Tables and the hub: what is read, and that every bad row is named in one line with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.data import (
    load_hub,
    load_task_data,
    open_task,
    read_demonstrations,
    read_rows,
    write_demonstrations,
)
from udr.errors import DataError, UDRWarning, UnknownNameError
from udr.tasks.spec import Source, TaskSpec
from udr.types import Demonstration

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def refusal(path: Path, split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_demonstrations(path, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


# tables


def test_the_three_formats_give_the_same_demonstrations(tmp_path: Path) -> None:
    rows = [
        {
            "id": "1",
            "input": 'a, "quoted"\nline',
            "output": "yes",
            "choices": ["yes", "no"],
            "references": ["yes", "y"],
        },
        {"id": "2", "input": "ünï", "output": "no", "choices": ["no", "maybe"], "references": ["no"]},
    ]
    cells = [[r["id"], r["input"], r["output"], json.dumps(r["choices"]), json.dumps(r["references"])] for r in rows]
    quoted = [",".join('"' + str(c).replace('"', '""') + '"' for c in row) for row in cells]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["id,input,output,choices,references", *quoted]) + "\n", encoding="utf-8")
    found = [
        read_demonstrations(p)
        for p in (write_jsonl(tmp_path / "t.jsonl", rows), table, write_parquet(tmp_path / "t.parquet", rows))
    ]
    assert found[0] == [
        Demonstration("1", 'a, "quoted"\nline', "yes", ("yes", "no"), ("yes", "y")),
        Demonstration("2", "ünï", "no", ("no", "maybe"), ("no",)),
    ]
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_lines_count_from_one_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"input": "a", "output": "b"}\n\n  \n{"input": "c", "output": "d"}\r\n')
    assert [line for line, _ in read_rows(path)] == [1, 4]
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfinput,output\na,"b\nb"\nc,d\n')
    assert [(line, row["output"]) for line, row in read_rows(path)] == [(3, "b\nb"), (4, "d")]


def test_numbers_are_text_and_an_id_may_be_zero(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "t.jsonl", [{"id": 0, "input": 2, "output": 0.5}, {"id": 1, "input": "x", "output": "y"}]
    )
    assert read_demonstrations(path) == [Demonstration("0", "2", "0.5"), Demonstration("1", "x", "y")]


def test_a_row_without_an_id_goes_by_its_content(tmp_path: Path) -> None:
    rows = [{"input": "a", "output": "b"}, {"input": "c", "output": "d", "id": ""}]
    there = read_demonstrations(write_jsonl(tmp_path / "1.jsonl", rows))
    back = read_demonstrations(write_jsonl(tmp_path / "2.jsonl", rows[::-1]))
    assert there == back[::-1]
    assert there[0].id == there[0].content_hash[:16] != there[1].id


def test_exact_duplicates_are_kept_once(tmp_path: Path) -> None:
    rows = [{"input": "a", "output": "b"}, {"input": "a", "output": "c"}, {"input": "a", "output": "b"}]
    assert [d.output for d in read_demonstrations(write_jsonl(tmp_path / "t.jsonl", rows))] == ["b", "c"]


def test_a_split_is_kept_apart_and_rows_without_one_are_train(tmp_path: Path) -> None:
    splits = ["train", "test", None, "", "dev"]
    rows = [{"input": f"x{i}", "output": "y", "split": s} for i, s in enumerate(splits)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert [d.input for d in read_demonstrations(path, "train")] == ["x0", "x2", "x3"]
    assert [d.input for d in read_demonstrations(path, "test")] == ["x1"]
    assert len(read_demonstrations(path)) == 5


def test_a_row_of_two_splits_stands_in_both(tmp_path: Path) -> None:
    rows = [{"input": "a", "output": "b", "split": s} for s in ("test", "train")]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert len(read_demonstrations(path, "train")) == len(read_demonstrations(path, "test")) == 1


def test_blanks_at_the_ends_never_decide_a_choice(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"input": "a", "output": " b", "choices": ["b ", "c"]}])
    assert read_demonstrations(path)[0] == Demonstration(read_demonstrations(path)[0].id, "a", "b", ("b", "c"))


GOOD = '{"input": "a", "output": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "place", "part"),
    [
        ("t.jsonl", GOOD + '{"input": "a"', ":2", "not JSON (Expecting ',' delimiter)"),
        ("t.jsonl", GOOD + "[" * 100_000, ":2", "not JSON"),
        ("t.jsonl", GOOD + '{"input": ' + "1" * 5000 + "}", ":2", "not JSON"),
        ("t.jsonl", GOOD + "[1]", ":2", "expected an object with `input` and `output`"),
        ("t.jsonl", GOOD + '{"input": "a"}', ":2", "no column 'output'; the row has input"),
        ("t.jsonl", "{}", ":1", "no column 'input'; the row has none"),
        ("t.jsonl", '{"input": null, "output": "b"}', ":1", "input must be text, not NoneType"),
        ("t.jsonl", '{"input": "a", "output": true}', ":1", "output must be text, not bool"),
        ("t.jsonl", '{"input": "a", "output": ["b"]}', ":1", "output must be text, not list"),
        ("t.jsonl", '{"input": " \\t", "output": "b"}', ":1", "input is empty"),
        ("t.jsonl", GOOD + '{"input": "a", "output": ""}', ":2", "output is empty"),
        ("t.jsonl", '{"input": "a", "output": NaN}', ":1", "output must be text, not a missing number"),
        ("t.jsonl", '{"input": "a", "output": "b", "choices": ["b", " "]}', ":1", "a choice is empty"),
        ("t.csv", "input,output,output\na,b,c\n", "", "column 'output' stands twice"),
        ("t.jsonl", '{"input": "\\ud800", "output": "b"}', ":1", "input holds half a surrogate pair"),
        ("t.jsonl", '{"input": "a", "output": "b", "id": "\\ud800"}', ":1", "id holds half a surrogate pair"),
        ("t.jsonl", '{"input": "a", "output": "b", "references": ["\\ud800"]}', ":1", "references holds half"),
        (
            "t.jsonl",
            '{"input": "a", "output": "b", "choices": ["c", "d"]}',
            ":1",
            "output 'b' is not among the choices",
        ),
        (
            "t.jsonl",
            '{"input": "a", "output": "b", "choices": "b"}',
            ":1",
            "choices must be a list (in CSV: a JSON list)",
        ),
        ("t.jsonl", '{"input": "a", "output": "1", "choices": [1, 2]}', ":1", "choices must be a list of texts"),
        ("t.jsonl", '{"input": "a", "output": "b", "references": {}}', ":1", "references must be a list of texts"),
        ("t.csv", "input,output\na,b\nc\n", ":3", "the row's length differs from the header's"),
        ("t.csv", "input,output\na,b\nc,d,e\n", ":3", "the row's length differs from the header's"),
        ("t.csv", 'input,output\na,b\n"c,d\n', ":3", "not CSV"),
        ("t.csv", 'input,output\na,"b"b\n', ":2", "not CSV"),
        ("t.csv", "input,label\na,b\n", ":2", "no column 'output'; the row has input, label"),
        ("t.csv", 'input,output,choices\na,b,"b,c"\n', ":2", "choices must be a list (in CSV: a JSON list)"),
        ("t.csv", "input,output\n", "", "no rows"),
        ("t.csv", "", "", "no rows"),
        ("t.jsonl", "\n\n", "", "no rows"),
        ("t.parquet", "PAR1 not really", "", "not Parquet"),
        ("t.txt", "a b", "", "unknown format .txt; expected .parquet, .jsonl, .ndjson, .csv"),
        ("t", "a b", "", "unknown format (none)"),
    ],
)
def test_a_bad_table_is_refused_in_one_line_with_file_and_line(
    tmp_path: Path, name: str, content: str, place: str, part: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    message = refusal(path)
    assert message.startswith(f"{path}{place}: ")
    assert part in message


@pytest.mark.parametrize(("name", "head"), [("t.jsonl", b""), ("t.csv", b"input,output\n")])
def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, name: str, head: bytes) -> None:
    good = {"t.jsonl": GOOD.encode(), "t.csv": b"a,b\n"}[name]
    bad = {"t.jsonl": b'{"input": "caf\xe9", "output": "b"}\n', "t.csv": b"caf\xe9,b\n"}[name]
    path = tmp_path / name
    path.write_bytes(head + good + bad + good)
    line = 2 + head.count(b"\n")
    assert refusal(path).startswith(f"{path}:{line}: not UTF-8")


def test_parquet_columns_that_no_task_has_are_not_read_and_bad_values_are_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    good = pa.array(["a", "b"])
    moments = pa.array([0, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"input": good, "output": good, "when": moments}), path)
    assert [d.input for d in read_demonstrations(path)] == ["a", "b"]
    with pytest.raises(DataError, match=r"t\.parquet:2: a value that cannot be read"):
        list(read_rows(path))
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())
    pq.write_table(pa.table({"input": good, "output": bad}), path)
    assert refusal(path).startswith(f"{path}:2: a value that cannot be read")
    pq.write_table(pa.table([good, good, good], ["input", "output", "input"]), path)
    assert "column 'input' stands twice" in refusal(path)


def test_a_field_of_csv_may_be_as_long_as_any_text_and_endings_may_be_capitals(tmp_path: Path) -> None:
    path = tmp_path / "T.CSV"
    path.write_text(f"input,output\n{'a' * 200_000},b\n{'c' * 9},d\n")
    assert len(open_task(str(path)).train[0].input) in (200_000, 9)


def test_splits_are_read_whatever_their_case_and_others_are_told(tmp_path: Path, copying: TaskSpec) -> None:
    splits = ["Train", "TEST", " train ", "dev", "dev", "validation"]
    path = write_jsonl(
        tmp_path / "t.jsonl", [{"input": f"a {i}", "output": "b", "split": s} for i, s in enumerate(splits)]
    )
    with pytest.warns(UDRWarning, match=r"not read: dev \(2\), validation \(1\)"):
        data = load_task_data(copying, pool=path)
    assert (len(data.train), len(data.test)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t.tsv", r"t\.tsv: unknown format \.tsv; expected"),
        ("my tickets.jsonl", "a task goes by its file's name, .*; rename the file"),
    ],
)
def test_a_file_that_is_no_task_is_told_as_such(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text(GOOD)
    with pytest.raises(DataError, match=message):
        open_task(str(tmp_path / name))


def test_a_folder_of_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder of data"):
        open_task("mine", tmp_path / "absent")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.jsonl") == f"{tmp_path / 'absent.jsonl'}: no such file"
    assert refusal(tmp_path) == f"{tmp_path}: no such file"


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_two_rows_under_one_id_are_refused_even_in_different_splits(tmp_path: Path, split: str | None) -> None:
    rows = [{"id": "1", "input": f"x{s}", "output": "y", "split": s} for s in ("train", "test")]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert refusal(path, split) == f"{path}:2: id '1' stands already at line 1"


said = text.filter(str.strip)


@given(st.lists(st.tuples(text, said, said, st.lists(text, max_size=2)), min_size=1, max_size=4))
def test_a_written_pool_reads_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, list[str]]]
) -> None:
    pool = [
        Demonstration(f"{i}{id_}", x, y, (), tuple(references)) for i, (id_, x, y, references) in enumerate(rows)
    ] + [Demonstration("choice", "x", "b", ("a", "b"))]
    path = tmp_path_factory.getbasetemp() / "pool.jsonl"
    write_demonstrations(path, pool)
    assert read_demonstrations(path) == pool


# tasks


def test_test_rows_whose_input_stands_in_the_pool_are_left_out(tmp_path: Path, sentiment: TaskSpec) -> None:
    rows = [("a", "1", "train"), ("b", "0", "train"), ("a", "0", "test"), ("c", "1", "test")]
    table = [{"input": x, "output": y, "split": s, "choices": ["0", "1"]} for x, y, s in rows]
    write_jsonl(tmp_path / f"{sentiment.name}.jsonl", table)
    data = load_task_data(sentiment, tmp_path)
    assert [d.input for d in data.train] == ["a", "b"]
    assert [d.input for d in data.test] == ["c"]
    assert all(d.choices == () for d in data.train)  # the verbaliser's options are the options
    assert data.by_id[data.train[1].id] is data.train[1]


def test_parquet_is_preferred_over_jsonl_and_csv(tmp_path: Path, copying: TaskSpec) -> None:
    write_jsonl(tmp_path / "toy_copy.jsonl", [{"input": "from jsonl", "output": "y"}])
    write_parquet(tmp_path / "toy_copy.parquet", [{"input": "from parquet", "output": "y"}])
    assert load_task_data(copying, tmp_path).train[0].input == "from parquet"
    assert load_task_data(copying, pool=tmp_path / "toy_copy.jsonl").train[0].input == "from jsonl"


def test_a_label_outside_the_verbaliser_is_refused_with_file_and_line(tmp_path: Path, sentiment: TaskSpec) -> None:
    rows = [{"input": "a", "output": "1"}, {"input": "b", "output": "great"}, {"input": "c", "output": "2"}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_task_data(sentiment, pool=path)
    assert str(caught.value) == f"{path}:2: label 'great' is not in the verbaliser of task toy_sentiment (0, 1)"


def test_a_choice_task_needs_choices_in_each_row(tmp_path: Path, choosing: TaskSpec) -> None:
    rows = [{"input": "a", "output": "b", "choices": ["b", "c"]}, {"input": "d", "output": "b"}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError, match=r"t\.jsonl:2: a multichoice task needs at least two choices in each row"):
        load_task_data(choosing, pool=path)


def test_an_empty_pool_is_refused(tmp_path: Path, copying: TaskSpec) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"input": "a", "output": "b", "split": "test"}])
    with pytest.raises(DataError, match=r"t\.jsonl: the pool of task toy_copy is empty \(no row of split train\)"):
        load_task_data(copying, pool=path)


def test_a_task_without_a_table_says_what_to_run(tmp_path: Path, copying: TaskSpec) -> None:
    with pytest.raises(DataError, match=r"toy_copy: no table toy_copy\{\.parquet,\.jsonl,\.ndjson,\.csv\} in "):
        load_task_data(copying, tmp_path)
    bigbench = TaskSpec(**{**copying.model_dump(), "source": Source(bigbench="intent_recognition")})
    with pytest.raises(DataError, match="run: udr data bigbench"):
        load_task_data(bigbench, tmp_path)


def test_a_bare_table_is_a_task_and_gives_one_row_in_five_for_tests(tmp_path: Path) -> None:
    rows = [{"input": f"text {i}", "output": "yes" if i % 2 else "no"} for i in range(20)]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    data = open_task(str(path))
    assert (data.spec.name, data.spec.kind, len(data.train), len(data.test)) == ("mine", "classification", 16, 4)
    assert not {d.input for d in data.train} & {d.input for d in data.test}
    assert open_task(str(write_jsonl(path, rows[::-1]))).test == data.test


def test_a_bare_table_keeps_all_its_rows_where_nothing_is_to_be_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"input": "text {i}", "output": "{i % 2}"}}\n' for i in range(10)))
    whole = open_task(str(path), hold_out=False)
    assert len(whole.train) == 10
    assert whole.test == ()


def test_a_yaml_file_and_a_table_beside_each_other_are_one_task(tmp_path: Path) -> None:
    table, spec = tmp_path / "mine.jsonl", tmp_path / "mine.yaml"
    table.write_text("".join(f'{{"input": "text {i}", "output": "{i % 2}"}}\n' for i in range(10)))
    spec.write_text(
        "name: mine\nfamily: f\nkind: classification\nmetric: accuracy\nverbaliser: {'0': bad, '1': good}\n"
    )
    by_table, by_spec = open_task(str(table)), open_task(str(spec))
    assert by_table.spec == by_spec.spec
    assert by_table.spec.verbaliser == {"0": "bad", "1": "good"}
    assert len(by_table.train) == 8
    assert {d.id for d in by_table.train + by_table.test} == {d.id for d in by_spec.train}


def test_a_bare_table_with_test_rows_keeps_them(tmp_path: Path) -> None:
    rows = [{"input": f"text {i}", "output": f"out {i}", "split": "test" if i < 3 else "train"} for i in range(9)]
    data = open_task(str(write_jsonl(tmp_path / "mine.jsonl", rows)))
    assert [d.input for d in data.test] == ["text 0", "text 1", "text 2"]
    assert len(data.train) == 6


def test_an_unknown_task_lists_the_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        open_task("sst3", tmp_path)


# the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` loads like a data set of the hub: one split JSONL, one Parquet."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "hub"
    folder.mkdir()
    train = [
        {"id": 0, "premise": "a", "hypothesis": "b", "words": ["x", "y"], "label": 0, "options": "0\n1", "refs": ["r"]},
        {"id": 1, "premise": " ", "hypothesis": "d", "words": ["z"], "label": 1, "options": "0\n1", "refs": ["r", "s"]},
        {"id": 2, "premise": "a", "hypothesis": "b", "words": ["x", "y"], "label": 0, "options": "0\n1", "refs": ["r"]},
    ]
    write_jsonl(folder / "train.jsonl", train)
    test = [{"id": 0, "premise": "e", "hypothesis": "f", "words": ["w"], "label": 1, "options": "0\n1", "refs": ["r"]}]
    write_jsonl(folder / "test.jsonl", test)
    return folder


def test_hub_columns_are_renamed_formatted_split_and_joined(hub: Path) -> None:
    columns = {"input": "{premise} {hypothesis}", "output": "label", "choices": "options", "references": "refs"}
    train, test = load_hub(Source(hub=str(hub), columns=columns))
    assert [(d.input, d.output, d.choices, d.references) for d in train] == [
        ("a b", "0", ("0", "1"), ("r",)),
        ("  d", "1", ("0", "1"), ("r", "s")),
    ]
    assert [(d.input, d.output) for d in test] == [("e f", "1")]


def test_hub_rows_go_by_their_content_because_ids_repeat_between_splits(hub: Path) -> None:
    train, test = load_hub(Source(hub=str(hub), columns={"input": "words", "output": "label"}))
    assert [d.input for d in train] == ["x y", "z"]
    ids = [d.id for d in (*train, *test)]
    assert ids == [d.content_hash[:16] for d in (*train, *test)]
    assert len(set(ids)) == 3


def test_hub_rows_without_an_input_are_left_out(hub: Path) -> None:
    train, _ = load_hub(Source(hub=str(hub), columns={"input": "premise", "output": "label"}))
    assert [d.input for d in train] == ["a"]


def test_a_hub_data_set_of_parquet_files_is_read(hub: Path) -> None:
    rows = [{"question": "q1", "answer": "a1"}, {"question": "q2", "answer": "a2"}]
    folder = hub.parent / "parquet"
    folder.mkdir()
    write_parquet(folder / "train.parquet", rows)
    write_parquet(folder / "test.parquet", rows[:1])
    spec = TaskSpec(
        name="qa",
        family="toy",
        kind="generation",
        metric="exact_match",
        source=Source(hub=str(folder), columns={"input": "question", "output": "answer"}),
    )
    data = load_task_data(spec)
    assert [(d.input, d.output) for d in data.train] == [("q1", "a1"), ("q2", "a2")]
    assert data.test == ()  # its input stands in the pool


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"input": "sentence", "output": "label"}, "(train) row 0: no column 'sentence'; the row has id, premise"),
        ({"input": "{premise} {hypotesis}", "output": "label"}, "no column '{premise} {hypotesis}'"),
        ({"input": "{premise", "output": "label"}, "no column '{premise'"),
        ({"input": "{premise.text}", "output": "label"}, "no column '{premise.text}'"),
        ({"output": "label"}, "row 0: no column 'input'"),
        ({"input": "premise"}, "row 0: no column 'output'"),
        ({"input": "premise", "output": "hypothesis", "choices": "options"}, "output 'b' is not among the choices"),
    ],
)
def test_a_hub_column_that_is_not_there_is_refused(hub: Path, columns: dict[str, str], part: str) -> None:
    with pytest.raises(DataError) as caught:
        load_hub(Source(hub=str(hub), columns=columns))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_that_cannot_be_had_gives_one_line(hub: Path) -> None:
    with pytest.raises(DataError, match=r"\(validation\): cannot be loaded \(ValueError: ") as caught:
        load_hub(Source(hub=str(hub), splits={"train": "validation"}, columns={"input": "premise", "output": "label"}))
    assert "\n" not in str(caught.value)


def test_an_error_of_the_hub_without_words_is_told_too(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"cannot be loaded \(ConnectionError: \)"):
        load_hub(Source(hub=str(hub), columns={"input": "premise", "output": "label"}))


def test_a_hub_label_outside_the_verbaliser_names_the_data_set(hub: Path, sentiment: TaskSpec) -> None:
    source = Source(hub=str(hub), columns={"input": "hypothesis", "output": "premise"})
    with pytest.raises(DataError, match=r"hub: row [0-9a-f]{16}: label 'a' is not in the verbaliser"):
        load_task_data(TaskSpec(**{**sentiment.model_dump(), "source": source}))
