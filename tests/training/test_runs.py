"""What `udr runs` tells of run folders, finished and half-way."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from workbench import Bench, Outcome

from training.plots import plot_metrics
from training.pretrain_runs import read_pretraining
from training.pretrain_settings import PretrainConfig
from training.run_page import run_page
from training.runs import find_runs, read_run
from udr.candidates import read_candidates
from udr.errors import ArtifactError, UDRWarning


def test_a_finished_run_is_told_as_its_files_have_it(finished: Bench) -> None:
    run = read_run(finished.out)
    assert run.stage == "evaluated"
    assert [r.number for r in run.rounds] == [0, 1]
    lists = read_candidates(finished.out / "round-1" / "mood.scored.jsonl")
    own = [[c.lm_score or 0.0 for c in one.candidates] for one in lists]
    scores = run.rounds[1].scored["mood"]
    assert (scores.lists, scores.pairs) == (len(own), sum(map(len, own)))
    assert scores.quantiles[2] == pytest.approx(np.median(np.concatenate(own)))
    assert sum(scores.counts) == scores.pairs
    assert scores.spread == pytest.approx(np.mean([max(s) - min(s) for s in own]))
    losses = [step["loss"] for step in json.loads((finished.out / "round-1/encoder/losses.json").read_text())]
    assert run.rounds[1].steps == len(losses)
    assert run.rounds[1].losses == pytest.approx(losses)  # fewer steps than points
    assert run.tables["table"]["scores"].keys() == {"zero_shot", "random", "bm25", "encoder", "epr", "udr"}


def test_a_run_says_how_far_it_is(udr: Callable[..., Outcome], bench: Bench) -> None:
    assert udr("propose", bench.config, "--round", 0).code == 0
    assert read_run(bench.out).stage == "round 0 of 1: 2 of 2 tasks proposed"
    assert udr("score", bench.config, "--round", 0).code == 0
    assert read_run(bench.out).stage == "round 0 of 1: 2 of 2 tasks scored"
    (bench.out / "round-0" / "encoder.checkpoint").write_bytes(b"")
    assert read_run(bench.out).stage == "round 0 of 1: training"
    assert "not scored yet" not in run_page(read_run(bench.out))


def test_runs_are_listed_with_their_averages(udr: Callable[..., Outcome], copy: Bench) -> None:
    told = udr("runs", copy.out)
    assert told.code == 0
    average = json.loads((copy.out / "evaluation/table.json").read_text())["scores"]["udr"]["average"]
    assert "2 tasks  evaluated  zero_shot" in told.out
    assert f"udr {average:.1f}" in told.out
    listed = json.loads(udr("runs", copy.out.parent, "--json").out)
    assert [Path(r["folder"]) for r in listed] == [copy.out]
    assert listed[0]["rounds"][0]["scored"]["paint"]["pairs"] > 0
    assert find_runs(copy.out.parent) == [copy.out]


class Reader(HTMLParser):
    """Every tag is closed, and nothing is fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        assert not any(name.startswith("on") for name, _ in attributes)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_everything(udr: Callable[..., Outcome], copy: Bench, tmp_path: Path) -> None:
    assert udr("runs", copy.out, "--page", tmp_path / "run.html").code == 0
    page = (tmp_path / "run.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.sources) == 3  # the table, and two rounds' losses
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert page.count("<svg role") == 4  # two rounds of two tasks
    for row, value in json.loads((copy.out / "evaluation/table.json").read_text())["scores"]["udr"].items():
        assert re.search(rf"<th scope=row>{row}</th>.*?<td[^>]*>{value:.1f}</td></tr>", page)


def test_names_are_words_on_the_page_and_never_its_code(copy: Bench) -> None:
    odd = copy.out / "evaluation"
    table = json.loads((odd / "table.json").read_text())
    table["scores"]["udr"]["<script>alert(1)</script>"] = 1.0
    for scores in table["scores"].values():
        scores.setdefault("<script>alert(1)</script>", 0.0)
    (odd / "table-<b>.json").write_text(json.dumps(table))
    page = run_page(read_run(copy.out))
    Reader().feed(page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_pretraining_is_listed_beside_runs_with_its_curves_on_a_page(
    udr: Callable[..., Outcome], copy: Bench, tmp_path: Path
) -> None:
    folder = copy.out.parent / "pictures"
    settings = PretrainConfig(out=folder, method="simclr", data=tmp_path / "x")
    folder.mkdir()
    (folder / "config.yaml").write_text(settings.dump_yaml())
    assert read_pretraining(folder).stage == "not begun"
    lines = [{"step": 0, "loss": 5.0}, {"step": 9, "loss": 4.0, "knn": 0.25, "spread": 0.5}, {"step": 10, "loss": 3.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 1')  # a line that is being written
    assert read_pretraining(folder).summary == "simclr of conv  step 10  loss 3.500  knn 0.250  spread 0.500"
    plot_metrics(lines, folder / "metrics.png")
    (folder / "encoder").mkdir()
    (folder / "encoder" / "encoder.json").write_text("{}")
    told = udr("runs", copy.out.parent, "--page", tmp_path / "page.html").out.splitlines()
    assert told[0] == f"{folder}  simclr of conv  trained  loss 3.500  knn 0.250  spread 0.500"
    assert told[1].startswith(f"{copy.out}  2 tasks  evaluated")
    page = (tmp_path / "page.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert (reader.open, len(reader.sources)) == ([], 1)
    assert "knn 0.250" in page
    listed = json.loads(udr("runs", folder, "--json").out)
    assert listed[0]["metrics"] == lines
    (folder / "metrics.jsonl").write_text("no JSON\n")
    assert "metrics.jsonl: damaged" in udr("runs", folder).complaint


@pytest.mark.parametrize("content", ["[", "{}{}", "[1]", '[{"task": "mood"}]', '[{"loss": "x"}]', "7"])
def test_damaged_losses_are_one_line(udr: Callable[..., Outcome], copy: Bench, content: str) -> None:
    path = copy.out / "round-0" / "encoder" / "losses.json"
    path.write_text(content)
    assert udr("runs", copy.folder).complaint.startswith(f"{path}: damaged (not a list of losses); remove it")
    path.unlink()
    assert udr("runs", copy.folder).code == 0


def test_a_damaged_run_hides_no_other(udr: Callable[..., Outcome], copy: Bench) -> None:
    shutil.copytree(copy.out, copy.folder / "damaged")
    (copy.folder / "damaged" / "round-0" / "encoder" / "losses.json").write_text("[")
    with warnings.catch_warnings():
        warnings.simplefilter("default", UDRWarning)
        told = udr("runs", copy.folder, "--json")
    assert len(json.loads(told.out)) == 1
    assert told.err.startswith(f"warning: left out: {copy.folder / 'damaged'}")
    assert told.err.count("\n") == 1


def test_a_folder_without_runs_is_one_line(udr: Callable[..., Outcome], tmp_path: Path) -> None:
    assert "no run folder" in udr("runs", tmp_path).complaint
    with pytest.raises(ArtifactError):
        read_run(tmp_path)
