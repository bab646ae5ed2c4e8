"""Text-to-image: it learns, resumes, is kept; its attention is seen without changing it; layouts become tables."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from workbench import Outcome

import training.loop
from serving.loading import batches
from training.captioned import read_captioned
from training.pictures import prepare_pictures
from training.pretrain import pretrain
from training.pretrain_diffusion import build_diffusion, read_canvases
from training.pretrain_runs import read_pretraining
from training.pretrain_settings import PretrainConfig
from training.shapes import COLOURS, SHAPES, shapes_table
from training.synthesis.attention import cross_attentions, layer_side, preference_maps, watching
from training.synthesis.canvases import Canvases
from training.synthesis.layouts import Scene, box_cells, read_layouts
from training.synthesis.model import TextToImage, load_text_to_image
from training.synthesis.network import to_latents, to_pixels
from training.synthesis.registry import open_text_to_image
from training.synthesis.repaints import changes
from training.synthesis.synthesize import edited_noise, placed, repaint, resampled, synthesize
from training.synthesis.vocabulary import Vocabulary, caption_of
from udr.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from udr.tasks import infer_spec
from udr.types import Demonstration

SCENE = Scene(
    prompt="a red circle and a blue square",
    boxes={"red circle": (0, 0, 0.5, 0.5), "square": (0.5, 0.5, 1, 1)},
    count=2,
)


def config(folder: Path, **other: Any) -> PretrainConfig:
    table = folder / "shapes.parquet"
    if not table.is_file():
        shapes_table(table)
    loop = {"epochs": 2, "batch": 8, "lr": 2e-3, "checkpoint_every": 3, "precision": "float32"}
    own = {"sides": [5, 7], "canvases": 32, "patch": 2, "widths": [8, 16], "attention": [0], "text_dim": 8}
    return PretrainConfig.parse(
        {
            "out": folder / other.pop("name", "out"),
            "method": "diffusion",
            "data": table,
            "size": 16,
            "loop": loop | other.pop("loop", {}),
            "diffusion": own | other.pop("own", {}),
        }
        | other,
        "test",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a short training."""
    return pretrain(config(tmp_path_factory.mktemp("learnt"), loop={"epochs": 15}), "cpu")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToImage:
    return load_text_to_image(folder, "cpu")


# -- words and canvases


def test_prompts_are_read_word_by_word_and_unknown_words_are_told() -> None:
    vocabulary = Vocabulary.of(["red circle", "Orange ring."], 6)
    assert vocabulary.words == ("a", "an", "and", "circle", "orange", "red", "ring")
    assert vocabulary.padded("A red circle") == [1, 3, 8, 6, 2, 0]
    assert caption_of(["red circle", "orange ring"]) == "a red circle and an orange ring"
    with pytest.raises(UnknownNameError, match="did you mean circle"):
        vocabulary.ids("a circel")
    with pytest.raises(ConfigError, match="5 words, and the model reads 4"):
        vocabulary.padded("a red ring and a")


def test_canvases_hold_their_things_in_their_boxes_and_nothing_elsewhere(tmp_path: Path) -> None:
    shapes_table(tmp_path / "shapes.parquet")
    things = read_captioned(tmp_path / "shapes.parquet")
    assert len(things) == len(COLOURS) * len(SHAPES)
    canvases = Canvases(things, 32, (11, 14), 2, 64)
    counts = set()
    for seed in range(40):
        canvas = canvases.draw(Random(seed))
        counts.add(len(canvas.names))
        assert canvas.caption == caption_of(canvas.names)
        rest = canvas.pixels.copy()
        for name, (x0, y0, x1, y1) in zip(canvas.names, canvas.boxes, strict=True):
            part = canvas.pixels[:, y0:y1, x0:x1]
            colour = np.array(COLOURS[name.split()[0]])[:, None, None]
            assert (np.abs(part.astype(int) - colour) < 12).all(0).mean() > 0.25, name
            assert 11 <= x1 - x0 == y1 - y0 <= 14
            assert (rest[:, y0:y1, x0:x1] == part).all()  # no other box over it
            rest[:, y0:y1, x0:x1] = 255
        assert (rest == 255).all()
    assert counts == {1, 2}
    with pytest.raises(ConfigError, match="two things fit beside each other up to half"):
        Canvases(things, 20, (11, 14), 2, 64)
    with pytest.raises(DataError, match="no things"):
        Canvases([], 32, (11, 14), 2, 64)


def test_latents_are_pixels_and_white_ground_is_zero() -> None:
    pictures = torch.rand(2, 3, 8, 8)
    latents = to_latents(pictures, 4)
    assert latents.shape == (2, 48, 2, 2)
    torch.testing.assert_close(to_pixels(latents, 4), pictures)
    assert not to_latents(torch.ones(1, 3, 8, 8), 4).any()
    changed = pictures.clone()
    changed[:, :, :4, 4:] = 0
    assert (to_latents(changed, 4) != latents).any(1)[0].tolist() == [[False, True], [False, False]]


# -- training


def test_training_makes_the_loss_less_and_leaves_a_model_that_is_left_alone(folder: Path) -> None:
    state = read_pretraining(folder.parent)
    assert state.finished
    assert state.summary.startswith("diffusion  trained  loss ")
    assert set(state.plots) == {"losses and the online probe", "held-out pictures"}
    losses = [line["loss"] for line in state.metrics]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    before = (folder / "model.safetensors").read_bytes()
    pretrain(state.settings, "cpu")
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_text_to_image(pretrain(config(tmp_path, name="whole"), "cpu"), "cpu")
    own, step, taken = config(tmp_path, name="killed"), training.loop._step, iter(range(100))

    def dying(*words: Any) -> Any:
        if next(taken) == 5:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(training.loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(own, "cpu")
    assert (own.out / "checkpoint").is_file()
    monkeypatch.setattr(training.loop, "_step", step)
    again = load_text_to_image(pretrain(own, "cpu"), "cpu")
    assert not (own.out / "checkpoint").exists()
    for name, weights in whole.unet.state_dict().items():
        assert weights.equal(again.unet.state_dict()[name]), name
    assert whole.embed(["a red ring"]).equal(again.embed(["a red ring"]))


def test_the_weights_that_serve_follow_those_that_are_learnt(tmp_path: Path) -> None:
    own = config(tmp_path, own={"momentum": 0.5})
    canvases = read_canvases(own, read_captioned(own.data))
    method, _ = build_diffusion(own, canvases)
    kept = [w.clone() for w in method.teacher.parameters()]
    with torch.no_grad():
        for w in method.net.parameters():
            w += 1
    method.steps += 20
    method.after_step(0.1)
    for before, after, learnt in zip(kept, method.teacher.parameters(), method.net.parameters(), strict=True):
        torch.testing.assert_close(after, 0.5 * before + 0.5 * learnt)
    assert not any(w.requires_grad for w in method.teacher.parameters())
    assert method.backbone is method.teacher


def test_settings_that_do_not_fit_are_told_before_training(tmp_path: Path) -> None:
    cases = [
        ({"size": 18, "own": {"patch": 4, "sides": [5, 7]}}, "18 pixels are no multiple of 8"),
        ({"own": {"widths": [8, 12]}}, "expected multiples of 8"),
        ({"own": {"attention": [2]}}, "expected levels from 0 to 1"),
        ({"own": {"sides": [7, 5]}}, "the smaller first"),
        ({"own": {"length": 6}}, "7 words, and the model reads 4"),
    ]
    for other, words in cases:
        with pytest.raises(ConfigError, match=words):
            pretrain(config(tmp_path, **other), "cpu")
    assert not (tmp_path / "out" / "model").exists()
    names: Any = SimpleNamespace(names=["red-ring-one-two-three-four-five", "a b", "c d"])  # signs part words too
    with pytest.raises(ConfigError, match="12 words, and the model reads 10"):
        build_diffusion(config(tmp_path), names)


def test_a_damaged_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    saved = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(saved | {"words": saved["words"][::-1]}))
    with pytest.raises(ArtifactError, match="differ from what was saved"):
        load_text_to_image(tmp_path, "cpu")
    (tmp_path / "model.json").write_text(json.dumps(saved | {"kind": "image"}))
    with pytest.raises(ArtifactError, match="no text-to-image model"):
        load_text_to_image(tmp_path, "cpu")
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_text_to_image(f"artifact:{tmp_path / 'nowhere'}", "cpu")
    with pytest.raises(UnknownNameError, match="did you mean sd"):
        open_text_to_image("sdd:x")
    with pytest.raises(ConfigError, match="is no model's address"):
        open_text_to_image("model")


# -- attention


def attention_by_loops(attention: Any, hidden: torch.Tensor, words: torch.Tensor) -> np.ndarray:
    """Of one picture (cells, d) and one prompt (l, d): the mean over heads of the softmax over words, (cells, l)."""
    query, key = attention.to_q(hidden).tolist(), attention.to_k(words).tolist()
    heads, width = attention.heads, len(query[0]) // attention.heads
    found = np.zeros((len(query), len(key)))
    for h in range(heads):
        own = range(h * width, (h + 1) * width)
        for i, q in enumerate(query):
            logits = [sum(q[d] * k[d] for d in own) / math.sqrt(width) for k in key]
            top = max(logits)
            total = sum(math.exp(x - top) for x in logits)
            for j, x in enumerate(logits):
                found[i, j] += math.exp(x - top) / total / heads
    return found


def test_maps_are_the_first_steps_attention_of_the_prompt_by_plain_loops(model: TextToImage) -> None:
    prompt, phrase = "a red circle and a blue square", "blue square"
    assert model.places(prompt, "circle") == [3]  # the begin is counted
    assert model.places(prompt, phrase) == [6, 7]
    noise = torch.stack([model.noise(seed) for seed in (0, 1)])
    maps = preference_maps(model, noise, [prompt] * 2, [[phrase, "circle"]] * 2, steps=10)
    attention = model.unet.get_submodule(model.layer)
    caught: list[torch.Tensor] = []
    with torch.inference_mode():
        hook = attention.register_forward_pre_hook(lambda _, words: caught.append(words[0]))
        model.unet(noise, model.times(10)[0], model.embed([prompt] * 2))
        hook.remove()
        words = model.embed([prompt])[0]
        for i in range(2):
            expected = attention_by_loops(attention, caught[0][i], words)
            side = math.isqrt(len(expected))
            np.testing.assert_allclose(maps[i][phrase].ravel(), expected[:, [6, 7]].mean(1), rtol=1e-4)
            np.testing.assert_allclose(maps[i]["circle"], expected[:, 3].reshape(side, side), rtol=1e-4)


def test_watching_changes_nothing_and_ends(model: TextToImage) -> None:
    noise, words = model.noise(3)[None], model.embed(["a red ring"])
    with torch.inference_mode():
        plain = model.unet(noise, 500, words).sample
        for layer in cross_attentions(model.unet):
            before = model.unet.get_submodule(layer).processor
            with watching(model.unet, layer) as seen:
                assert model.unet(noise, 500, words).sample.equal(plain)
            assert model.unet.get_submodule(layer).processor is before
            assert len(seen) == 1
            torch.testing.assert_close(seen[0].sum(2), torch.ones(seen[0].shape[:2]))
    with pytest.raises(UnknownNameError, match="layer of cross-attention"), watching(model.unet, "mid"):
        pass
    assert layer_side(model) == 8  # by one step, which is even
    assert model.times(500).diff().unique().tolist() == [-2]
    for steps in (0, 7, 999, 1000):
        with pytest.raises(ConfigError, match=f"--steps {steps}: expected a divisor of 1000 up to 500"):
            model.times(steps)
    words = "a ring and a ring and a ring and red"  # as many as are read
    assert model.places(words, "red") == [model.length - 2]
    with pytest.raises(ConfigError, match="does not hold 'cross'"):
        model.places(words + " cross", "cross")  # where the end is
    with pytest.raises(ConfigError, match="does not hold 'ring red'"):
        model.places("a red ring", "ring red")


# -- painting, layouts


def test_a_picture_depends_on_its_own_noise_and_prompt_alone(model: TextToImage) -> None:
    noise = torch.stack([model.noise(0), model.noise(1)])
    both = model.paint(noise, ["a red ring", "a blue cross"], steps=4)
    torch.testing.assert_close(both[1:], model.paint(noise[1:], ["a blue cross"], steps=4), atol=1e-4, rtol=1e-4)
    other = model.paint(noise[1:], ["a red ring"], steps=4)
    assert (other - both[1:]).abs().max() > 1e-3
    told: list[int] = []
    model.paint(noise, ["a red ring"] * 2, steps=4, after_step=lambda number, _: told.append(number))
    assert told == [0, 1, 2, 3]
    assert model.noise(5).equal(model.noise(5))


def test_ddim_without_guidance_follows_the_velocities_by_plain_steps(model: TextToImage) -> None:
    noise, prompt, steps = model.noise(7)[None], "a green cross", 5
    found = model.paint(noise, [prompt], steps, guidance=1.0)
    kept = model.scheduler.alphas_cumprod
    times, x = model.times(steps).tolist(), noise
    assert times[0] == 999
    with torch.inference_mode():
        for i, time in enumerate(times):
            a = kept[time]
            b = kept[times[i + 1]] if i + 1 < steps else kept[0]
            v = model.unet(x, time, model.embed([prompt])).sample
            picture, own = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
            x = b.sqrt() * picture + (1 - b).sqrt() * own
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("move", ["sorted", "exchange"])
def test_edited_noise_has_the_blocks_that_prefer_a_phrase_in_its_box(model: TextToImage, move: Any) -> None:
    noise = torch.stack([model.noise(seed) for seed in (0, 1)])
    one = Scene(prompt="a red ring", boxes={"ring": (0, 0, 0.5, 0.5)})
    moved = edited_noise(model, noise, [one, SCENE], move, [0, 1], 10)
    assert not moved.equal(noise)
    assert moved.flatten(1).sort(1).values.equal(noise.flatten(1).sort(1).values)
    assert edited_noise(model, noise, [one, SCENE], "none", [0, 1], 10).equal(noise)
    assert edited_noise(model, noise[1:], [SCENE], move, [1], 10).equal(moved[1:])  # alone or in a batch
    scores = preference_maps(model, noise[:1], [one.prompt], [["ring"]], 10)[0]["ring"].ravel()
    best = set(np.argsort(-scores)[:16].tolist())  # of 8 × 8 cells a quarter
    for cell in range(64):
        y, x = divmod(cell, 8)
        inside = x < 4 and y < 4
        found = any(moved[0][:, y, x].equal(noise[0][:, c // 8, c % 8]) for c in best)
        assert found == inside


def test_new_noise_lies_under_the_region_alone_and_changes_it_most(model: TextToImage) -> None:
    noise, region = model.noise(0), (0.5, 0.0, 1.0, 0.5)
    found = resampled(model, noise, region, 9)
    differs = (found != noise).any(0)
    assert differs[:4, 4:].all()
    assert differs.sum() == 16
    pictures = repaint(model, "a red ring", noise, region, [9, 10], steps=5)
    assert pictures.shape == (3, 3, 16, 16)
    for other in pictures[1:]:
        inside, outside = changes(pictures[0], other, region)
        assert inside > outside
    black, half = np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)
    half[:, :2, 2:] = 255
    assert changes(black, half, region) == (1.0, 0.0)
    with pytest.raises(ConfigError, match="one seed at least"):
        repaint(model, "a red ring", noise, region, [])


def test_placed_is_the_share_of_the_highest_cells_that_lie_in_the_box() -> None:
    score = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert placed(score, np.array([12, 13, 14, 15])) == 1
    assert placed(score, np.array([0, 1, 14, 15])) == 0.5
    assert placed(score, np.array([0, 1])) == 0


def test_boxes_become_whole_cells(tmp_path: Path) -> None:
    assert box_cells((0, 0, 0.5, 1), 8) == (0, 0, 4, 8)
    assert box_cells((0.45, 0.45, 0.55, 0.55), 4) == (2, 2, 3, 3)  # one cell at least
    assert box_cells((0.99, 0, 1, 1), 4) == (3, 0, 4, 4)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        box_cells((0, 0, 1.5, 1), 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scenes: []", "scenes"),
        ("scenes: [{prompt: a ring, boxes: {}}]", "boxes"),
        ("scenes: [{prompt: a ring, boxes: {ring: [0, 0, 0, 1]}}]", "the smaller first"),
        ("scenes: [{prompt: a ring, boxes: {ring: [0, 0, 1]}}]", "boxes.ring"),
        ("scenes: [{prompt: a ring, boxes: {ring: [0, 0, 1, 1]}, label: ' '}]", "a label without letters"),
        ("scenes: [{promt: a ring, boxes: {ring: [0, 0, 1, 1]}}]", "did you mean prompt|Field required"),
        ("scenes: [{prompt: a ring, boxes: {ring: [0, 0, 1, 1]}, count: 100001}]", "scenes.0.count"),
        ("scenes: [", "not YAML"),
    ],
)
def test_layouts_that_are_none_are_told_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_layouts(path)


def test_pictures_are_those_of_their_seeds_and_tries_end_at_the_first_good_one(model: TextToImage) -> None:
    told: list[tuple[int, int]] = []
    easy = synthesize(model, [SCENE], tries=3, least=0.0, steps=4, progress=lambda *n: told.append(n))
    assert [made.tries for made in easy] == [1, 1]
    assert told[-1] == (2, 2)
    never = synthesize(model, [SCENE], tries=3, least=1.0, steps=4)
    assert [(made.tries, made.accepted) for made in never] == [(3, False)] * 2
    assert min(never[0].placed.values()) >= min(easy[0].placed.values())  # the best try
    again = synthesize(model, [SCENE.model_copy(update={"count": 1})], tries=3, least=0.0, steps=4)
    assert again[0].seed == easy[0].seed
    assert np.abs(again[0].pixels.astype(int) - easy[0].pixels).max() <= 1
    with pytest.raises(ConfigError, match="does not hold 'ring'"):
        synthesize(model, [SCENE, Scene(prompt="a cross", boxes={"ring": (0, 0, 1, 1)})], steps=4)


def test_the_command_writes_a_table_that_others_read_a_pool_and_a_sheet(
    folder: Path, tmp_path: Path, udr: Callable[..., Outcome]
) -> None:
    layout, table, pool = tmp_path / "layout.yaml", tmp_path / "made.parquet", tmp_path / "made.ndjson"
    scene = SCENE.model_dump(mode="json")
    layout.write_text(json.dumps({"scenes": [scene, scene | {"prompt": "a red circle and a square", "label": "two"}]}))
    words = ("--model", f"artifact:{folder}", "--layout", layout, "--out", table, "--steps", 4, "--tries", 2)
    done = udr("synthesize", *words, "--least", 0, "--pool", pool, "--sheet", tmp_path / "s.png", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [(s["wanted"], s["accepted"], s["tries_per_accepted"]) for s in facts["scenes"]] == [(2, 2, 1.0)] * 2
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.size[0] > 200
    rows = pq.read_table(table).to_pylist()
    assert rows[0]["boxes"] == [
        {"phrase": "red circle", "x0": 0, "y0": 0, "x1": 0.5, "y1": 0.5},
        {"phrase": "square", "x0": 0.5, "y0": 0.5, "x1": 1, "y1": 1},
    ]
    assert [r["seed"] for r in rows] == [p["seed"] for p in facts["pictures"]]
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (16, 16)
    assert [c.label for c in read_captioned(table)] == ["red circle"] * 2 + ["two"] * 2
    pictures = prepare_pictures(table, 16, tmp_path / "cache", "train")
    assert pictures.labels == ("red circle", "red circle", "two", "two")
    known = [Demonstration(str(i), "x", label) for i, label in enumerate(("red circle", "two"))]
    with pool.open("rb") as file:
        (batch,) = batches(file, "ndjson", 0, 0, infer_spec("made", known), 1000)
    assert not batch.refused
    assert [d.output for d in batch.demonstrations] == ["red circle"] * 2 + ["two"] * 2
    assert batch.demonstrations[0].media[0].uri.startswith("data:image/png;base64,")


def test_commands_refuse_what_cannot_be_in_one_line(folder: Path, tmp_path: Path, udr: Callable[..., Outcome]) -> None:
    layout = tmp_path / "layout.yaml"
    layout.write_text("scenes: [{prompt: a pink ring, boxes: {ring: [0, 0, 1, 1]}}]")
    words = ("synthesize", "--model", f"artifact:{folder}", "--layout", layout, "--out")
    for more, told in (
        ((tmp_path / "x.csv",), "expected FILE.parquet"),
        ((tmp_path / "x.parquet", "--sheet", "x.jpg"), "expected FILE.png"),
        ((tmp_path / "x.parquet",), "unknown word 'pink'"),
        ((tmp_path / "x.parquet", "--steps", 30), "--steps 30: expected a divisor of 1000 up to 500, such as 20"),
        ((tmp_path / "x.parquet", "--steps", 1000), "--steps 1000: expected a divisor"),
        ((tmp_path / "x.parquet", "--pool", layout / "p.ndjson"), "p.ndjson: cannot be written"),
        ((tmp_path / "x.parquet", "--layer", "mid"), "unknown layer of cross-attention 'mid'"),
    ):
        done = udr(*words, *more)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert told in done.err
    layout.write_text(json.dumps({"scenes": [SCENE.model_dump(mode="json")]}))
    few = (tmp_path / "x.parquet", "--least", 1, "--tries", 1, "--steps", 2, "--sheet", tmp_path / "why.png")
    done = udr(*words, *few)
    assert (done.code, done.err.splitlines()[-1][:31]) == (2, "udr: none of 2 pictures has its")
    assert (tmp_path / "why.png").is_file()
    assert not (tmp_path / "x.parquet").exists()
    for region in ("0,0,1", "0,0,2,1", "a,b,c,d"):
        done = udr(
            "repaint", "a ring", "--model", f"artifact:{folder}", "--region", region, "--out", tmp_path / "r.png"
        )
        assert done.code == 2
        assert "shares" in done.err
    done = udr(
        "repaint", "a ring", "--model", f"artifact:{folder}", "--region", "0,0,0.5,0.5", "--out", tmp_path / "r.png",
        "--tries", 2, "--steps", 4, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(json.loads(done.out)) == 2
