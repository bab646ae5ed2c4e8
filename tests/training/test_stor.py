"""STOR: pairs of clips overlap as their labels say, one draw holds for a clip, and every part can be left out."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest
import torch
from films import write_films
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from workbench import Outcome

import training.loop
from embed.video import load_video_encoder, save_video_backbone
from embed.video_backbones import build_video_backbone
from training.clip_pairs import RATES, draw_boxes, draw_spans, pace_count
from training.clip_views import crop_clips, strengthen
from training.clips import Videos, prepare_videos
from training.loop import fit
from training.losses.stor import byol_loss, labels_loss, weighted
from training.methods.stor import STOR, Clips
from training.pretrain import pretrain
from training.pretrain_settings import LoopSettings, PretrainConfig
from training.pretrain_videos import side_of
from training.questions import load_questions, question_accuracies, save_questions
from udr.errors import ConfigError, DataError, UDRWarning

pytestmark = pytest.mark.filterwarnings("default:1 videos left out")

# -- losses


def test_the_agreement_is_its_formula_in_plain_loops() -> None:
    rng = np.random.default_rng(0)
    p1, p2, z1, z2 = (rng.normal(size=(5, 7)) for _ in range(4))
    total = 0.0
    for i in range(5):
        for p, z in ((p1[i], z2[i]), (p2[i], z1[i])):
            total += 2 - 2 * float(p @ z) / math.sqrt(float(p @ p) * float(z @ z))
    found = byol_loss(*(torch.tensor(v) for v in (p1, p2, z1, z2)))
    assert float(found) == pytest.approx(total / 5)


def test_a_teacher_gets_no_gradient() -> None:
    p1, p2, z1, z2 = (torch.randn(3, 4, requires_grad=True) for _ in range(4))
    byol_loss(p1, p2, z1, z2).backward()
    assert p1.grad is not None
    assert p2.grad is not None
    assert z1.grad is None
    assert z2.grad is None


def test_the_joint_loss_is_its_formula_in_plain_loops() -> None:
    rng = np.random.default_rng(1)
    logits = [rng.normal(size=(6, 4)) for _ in range(2)]
    labels = [rng.integers(0, 4, 6) for _ in range(2)]
    total = 0.0
    for scores, right in zip(logits, labels, strict=True):
        for row, answer in zip(scores, right, strict=True):
            total -= (row[answer] - math.log(sum(math.exp(x) for x in row))) / 6
    found = labels_loss([torch.tensor(x) for x in logits], [torch.tensor(y) for y in labels])
    assert float(found) == pytest.approx(total)
    losses = {"contrastive": torch.tensor(3.0), "pace": torch.tensor(5.0)}
    assert float(weighted(losses, {"contrastive": 0.1, "pace": 2.0})) == pytest.approx(0.3 + 10)


# -- pairs


@given(length=st.integers(1, 400), frames=st.sampled_from([4, 8, 16]), seed=st.integers(0, 10_000))
def test_clips_overlap_in_time_as_their_label_says(length: int, frames: int, seed: int) -> None:
    pair = draw_spans(length, frames, 4, Random(seed))
    reach = (frames - 1) * 2**pair.pace
    assert pair.pace < pace_count(length, frames, 4)
    if reach + 1 > length:
        assert (pair.starts, pair.overlap) == ((0, 0), 0)
        return
    spans = [set(range(start, start + reach)) for start in pair.starts]
    for span in spans:
        assert min(span) >= 0
        assert max(span) + 1 <= length - 1  # the last frame that is read
    shared = len(spans[0] & spans[1]) / reach
    assert RATES[pair.overlap] <= shared + 1e-9 < RATES[pair.overlap] + 1 / reach + 1e-9


def test_paces_are_those_that_the_length_has_room_for() -> None:
    for length, count in ((5, 1), (16, 1), (29, 1), (30, 2), (59, 2), (60, 3), (120, 4), (5000, 4)):
        assert pace_count(length, 16, 4) == count == min(3, max(0, math.floor(math.log2(length / 15)))) + 1


def test_labels_directions_and_paces_are_even_in_a_long_video() -> None:
    random = Random(0)
    pairs = [draw_spans(400, 8, 4, random) for _ in range(8000)]
    for counts, kinds in ((Counter(p.overlap for p in pairs), 5), (Counter(p.pace for p in pairs), 4)):
        assert len(counts) == kinds
        assert max(counts.values()) < 1.15 * min(counts.values())
    later = sum(p.starts[1] > p.starts[0] for p in pairs) / sum(p.overlap > 0 for p in pairs)
    assert 0.47 < later < 0.53


@given(side=st.sampled_from([28, 40, 128]), overlap=st.integers(0, 4), seed=st.integers(0, 10_000))
def test_crops_overlap_in_space_as_their_label_says(side: int, overlap: int, seed: int) -> None:
    boxes = draw_boxes(side, overlap, Random(seed))
    masks = []
    for box in boxes:
        mask = np.zeros((side, side), bool)
        mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
        assert mask.sum() == box.width * box.height  # it lies within the frame
        masks.append(mask)
    assert (boxes[0].width, boxes[0].height) == (boxes[1].width, boxes[1].height)
    shared = (masks[0] & masks[1]).sum() / masks[0].sum()
    assert shared == pytest.approx(RATES[overlap], abs=0.5 / min(boxes[0].width, boxes[0].height) + 1e-9)
    assert 0.2 * side**2 * 0.85 <= masks[0].sum()
    assert 0.66 < boxes[0].width / boxes[0].height < 1.5


def test_crops_go_to_every_side() -> None:
    random = Random(0)
    moves = Counter()
    for _ in range(400):
        a, b = draw_boxes(64, 3, random)
        moves[np.sign(b.left - a.left), np.sign(b.top - a.top)] += 1
    assert all(moves[x, y] > 40 for x in (-1, 1) for y in (-1, 1))


def test_crops_that_cannot_be_placed_are_told() -> None:
    with pytest.raises(DataError, match="no two crops of a frame of 1 pixels"):
        draw_boxes(1, 4, Random(0))


# -- views


def counted(lengths: list[int], side: int = 28) -> Videos:
    """Videos whose frames are grey of their number, so that a clip tells which frames it shows."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    frames = np.empty((starts[-1], 3, side, side), np.uint8)
    for begin, length in zip(starts[:-1], lengths, strict=True):
        frames[begin : begin + length] = np.arange(length)[:, None, None, None]
    return Videos(frames, starts.astype(np.int64), tuple(map(str, range(len(lengths)))), None)


def method(frames: int = 8, size: int = 24, **more: Any) -> STOR:
    torch.manual_seed(0)
    return STOR(build_video_backbone("r3d_tiny", size, frames), **{"hidden": 32, "out": 16, **more})


def test_the_second_clip_is_read_from_its_own_start() -> None:
    """The authors' readers of LMDB files take its frames at the first clip's start, so its label cannot be learnt."""
    own, videos = method(), counted([250, 180, 120])
    own.read_from(videos)
    torch.manual_seed(3)
    seen = Counter()
    for _ in range(20):
        clips = own.draw(torch.tensor([0, 1, 2]), 0.0)
        shown = [(255 * clip[:, :, 0].mean((2, 3))).round().long() for clip in (clips.first, clips.second)]
        for i in range(3):
            pace, overlap = 2 ** int(clips.labels["pace"][0, i]), int(clips.labels["temporal"][i])
            for numbers in shown:
                assert numbers[i].tolist() == [int(numbers[i, 0]) + pace * k for k in range(8)]
            shift = abs(int(shown[1][i, 0] - shown[0][i, 0]))
            assert shift == int((1 - RATES[overlap]) * 7 * pace + 1e-9)
            seen[overlap] += 1
    assert len(seen) == 5


def test_a_video_that_is_too_short_begins_again() -> None:
    own, videos = method(), counted([5])
    own.read_from(videos)
    clips = own.draw(torch.tensor([0]), 0.0)
    for clip in (clips.first, clips.second):
        assert (255 * clip[0, :, 0, 0, 0]).round().tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert int(clips.labels["temporal"][0]) == 0


def test_clips_are_turned_by_their_labels_before_they_are_cropped() -> None:
    frames = np.zeros((40, 3, 28, 28), np.uint8)
    frames[:, 0], frames[:, 1] = (
        np.linspace(0, 200, 28),
        np.linspace(0, 200, 28)[:, None],
    )  # red right, green down
    own = method()
    own.read_from(Videos(frames, np.array([0, 40]), ("a",), None))
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        clips = own.draw(torch.zeros(1, dtype=torch.long), 0.0)
        for clip, turn in zip((clips.first, clips.second), clips.labels["rotation"][:, 0].tolist(), strict=True):
            upright = []
            for view in (clip[0, 0], clip[0, 0].flip(2)):  # it may have been mirrored after that
                back = torch.rot90(view, -turn, (1, 2))
                upright.append(bool((back[0].diff(dim=1).mean() > 0) and (back[1].diff(dim=0).mean() > 0)))
            assert sum(upright) == 1
            seen.add(turn)
    assert seen == {0, 1, 2, 3}


def test_a_crop_is_the_box_scaled() -> None:
    clips = torch.arange(3 * 20 * 20, dtype=torch.uint8).reshape(1, 1, 3, 20, 20)
    boxes = draw_boxes(20, 0, Random(1))
    box = boxes[0]
    found = crop_clips(clips, [0], [box], box.width) if box.width == box.height else None
    size = 10
    part = clips[0, 0, :, box.top : box.top + box.height, box.left : box.left + box.width].float()
    expected = nn.functional.interpolate(part[None], (size, size), mode="bilinear", antialias=True)[0] / 255
    torch.testing.assert_close(crop_clips(clips, [0], [box], size)[0, 0], expected.clamp(0, 1))
    if found is not None:
        torch.testing.assert_close(found[0, 0], part / 255)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_draw_holds_for_all_frames_of_a_clip(share: float) -> None:
    torch.manual_seed(0)
    still = torch.rand(16, 1, 3, 24, 24).expand(-1, 6, -1, -1, -1)
    views = strengthen(still, share)
    assert views.shape == still.shape
    assert views.min() >= 0
    assert views.max() <= 1
    torch.testing.assert_close(views, views[:, :1].expand_as(views), atol=1e-5, rtol=0)
    # and clips differ in what was drawn: the same picture in all of them
    same = strengthen(still[:1].expand(16, -1, -1, -1, -1), share)
    kinds = {tuple(v.flatten()[:50].mul(1000).round().tolist()) for v in same}
    assert len(kinds) == 2 if share == 0 else len(kinds) > 12
    torch.manual_seed(5)
    first = strengthen(still, share)
    torch.manual_seed(5)
    assert strengthen(still, share).equal(first)


# -- parts


def test_a_weight_of_nothing_leaves_its_part_out() -> None:
    names = ("contrastive", "spatial", "temporal", "pace", "rotation")
    for left_out in names:
        own = method(**{left_out: 0.0})
        own.read_from(counted([100, 100, 100, 100]))
        losses = own(torch.arange(4), 0.0)
        assert set(losses) == {"loss", *names} - {left_out}
        assert left_out not in own.heads
        assert (own.teacher is None) == (own.predictor is None) == (left_out == "contrastive")
        if left_out == "rotation":
            assert own.draw(torch.arange(4), 0.0).labels["rotation"].eq(0).all()
    alone = method(spatial=0, temporal=0, pace=0, rotation=0, contrastive=0.5)
    alone.read_from(counted([100, 100]))
    losses = alone(torch.arange(2), 0.0)
    torch.testing.assert_close(losses["loss"], 0.5 * losses["contrastive"])
    with pytest.raises(ConfigError, match="every weight is 0"):
        method(**dict.fromkeys(names, 0.0))
    with pytest.raises(ConfigError, match="no videos to draw clips from"):
        method().draw(torch.arange(2), 0.0)


def test_published_weights_are_those_of_the_loss() -> None:
    own = method()
    own.read_from(counted([100, 100]))
    losses = {name: float(value.detach()) for name, value in own(torch.arange(2), 0.0).items()}
    expected = 0.1 * losses["contrastive"] + sum(losses[n] for n in ("spatial", "temporal", "pace", "rotation"))
    assert losses["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_teacher_follows_and_no_gradient_moves_it() -> None:
    own = method(momentum=0.9)
    own.read_from(counted([100, 100, 100]))
    own(torch.arange(3), 0.0)["loss"].backward()
    assert own.teacher is not None
    assert all(p.grad is None for p in own.teacher.parameters())
    before = [p.clone() for p in own.teacher.parameters()]
    with torch.no_grad():
        for p in own.student.parameters():
            p.add_(1.0)
    own.after_step(0.0)
    for t, b, s in zip(own.teacher.parameters(), before, own.student.parameters(), strict=True):
        torch.testing.assert_close(t, 0.9 * b + 0.1 * s)


@pytest.mark.parametrize("projector", [True, False])
def test_clips_of_pairs_share_a_pace_and_are_asked_it_each(projector: bool) -> None:
    own = method(projector=projector)
    own.read_from(counted([300, 300, 300]))
    clips = own.draw(torch.arange(3), 0.3)
    assert clips.labels["pace"][0].equal(clips.labels["pace"][1])
    with torch.no_grad():
        own.eval()
        answers = own.answers(own.backbone.pooled(clips.first), own.backbone.pooled(clips.second))
    assert {n: [tuple(x.shape) for x in logits] for n, logits in answers.items()} == {
        "spatial": [(3, 5)], "temporal": [(3, 5)], "pace": [(3, 4)] * 2, "rotation": [(3, 4)] * 2,
    }  # fmt: skip


# -- a whole training


def config(tmp_path: Path, **loop: Any) -> PretrainConfig:
    if not (tmp_path / "films").is_dir():
        write_films(tmp_path / "films", 20)
        (tmp_path / "films" / "right" / "broken.mp4").write_bytes(b"no video")
    settings = {"epochs": 2, "batch": 8, "lr": 1e-3, "checkpoint_every": 2, "precision": "float32", "knn": 3, **loop}
    return PretrainConfig.parse(
        {
            "out": tmp_path / "stor",
            "method": "stor",
            "data": tmp_path / "films",
            "backbone": "r3d_tiny",
            "size": 16,
            "video": {"frames": 4, "rate": 25, "pace": 1, "clips": 2},
            "loop": settings,
            "stor": {"hidden": 16, "out": 8},
        },
        "test",
    )


def test_a_folder_of_videos_becomes_a_video_encoder(tmp_path: Path) -> None:
    own = config(tmp_path)
    with pytest.warns(UDRWarning, match=r"1 videos left out, such as right/broken\.mp4: no video"):
        folder = pretrain(own, "cpu")
    encoder = load_video_encoder(folder, "cpu")
    assert (encoder.rate, encoder.pace, encoder.clips) == (25, 1, 2)
    torch.manual_seed(own.seed)
    untrained = build_video_backbone(own.backbone, own.size, 4).state_dict()
    moved = [n for n, w in encoder.backbone.state_dict().items() if not w.equal(untrained[n])]
    assert len(moved) > len(untrained) * 0.9
    saved = json.loads((folder / "encoder.json").read_text())
    assert (saved["videos"], saved["method"]) == (20, "stor")
    asked = load_questions(folder, encoder.backbone)
    assert asked is not None
    assert list(asked.heads) == ["spatial", "temporal", "pace", "rotation"]
    assert 0 <= saved["knn"] <= 1
    before = {p: p.stat().st_mtime_ns for p in own.out.rglob("*") if p.is_file()}
    assert pretrain(own, "cpu") == folder  # finished: nothing is done again
    assert {p: p.stat().st_mtime_ns for p in own.out.rglob("*") if p.is_file()} == before


def test_a_finished_encoder_is_asked_the_questions_that_it_learnt_by(
    tmp_path: Path, udr: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    backbone = build_video_backbone("r3d_tiny", 16, 4)
    method = STOR(backbone, hidden=16, out=8, temporal=0.0, paces=2)
    method(method_numbers(method, tmp_path), 0.0)  # so that the heads' statistics are no longer those of the start
    folder = tmp_path / "encoder"
    save_questions(method, folder, side=18, rate=25, longest=60)
    save_video_backbone(backbone, folder, {"method": "stor"}, rate=25, pace=1, clips=2)
    write_films(tmp_path / "w" / "train", 4)
    write_films(tmp_path / "w" / "test", 8)
    words = ("probe", tmp_path / "w", "--encoder", f"artifact:{folder}", "--cache", tmp_path / "cache", "--seed", 5)
    found = json.loads(udr(*words, "--json").out)["questions"]
    asked = prepare_videos(tmp_path / "w" / "test", 18, 25, 60, tmp_path / "own")
    assert {name: row["accuracy"] for name, row in found.items()} == question_accuracies(method, asked, 5)
    assert {name: row["chance"] for name, row in found.items()} == {"spatial": 0.2, "pace": 0.5, "rotation": 0.25}
    assert re.search(r"pace +0\.\d{4} +by chance 0\.5000", udr(*words).out)

    # an oracle is always right
    def knowing(self: STOR, first: torch.Tensor, second: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        labels = drawn[-1].labels
        return {n: [nn.functional.one_hot(x, 5).float() for x in labels[n].reshape(-1, len(first))] for n in self.heads}

    drawn: list[Clips] = []
    draw = STOR.draw
    monkeypatch.setattr(STOR, "draw", lambda self, *rest: drawn.append(draw(self, *rest)) or drawn[-1])
    monkeypatch.setattr(STOR, "answers", knowing)
    assert set(question_accuracies(method, asked).values()) == {1.0}

    (folder / "questions" / "model.safetensors").write_bytes(b"damaged")
    assert "questions' files differ" in udr(*words).complaint
    (folder / "questions" / "questions.json").unlink()
    assert "questions" not in json.loads(udr(*words, "--json").out)  # an encoder from elsewhere has none


def method_numbers(method: STOR, tmp_path: Path) -> torch.Tensor:
    write_films(tmp_path / "learnt", 8)
    method.read_from(prepare_videos(tmp_path / "learnt", 18, 25, 60, tmp_path / "own"))
    return torch.arange(8)


def test_a_killed_training_of_videos_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_video_encoder(pretrain(config(tmp_path, accumulate=2), "cpu"), "cpu")
    own = config(tmp_path, accumulate=2).model_copy(update={"out": tmp_path / "killed"})
    step, taken = training.loop._step, iter(range(100))

    def dying(*words: Any) -> Any:
        if next(taken) == 3:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(training.loop, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(own, "cpu")
    monkeypatch.setattr(training.loop, "_step", step)
    again = load_video_encoder(pretrain(own, "cpu"), "cpu")
    for name, weights in whole.backbone.state_dict().items():
        assert weights.equal(again.backbone.state_dict()[name]), name


def test_settings_that_videos_cannot_have_are_told(tmp_path: Path) -> None:
    own = config(tmp_path)
    assert side_of(own) == 18
    for more, words in (
        ({"held_out": "test"}, "leave split, held_out and views out"),
        ({"views": "simclr"}, "leave split, held_out and views out"),
        ({"video": {"side": 8}}, "cut from no smaller frames"),
    ):
        with pytest.raises(ConfigError, match=words):
            PretrainConfig.parse({**own.model_dump(), **more}, "test")
    with pytest.raises(ConfigError, match=r"loop\.batch: 64 videos in a step, and there are 20"):
        pretrain(config(tmp_path, batch=64), "cpu")
    with pytest.raises(DataError, match="expected a folder of videos"):
        pretrain(own.model_copy(update={"data": tmp_path / "nowhere", "out": tmp_path / "b"}), "cpu")


@pytest.mark.slow
def test_rotation_is_learnt_beyond_chance(tmp_path: Path) -> None:
    """Frames that are bright above: what is asked can be told, so it must be."""
    rng = np.random.default_rng(0)
    down, across = np.linspace(220, 30, 20)[:, None], np.linspace(220, 30, 20)
    ramps = np.stack([down + 0 * across, 0 * down + across, 0 * down + across])  # without the latter a mirror hides it
    frames = (ramps + rng.normal(0, 25, (60 * 30, 3, 20, 20))).clip(0, 255).astype(np.uint8)
    videos = Videos(frames, np.arange(61) * 30, tuple(map(str, range(60))), None)
    own = method(frames=4, size=16, contrastive=0, spatial=0, temporal=0, pace=0)
    own.read_from(videos)
    fit(cast(nn.Module, own), videos, LoopSettings(epochs=20, batch=20, precision="float32"), tmp_path, device="cpu")
    clips = own.draw(torch.arange(60), 0.0)
    with torch.no_grad():
        answers = own.answers(own.backbone.pooled(clips.first), own.backbone.pooled(clips.second))["rotation"]
    right = torch.stack([x.argmax(1) for x in answers]).eq(clips.labels["rotation"]).float().mean()
    assert right > 0.8
