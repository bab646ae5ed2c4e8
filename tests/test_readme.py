"""The READMEs keep their word: commands exist, Python compiles, links lead somewhere, figures are the benchmarks'."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.main import get_command

from serving.settings import Settings
from training.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.replace("\\\n", " ").splitlines()]
COMMANDS = [part for line in LINES for part in line.split(" && ") if part.startswith("udr ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_udr_command_of_the_readme_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = get_command(app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"no such command: {line}"
    command.make_context("udr", words)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_every_python_block_of_the_readme_compiles(text: str) -> None:
    assert compile(text, "README.md", "exec").co_names


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", README, flags=re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_between_pages_lead_to_files_and_their_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not heading or heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_every_setting_of_the_service_is_documented_as_it_is() -> None:
    for name, field in Settings.model_fields.items():
        default = f"`{field.default}`" if field.default not in ("", {}) else ""
        assert f"| `UDR_{name.upper()}` | {default} | {field.description} |" in README


TABLES = re.findall(r"<!-- results/(\w+)\.json -->\n\n?((?:\|.*\n)+)", README)
# tables that are not of scores
OTHERS = ("scoring", "service", "pictures", "video", "cross_modal", "multi_task", "labelling", "translation")


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "tests/benchmarks/results" / f"{name}.json").read_text())
    return found


def rows(table: str) -> list[list[str]]:
    """Cells of a Markdown table's lines below its head."""
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_figure_in_a_table_of_scores_stands_in_a_benchmark_result() -> None:
    tables = [(name, table) for name, table in TABLES if not name.startswith(OTHERS)]
    assert len(tables) == README.count("| p |")  # a table of scores without its source is refused
    for name, table in tables:
        scores = result(name)["scores"]
        for row, *cells in rows(table):
            assert cells[: len(scores)] == [f"{scores[m][row]:.1f}" for m in scores], row


def test_every_figure_of_the_services_speed_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "service_peers"]
    found = result("service_peers")["clients"]
    shown = {tuple(cells) for _, *cells in rows(table)}
    expected = set()
    for tool in found["1"]:
        own = [found[clients][tool] for clients in ("1", "8", "64")]
        pairs = [(f"{o['p50_ms']:.0f} / {o['p99_ms']:.0f}", f"{o['per_second']:.0f}") for o in own]
        expected.add(tuple(cell for pair in pairs for cell in pair))
    assert shown == expected


def test_every_figure_of_what_feedback_costs_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "scoring_contenders"]
    found = result("scoring_contenders")["tasks"]
    assert [row[0] for row in rows(table)] == list(found)
    for name, labels, *cells in rows(table):
        task = found[name]
        speeds = [f"{task['pairs_per_second'][k]:.1f}" for k in ("loop", "engine", "server", "engine_server")]
        ratios = [f"{task['engine_over_loop']:.1f}", f"{task['engine_server_over_server']:.1f}"]
        assert labels == str(task["labels"]), name
        assert cells == [*speeds, *ratios, f"{100 * task['share_of_floor']:.0f} %"], name


def test_every_figure_of_what_videos_teach_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "video_motion"]
    found, chance = result("video_motion")["means"], result("video_motion")["chance"]
    named = {"untrained": "untrained", "BYOL alone": "byol", "STOR": "stor", "STOR, overlaps shuffled": "shuffled"}
    means = {title: found[key] for title, key in named.items()}
    means["chance"] = {**chance, "r1": chance["motion"], "linear": chance["motion"]}
    for title, *cells in rows(table):
        values = [means[title].get(key) for key in ("r1", "linear", "spatial", "temporal", "pace", "rotation")]
        assert cells == ["" if value is None else f"{100 * value:.1f}" for value in values], title


def test_every_figure_of_the_cross_modal_recall_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "cross_modal_short"]
    short, longer = result("cross_modal_short"), result("cross_modal_longer")
    sources = [short["continuous_0"], short["codes_unmatched_0"], short["codes_matched_0"], longer["codes_matched_0"]]
    ways = ["image→text", "text→image", "text→audio", "audio→text", "image→audio", "audio→image"]
    for source, (_, *cells) in zip(sources, rows(table), strict=True):
        assert cells == [f"{100 * source['kind_and_name'][way]['R@10']:.1f}" for way in ways]


def test_every_figure_of_what_pictures_teach_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "pictures_simclr_cifar10"]
    named = {"SimCLR": "simclr", "DenseCL": "densecl", "MEC": "mec"}
    for title, *cells in rows(table):
        columns = [(data, probe) for data in ("cifar10", "fashion") for probe in ("linear", "knn")]
        for cell, (data, probe) in zip(cells, columns, strict=True):
            if not cell:
                continue
            found = result(f"pictures_{named.get(title, 'simclr')}_{data}")
            if title == "raw pixels":
                assert cell == f"{found['pixels'][probe]:.1f}"
            else:
                kind = "untrained" if title == "untrained" else "trained"
                assert cell == f"{fmean(run[kind][probe] for run in found['runs']):.1f}", title


def test_every_figure_of_many_tasks_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "multi_task"]
    found = result("multi_task")["rows"]
    named = {
        "alone": "alone",
        "plain sharing, equal": "equal",
        "factors by hand": "fixed",
        "branched by affinity": "branched_affinity",
        "branched at random, first": "branched_random_0",
        "second": "branched_random_1",
        "third": "branched_random_2",
        "MTI-Net, equal": "mti",
        "MTI-Net, factors by hand": "mti_fixed",
    }
    for title, *cells in rows(table):
        row = found[named.get(title) or f"weighting_{title.lower()}"]
        told = [f"{row['semseg']:.3f}", f"{row['depth']:.4f}", f"{row['edges']:.3f}", f"{row['saliency']:.3f}"]
        if "delta_mtl" in row:
            told += [f"{row['delta_mtl']:+.1f} %".replace("-", "−"), f"{row['parameters']:,}"]
        else:
            told += ["", ""]
        assert [cell.replace(".", "0.", 1) if cell.startswith(".") else cell for cell in cells] == told, title


def test_every_figure_of_labels_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "labelling_canvases"]
    found = list(result("labelling_canvases")["means"].values())
    for row, (title, *cells) in zip(found, rows(table), strict=True):
        told = [f"{row[key]:.3f}".removeprefix("0") if key in row else "" for key in ("CF1", "OF1", "exact")]
        assert cells == told, title


def test_every_figure_of_two_styles_stands_in_a_benchmark_result() -> None:
    (table,) = [table for name, table in TABLES if name == "translation_32"]
    (run,) = result("translation_32")["runs"]
    named = {
        "raw pixels": run["pixels"],
        "content, untrained network": run["untrained"]["content"],
        "translated pixels": run["translated, own attribute"],
    }
    for title, *cells in rows(table):
        found = named.get(title) or run[title]
        ways = (found["google -> twitter"], found["twitter -> google"])
        assert cells == [str(way[key]) for way in ways for key in ("R@1", "R@10")], title
