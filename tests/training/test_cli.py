"""The command line: what it prints, from the registry to the finished prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workbench import Bench, Outcome, mood_rows, write_table

from udr.data import open_task
from udr.encoder import load_encoder
from udr.mixture import mix
from udr.retriever import Retriever, load_retriever
from udr.scoring.causal_lm import build_causal_lm
from udr.tasks import known_tasks
from udr.types import Query

Command = Callable[..., Outcome]
INPUT = "filler1 filler2 merry filler3"


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """A bare table of a task that nobody registered."""
    return write_table(tmp_path / "tickets.jsonl", mood_rows(30, seed=5))


# -- tasks


def test_tasks_list_names_every_task_and_those_of_a_data_folder(udr: Command, finished: Bench) -> None:
    names = {line.split()[0] for line in udr("tasks", "list").out.splitlines()}
    assert names == set(known_tasks())
    more = {row["name"]: row for row in json.loads(udr("tasks", "list", "--data", finished.data, "--json").out)}
    assert set(more) == names | {"mood", "paint"}
    assert more["paint"] == {"name": "paint", "family": "craft", "kind": "generation", "metric": "exact_match"}


def test_tasks_show_prints_yaml_that_is_the_task_again(udr: Command, tmp_path: Path) -> None:
    text = udr("tasks", "show", "sst2").out
    own = tmp_path / "own.yaml"
    own.write_text(text)
    assert udr("tasks", "show", own).out == text
    assert json.loads(udr("tasks", "show", own, "--json").out) == yaml.safe_load(text)


def test_tasks_check_finds_the_registry_fine(udr: Command) -> None:
    done = udr("tasks", "check")
    assert done.code == 0
    assert all(line.startswith("warning:") or line == "fine" for line in done.out.splitlines())


def test_tasks_check_says_what_it_inferred_of_a_table(udr: Command, tickets: Path) -> None:
    done = udr("tasks", "check", tickets)
    assert (done.code, done.out) == (0, "tickets: classification, 24 train, 6 test: fine\n")


# -- retrieve and prompt


def test_retrieve_prints_the_retrievers_demonstrations_best_first(udr: Command, finished: Bench) -> None:
    (wanted,) = load_retriever(finished.retriever, "mood").retrieve([Query("q", INPUT)], 3)
    words = ("retrieve", "--retriever", finished.retriever, "--task", "mood", "--k", 3, INPUT)
    lines = udr(*words).out.splitlines()
    assert lines[0] == f"# {INPUT}"
    assert len(lines) == 4
    for line, hit in zip(lines[1:], wanted, strict=True):
        assert line.split()[:2] == [str(hit.rank), f"{hit.similarity:.4f}"]
        assert line.endswith(f"{hit.demonstration.input} → {hit.demonstration.output}")
    ((row),) = json.loads(udr(*words, "--json").out)
    assert row["input"] == INPUT
    assert [d["id"] for d in row["demonstrations"]] == [hit.demonstration.id for hit in wanted]


def test_retrieve_takes_many_inputs_and_tables_the_retriever_never_saw(
    udr: Command, finished: Bench, tickets: Path
) -> None:
    words = ("--retriever", finished.retriever, "--task", tickets, "--k", 2, "--json", "merry filler1", "sour filler2")
    done = udr("retrieve", *words)
    rows = json.loads(done.out)
    assert [row["input"] for row in rows] == ["merry filler1", "sour filler2"]
    pool = {d.id for d in open_task(str(tickets)).train}
    for row in rows:
        assert len(row["demonstrations"]) == 2
        assert {d["id"] for d in row["demonstrations"]} <= pool
    spec, demonstrations = (data := open_task(str(tickets), hold_out=False)).spec, data.train
    trained, untrained = (load_encoder(finished.retriever / name) for name in ("encoder", "untrained"))
    mixture = mix(spec, demonstrations, trained, untrained)
    assert f"tickets was not trained on: the untrained encoder's share is {mixture.share:g} (" in done.err
    opened = Retriever(spec, demonstrations, mixture.ranker)
    for row, hits in zip(rows, opened.retrieve([Query(r["input"], r["input"]) for r in rows], 2), strict=True):
        assert [d["id"] for d in row["demonstrations"]] == [hit.demonstration.id for hit in hits]


def test_an_input_that_is_no_text_is_told_in_a_line(udr: Command, finished: Bench) -> None:
    told = udr("retrieve", "--retriever", finished.retriever, "--task", "mood", "a\udcff")
    assert told.code == 2
    assert "input 0: 'a\\udcff' is no UTF-8 text" in told.err


@pytest.mark.parametrize("selection", ["mmr", "dpp", "coverage", "balanced"])
def test_every_selection_gives_k_different_demonstrations(udr: Command, finished: Bench, selection: str) -> None:
    words = ("--retriever", finished.retriever, "--task", "mood", "--k", 4, "--selection", selection, "--json", INPUT)
    (row,) = json.loads(udr("retrieve", *words).out)
    ids = {d["id"] for d in row["demonstrations"]}
    assert len(ids) == 4
    if selection == "balanced":
        assert sorted(d["output"] for d in row["demonstrations"]) == ["down", "down", "up", "up"]


def test_prompt_prints_the_finished_prompt_with_the_best_demonstration_last(
    udr: Command, finished: Bench, lm_folder: Path
) -> None:
    words = ("--retriever", finished.retriever, "--task", "mood", "--lm", lm_folder, "--budget", 250, "--k", 3, INPUT)
    (row,) = json.loads(udr("prompt", *words, "--json").out)
    (wanted,) = load_retriever(finished.retriever, "mood").retrieve([Query("q", INPUT)], 3)
    best_last = [hit.demonstration for hit in wanted[::-1]]
    assert row["text"] == "".join(f"{d.input}\t{d.output}\n" for d in best_last) + f"{INPUT}\t"
    assert [d["id"] for d in row["demonstrations"]] == [d.id for d in best_last]
    assert row["tokens"] <= row["budget"] == 250
    assert row["dropped"] == []
    assert udr("prompt", *words).out == row["text"] + "\n"


def test_prompt_answers_when_asked_to_and_stands_in_the_order_asked_for(
    udr: Command, finished: Bench, lm_folder: Path
) -> None:
    words = ("--retriever", finished.retriever, "--task", "paint", "--lm", lm_folder, "--budget", 200, "--k", 2, INPUT)
    (up,) = json.loads(udr("prompt", *words, "--json").out)
    (down,) = json.loads(udr("prompt", *words, "--json", "--order", "descending", "--answer").out)
    assert [d["id"] for d in down["demonstrations"]] == [d["id"] for d in up["demonstrations"]][::-1]
    assert isinstance(down["answer"], str)
    assert "\n" not in down["answer"]
    assert "answer" not in up
    text = udr("prompt", *words, "--order", "descending", "--answer").out
    assert text == f"{down['text']} {down['answer']}\n"


def test_the_answer_to_a_task_with_labels_is_the_label_that_the_lm_prefers(
    udr: Command, finished: Bench, lm_folder: Path
) -> None:
    words = ("--retriever", finished.retriever, "--task", "mood", "--lm", lm_folder, "--budget", 200, "--k", 2)
    inputs = [f"{word} filler{i}" for i, word in enumerate(("merry", "sour", "glad"))]
    rows = json.loads(udr("prompt", *words, "--json", "--answer", *inputs).out)
    lm = build_causal_lm(str(lm_folder))
    for row in rows:
        nats, tokens = lm.loglikelihood([row["text"]] * 2, ["up", "down"])
        assert row["answer"] == ("up", "down")[int((nats / tokens).argmax())]


def test_the_stand_in_lm_counts_and_answers_too(udr: Command, finished: Bench) -> None:
    words = ("--retriever", finished.retriever, "--task", "paint", "--lm", "fake", "--k", 2, "--answer", INPUT)
    (row,) = json.loads(udr("prompt", *words, "--json").out)
    assert len(row["demonstrations"]) == 2
    assert row["answer"].startswith("paint it")


def test_a_demonstration_longer_than_the_budget_is_left_out_and_named_with_the_reason(
    udr: Command, copy: Bench, lm_folder: Path
) -> None:
    rows = [*mood_rows(12, seed=9), {"input": "merry " * 60, "output": "up"}]
    table = write_table(copy.folder / "long.jsonl", rows)
    words = ("--retriever", copy.retriever, "--task", table, "--lm", lm_folder, "--budget", 60, "--k", 8, "merry")
    (row,) = json.loads(udr("prompt", *words, "--json").out)
    (dropped,) = [d for d in row["dropped"] if d["demonstration_id"] == "long-12"]
    assert dropped["tokens"] > 60
    assert "long-12" not in [d["id"] for d in row["demonstrations"]]
    assert row["tokens"] <= 60
    assert f"[dropped long-12: needs {dropped['tokens']} tokens, " in udr("prompt", *words).out


def test_inputs_without_a_word_pass_through_the_whole_pipeline(udr: Command, bench: Bench) -> None:
    rows = [{"input": f"!?{'.' * i}", "output": ("up", "down")[i % 2]} for i in range(20)]
    write_table(bench.data / "mood.jsonl", rows, test=4)
    done = udr("run", bench.config, "tasks=[mood]", "mining.rounds=0", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["scores"].keys() == {"zero_shot", "random", "bm25", "encoder", "epr", "udr"}
