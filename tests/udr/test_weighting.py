"""Ways to weigh tasks on toy gradients: L_i = a_i·x + b_i over shared x, and each task's own parameter."""

from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from udr.errors import UnknownNameError
from udr.weighting import WEIGHTINGS, Weighting, build_weighting

GRADIENTS = np.array([[1.0, 2.0, 0.0, -1.0], [-2.0, 0.5, 1.0, 0.0], [0.5, -1.0, 3.0, 2.0]])
VALUES = np.array([0.5, 2.0, 4.0])  # of the losses
T = len(GRADIENTS)


class Toy:
    """Losses with given values and gradients: over shared x (two tensors), 1 over each task's own parameter."""

    def __init__(self, gradients: np.ndarray = GRADIENTS, values: np.ndarray = VALUES) -> None:
        self.gradients, self.values = torch.tensor(gradients), torch.tensor(values)
        width = self.gradients.shape[1]
        self.shared = [nn.Parameter(torch.zeros(width - 1).double()), nn.Parameter(torch.zeros(1).double())]
        self.own = [nn.Parameter(torch.zeros(()).double()) for _ in self.values]

    def losses(self) -> list[Tensor]:
        x = torch.cat(list(self.shared))
        return [g @ x + own + v for g, own, v in zip(self.gradients, self.own, self.values, strict=True)]

    @property
    def gradient(self) -> np.ndarray:
        return torch.cat([p.grad for p in self.shared if p.grad is not None]).numpy()

    @property
    def own_gradients(self) -> list[float]:
        return [float(p.grad) for p in self.own if p.grad is not None]


def step(weighting: Weighting, toy: Toy, which: Sequence[int] | None = None) -> np.ndarray:
    weights = weighting.double().backward(toy.losses(), toy.shared, which)
    found: np.ndarray = weights.numpy()
    np.testing.assert_allclose(toy.gradient, found @ toy.gradients.numpy(), atol=1e-6)  # c is what was used
    return found


gradients = st.lists(
    st.lists(st.floats(-3, 3).map(lambda v: round(v, 2)), min_size=5, max_size=5), min_size=2, max_size=4
).map(np.array)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradients_are_added_to_those_that_are_there(name: str) -> None:
    toy, again = Toy(), Toy()
    for p in [*again.shared, *again.own]:
        p.grad = torch.full_like(p, 7.0)
    torch.manual_seed(1)
    weighting = build_weighting(name, T).double()
    weighting.backward(toy.losses(), toy.shared)
    torch.manual_seed(1)
    build_weighting(name, T).double().backward(again.losses(), again.shared)
    np.testing.assert_allclose(again.gradient, toy.gradient + 7)
    np.testing.assert_allclose(again.own_gradients, np.array(toy.own_gradients) + 7)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_state_that_is_stored_goes_on_as_it_would_have(name: str) -> None:
    settings = {"period": 2} if name == "dwa" else {}
    whole, first, second = (build_weighting(name, T, **settings).double() for _ in range(3))

    def steps(weighting: Weighting, numbers: range) -> list[np.ndarray]:
        found = []
        for n in numbers:
            torch.manual_seed(n)
            found.append(step(weighting, Toy(values=VALUES * (1 + np.sin(n + np.arange(T)) / 2))))
        return found

    expected = steps(whole, range(9))
    begun = steps(first, range(4))
    second.load_state_dict(first.state_dict())
    np.testing.assert_allclose(begun + steps(second, range(4, 9)), expected)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_step_may_hold_some_of_the_tasks(name: str) -> None:
    weighting = build_weighting(name, 9)
    toy = Toy()
    assert step(weighting, toy, [7, 0, 3]).shape == (T,)
    for p in weighting.parameters():
        assert p.grad is not None
        assert set(p.grad.nonzero().flatten().tolist()) <= {7, 0, 3}
    with pytest.raises(ValueError, match="3 losses"):
        weighting.backward(toy.losses(), toy.shared, [1, 2])


def test_equal_is_the_plain_sum() -> None:
    toy = Toy()
    assert step(build_weighting("equal", T), toy).tolist() == [1, 1, 1]
    assert toy.own_gradients == [1, 1, 1]


def test_uncertainty_is_its_formula() -> None:
    weighting, toy = build_weighting("uncertainty", T), Toy()
    (s,) = weighting.parameters()
    with torch.no_grad():
        s.copy_(torch.tensor([0.3, -1.0, 2.0]))
    weights = step(weighting, toy)
    numbers = s.detach().numpy()
    np.testing.assert_allclose(weights, np.exp(-numbers) / 2)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), -VALUES * np.exp(-numbers) / 2 + 0.5)
    np.testing.assert_allclose(toy.own_gradients, weights)


def test_dynamic_average_follows_the_means_of_two_periods() -> None:
    weighting = build_weighting("dwa", 2, period=3, temperature=2.0).double()
    rng = np.random.default_rng(0)
    history = rng.uniform(1, 3, size=(14, 2))
    means = [history[n : n + 3].mean(0) for n in (0, 3, 6, 9)]
    for n, values in enumerate(history):
        found = step(weighting, Toy(GRADIENTS[:2], values))
        if n < 6:
            assert found.tolist() == [1, 1]
        else:
            rates = np.exp(means[n // 3 - 1] / means[n // 3 - 2] / 2)
            np.testing.assert_allclose(found, 2 * rates / rates.sum())


def test_each_task_has_its_own_period() -> None:
    weighting = build_weighting("dwa", 2, period=2).double()
    for n in range(8):  # the first task's loss halves, the second is never seen
        found = step(weighting, Toy(GRADIENTS[:1], np.array([2.0**-n])), [0])
    rates = np.exp([0.25 / 2, 1 / 2])
    np.testing.assert_allclose(found, 2 * rates[:1] / rates.sum())


def test_the_geometric_mean_is_its_formula() -> None:
    toy = Toy()
    mean = np.prod(VALUES) ** (1 / T)
    np.testing.assert_allclose(step(build_weighting("gls", T), toy), mean / (T * VALUES))
    scaled = Toy(GRADIENTS * np.array([[10], [1], [1]]), VALUES * np.array([10, 1, 1]))
    step(build_weighting("gls", T), scaled)
    np.testing.assert_allclose(scaled.gradient / toy.gradient, 10 ** (1 / T))  # the scale of one loss turns nothing


def test_random_weights_are_the_softmax_of_the_draws_of_torch() -> None:
    torch.manual_seed(5)
    found = step(build_weighting("rlw", T), Toy())
    torch.manual_seed(5)
    np.testing.assert_allclose(found, torch.randn(T).softmax(0).numpy(), rtol=1e-6)


def test_gradnorm_is_its_formula() -> None:
    weighting = build_weighting("gradnorm", T, alpha=1.5).double()
    (s,) = weighting.parameters()
    with torch.no_grad():
        s.copy_(torch.tensor([0.5, 0.0, -0.5]))
    step(weighting, Toy())  # first losses
    s.grad = None
    later, toy = VALUES * np.array([0.5, 0.9, 0.7]), Toy(values=VALUES * np.array([0.5, 0.9, 0.7]))
    found = step(weighting, toy)
    scores = s.detach().numpy()
    np.testing.assert_allclose(found, T * np.exp(scores) / np.exp(scores).sum())
    np.testing.assert_allclose(toy.own_gradients, found)
    norms = np.linalg.norm(GRADIENTS, axis=1)
    ratios = later / VALUES
    target = (found * norms).mean() * (ratios / ratios.mean()) ** 1.5

    def objective(scores: np.ndarray) -> float:
        return float(np.abs(T * np.exp(scores) / np.exp(scores).sum() * norms - target).sum())

    numeric = [(objective(scores + 1e-6 * e) - objective(scores - 1e-6 * e)) / 2e-6 for e in np.eye(T)]
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), numeric, rtol=1e-5)


@given(gradients)
def test_the_shortest_average_turns_against_no_task(rows: np.ndarray) -> None:
    found = step(build_weighting("mgda", len(rows)), Toy(rows, np.ones(len(rows))))
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(), 1)
    shortest = found @ rows  # the minimum over the simplex is where no task's product is below the squared length
    assert (rows @ shortest >= shortest @ shortest - 1e-6).all()


def test_the_shortest_average_of_two_is_the_closed_form() -> None:
    a, b = GRADIENTS[:2]
    share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    found = step(build_weighting("mgda", 2), Toy(GRADIENTS[:2], VALUES[:2]))
    np.testing.assert_allclose(found, [share, 1 - share], atol=1e-9)


@given(gradients, st.integers(0, 99))
def test_projection_is_the_published_loop(rows: np.ndarray, seed: int) -> None:
    torch.manual_seed(seed)
    toy = Toy(rows, np.ones(len(rows)))
    step(build_weighting("pcgrad", len(rows)), toy)
    torch.manual_seed(seed)
    total = np.zeros(rows.shape[1])
    for i, own in enumerate(rows):
        projected = own.copy()
        for j in torch.randperm(len(rows)).tolist():
            if j != i and projected @ rows[j] < -1e-9:
                projected -= projected @ rows[j] / (rows[j] @ rows[j]) * rows[j]
        total += projected
    np.testing.assert_allclose(toy.gradient, total, atol=1e-6)


@given(gradients, st.integers(0, 99))
def test_the_conflict_averse_step_is_best_for_the_worst_off(rows: np.ndarray, seed: int) -> None:
    toy = Toy(rows, np.ones(len(rows)))
    step(build_weighting("cagrad", len(rows), c=0.5), toy)
    found, mean = toy.gradient * 1.25, rows.mean(0)
    radius = 0.5 * np.linalg.norm(mean)
    assert np.linalg.norm(found - mean) <= radius + 1e-4
    rng = np.random.default_rng(seed)
    others = rng.normal(size=(200, rows.shape[1]))
    others = mean + radius * others / np.linalg.norm(others, axis=1, keepdims=True)
    assert (rows @ found).min() >= (others @ rows.T).min(1).max() - 1e-3 * (1 + np.abs(rows).max() ** 2)


def test_an_impartial_step_goes_equally_far_along_every_gradient() -> None:
    weighting, toy = build_weighting("imtl", T), Toy()
    (s,) = weighting.parameters()
    with torch.no_grad():
        s.copy_(torch.tensor([0.4, -0.2, 0.0]))
    step(weighting, toy)
    along = GRADIENTS @ toy.gradient / np.linalg.norm(GRADIENTS, axis=1)
    assert along.min() > 0.1
    for a, b in pairwise(along):
        assert a == pytest.approx(b)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), np.exp(s.detach().numpy()) * VALUES - 1)
    np.testing.assert_allclose(toy.own_gradients, np.exp(s.detach().numpy()))


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "cagrad", "imtl", "gradnorm"])
def test_gradients_that_are_nought_or_alike_end_no_training(name: str) -> None:
    for rows in (np.zeros((3, 4)), np.ones((3, 4)), np.stack([np.zeros(4), *GRADIENTS[:2]])):
        toy = Toy(rows, VALUES)
        assert np.isfinite(step(build_weighting(name, 3), toy)).all()
        assert np.isfinite(toy.gradient).all()


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "cagrad", "imtl", "gradnorm"])
def test_each_tasks_own_graph_is_walked_once(name: str) -> None:
    shared = nn.Parameter(torch.ones(2).double())
    walked = [0, 0]
    losses = []
    for i in range(2):
        own = shared * (i + 1)

        def count(gradient: Tensor, i: int = i) -> None:
            walked[i] += 1

        own.register_hook(count)
        losses.append((own**2).sum())
    build_weighting(name, 2).double().backward(losses, [shared])
    assert walked == [1, 1]


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "cagrad", "imtl", "gradnorm"])
def test_losses_that_are_no_numbers_give_weights_that_are_none(name: str) -> None:
    toy = Toy(np.array([[np.nan, 0, 0, 0], GRADIENTS[0]]), VALUES[:2])
    weights = build_weighting(name, 2).double().backward(toy.losses(), toy.shared)
    assert weights.isnan().all()


def test_settings_name_every_weighting() -> None:
    from training.settings import TrainSettings

    for name in WEIGHTINGS:
        assert TrainSettings(weighting=name, tasks_per_step=2).weighting == name
    assert get_args(TrainSettings.model_fields["weighting"].annotation) == tuple(WEIGHTINGS)


def test_an_unknown_name_is_refused_with_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean pcgrad"):
        build_weighting("pc_grad", 3)
