"""Every loss of the pre-training methods against its formula in plain loops, and what must hold of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses.cim import generator_loss, normalised_pixels, replaced_loss, restored_loss
from training.losses.densecl import dense_info_nce, info_nce, match_cells
from training.losses.mec import coding_length, mec_loss, spectral_radius
from training.losses.simclr import nt_xent


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0, dim: int = 1) -> Tensor:
    return F.normalize(drawn(*shape, seed=seed), dim=dim)


# -- SimCLR


def test_nt_xent_is_the_formula_in_plain_loops() -> None:
    a, b, temperature = drawn(5, 3), drawn(5, 3, seed=1), 0.3
    views = [v / v.norm() for v in (*a, *b)]
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        others = sum(math.exp(float(views[i] @ views[j]) / temperature) for j in range(10) if j != i)
        total -= math.log(math.exp(float(views[i] @ views[partner]) / temperature) / others)
    assert float(nt_xent(a, b, temperature)) == pytest.approx(total / 5)


def test_nt_xent_is_least_where_views_agree_and_pictures_do_not() -> None:
    apart = torch.eye(4, dtype=torch.float64)
    assert nt_xent(apart, apart) < nt_xent(drawn(4, 4), drawn(4, 4, seed=1))
    assert nt_xent(apart, apart.roll(1, 0)) > nt_xent(apart, apart)


# -- DenseCL


def test_info_nce_is_the_formula_in_plain_loops() -> None:
    q, k, queue = unit(4, 3), unit(4, 3, seed=1), unit(6, 3, seed=2)
    total = 0.0
    for i in range(4):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(float(q[i] @ n) / 0.2) for n in queue)))
    assert float(info_nce(q, k, queue, 0.2)) == pytest.approx(total / 4)


def test_cells_are_matched_with_the_most_alike_and_contrasted_with_those() -> None:
    features, others = drawn(2, 5, 6), drawn(2, 5, 4, seed=1)
    matched = match_cells(features, others)
    q, k, queue = unit(2, 3, 6, seed=2), unit(2, 3, 4, seed=3), unit(7, 3, seed=4)
    total = 0.0
    for n in range(2):
        for s in range(6):
            best = max(range(4), key=lambda t: float(F.cosine_similarity(features[n, :, s], others[n, :, t], dim=0)))
            assert int(matched[n, s]) == best
            total += float(info_nce(q[n, :, s][None], k[n, :, best][None], queue))
    assert float(dense_info_nce(q, k, matched, queue)) == pytest.approx(total / 12)


def test_a_shifted_picture_is_matched_with_its_shifted_cells() -> None:
    features = drawn(1, 8, 10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(5))
    assert torch.equal(match_cells(features, features[:, :, order])[0], order.argsort())


# -- MEC


def test_both_forms_of_the_coding_length_are_one_number() -> None:
    a, b = unit(12, 5), unit(12, 5, seed=1)
    expected = torch.linalg.slogdet(torch.eye(12, dtype=torch.float64) + a @ b.T / (12 * 0.5)).logabsdet
    for form in ("batch", "feature"):
        assert float(coding_length(a, b, 0.5, "exact", form)) == pytest.approx(float(expected))  # type: ignore[arg-type]


def test_the_series_is_the_logarithm_where_it_converges_and_not_where_it_does_not() -> None:
    a = unit(64, 32)
    exact, series = coding_length(a, a, 2.0), coding_length(a, a, 2.0, "taylor")
    assert float(series) == pytest.approx(float(exact), rel=1e-3)
    alike = F.normalize(drawn(64, 32) * 0.1 + 1, dim=1)  # a common direction: the spectral radius is near 1/ε
    exact, series = coding_length(alike, alike, 0.06), coding_length(alike, alike, 0.06, "taylor")
    assert float(series) < 0 < float(exact)


def test_the_series_is_its_terms_in_plain_loops_in_both_forms() -> None:
    a, b = unit(6, 4), unit(6, 4, seed=1)
    c = [[float(a[i] @ b[j]) / (6 * 0.4) for j in range(6)] for i in range(6)]
    power, total = [row[:] for row in c], 0.0
    for k in range(1, 5):
        total += (-1) ** (k + 1) * sum(power[i][i] for i in range(6)) / k
        power = [[sum(power[i][m] * c[m][j] for m in range(6)) for j in range(6)] for i in range(6)]
    for form in ("batch", "feature"):
        assert float(coding_length(a, b, 0.4, "taylor", form)) == pytest.approx(total)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "d"), [(48, 12), (12, 48), (20, 20)])
@pytest.mark.parametrize("distortion", [0.002, 0.06, 2.0])
def test_the_spectral_radius_is_that_of_the_eigenvalues(n: int, d: int, distortion: float) -> None:
    a, b = unit(n, d), unit(n, d, seed=1)
    for other in (a, b, -a):
        expected = torch.linalg.eigvals(a @ other.T / (n * distortion)).abs().max().item()
        found = spectral_radius(a.float(), other.float(), distortion)
        assert found == pytest.approx(expected, rel=0.01)
    assert spectral_radius(a, torch.zeros_like(a), distortion) == 0


def test_mec_is_least_for_views_that_agree_and_spread_and_never_below_minus_one() -> None:
    spread, alike = unit(64, 16), F.normalize(drawn(64, 16) * 0.05 + 1, dim=1)
    best = mec_loss((spread, spread), (spread, spread), 0.5)
    assert -1 <= float(best) < float(mec_loss((alike, alike), (alike, alike), 0.5))
    assert float(best) < float(mec_loss((spread, spread), (spread.roll(1, 0), spread.roll(1, 0)), 0.5))


# -- CIM


def test_only_masked_cells_are_the_generators() -> None:
    logits, golden = drawn(2, 4, 5), torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    masked = torch.tensor([[True, False, False, True], [False, True, False, False]])
    cells = [(0, 0), (0, 3), (1, 1)]
    total = -sum(float(logits[n, s].log_softmax(0)[golden[n, s]]) for n, s in cells)
    assert float(generator_loss(logits, golden, masked)) == pytest.approx(total / 3)


def test_pixels_are_normalised_by_the_window_about_them() -> None:
    pictures, window = drawn(1, 2, 9, 11), 4
    found = normalised_pixels(pictures, window)
    for y in (2, 4, 7):
        for x in (2, 6, 9):
            for c in range(2):
                own = pictures[0, c, y - 2 : y + 2, x - 2 : x + 2]
                expected = (pictures[0, c, y, x] - own.mean()) / (own.var(correction=0) + 1e-6).sqrt()
                assert float(found[0, c, y, x]) == pytest.approx(float(expected))
    assert float(restored_loss(found, pictures, window)) == pytest.approx(0)
    assert float(restored_loss(torch.zeros_like(found), pictures, window)) == pytest.approx(float((found**2).mean()))


def test_a_sampled_token_that_is_the_golden_one_is_no_replacement() -> None:
    golden, sampled = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 3]])
    logits = torch.tensor([[-2.0, 3.0, -1.0]], dtype=torch.float64)
    total = -(math.log(1 - 1 / (1 + math.exp(2))) + math.log(1 / (1 + math.exp(-3))) + math.log(1 - 1 / (1 + math.e)))
    assert float(replaced_loss(logits, sampled, golden)) == pytest.approx(total / 3)
