"""The task registry: bundled files, manifests, and specs inferred from a bare table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import udr.tasks
from udr.errors import ConfigError, DataError, UnknownNameError
from udr.tasks import check_specs, infer_spec, known_tasks, load_spec, read_manifest
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

# fmt: off
PAPER = [
    "sst2", "sst5", "amazon", "yelp", "mr", "cr", "agnews", "trec", "dbpedia", "yahoo", "copa", "cosmos_qa",
    "comv", "come", "mnli", "snli", "rte", "subj", "cola", "break", "mtop", "smcalflow", "cnn_dailymail",
    "pubmed", "reddit", "commongen", "roc_story", "roc_ending", "go", "python", "java", "php", "wikiauto",
    "dart", "e2e",
]
# fmt: on
UNSEEN = ["twitter_sentiment", "qnli", "wnli", "ruby", "javascript"]
OTHER_TESTS = ["mnli_mm", "wikiauto_turk", "wikiauto_asset"]  # the pool of another task under another test set
HUB = PAPER + UNSEEN + OTHER_TESTS
FIELDS = list(TaskSpec.model_fields)


def rows(outputs: list[str], choices: tuple[str, ...] = ()) -> list[Demonstration]:
    return [Demonstration(str(i), f"input {i}", output, choices) for i, output in enumerate(outputs)]


def write_manifest(folder: Path, entries: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


# bundled files


def test_every_bundled_file_passes_the_check() -> None:
    assert [problem for problem in check_specs() if not problem.startswith("warning:")] == []


def test_every_task_of_the_paper_and_of_bigbench_is_bundled() -> None:
    specs = {name: load_spec(name) for name in known_tasks()}
    assert {name for name, spec in specs.items() if spec.source.hub} == {*HUB}
    assert sum(bool(spec.source.bigbench) for spec in specs.values()) == 28


@pytest.mark.parametrize("name", known_tasks())
def test_bundled_file_states_no_default_and_keeps_the_order_of_the_fields(name: str) -> None:
    raw = yaml.safe_load(known_tasks()[name].read_text(encoding="utf-8"))
    assert raw == load_spec(name).model_dump(exclude_defaults=True)
    assert list(raw) == sorted(raw, key=FIELDS.index)


@pytest.mark.parametrize("name", HUB)
def test_hub_task_caps_its_training_rows_as_the_paper_does(name: str) -> None:
    spec = load_spec(name)
    assert spec.train_cap == (100_000 if spec.kind == "generation" else 30_000)


@pytest.mark.parametrize("name", HUB)
def test_hub_labels_are_counted_from_zero_without_gaps(name: str) -> None:
    labels = list(load_spec(name).verbaliser)
    assert labels == [str(i) for i in range(len(labels))]


@pytest.mark.parametrize("name", sorted({*known_tasks()} - {*HUB}))
def test_bigbench_labels_are_written_as_they_stand(name: str) -> None:
    verbaliser = load_spec(name).verbaliser
    assert all(label == word for label, word in verbaliser.items())


@pytest.mark.parametrize(
    ("name", "label", "answer"),
    [
        ("sst2", "0", "It was terrible ."),
        ("yelp", "4", "It was great."),
        ("agnews", "3", "Topic: Technology."),
        ("trec", "5", "Answer: Number ."),
        ("dbpedia", "13", "Topic: Written Work."),
        ("yahoo", "0", "Topic: Society & Culture."),
        ("mnli", "1", "Answer: Inconclusive ."),
        ("rte", "0", "Answer: True ."),
        ("wnli", "1", "Answer: Entailment ."),
        ("qnli", "0", "Answer: Entailment ."),
        ("subj", "1", "It's objective ."),
        ("cola", "0", "It is not grammatical ."),
    ],
)
def test_label_reads_as_in_the_paper(name: str, label: str, answer: str) -> None:
    spec = load_spec(name)
    assert spec.template.answer % spec.verbalise(label) == answer


def test_unpinned_hub_sources_are_warned_of_and_pinned_ones_are_not() -> None:
    warned = {problem.split()[1].removesuffix(".yaml:") for problem in check_specs()}
    hub = {name for name in known_tasks() if load_spec(name).source.hub}
    assert warned == {name for name in hub if load_spec(name).source.revision == "main"}
    assert warned < hub


@pytest.mark.parametrize(
    ("stem", "text", "problem"),
    [
        ("a", "name: b\nfamily: x\nkind: generation\nmetric: bleu\nsource: {bigbench: b}", "'b' differs"),
        ("a", "name: a\nfamily: x\nkind: generation\nmetric: blue\nsource: {bigbench: b}", "metric"),
        ("a", "name: a\nfamily: x\nkind: generation\nmetric: bleu", "either hub or bigbench"),
        ("a", "name: a\nfamily: x\nkind: generation\nmetric: bleu\nsource: {bigbench: b, hub: h}", "either hub"),
        ("a", "name: a\nfamily: x\nkind: generation\nmetric: bleu\nsource: {hub: h, columns: {input: x}}", "output"),
        ("a", "name: [", "not YAML"),
    ],
)
def test_check_reports_a_broken_file(
    stem: str, text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{stem}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(udr.tasks, "SPECS", tmp_path)
    errors = [line for line in check_specs() if not line.startswith("warning:")]
    assert len(errors) == 1
    assert problem in errors[0]
    assert f"{stem}.yaml" in errors[0]


# load_spec


@pytest.mark.parametrize(
    ("verbaliser", "expected"),
    [
        ("{0: bad, 1: good}", {"0": "bad", "1": "good"}),
        ("{'0': no, '1': yes}", "put them in quotes"),
        ('{"0": "\\ud800", "1": a}', "no Unicode text"),
    ],
)
def test_labels_may_be_numbers_and_what_yaml_takes_for_another_thing_is_told(
    tmp_path: Path, verbaliser: str, expected: object
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nfamily: custom\nkind: classification\nmetric: accuracy\nverbaliser: {verbaliser}\n")
    if isinstance(expected, dict):
        assert load_spec(str(path)).verbaliser == expected
    else:
        with pytest.raises(ConfigError, match=str(expected)):
            load_spec(str(path))


def test_path_of_a_yaml_file_is_read_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nfamily: custom\nkind: generation\nmetric: rouge_l\n", encoding="utf-8")
    assert load_spec(str(path)).name == "mine"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec("sst2.yaml")  # a bundled name with an ending is still a path


def test_bundled_task_beats_an_entry_of_the_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"name": "fever", "kind": "generation", "metric": "bleu"}])
    assert load_spec("fever", tmp_path) == load_spec("fever")


def test_manifest_entry_becomes_a_spec(tmp_path: Path) -> None:
    entry = {
        "name": "tickets",
        "family": "topic",
        "kind": "classification",
        "metric": "macro_f1",
        "instruction": "Which team?",
        "labels": ["billing", "shipping"],
        "train": 10,
        "test": 2,
        "source": "BIG-bench tickets",
        "template": {"answer": "Team: %s"},
    }
    spec = load_spec("tickets", write_manifest(tmp_path, [entry]))
    assert spec.verbaliser == {"billing": "billing", "shipping": "shipping"}
    assert (spec.family, spec.metric, spec.instruction) == ("topic", "macro_f1", "Which team?")
    assert spec.template.answer == "Team: %s"


@pytest.mark.parametrize(
    ("entry", "kind", "metric", "labels"),
    [
        ({}, "generation", "rouge_l", []),
        ({"options": ["a", "b"]}, "classification", "accuracy", ["a", "b"]),
        ({"labels": None, "options": ["a", "b"]}, "classification", "accuracy", ["a", "b"]),
        ({"kind": "multichoice", "labels": ["a", "b"]}, "multichoice", "accuracy", []),
        ({"labels": [0, 1]}, "classification", "accuracy", ["0", "1"]),
        ({"kind": "classification", "verbaliser": {"0": "no", "1": "yes"}}, "classification", "accuracy", ["0", "1"]),
        ({"instruction": None, "family": None, "metric": "bleu"}, "generation", "bleu", []),
    ],
)
def test_missing_keys_of_a_manifest_entry_are_filled_in(
    entry: dict[str, object], kind: str, metric: str, labels: list[str], tmp_path: Path
) -> None:
    spec = load_spec("x", write_manifest(tmp_path, [{"name": "x"} | entry]))
    assert (spec.kind, spec.metric, list(spec.verbaliser)) == (kind, metric, labels)


def test_entry_that_describes_no_task_is_refused_with_its_place(tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"name": "x", "kind": "classification", "labels": ["only"]}])
    with pytest.raises(ConfigError, match=r"manifest\.json: x: .*at least two labels"):
        load_spec("x", tmp_path)


def test_unknown_name_lists_near_names_of_both_registries(tmp_path: Path) -> None:
    write_manifest(tmp_path, [{"name": "sst22"}])
    with pytest.raises(UnknownNameError) as caught:
        load_spec("sst", tmp_path)
    assert {"sst2", "sst22"} <= set(caught.value.near)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"family": "x"}]', "\xff", "[" * 100_000])
def test_damaged_manifest_is_named_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"manifest\.json") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_without_a_manifest_has_no_entries(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}


# infer_spec


def test_rows_that_all_have_choices_are_multiple_choice() -> None:
    table = rows(["yes", "no"] * 50, ("yes", "no"))
    assert infer_spec("t", table).kind == "multichoice"
    assert infer_spec("t", [*table, *rows(["yes"])]).kind == "classification"  # one row lists none


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=55),
    long_label=st.booleans(),
)
def test_few_short_outputs_that_repeat_are_labels(counts: list[int], long_label: bool) -> None:
    outputs = [f"label {i}" for i, count in enumerate(counts) for _ in range(count)]
    if long_label:
        outputs = [output.replace("label 0", "x" * 41) for output in outputs]
    spec = infer_spec("t", rows(outputs))
    distinct = Counter(outputs)
    fits = 2 <= len(distinct) <= 50 and len(outputs) / len(distinct) >= 5 and max(map(len, distinct)) <= 40
    assert (spec.kind == "classification") == fits
    assert spec.verbaliser == ({output: output for output in sorted(distinct)} if fits else {})
    assert spec.metric == ("accuracy" if fits else "exact_match")


@pytest.mark.parametrize(("words", "metric"), [(1, "exact_match"), (5, "exact_match"), (6, "rouge_l"), (40, "rouge_l")])
def test_long_outputs_are_compared_by_overlap(words: int, metric: str) -> None:
    table = rows([" ".join([f"w{i}"] * words) for i in range(9)] + ["x"])
    spec = infer_spec("t", table)
    assert (spec.kind, spec.metric) == ("generation", metric)


def test_what_the_caller_says_overrules_the_guess() -> None:
    table = rows(["yes", "no"] * 10)
    spec = infer_spec("t", table, kind="generation", metric="bleu", instruction="Say:")
    assert (spec.kind, spec.metric, spec.instruction, spec.verbaliser) == ("generation", "bleu", "Say:", {})
    spec = infer_spec("t", rows(["a", "b"]), kind="classification")
    assert (spec.metric, spec.verbaliser) == ("accuracy", {"a": "a", "b": "b"})


def test_table_that_cannot_be_the_task_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task t: .*at least two labels"):
        infer_spec("t", rows(["same"] * 10), kind="classification")
    with pytest.raises(DataError, match="no rows"):
        infer_spec("t", [])
