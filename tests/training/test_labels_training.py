"""Labellers from tables to files: what is said in training against plain loops, learning, and `udr label`."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelled_things import PATCHES, labelled, write_patches
from PIL import Image
from tiny_encoder import write_encoder
from typer.testing import CliRunner

import embed.labeller
from embed.label_search import beam_search
from embed.labeller import Labeller, as_metadata, load_labeller, open_text_encoder, text_inputs
from embed.labelling import LabelNet, build_label_net, next_log_p
from embed.media import open_picture, read_data_uri
from embed.registry import open_encoder
from serving.loading import batches
from serving.schemas import DemonstrationBody, MediaBody
from training.cli import app
from training.label_metrics import label_scores
from training.label_things import attention_picture, label_things
from training.labelled import label_names, prepare_labelled, read_labelled, write_labelled
from training.methods.labels import Labels
from training.moves import whole_pictures
from training.pictures import picture_rows
from training.pool_lines import picture_entry
from training.pretrain import pretrain
from training.pretrain_labels import confidences
from training.pretrain_settings import PretrainConfig
from udr.config import load_config
from udr.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FingerprintMismatch,
    UDRError,
    UDRWarning,
    UnknownNameError,
)
from udr.filters import Codebook, parse_filter
from udr.tasks import infer_spec
from udr.types import Demonstration, Query

CONFIG = Path(__file__).parents[2] / "training/configs/pretrain/labels.yaml"


def config(folder: Path, data: Path, *more: str) -> PretrainConfig:
    small = ["backbone=conv", "size=24", "loop.batch=16", "loop.epochs=12", "labels.hidden=32", "labels.attention=16"]
    small += ["labels.embedding=8", "labels.fewest=2", "labels.width=16", "loop.lr=0.01"]
    return load_config(PretrainConfig, CONFIG, [f"data={data}", f"out={folder}", *small, *more])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patches(tmp_path_factory.mktemp("patches") / "patches.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    return pretrain(config(tmp_path_factory.mktemp("run") / "out", table), "cpu")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    return pretrain(config(tmp_path_factory.mktemp("run") / "out", table, "labels.reads=text"), "cpu")


def test_a_labeller_of_pictures_learns_what_it_has_not_seen(folder: Path, table: Path) -> None:
    labeller = load_labeller(folder, "cpu")
    things = prepare_labelled(read_labelled(table, "test"), "image", 24, labeller.names)
    truth = things.targets.numpy()
    learnt = label_scores(confidences(labeller.label_inputs(things.inputs), things.names) > 0, truth)
    torch.manual_seed(0)
    untrained = Labeller(build_label_net("image", 4, size=24), "image", labeller.names, size=24, most=3)
    begun = label_scores(confidences(untrained.label_inputs(things.inputs), things.names) > 0, truth)
    assert learnt["OF1"] > 0.9 > begun["OF1"] + 0.2
    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["of1"] > 0.8
    assert open_encoder(f"artifact:{folder.parent / 'encoder'}", "cpu").dim == 96  # the network serves by itself too


def test_a_labeller_of_texts_learns_by_the_same_head(texts: Path) -> None:
    labeller = load_labeller(texts, "cpu")
    (labels,) = labeller.label([Query("q", "one red patch, a green patch")])
    assert {label.name for label in labels} == {"red", "green"}
    for label in labels:
        assert label.attention is not None
        assert label.attention.shape == (6,)
        assert float(label.attention.sum()) == pytest.approx(1, abs=1e-5)
        assert 0 < label.confidence <= 1


def test_tokens_of_a_text_encoder_are_labelled_by_the_same_head(table: Path, tmp_path: Path, folder: Path) -> None:
    name = write_encoder(tmp_path / "bert", [row.text for row in read_labelled(table)])
    own = config(tmp_path / "out", table, "labels.reads=text", f"labels.encoder={name}", "labels.words_dropped=0")
    labeller = load_labeller(pretrain(own, "cpu"), "cpu")
    for text, names in (("a red patch a green patch", {"red", "green"}), ("a blue patch", {"blue"})):
        (labels,) = labeller.label([Query("q", text)])
        assert {label.name for label in labels} == names
        assert {len(label.attention) for label in labels} == {len(text.split()) + 2}  # type: ignore[arg-type]
    shutil.rmtree(name)
    write_encoder(name, [row.text for row in read_labelled(table)], seed=4)
    with pytest.raises(FingerprintMismatch, match="another encoder"):
        load_labeller(tmp_path / "out/labeller", "cpu")
    with pytest.raises(ConfigError, match="no encoder of texts"):
        open_text_encoder(f"artifact:{folder.parent / 'encoder'}", "cpu")


@pytest.mark.parametrize("order", ["frequent_first", "rare_first", "bce"])
def test_other_orders_train_and_are_kept_apart(order: str, tmp_path: Path, table: Path) -> None:
    short = config(tmp_path / "out", table, f"labels.order={order}", "loop.epochs=2", "labels.preliminary_first=0")
    labeller = load_labeller(pretrain(short, "cpu"), "cpu")
    assert labeller.ordered == (order != "bce")
    sequence = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[0])["sequence"]
    assert (sequence == 0) == (order == "bce")
    with pytest.raises(ConfigError, match="begun with other settings"):
        pretrain(config(tmp_path / "out", table, "labels.order=order_free"), "cpu")


@torch.no_grad()
def said_in_loops(net: LabelNet, inputs: torch.Tensor, truth: list[int], counts: list[int], order: str) -> list[int]:
    """What one thing is asked to say, one step after another."""
    seen = net.see(inputs[None])
    state, before = net.begin(1), seen.preliminary.sigmoid()
    emitted, left, said = torch.zeros(1, net.count, dtype=torch.bool), list(truth), []
    while left:
        logits, state, _ = net.step(seen, state, before)
        log_p = next_log_p(logits, emitted)[0]
        ranks = {
            "order_free": log_p.tolist(),
            "frequent_first": [count - i / 100 for i, count in enumerate(counts)],
            "rare_first": [-count - i / 100 for i, count in enumerate(counts)],
        }[order]
        said.append(max(left, key=ranks.__getitem__))
        left.remove(said[-1])
        emitted[0, said[-1]] = True
        before = torch.nn.functional.one_hot(torch.tensor([said[-1]]), net.count).float()
    return [*said, net.count]


@pytest.mark.parametrize("order", ["order_free", "frequent_first", "rare_first"])
def test_what_a_batch_is_asked_to_say_is_what_each_thing_alone_is(order: str) -> None:
    things = prepare_labelled(labelled(12), "text", 24)
    torch.manual_seed(1)
    net = build_label_net("text", 4, width=8, hidden=6, attention=5, embedding=3).eval()
    torch.nn.init.normal_(net.last.weight, std=2.0)
    method = Labels(net, things, order=order).eval()
    with torch.no_grad():
        log_p, said = method.said(net.see(things.inputs), things.targets)
    counts = things.targets.sum(0).tolist()
    assert log_p.shape == (12, things.most + 1, 5)
    for i in range(12):
        truth = things.targets[i].nonzero()[:, 0].tolist()
        alone = said_in_loops(net, things.inputs[i], truth, counts, order)
        assert said[i].tolist() == alone + [4] * (things.most + 1 - len(alone))


def test_both_losses_count_by_what_is_said() -> None:
    things = prepare_labelled(labelled(8), "image", 24)
    torch.manual_seed(0)
    method = Labels(build_label_net("image", 4, size=24), things, moved=False, preliminary_weight=0.5).eval()
    with torch.no_grad():
        found = method(torch.arange(8), 1.0)
        seen = method.net.see(things.inputs.float() / 255)
        log_p, said = method.said(seen, things.targets)
    sequence = bce = 0.0
    steps = 0
    for i in range(8):
        for c in range(4):
            p = float(seen.preliminary[i, c].double().sigmoid())
            bce -= np.log(p if things.targets[i, c] else 1 - p)
        for t in range(int(things.targets[i].sum()) + 1):
            sequence -= float(log_p[i, t, said[i, t]])
            steps += 1
    assert float(found["sequence"]) == pytest.approx(sequence / steps, rel=1e-5)
    assert float(found["bce"]) == pytest.approx(bce / steps, rel=1e-4)
    assert float(found["loss"]) == pytest.approx((sequence + 0.5 * bce) / steps, rel=1e-4)
    with torch.no_grad():
        assert float(method(torch.arange(8), 0.1)["sequence"]) == 0  # nothing is said yet
    with pytest.raises(UnknownNameError, match="order_free"):
        Labels(method.net, things, order="order_fre")


def test_a_saved_labeller_says_the_same_and_a_changed_one_is_refused(folder: Path, tmp_path: Path) -> None:
    labeller, again = load_labeller(folder, "cpu"), load_labeller(folder, "cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 3, 24, 24), dtype=np.uint8)
    for one, other in zip(labeller.label_pixels(pixels), again.label_pixels(pixels), strict=True):
        assert [(a.name, a.confidence) for a in one] == [(b.name, b.confidence) for b in other]
    for name in ("labeller.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    saved = json.loads((tmp_path / "labeller.json").read_text())
    (tmp_path / "labeller.json").write_text(json.dumps(saved | {"labels": saved["labels"][::-1]}))
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_labeller(tmp_path, "cpu")
    (tmp_path / "labeller.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no labeller"):
        load_labeller(tmp_path, "cpu")


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_labels_of_a_table_are_metadata_that_filters_read(folder: Path, table: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "labels.jsonl", tmp_path / "sheet.png"
    told = run("label", table, "--labeller", folder, "--out", out, "--split", "test", "--sheet", sheet, "--show", 3)
    assert "40 things" in told
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    book = Codebook()
    columns = book.encode([row["metadata"] for row in rows])
    truth = [set(row.labels) for row in read_labelled(table, "test")]
    for name in PATCHES:
        kept = book.admitted(parse_filter({f"label:{name}": {"gte": 0.5}}), columns, len(rows))
        right = [bool(kept[i]) == (name in truth[i]) for i in range(len(rows))]
        assert np.mean(right) > 0.9
    with Image.open(sheet) as drawn:
        assert drawn.size[1] > 3 * 112


def test_labels_as_json_and_as_parquet_agree(folder: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.parquet"
    told = json.loads(run("label", table, "--labeller", folder, "--out", out, "--split", "test", "--json"))
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == [one["id"] for one in told]
    for row, one in zip(rows, told, strict=True):
        assert row["labels"] == [label["label"] for label in one["labels"]]
        assert row["confidences"] == pytest.approx([label["confidence"] for label in one["labels"]], abs=1e-4)


def test_a_pool_keeps_its_rows_and_its_metadata(folder: Path, texts: Path, tmp_path: Path) -> None:
    row = labelled(1)[0]
    (tmp_path / "p.png").write_bytes(row.image)
    pool = tmp_path / "pool.jsonl"
    stated = {"id": "a", "input": row.text, "output": "x", "metadata": {"year": "1999"}, "image": "p.png"}
    pool.write_text(json.dumps(stated))
    for labeller in (folder, texts):
        run("label", pool, "--labeller", labeller, "--out", tmp_path / "out.jsonl")
        (found,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
        assert found["input"] == row.text
        assert found["metadata"].pop("year") == "1999"
        assert ("media" in found) != (found["metadata"].pop("image", "") == "p.png")  # read, or a column like another
        DemonstrationBody.model_validate(found)
        assert set(found["metadata"]) == {f"label:{name}" for name in row.labels}


def test_pictures_become_lines_that_a_pool_of_the_service_takes(folder: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures/red").mkdir(parents=True)
    (tmp_path / "pictures/red/p.png").write_bytes(labelled(1)[0].image)
    (tmp_path / "pictures/red/q.png").write_bytes(b"no picture")
    for source, split, ids, output in (
        (tmp_path / "pictures", None, ["red/p.png"], "red"),
        (table, "test", [f"test/{i}" for i in range(40)], ""),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UDRWarning)
            label_things(source, load_labeller(folder, "cpu"), tmp_path / "pool.jsonl", split=split)
        bodies = [
            DemonstrationBody.model_validate_json(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()
        ]
        assert [body.id for body in bodies] == ids
        assert {(body.input, body.output) for body in bodies} == {("", output)}
        known = [Demonstration("a", "x", "red"), Demonstration("b", "x", "")]
        with (tmp_path / "pool.jsonl").open("rb") as file:
            (batch,) = batches(file, "ndjson", 0, 0, infer_spec("pool", known), 1000)
        assert not batch.refused
        assert batch.demonstrations[0].media[0].uri.startswith("data:image/png;base64,")
        assert batch.demonstrations[0].metadata.keys() <= {f"label:{name}" for name in PATCHES}


def test_labels_from_before_go_and_addresses_lie_beside_the_table(folder: Path, tmp_path: Path) -> None:
    row = labelled(1)[0]
    (tmp_path / "p.png").write_bytes(row.image)
    media = [{"kind": "image", "uri": ""}]
    rows = [
        {"id": "a", "image": "p.png", "media": media, "metadata": {"label:zebra": "0.9", "year": "1"}},
        {"id": "b", "media": [*media, {"kind": "image", "uri": "p.png"}]},
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label_things(tmp_path / "pool.jsonl", load_labeller(folder, "cpu"), tmp_path / "out.jsonl")
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["metadata"].pop("year") == "1"
    assert set(first["metadata"]) == set(second["metadata"]) == {f"label:{name}" for name in row.labels}
    for made in (first, second):
        (shown,) = made["media"]
        assert read_data_uri(shown["uri"], "p") == row.image


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "a", "metadata": "x"}, "pool.jsonl:1: `media` must be a list and `metadata` an object"),
        ({"input": "a", "media": 3}, "`media` must be a list"),
        ({"input": 3}, "no column input or text that holds a text"),
        ({"input": "\ud800"}, "holds half a character"),
        ({"id": "\ud800", "input": "a"}, "holds half a character"),
        ({"input": "a", "more": "\ud800"}, "pool.jsonl:1: a value that JSON does not hold"),
        ({"input": "a", "more": float("nan")}, "a value that JSON does not hold"),
        ({"input": "a", "metadata": {"when": datetime(2020, 1, 1)}}, "a value that JSON does not hold .*datetime"),
        ({"input": "a", "metadata": {"raw": b"x"}}, "a value that JSON does not hold .*bytes"),
    ],
)
def test_rows_of_another_form_are_told_in_a_line(
    texts: Path, tmp_path: Path, row: dict[str, object], message: str
) -> None:
    if "datetime" in message or "bytes" in message:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pool.parquet")
    else:
        (tmp_path / "pool.jsonl").write_text(json.dumps(row))
    (source,) = tmp_path.iterdir()
    with pytest.raises(DataError, match=message) as told:
        label_things(source, load_labeller(texts, "cpu"), tmp_path / "out.jsonl")
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == [source]


def test_other_columns_become_metadata_and_those_that_cannot_are_told(texts: Path, tmp_path: Path) -> None:
    table = tmp_path / "pool.csv"
    table.write_text("text,topic\na red thing,things\n")
    label_things(table, load_labeller(texts, "cpu"), tmp_path / "out.jsonl")
    (line,) = (tmp_path / "out.jsonl").read_bytes().splitlines()
    body = DemonstrationBody.model_validate_json(line)
    assert (body.input, body.output, body.metadata["topic"]) == ("a red thing", "", "things")
    (tmp_path / "pool.jsonl").write_text(json.dumps({"input": "a", "tags": ["x"]}))
    with pytest.warns(UDRWarning, match="not in the pool: column tags"):
        label_things(tmp_path / "pool.jsonl", load_labeller(texts, "cpu"), tmp_path / "out.jsonl")


def test_a_picture_that_pools_do_not_take_is_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    entry = picture_entry(file.getvalue(), "noise.png")
    MediaBody.model_validate(entry)
    shown = open_picture(read_data_uri(entry["uri"], "noise.png"))
    assert abs(shown.width / shown.height - 1.25) < 0.01
    assert shown.width > 500
    small = labelled(1)[0].image
    assert read_data_uri(picture_entry(small, "small.png")["uri"], "small.png") == small


def test_a_path_that_is_none_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text(json.dumps({"image": "p\0.png"}) + "\n" + json.dumps({"image": "\ud800"}))
    with pytest.warns(UDRWarning, match="cannot be read"), pytest.raises(DataError, match="none of 2 things"):
        label_things(tmp_path / "pool.jsonl", load_labeller(folder, "cpu"), tmp_path / "out.jsonl")


def test_damaged_tables_are_told_by_their_name(table: Path, tmp_path: Path) -> None:
    raw, own = table.read_bytes(), pq.read_metadata(table).row_group(0).column(1)
    start = own.dictionary_page_offset or own.data_page_offset
    (tmp_path / "bad.parquet").write_bytes(raw[:start] + b"\xff" * 64 + raw[start + 64 :])
    with pytest.raises(DataError, match=r"bad\.parquet: not Parquet"):
        read_labelled(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: not Parquet"):
        list(picture_rows(tmp_path / "bad.parquet", None))


def test_features_of_texts_that_memory_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = open_text_encoder(str(write_encoder(tmp_path / "bert", ["a red patch"])), "cpu")
    texts, read = ["a red patch", "red", "a"], []
    whole = text_inputs(texts, encoder)
    assert whole.shape == (3, 5, encoder.dim)
    own = encoder.encode_tokens
    monkeypatch.setattr(encoder, "encode_tokens", lambda queries: read.append(len(queries)) or own(queries))
    monkeypatch.setattr(embed.labeller, "READ_AT_ONCE", 1)
    torch.testing.assert_close(text_inputs(texts, encoder), whole, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(embed.labeller, "MOST_BYTES", whole.numel() * 4 - 1)
    with pytest.raises(DataError, match=r"3 texts of up to 5 tokens take .* GB"):
        text_inputs(texts, encoder)
    assert read == [1, 1, 1, 1]  # refused at the first


def test_confidence_is_what_the_paths_agree_on_and_the_label_by_itself(folder: Path, table: Path) -> None:
    labeller = load_labeller(folder, "cpu")
    torch.nn.init.normal_(labeller.net.last.weight, std=1.0, generator=torch.Generator().manual_seed(0))  # unsure
    things = prepare_labelled(read_labelled(table, "test")[:9], "image", 24, labeller.names)
    found = labeller.label_inputs(things.inputs, beam=4)
    with torch.inference_mode():
        seen = labeller.net.see(things.inputs.float() / 255)
    preliminary = labeller.preliminary(things.inputs)
    shares = []
    for i, paths in enumerate(beam_search(labeller.net, seen, 4, labeller.most)):
        assert [label.name for label in found[i]] == [labeller.names[c] for c in paths[0].labels]
        for label, c in zip(found[i], paths[0].labels, strict=True):
            whole = sum(np.exp(path.log_p) for path in paths)
            shares.append(sum(np.exp(path.log_p) for path in paths if c in path.labels) / whole)
            assert label.confidence == pytest.approx(np.sqrt(shares[-1] * preliminary[i, c]), rel=1e-4)
            assert label.preliminary == pytest.approx(preliminary[i, c])
    assert min(shares) < 0.99  # paths that differ were there


def test_confidences_below_the_threshold_are_left_out(folder: Path, table: Path) -> None:
    labeller = load_labeller(folder, "cpu")
    things = prepare_labelled(read_labelled(table, "test"), "image", 24, labeller.names)
    found = labeller.label_inputs(things.inputs)
    least = float(np.median([label.confidence for one in found for label in one]))
    sure = labeller.label_inputs(things.inputs, threshold=least)
    for one, other in zip(found, sure, strict=True):
        assert [label.name for label in one if label.confidence >= least] == [label.name for label in other]
    assert sum(map(len, sure)) < sum(map(len, found))
    assert as_metadata(found[0]).keys() == {f"label:{label.name}" for label in found[0]}


def test_what_cannot_be_labelled_is_left_out_or_told(folder: Path, texts: Path, table: Path, tmp_path: Path) -> None:
    row = labelled(1)[0]
    rows = [{"image": b"no picture", "split": "test"}, {"image": row.image, "split": "test"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    labeller = load_labeller(folder, "cpu")
    with pytest.warns(UDRWarning, match=r"some.parquet:1: no picture"):
        done = label_things(tmp_path / "some.parquet", labeller, tmp_path / "o.jsonl")
    assert (done.things, done.left_out) == (1, 1)
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "bad.parquet")
    with pytest.warns(UDRWarning), pytest.raises(DataError, match="none of 1 things can be read"):
        label_things(tmp_path / "bad.parquet", labeller, tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()
    (tmp_path / "none.jsonl").write_text('{"input": "x"}\n')
    wrong: list[tuple[list[object], str]] = [
        ([tmp_path / "none.jsonl", "--labeller", folder, "--out", tmp_path / "o.jsonl"], "none.jsonl:1: no media"),
        ([table, "--labeller", folder, "--out", tmp_path / "o.csv"], r"--out .*o.csv: expected"),
        ([table, "--labeller", tmp_path, "--out", tmp_path / "o.jsonl"], "labeller.json"),
        ([table, "--labeller", texts, "--out", tmp_path / "o.jsonl", "--sheet", tmp_path / "s.png"], "reads texts"),
        ([table, "--labeller", folder, "--out", tmp_path / "o.jsonl", "--sheet", tmp_path / "s.gif"], "--sheet"),
        ([tmp_path / "gone.jsonl", "--labeller", texts, "--out", tmp_path / "o.jsonl"], "no such file"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UDRError, match=message):
            CliRunner().invoke(app, ["label", *map(str, arguments)], catch_exceptions=False)


def test_tables_of_labels_are_read_as_they_were_written_and_bad_rows_are_told(tmp_path: Path) -> None:
    rows = labelled(5)
    write_labelled(tmp_path / "t.parquet", rows)
    found = read_labelled(tmp_path / "t.parquet", "train")
    assert [(r.id, r.image, r.labels, r.split) for r in found] == [(r.id, r.image, r.labels, r.split) for r in rows]
    np.testing.assert_allclose([b for r in found for b in r.boxes], [b for r in rows for b in r.boxes], atol=1e-6)
    wrong: list[tuple[dict[str, object], str]] = [
        ({"image": b"x", "labels": "cat"}, "labels: expected a list"),
        ({"image": b"x", "labels": ["cat", "cat"]}, "one stands twice"),
        ({"image": b"x", "labels": ["cat"], "boxes": [[0.0, 0.0, 1.0]]}, "four numbers"),
        ({"image": b"x", "labels": ["cat"], "boxes": [[0.0, 0.0, 1.0, 1.0]] * 2}, "2 boxes of 1 labels"),
        ({"labels": ["cat"]}, "expected columns"),
    ]
    for row, message in wrong:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=message):
            read_labelled(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no rows of split test"):
        read_labelled(tmp_path / "t.parquet", "test")
    with pytest.raises(DataError, match="no label stands in 99 rows"):
        label_names(rows, 99)
    with pytest.raises(DataError, match="none of 1 things can be read"):
        prepare_labelled([labelled(1)[0].__class__("a", b"", "", ("red",))], "image", 24)


def test_an_encoder_that_was_learnt_before_is_begun_from(folder: Path, table: Path, tmp_path: Path) -> None:
    from training.pretrain_labels import build_labels

    own = config(tmp_path / "o", table, f"labels.encoder=artifact:{folder.parent / 'encoder'}")
    method = build_labels(own, prepare_labelled(read_labelled(table, "train"), "image", 24))
    learnt = load_labeller(folder, "cpu").net.features.state_dict()
    for name, value in method.net.features.state_dict().items():
        torch.testing.assert_close(value, learnt[name])
    other = config(tmp_path / "o", table, f"labels.encoder={folder.parent / 'encoder'}", "backbone=conv_mid")
    with pytest.raises(ConfigError, match="set backbone=conv"):
        build_labels(other, prepare_labelled(read_labelled(table, "train"), "image", 24))


def test_pictures_are_moved_so_that_nothing_of_them_is_lost() -> None:
    corners = torch.ones(64, 3, 32, 32)
    for y in (slice(0, 6), slice(26, 32)):
        for x in (slice(0, 6), slice(26, 32)):
            corners[:, :, y, x] = 0
    torch.manual_seed(0)
    seen = whole_pictures(corners, 32)
    dark = (seen.mean(1) < 0.5).float().sum((1, 2))
    assert float(dark.min()) > 0.8 * 0.8**2 * 4 * 36
    assert float((seen - corners).abs().mean()) > 0.01  # and moved they are


def test_attention_keeps_a_picture_where_it_is_highest_and_pales_the_rest() -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    seen = attention_picture(pixels, np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert (seen[:, 4:, 4:] == 0).all()
    assert (seen[:, :4] > 150).all()
