"""DRIT in the loop: turns move what they say, a killed run goes on bit by bit, and what it leaves serves commands."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scenes import png, scenes
from torch.nn import functional as F
from workbench import Outcome

import training.loop
from embed.translation import load_translator
from training.augment import build_views
from training.loop import fit, rate_at
from training.methods.drit import DRIT
from training.picture_tables import style_tables
from training.pictures import Pictures, prepare_pictures
from training.pretrain import build_method, pretrain
from training.pretrain_runs import read_pretraining
from training.pretrain_settings import LoopSettings, PretrainConfig
from training.pretrain_translation import build_drit
from training.translated_views import TranslatedViews
from training.turns import Turns
from training.unpaired import Unpaired
from udr.config import load_config
from udr.errors import ArtifactError, ConfigError, DataError

CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "pretrain"
SMALL = {"width": 4, "judge_width": 4, "judge_scales": 1, "attributes": 3, "shift": 1}


def tables(folder: Path) -> tuple[Path, Path]:
    """The same scenes as they are and as their negatives, a quarter of them in split test."""
    own, paths = scenes(32), (folder / "plain.parquet", folder / "negative.parquet")
    for path, pixels in zip(paths, (own.pixels, 255 - own.pixels), strict=True):
        columns = {
            "image": [png(p.transpose(1, 2, 0)) for p in pixels],
            "label": [f"scene {i}" for i in range(32)],
            "split": ["train"] * 24 + ["test"] * 8,
        }
        pq.write_table(pa.table(columns), path)
    return paths


def config(folder: Path, **drit: Any) -> PretrainConfig:
    first, second = (
        tables(folder)
        if not (folder / "plain.parquet").is_file()
        else (
            folder / "plain.parquet",
            folder / "negative.parquet",
        )
    )
    return PretrainConfig.parse(
        {
            "out": folder / "run",
            "method": "drit",
            "data": first,
            "split": "train",
            "held_out": "test",
            "size": 16,
            "loop": {
                "epochs": 2,
                "batch": 8,
                "warmup": 0,
                "schedule": "late",
                "checkpoint_every": 2,
                "least_spread": 0,
            },
            "drit": {"other": second, "styles": ["plain", "negative"], **SMALL, **drit},
        },
        "test",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables and a finished run."""
    folder = tmp_path_factory.mktemp("drit")
    pretrain(config(folder), "cpu")
    return folder


# -- turns


def weights(method: DRIT) -> dict[str, torch.Tensor]:
    net = method.net
    networks = {
        "content": (net.content, net.content_shared),
        "attribute": (net.attribute,),
        "generator": (net.generator, net.generator_shared),
        "judges": (method.judges, method.judges_of_drawn),
        "content_judge": (method.content_judge,),
    }
    return {
        name: torch.cat([p.detach().flatten().clone() for part in parts for p in part.parameters()])
        for name, parts in networks.items()
    }


def test_each_turn_moves_its_own_networks_and_no_others(tmp_path: Path) -> None:
    method = build_drit(config(tmp_path))
    optimizer = Turns(method.optimizers(1e-3, 1e-4))
    batch = torch.rand(8, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    names, before = [], weights(method)
    for step in range(3):
        for turn in method.turns(batch, step):
            optimizer.take(iter([turn]), lambda: torch.autocast("cpu", enabled=False))
            after = weights(method)
            moved = {name for name in before if not after[name].equal(before[name])}
            assert moved == set(turn.networks)
            names.append(turn.networks)
            before = after
    assert names == [  # two of three steps are the content judge's
        ("content_judge",),
        ("content_judge",),
        ("judges", "content_judge"),
        ("content", "attribute", "generator"),
        ("content", "generator"),
    ]


def test_the_content_judge_has_a_rate_of_its_own_and_a_gradient_that_is_clipped(tmp_path: Path) -> None:
    method = build_drit(config(tmp_path, judge_rate=0.4, judge_clip=0.001))
    (group,) = method.optimizers(1e-3, 0)["content_judge"].param_groups
    assert group["scale"] == 0.4
    optimizer = Turns(method.optimizers(1e-3, 0))
    optimizer.take(method.turns(torch.rand(8, 2, 3, 16, 16), 0), lambda: torch.autocast("cpu", enabled=False))
    total = sum(p.grad.square().sum() for p in method.content_judge.parameters() if p.grad is not None)
    assert float(total) ** 0.5 == pytest.approx(0.001, rel=1e-3)


def test_rates_of_the_loop_are_multiplied_by_a_groups_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    take = Turns.take

    def watched(self: Turns, *words: Any) -> dict[str, float]:
        seen.append([group["lr"] for group in self.param_groups])
        return take(self, *words)

    monkeypatch.setattr(Turns, "take", watched)
    own = config(tmp_path)
    pretrain(own, "cpu")
    shares = [rate_at(step, 6, 0, "late") for step in range(6)]
    assert shares == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    for rates, share in zip(seen, shares, strict=True):
        assert rates == pytest.approx([own.loop.lr * share] * 4 + [0.4 * own.loop.lr * share])


def test_parts_of_a_batch_and_odd_batches_are_refused(tmp_path: Path) -> None:
    own = config(tmp_path)
    odd = own.model_copy(update={"loop": own.loop.model_copy(update={"batch": 7})})
    with pytest.raises(ConfigError, match=r"loop\.batch: 7"):
        build_drit(odd)
    pictures = scenes(16)
    with pytest.raises(ConfigError, match=r"loop\.accumulate"):
        fit(build_drit(own), Unpaired(pictures, pictures), LoopSettings(batch=8, accumulate=2), tmp_path / "out")


def test_one_half_is_taken_apart_and_the_other_is_what_the_second_judges_know_as_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build_drit(config(tmp_path))
    monkeypatch.setattr(method, "_varied", lambda pictures: pictures * 2 - 1)
    batch = torch.rand(8, 2, 3, 16, 16)
    real = [batch[:, i] * 2 - 1 for i in (0, 1)]
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _, given, __: seen.setdefault(name, []).append(given[0].detach()))

    for i in (0, 1):
        watch(f"content {i}", method.net.content[i])
        watch(f"judge {i}", method.judges[i])
        watch(f"second judge {i}", method.judges_of_drawn[i])
    next(method.turns(batch, 2))
    for i in (0, 1):
        assert [len(x) for x in seen[f"content {i}"]] == [4]
        torch.testing.assert_close(seen[f"content {i}"][0], real[i][:4])
        torch.testing.assert_close(seen[f"judge {i}"][0], real[i][:4])
        torch.testing.assert_close(seen[f"second judge {i}"][0], real[i][4:])
        assert [len(x) for x in seen[f"second judge {i}"]] == [4, 4, 4]  # and two draws


def test_pictures_are_made_of_the_other_styles_content_and_this_styles_attribute(tmp_path: Path) -> None:
    method = build_drit(config(tmp_path)).eval()  # contents without noise
    first, second = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.manual_seed(0)
        crossed = method._cross([first, second])
        for i, (own, other) in enumerate(((first, second), (second, first))):
            mine, theirs = method.net.contents(own, i), method.net.contents(other, 1 - i)
            made = method.net.pictures(theirs, crossed.attribute[i], i)
            torch.testing.assert_close(crossed.made[i], made, atol=1e-5, rtol=1e-4)
            again = method.net.pictures(mine, crossed.attribute[i], i)
            torch.testing.assert_close(crossed.again[i], again, atol=1e-5, rtol=1e-4)
        ahead = method._draw(crossed.content, drawn := torch.randn(2, 2, 3))
        for i in (0, 1):
            for k in (0, 1):
                expected = method.net.pictures(crossed.content[1 - i], drawn[k], i)
                torch.testing.assert_close(ahead[i][k], expected, atol=1e-5, rtol=1e-4)


# -- what is learnt from


def test_which_pictures_come_together_says_nothing_and_the_smaller_set_comes_again() -> None:
    pixels = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8)
    first, second = (Pictures(p, tuple(map(str, range(len(p)))), None) for p in (pixels, pixels[:5]))
    own = Unpaired(first, second, seed=1)
    batch = own.batch(np.arange(12))
    assert batch.shape == (12, 2, 3, 2, 2)
    assert sorted(batch[:, 0, 0, 0, 0].tolist()) == list(range(12))
    counts = np.bincount(batch[:, 1, 0, 0, 0])
    assert len(counts) == 5
    assert set(counts.tolist()) == {2, 3}
    same = (batch[:, 0, 0, 0, 0] == batch[:, 1, 0, 0, 0]).mean()
    assert same < 0.5
    np.testing.assert_array_equal(own.batch(np.array([3, 7])), batch[[3, 7]])


def test_pictures_are_moved_and_mirrored_and_no_pixel_is_made_up(tmp_path: Path) -> None:
    method = build_drit(config(tmp_path, shift=1))
    torch.manual_seed(0)
    pictures = torch.rand(16, 3, 16, 16)
    found = (method._varied(pictures) + 1) / 2
    wide = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    kinds, whose = set(), []
    for one in found:
        candidates = {
            (y, x, mirrored): wide[:, :, y : y + 16, x : x + 16].flip([3] if mirrored else [])
            for y in range(3)
            for x in range(3)
            for mirrored in (False, True)
        }
        own = [
            (kind, n)
            for kind, moved in candidates.items()
            for n in range(16)
            if torch.allclose(moved[n], one, atol=1e-5)
        ]
        assert len(own) == 1
        kinds.add(own[0][0])
        whose.append(own[0][1])
    assert sorted(whose) == list(range(16))
    assert whose != sorted(whose)
    assert len({kind[:2] for kind in kinds}) > 4
    assert len({kind[2] for kind in kinds}) == 2


# -- the loop


def test_training_killed_anywhere_ends_as_training_that_was_not(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = config(tmp_path)
    store = training.loop._store

    def dies(*words: Any) -> None:
        store(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.loop, "_store", dies)
    for _ in range(2):  # six steps, a checkpoint after the second and the fourth
        with pytest.raises(KeyboardInterrupt):
            pretrain(own, "cpu")
    assert not (own.out / "encoder").exists()
    monkeypatch.setattr(training.loop, "_store", store)
    folder = pretrain(own, "cpu")
    whole = trained / "run" / "encoder"
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (own.out / "metrics.jsonl").read_text().splitlines()]
    uninterrupted = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines + uninterrupted:
        line.pop("pictures_per_s")
    assert lines == uninterrupted
    assert not (own.out / "checkpoint").exists()


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, pictures = config(tmp_path), scenes(16)
    settings = LoopSettings(epochs=3, batch=8, checkpoint_every=2, precision="float32")
    fit(build_drit(own), Unpaired(pictures, pictures), settings, tmp_path / "out")
    other = build_drit(config(tmp_path, width=8))
    with pytest.raises(ArtifactError, match="damaged or of other settings"):
        fit(other, Unpaired(pictures, pictures), settings, tmp_path / "out")


def test_a_finished_run_has_a_sheet_facts_and_metrics_of_every_turn(trained: Path) -> None:
    out = trained / "run"
    assert {path.name for path in out.glob("*.png")} == {"metrics.png", "samples.png"}
    facts = json.loads((out / "encoder" / "encoder.json").read_text())
    assert (facts["method"], facts["styles"], facts["pictures"]) == ("drit", ["plain", "negative"], [24, 24])
    assert facts["distance"] > 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    wanted = {"style", "passing", "cycle", "reconstruction", "kl", "content_size", "passing_drawn", "latent"}
    assert {*wanted, "mode_seeking", "judge_style", "judge_pictures"} <= set(last)
    assert "loss" not in last
    assert read_pretraining(out).summary.startswith("drit  trained  spread")


def test_what_a_turn_makes_less_is_the_weighted_sum_of_its_losses(tmp_path: Path) -> None:
    method = build_drit(config(tmp_path, cycle=7.0, latent=3.0))
    judges, crossed, drawn = (turn.losses for turn in method.turns(torch.rand(8, 2, 3, 16, 16), 2))
    weights = {"style": 1, "passing": 1, "cycle": 7, "reconstruction": 10, "kl": 0.01, "content_size": 0.01}
    alone = {"passing_drawn": 1, "latent": 3, "mode_seeking": 1}
    for losses, own in ((judges, {"judge_style": 1, "judge_pictures": 1}), (crossed, weights), (drawn, alone)):
        assert set(losses) == {"loss", *own}
        total = sum(weight * losses[name].item() for name, weight in own.items())
        assert losses["loss"].item() == pytest.approx(total, rel=1e-5)


def test_the_networks_learn_to_put_pictures_together_again(tmp_path: Path) -> None:
    own = config(tmp_path)
    pictures = scenes(32)
    negative = Pictures(255 - pictures.pixels, pictures.names, pictures.labels)
    method = build_drit(own)
    settings = LoopSettings(epochs=45, batch=16, lr=3e-3, warmup=0, schedule="late", precision="float32")
    lines = fit(method, Unpaired(pictures, negative), settings, tmp_path / "out")
    told = [line for line in lines if "reconstruction" in line]
    assert told[-1]["reconstruction"] < 0.8 * told[0]["reconstruction"]
    assert told[-1]["cycle"] < 0.9 * told[0]["cycle"]


def test_both_configs_are_read_and_the_papers_layout_fits_its_pictures() -> None:
    small = load_config(PretrainConfig, CONFIGS / "drit.yaml")
    paper = load_config(PretrainConfig, CONFIGS / "drit_paper.yaml")
    assert (small.method, paper.drit.width, paper.drit.blocks, paper.size) == ("drit", 64, 3, 216)
    tiny = paper.model_copy(update={"drit": paper.drit.model_copy(update={"width": 4, "judge_width": 4})})
    turn = next(build_drit(tiny).turns(torch.rand(2, 2, 3, 216, 216), 0))
    assert torch.isfinite(turn.losses["loss"])


# -- bad input


def test_bad_settings_are_told_before_pictures_are_read(tmp_path: Path) -> None:
    own = config(tmp_path)
    with pytest.raises(ConfigError, match=r"drit\.other"):
        pretrain(own.model_copy(update={"drit": own.drit.model_copy(update={"other": None})}), "cpu")
    for key, value, said in (
        ("drit.styles", "[same, same]", "two names that differ"),
        ("translator", "folder", "makes no views"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(PretrainConfig, CONFIGS / "drit.yaml", [f"{key}={value}"])
    small = own.model_copy(update={"drit": own.drit.model_copy(update={"judge_layers": 5})})
    with pytest.raises(ConfigError, match="too small"):
        pretrain(small, "cpu")


# -- commands


def test_a_translator_makes_a_sheet_and_files(trained: Path, tmp_path: Path, udr: Callable[..., Outcome]) -> None:
    model, sheet = trained / "run" / "encoder", tmp_path / "sheet.png"
    words = ["translate", trained / "plain.parquet", "--translator", model, "--to", "negative", "--out", sheet]
    found = udr(*words, "--split", "test", "--draws", "2", "--into", tmp_path / "made", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out) == {"sheet": str(sheet), "pictures": 8, "translations": 3, "written": 24}
    made = sorted((tmp_path / "made").rglob("*.png"))
    assert len(made) == 24
    assert made[0].parent.name.startswith("scene-")
    with Image.open(made[0]) as one_made:
        assert one_made.size == (16, 16)
    one = tmp_path / "like.png"
    one.write_bytes(png(scenes(1).pixels[0].transpose(1, 2, 0)))
    liked = udr(*words, "--like", one, "--show", "3")
    assert liked.code == 0, liked.err
    assert "3 pictures as negative, 2 times each" in liked.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--to": "watercolour"}, "unknown style"),
        ({"--out": "sheet.jpg"}, "expected FILE.png"),
        ({"--translator": "nowhere"}, "no translator"),
    ],
)
def test_translate_tells_what_is_wrong_in_a_line(
    trained: Path, tmp_path: Path, udr: Callable[..., Outcome], change: dict[str, str], said: str
) -> None:
    options = {"--translator": str(trained / "run" / "encoder"), "--to": "plain", "--out": str(tmp_path / "s.png")}
    found = udr("translate", trained / "plain.parquet", *[w for pair in (options | change).items() for w in pair])
    assert found.code == 2
    assert said in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_pictures_that_cannot_be_read_are_left_out(trained: Path, tmp_path: Path, udr: Callable[..., Outcome]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(scenes(1).pixels[0].transpose(1, 2, 0)))
    (folder / "bad.png").write_bytes(b"no picture")
    words = ["--translator", trained / "run" / "encoder", "--to", "plain", "--out", tmp_path / "s.png"]
    found = udr("translate", folder, *words)
    assert found.code == 0
    assert "left out: bad.png" in found.err
    (folder / "good.png").unlink()
    assert "none of 1 pictures can be read" in udr("translate", folder, *words).err


def test_neighbours_and_embed_take_either_encoder(trained: Path, tmp_path: Path, udr: Callable[..., Outcome]) -> None:
    queries, pool, model = trained / "plain.parquet", trained / "negative.parquet", trained / "run" / "encoder"
    prints = []
    for reads in ("content", "attribute"):
        sheet, table = tmp_path / f"{reads}.png", tmp_path / f"{reads}.parquet"
        words = ["--encoder", f"{reads}:{model}", "--split", "test"]
        found = udr("neighbours", queries, *words, "--pool", pool, "--pool-split", "test", "--out", sheet, "--k", 2)
        assert found.code == 0, found.err
        assert "of 16 have the query's label" in found.out
        assert udr("embed", queries, *words, "--out", table).code == 0
        prints.append(pq.read_schema(table).metadata[b"fingerprint"])
    assert prints[0] != prints[1]


# -- translation as an augmentation


def test_views_are_of_translated_pictures_as_often_as_is_asked(trained: Path) -> None:
    translator = load_translator(trained / "run" / "encoder", "cpu")
    pictures = torch.from_numpy(scenes(24).pixels)
    plain = build_views("beit_small", 16)
    plain.pipelines = (type(plain.pipelines[0])((1, 1), (0, 0, 0, 0), grey=0.0),)  # nothing but a mirror
    seen = {}
    for share in (0.0, 1.0):
        views = TranslatedViews(plain, translator, share)
        drawn = views.draw(24, torch.Generator().manual_seed(0))
        (seen[share],) = views.see(pictures, drawn)
        part = [{name: value[5:9] for name, value in table.items()} for table in drawn]
        torch.testing.assert_close(views.see(pictures[5:9], part)[0], seen[share][5:9], atol=5e-3, rtol=0)
        (floats,) = views.see(pictures.float() / 255, drawn)
        torch.testing.assert_close(floats, seen[share], atol=5e-3, rtol=0)
    mirrored = torch.where(drawn[0]["mirrored"][:, None, None, None], pictures.flip(3), pictures)
    torch.testing.assert_close(seen[0.0], mirrored.float() / 255, atol=1e-5, rtol=0)
    assert ((seen[1.0] - seen[0.0]).abs().mean((1, 2, 3)) > 0.01).all()
    half = TranslatedViews(plain, translator, 0.5).draw(2000, torch.Generator().manual_seed(1))[0]["translated"]
    assert half.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_method_trains_on_translated_views_and_keeps_the_translator_to_itself(trained: Path, tmp_path: Path) -> None:
    own = PretrainConfig.parse(
        {
            "out": tmp_path / "simclr",
            "method": "simclr",
            "data": trained / "plain.parquet",
            "split": "train",
            "size": 16,
            "translator": trained / "run" / "encoder",
            "loop": {"epochs": 1, "batch": 8, "least_spread": 0},
        },
        "test",
    )
    method = build_method(own)
    assert not any("translator" in name for name, _ in method.named_parameters())  # type: ignore[attr-defined]
    assert (pretrain(own, "cpu") / "encoder.json").is_file()
    with pytest.raises(ConfigError, match="of pictures of 16 pixels"):
        build_method(own.model_copy(update={"size": 32}))


# -- data


def test_tables_of_two_styles_hold_the_same_emoji_in_the_same_splits(tmp_path: Path) -> None:
    archives = {}
    codes = [f"1F6{i:02X}" for i in range(40)]
    for style, kept in (("google", codes), ("twitter", codes[:-1])):
        known = [
            {"unified": code, "image": f"{code}.png", "category": "Flags" if code == codes[0] else "Objects"}
            for code in kept
        ]
        folder = tmp_path / style / "package" / "img" / style / "64"
        folder.mkdir(parents=True)
        for one in known:
            (folder / one["image"]).write_bytes(png(scenes(1).pixels[0].transpose(1, 2, 0)))
        (tmp_path / style / "package" / "emoji.json").write_text(json.dumps(known))
        archives[style] = tmp_path / f"{style}.tgz"
        with tarfile.open(archives[style], "w:gz") as packed:
            packed.add(tmp_path / style / "package", "package")
    counts = style_tables(archives, tmp_path)
    assert set(counts.values()) == {38}  # without the flag, and without what one of them lacks
    google, twitter = (pq.read_table(tmp_path / f"{style}.parquet").to_pydict() for style in archives)
    assert google["label"] == twitter["label"]
    assert google["split"] == twitter["split"]
    assert 0 < google["split"].count("test") < 20
    assert len(prepare_pictures(tmp_path / "google.parquet", 16, tmp_path / "kept", "test")) == google["split"].count(
        "test"
    )
    archives["twitter"].write_bytes(b"no archive")
    with pytest.raises(DataError, match="damaged"):
        style_tables(archives, tmp_path)
