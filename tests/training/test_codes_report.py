"""What codes mean, how well things are found, where the tables come from: each against plain counting."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from captioned_things import drawing, things, tone, write_things
from PIL import Image
from workbench import Outcome

import training.codes
from embed.cross_modal import CrossModalEncoder, build_net, load_cross_modal, save_cross_modal
from training.captioned import read_captioned, write_captioned
from training.codes import (
    agreement,
    code_meanings,
    concepts_of,
    draw_heat,
    heat_map,
    perplexity,
    purity,
    report_html,
    summary,
)
from training.emoji import emoji_table
from training.retrieval import as_query, directions, own_ranks, recall
from training.stamps import placed_caption, read_stamps, stamps_table
from udr.errors import DataError, UDRWarning
from udr.types import Query

SHAPE: dict[str, Any] = {
    "modalities": ["image", "text", "audio"], "backbone": "conv", "size": 16, "dim": 8, "out": 8, "codes": 6,
    "width": 16, "slots": 1, "frozen": {}, "patience": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CrossModalEncoder]:
    folder = tmp_path_factory.mktemp("codes") / "encoder"
    torch.manual_seed(0)
    net = build_net(**SHAPE)
    net.quantizer.begun.fill_(True)
    save_cross_modal(net, folder, {**SHAPE, "frozen_encoders": {}}, {})
    return folder, load_cross_modal(folder, "cpu")


# -- retrieval


def test_ranks_are_counted_as_in_plain_loops_and_ties_count_against() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    gallery[3] = gallery[5]
    ranks = own_ranks(queries, gallery)
    for i in range(9):
        own = float(queries[i] @ gallery[i])
        assert ranks[i] == sum(float(queries[i] @ g) >= own - 1e-6 for g in gallery)
    assert own_ranks(queries, np.ones_like(gallery)).tolist() == [9] * 9
    assert recall(np.array([1, 2, 5, 6, 11])) == {"R@1": 0.2, "R@5": 0.6, "R@10": 0.8, "median_rank": 5.0}


def test_directions_compare_only_things_that_have_both(encoder: tuple[Path, CrossModalEncoder]) -> None:
    rows = things(6)
    rows[2] = replace(rows[2], sounds=())
    found = directions(encoder[1], rows, "en")
    assert len(found) == 6
    assert {name: row["n"] for name, row in found.items()} == {name: 5 if "audio" in name else 6 for name in found}
    assert set(directions(encoder[1], rows, "de")) == set()


# -- codes


def test_purity_is_the_best_f1_as_in_plain_counting() -> None:
    there = np.array([True, True, True, False, False, False])
    concepts = {
        "cat": np.array([True, True, False, False, False, False]),
        "dog": np.array([False, False, True, True, True, True]),
    }
    found = purity(there, concepts)
    assert found["concept"] == "cat"
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == 1
    assert found["f1"] == pytest.approx(0.8)
    assert purity(there, {"none": ~there})["concept"] == ""


def test_concepts_are_words_that_some_things_share() -> None:
    found = concepts_of(things(12), "en")
    assert sorted(found) == ["disc", "one", "round", "some", "square", "stripes"]
    assert found["disc"].tolist() == [i % 3 == 0 for i in range(12)]


def test_agreement_and_perplexity_are_counted_as_in_plain_loops(encoder: tuple[Path, CrossModalEncoder]) -> None:
    rows, opened = things(5), encoder[1]
    asked = {m: [as_query(row, m, "en") for row in rows] for m in opened.modalities}
    found = {m: opened.code_probabilities([q for q in own if q is not None]) for m, own in asked.items()}
    mean = {m: [p.mean(0) for p in own] for m, own in found.items()}
    told = agreement(opened, rows, "en")["image=audio"]
    pairs = list(zip(mean["image"], mean["audio"], strict=True))
    assert told["equal"] == pytest.approx(sum(int(p.argmax()) == int(q.argmax()) for p, q in pairs) / 5)
    expected = sum(sum(min(float(x), float(y)) for x, y in zip(p, q, strict=True)) for p, q in pairs) / 5
    assert told["overlap"] == pytest.approx(expected, rel=1e-4)
    shares = [0.0] * 6
    for own in found.values():
        tokens = [int(row.argmax()) for p in own for row in p]
        for token in tokens:
            shares[token] += 1 / len(tokens) / 3
    entropy = -sum(s * math.log(s) for s in shares if s)
    assert perplexity(opened, rows, "en") == pytest.approx(math.exp(entropy))


def test_a_heat_map_points_where_the_words_codes_are_and_not_where_everything_is() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.1, 0.4], [0.9, 0.05, 0.05]], np.float32)
    word = np.array([0.5, 0.0, 0.5], np.float32)  # half a code that lies everywhere
    found = heat_map(probabilities, word, probabilities.mean(0))
    assert found.argmax() == 1
    expected = sum(probabilities[1][v] * word[v] / probabilities.mean(0)[v] for v in range(3))
    assert found[1] == pytest.approx(expected, rel=1e-5)


def test_a_sheet_shows_where_a_word_lies_in_pictures_and_sounds(
    encoder: tuple[Path, CrossModalEncoder],
    tmp_path: Path,
    udr: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Telling:
        """Of pictures the third cell, and of sounds the second frame of four, lies on the word's code; more so in later
        things."""

        modalities, frozen, side = ("image", "text", "audio"), {}, 2

        def code_probabilities(self, queries: list[Query], blank: bool = False) -> list[np.ndarray]:
            found = []
            for query in queries:
                own = np.zeros((4, 3), np.float32)
                own[:, 0] = 1
                if query.media:
                    share = (1 + int(query.id.rpartition("/")[2])) / 20
                    own[2 if query.media[0].kind == "image" else 1] = (1 - share, share, 0)
                found.append(own if query.media else np.array([[0.0, 1.0, 0.0]], np.float32))
            return found

    rows, sheets = things(12), []
    monkeypatch.setattr(training.codes, "draw_captioned", lambda sheet, out, title: sheets.append(sheet))
    assert draw_heat(cast(Any, Telling()), rows, "disc", tmp_path / "x.png", "en") == 8
    (sheet,) = sheets
    assert [line[0][1] for line in sheet] == [f"train/{i}" for i in range(11, 3, -1)]  # in which it lies most
    for (picture, _), (heated, _), (sound, _), (heard, _) in sheet:
        pale = (sound * 0.12 + 225 * 0.88).round()
        np.testing.assert_array_equal(heard, np.where((np.arange(112) // 28 == 1)[None, None], sound, pale))
        assert sound.std() > 10
        there = np.zeros((112, 112), bool)
        there[56:, :56] = True
        np.testing.assert_array_equal(heated, np.where(there, picture, (picture * 0.12 + 225 * 0.88).round()))
    monkeypatch.undo()
    table, address = write_things(tmp_path / "t.parquet", 6, 6), f"artifact:{encoder[0]}"
    words = ("codes", table, "--encoder", address, "--out", tmp_path / "c.html", "--language", "en")
    told = udr(*words, "--word", "disc", "--heat", tmp_path / "heat.png")
    assert f"{tmp_path / 'heat.png'}: 8 things" in told.out
    assert "perplexity " in told.out
    with Image.open(tmp_path / "heat.png") as drawn:
        assert drawn.width >= 4 * 112
    assert "give both or neither" in udr(*words, "--word", "disc").complaint
    assert "give both or neither" in udr(*words, "--heat", tmp_path / "heat.png").complaint
    assert "expected FILE.png" in udr(*words, "--word", "disc", "--heat", tmp_path / "heat.txt").complaint
    silent = [replace(row, sounds=()) for row in rows]
    assert 1 <= perplexity(encoder[1], silent, "en") <= 6


def test_meanings_count_every_word_and_the_most_probable_cells(encoder: tuple[Path, CrossModalEncoder]) -> None:
    rows = things(9)
    meanings = code_meanings(encoder[1], rows, "en")
    assert sorted(m.code for m in meanings) == list(range(6))
    assert sum(count for m in meanings for _, count in m.words) == sum(len(r.texts(["en"])[0].split()) for r in rows)
    for modality in ("image", "text", "audio"):
        assert sum(m.used[modality] for m in meanings) == pytest.approx(1)
    assert 1 <= perplexity(encoder[1], rows, "en") <= 6
    side = encoder[1].side
    for m in meanings:
        assert [p for _, p, _, _ in m.pictures] == sorted((p for _, p, _, _ in m.pictures), reverse=True)
        assert all(0 <= row < side and 0 <= column < side for _, _, row, column in m.pictures)


def test_the_report_stands_alone_and_what_captions_say_stays_text(encoder: tuple[Path, CrossModalEncoder]) -> None:
    rows = [replace(r, captions=(("en", '<script>alert("x")</script> disc'),)) for r in things(6)]
    said = summary(3.25, 6, agreement(encoder[1], rows, "en"))
    page = report_html(code_meanings(encoder[1], rows, "en"), rows, encoder[1].side, "Codes of <b>", said)
    assert "perplexity 3.2 of 6 codes" in page
    assert re.search(r"image = text: one likeliest code for [\d.]+ % of things", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Codes of &lt;b&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)', page)
    assert page.count("<section>") == sum(any(m.used.values()) for m in code_meanings(encoder[1], rows, "en"))


# -- commands


def test_commands_report_codes_and_recall(
    encoder: tuple[Path, CrossModalEncoder], tmp_path: Path, udr: Callable[..., Outcome]
) -> None:
    table, address = write_things(tmp_path / "t.parquet", 6, 6), f"artifact:{encoder[0]}"
    assert udr("codes", table, "--encoder", address, "--out", tmp_path / "c.json", "--language", "en").code == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["codes"]) == 6
    assert {"code", "used", "words", "pictures"} <= found["codes"][0].keys()
    rows = read_captioned(table)
    assert found["perplexity"] == pytest.approx(perplexity(encoder[1], rows, "en"))
    assert found["agreement"] == agreement(encoder[1], rows, "en")
    assert udr("codes", table, "--encoder", address, "--out", tmp_path / "c.html").code == 0
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    told = udr("probe", table, "--encoder", address, "--language", "en", "--json")
    assert json.loads(told.out)["text→image"]["n"] == 6
    for asked, said in (
        (("--language", "xx"), "t.parquet: no captions in language xx; it has "),
        (("--voice", "nobody"), "t.parquet: nobody speaks as voice nobody; it has "),
    ):
        assert said in udr("probe", table, "--encoder", address, *asked).complaint
        assert said in udr("codes", table, "--encoder", address, "--out", tmp_path / "c.json", *asked).complaint
    for option in (("--probes", "finetune"), ("--seed", 3), ("--untrained",), ("--cache", tmp_path), ("--k", 5)):
        refused = udr("probe", table, "--encoder", address, *option)
        assert refused.code == 2
        assert refused.complaint.count("\n") <= 1
        assert (
            f"{option[0]}: says nothing of an encoder of several modalities, which takes --asked" in refused.complaint
        )
    bad = udr("codes", table, "--encoder", address, "--out", tmp_path / "c.txt")
    assert bad.code == 2
    assert ".html or .json" in bad.complaint


# -- tables


def test_stamps_become_rows_with_captions_speech_and_a_split_by_stamp(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    birds = tmp_path / "stamps" / "animals" / "sea_birds"
    birds.mkdir(parents=True)
    for i in range(30):
        (birds / f"gull{i}.png").write_bytes(drawing("disc", rng))
        (birds / f"gull{i}.txt").write_text(f"A gull {i}.\nfr.utf8=Une mouette {i}.\nde.utf8=\nbroken line\n")
        (birds / f"gull{i}_desc_fr.ogg").write_bytes(tone(500, rng))
    (birds / "gull0.svg").write_text("no SVG")  # the PNG of the same stamp is taken
    (birds / "other.png").write_bytes(b"no picture")
    (birds / "other.txt").write_text("Another.")
    (birds / "gull1_mirror.png").write_bytes(drawing("disc", rng))
    (birds / "gull2_desc.ogg").write_bytes(b"no sound")
    with pytest.warns(UDRWarning, match="left out") as told:
        counts = stamps_table(tmp_path / "stamps", tmp_path / "s.parquet", synthetic=False)
    assert len(told) == 2
    assert counts["stamps"] == 30
    assert counts["without caption"] == counts["unreadable"] == 1
    assert counts["sounds"] == 30
    rows = read_captioned(tmp_path / "s.parquet")
    assert rows[0].captions[:2] == (("en", "A gull 0."), ("fr", "Une mouette 0."))
    assert rows[0].captions[2:] == (("en+folder", "Animals, sea birds: A gull 0."),)
    assert [(s.language, s.voice) for s in rows[0].sounds] == [("fr", "human")]
    assert rows[0].label == "animals/sea_birds"
    assert counts["test"] == sum(r.split == "test" for r in rows) > 0
    with pytest.warns(UDRWarning):
        stamps_table(tmp_path / "stamps", tmp_path / "again.parquet", synthetic=False)
    assert read_captioned(tmp_path / "again.parquet") == rows  # the split is no draw
    with pytest.raises(DataError, match="no stamps"):
        stamps_table(tmp_path / "none", tmp_path / "n.parquet", synthetic=False)
    assert read_stamps(tmp_path / "none.txt") == ()
    assert placed_caption([""], "A gull.") == "A gull."


def test_emoji_become_rows_of_names_without_flags(tmp_path: Path) -> None:
    import io
    import tarfile

    known = [
        {"name": "GREEN APPLE", "short_name": "green_apple", "short_names": ["green_apple", "sour-one"],
         "category": "Food & Drink", "subcategory": "food-fruit", "image": "1.png", "unified": "1F34F"},
        {"name": None, "short_name": "flag-eg", "short_names": ["flag-eg"], "category": "Flags",
         "subcategory": "country-flag", "image": "2.png", "unified": "2"},
    ]  # fmt: skip
    files = {"package/emoji.json": json.dumps(known).encode()}
    picture = drawing("disc", np.random.default_rng(0))
    files |= {f"package/img/google/64/{i}.png": picture for i in (1, 2)}
    with tarfile.open(tmp_path / "e.tgz", "w:gz") as packed:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            packed.addfile(info, io.BytesIO(raw))
    counts = emoji_table({"google": tmp_path / "e.tgz"}, tmp_path / "e.parquet", synthetic=False)
    assert counts == {"pictures": 1, "synthetic": 0}
    (row,) = read_captioned(tmp_path / "e.parquet")
    assert row.texts(["en"]) == ["Green apple", "Sour one"]
    assert row.texts(["en+folder"]) == ["Food & drink, food fruit: Green apple"]
    assert row.image == picture
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="damaged"):
        emoji_table({"google": tmp_path / "bad.tgz"}, tmp_path / "x.parquet", synthetic=False)
    assert write_captioned(tmp_path / "none.parquet", []) == 0
