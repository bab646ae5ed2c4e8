"""Views: what is done to pictures, against kornia and plain slices; what is drawn, against its bounds."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

from training import colours
from training.augment import View, build_views

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kornia names functions of torch that are to go
    import kornia

N, SIZE = 7, 16


@pytest.fixture
def pictures() -> torch.Tensor:
    torch.manual_seed(0)
    found = torch.rand(N, 3, SIZE, SIZE)
    found[0] = found[0, :1]  # grey pixels have no hue
    found[1, :2] = found[1, 0]  # two colours that are the largest
    return found


FACTORS = {
    0: (torch.linspace(0.2, 1.8, N), kornia.enhance.adjust_brightness_accumulative),
    1: (torch.linspace(0.2, 1.8, N), kornia.enhance.adjust_contrast_with_mean_subtraction),
    2: (torch.linspace(0.0, 1.8, N), kornia.enhance.adjust_saturation_with_gray_subtraction),
    3: (torch.linspace(-0.2, 0.2, N), lambda p, f: kornia.enhance.adjust_hue(p, f * 2 * torch.pi)),
}


@pytest.mark.parametrize("change", FACTORS)
def test_colours_change_as_kornia_changes_them(pictures: torch.Tensor, change: int) -> None:
    factors, theirs = FACTORS[change]
    expected = theirs(pictures, factors).clamp(0, 1)
    own = pictures.clone()
    colours.CHANGES[change](own, factors)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own, pictures, atol=0.01)


def test_greys_and_blurs_are_kornia_s(pictures: torch.Tensor) -> None:
    torch.testing.assert_close(colours.grey_of(pictures), kornia.color.rgb_to_grayscale(pictures))
    sigma = torch.linspace(0.3, 2.0, N)
    blur = colours.blurring(sigma, SIZE, 5)
    expected = kornia.filters.gaussian_blur2d(pictures, (5, 5), torch.stack([sigma, sigma], 1), "reflect")
    torch.testing.assert_close(colours.along_both(pictures, blur, blur), expected, atol=1e-5, rtol=1e-5)
    none = colours.blurring(torch.zeros(N), SIZE, 5)
    torch.testing.assert_close(none, torch.eye(SIZE).expand(N, -1, -1))


def test_a_crop_is_its_slice_scaled_and_a_mirror_turns_it(pictures: torch.Tensor) -> None:
    torch.manual_seed(1)
    view = View((0.1, 1), (0, 0, 0, 0), jittered=0, grey=0)
    drawn = view.draw(N, SIZE)
    drawn["mirrored"] = torch.arange(N) % 2 == 0
    made = view.see(pictures, drawn)
    for i in range(N):
        top, height = map(int, drawn["rows"][i])
        left, width = map(int, drawn["columns"][i])
        cut = pictures[i : i + 1, :, top : top + height, left : left + width]
        scaled = F.interpolate(cut, (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(made[i], scaled.flip(2) if i % 2 == 0 else scaled, atol=1e-5, rtol=1e-5)
    whole = (pictures * 255).round().to(torch.uint8)
    torch.testing.assert_close(view.see(whole, drawn), view.see(whole.float() / 255, drawn))


def test_what_is_drawn_stays_in_its_bounds_and_fills_them() -> None:
    torch.manual_seed(2)
    drawn = View((0.2, 0.8), (0.4, 0.4, 0.2, 0.1), blurred=0.3, solarised=0.2).draw(4000, 64)
    (top, height), (left, width) = drawn["rows"].T, drawn["columns"].T
    for begin, length in ((top, height), (left, width)):
        assert begin.min() == 0
        assert (begin + length).max() == 64
    area = height * width / 64**2
    assert 0.19 < area.min() < 0.25
    assert 0.75 < area.max() < 0.82
    ratio = width / height
    assert 0.7 < ratio.min() < 0.8
    assert 1.28 < ratio.max() < 1.43
    changed = (drawn["factors"] != torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1)
    for share, likely in ((changed, 0.8), (drawn["grey"], 0.2), (drawn["mirrored"], 0.5), (drawn["sigma"] > 0, 0.3)):
        assert share.float().mean().item() == pytest.approx(likely, abs=0.03)
    reach = drawn["factors"].aminmax(dim=0)
    torch.testing.assert_close(reach.min, torch.tensor([0.6, 0.6, 0.8, -0.1]), atol=0.01, rtol=0)
    torch.testing.assert_close(reach.max, torch.tensor([1.4, 1.4, 1.2, 0.1]), atol=0.01, rtol=0)
    assert len(drawn["order"].unique()) > 4


@pytest.mark.parametrize("name", ["simclr", "moco_v3_small"])
def test_parts_of_a_batch_see_what_the_whole_batch_sees(name: str) -> None:
    views, pictures = build_views(name, SIZE), torch.rand(70, 3, SIZE, SIZE)
    drawn = views.draw(70, torch.Generator().manual_seed(5))
    whole = views.see(pictures, drawn)
    for part in (slice(0, 20), slice(20, 70)):
        own = views.see(pictures[part], [{k: v[part] for k, v in table.items()} for table in drawn])
        for a, b in zip(own, whole, strict=True):
            torch.testing.assert_close(a, b[part])
    before = torch.get_rng_state()
    again = views(pictures, torch.Generator().manual_seed(5))
    assert before.equal(torch.get_rng_state())  # a generator of its own leaves torch's alone
    assert all(a.equal(b) for a, b in zip(again, whole, strict=True))
