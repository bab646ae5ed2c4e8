"""Branching: affinities against their formulas, the search against all branchings there are."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from embed.multi_task_nets import BranchedNet, check_branching
from training.branching import (
    affinity,
    branching_cost,
    find_branching,
    partitions,
    random_branchings,
    rdm,
    stage_rdms,
    stage_sizes,
)
from udr.errors import ConfigError

RNG = np.random.default_rng(0)
TASKS = ["a", "b", "c", "d"]
SIZES = [10, 20, 30]


def affinities() -> list[np.ndarray]:
    found = []
    for _ in SIZES:
        own = RNG.uniform(0, 1, (4, 4))
        own = (own + own.T) / 2
        np.fill_diagonal(own, 1)
        found.append(own)
    return found


def test_unlikeness_and_affinity_are_pearsons_and_spearmans() -> None:
    features = RNG.normal(size=(3, 7, 20))
    rdms = [rdm(own) for own in features]
    for i, j in product(range(7), repeat=2):
        assert rdms[0][i, j] == pytest.approx(1 - pearsonr(features[0, i], features[0, j])[0])
    rdms[1][np.triu_indices(7, 1)] = np.round(rdms[1][np.triu_indices(7, 1)], 1)  # ties
    found = affinity(rdms)
    for s, t in product(range(3), repeat=2):
        pairs = [[own[i, j] for i in range(7) for j in range(i + 1, 7)] for own in (rdms[s], rdms[t])]
        assert found[s, t] == pytest.approx(spearmanr(*pairs)[0])


def test_all_partitions_are_there_once() -> None:
    for count, bell in ((1, 1), (3, 5), (4, 15), (5, 52)):
        found = list(partitions([(i,) for i in range(count)]))
        assert len(set(found)) == len(found) == bell
        assert all(sorted(i for group in groups for i in group) == list(range(count)) for groups in found)


def nested(count: int, stages: int) -> list[list[tuple[tuple[int, ...], ...]]]:
    """All branchings, by trying every sequence of partitions."""
    every = list(partitions([(i,) for i in range(count)]))

    def refines(fine: tuple[tuple[int, ...], ...], coarse: tuple[tuple[int, ...], ...]) -> bool:
        return all(any(set(own) <= set(group) for group in coarse) for own in fine)

    return [list(levels) for levels in product(every, repeat=stages) if all(refines(b, a) for a, b in pairwise(levels))]


@pytest.mark.parametrize("budget", [1.0, 1.6, 2.5, 4.0])
def test_a_wide_beam_finds_the_best_branching_within_the_budget(budget: float) -> None:
    own = affinities()
    best = math.inf
    for levels in nested(4, 3):
        if sum(len(groups) * size for groups, size in zip(levels, SIZES, strict=True)) <= budget * sum(SIZES):
            cost = sum(
                float(np.mean([max((1 - a[i, j] for i in g for j in g if i != j), default=0.0) for g in groups]))
                for groups, a in zip(levels, own, strict=True)
            )
            best = min(best, cost)
    found = find_branching(TASKS, own, SIZES, budget, beam=1000)
    check_branching(found, TASKS, 3)
    assert sum(len(level) * size for level, size in zip(found, SIZES, strict=True)) <= budget * sum(SIZES)
    numbers = [tuple(tuple(TASKS.index(t) for t in group) for group in level) for level in found]
    assert branching_cost(numbers, own) == pytest.approx(best)
    narrow = find_branching(TASKS, own, SIZES, budget, beam=1)
    check_branching(narrow, TASKS, 3)


def test_a_budget_of_one_trunk_shares_it_and_one_of_all_shares_nothing() -> None:
    own = affinities()
    assert find_branching(TASKS, own, SIZES, 1.0) == [[TASKS]] * 3
    assert branching_cost([tuple((i,) for i in range(4))] * 3, own) == 0
    assert find_branching(TASKS, own, SIZES, 4.0)[2] == [[t] for t in TASKS]
    with pytest.raises(ConfigError, match=r"budget 0\.5"):
        find_branching(TASKS, own, SIZES, 0.5)


def test_random_branchings_are_others_of_the_same_size_and_different() -> None:
    found = [[["a", "b", "c", "d"]], [["a", "b"], ["c", "d"]], [["a", "b"], ["c"], ["d"]]]
    drawn = random_branchings(found, 5, np.random.default_rng(0))
    every = [levels for levels in nested(4, 3) if [len(groups) for groups in levels] == [1, 2, 3]]
    assert len(random_branchings(found, 1000, np.random.default_rng(0))) == len(every) - 1
    assert len(drawn) == 5
    sizes = {
        sum(p.numel() for p in BranchedNet("pyramid_small", 16, dict.fromkeys(TASKS, 1), {}, [*b, b[-1]]).parameters())
        for b in (found, *drawn)
    }
    assert len(sizes) == 1
    assert max(Counter(map(str, [found, *drawn])).values()) == 1
    for one in drawn:
        check_branching(one, TASKS, 3)


def test_a_networks_rdms_are_of_its_stages_features() -> None:
    torch.manual_seed(0)
    net = BranchedNet("pyramid_small", 16, {"depth": 1}, {})
    pixels = RNG.integers(0, 255, (6, 3, 16, 16), dtype=np.uint8)
    found = stage_rdms(net, pixels)
    with torch.inference_mode():
        levels = net.eval().features(torch.from_numpy(pixels).float() / 255)
    assert len(found) == len(levels) == len(stage_sizes(net)) == 4
    for own, level in zip(found, levels, strict=True):
        np.testing.assert_allclose(own, 1 - np.corrcoef(level[0].flatten(1).numpy()), atol=1e-5)
    with pytest.raises(ConfigError, match="a network of one task"):
        stage_rdms(BranchedNet("pyramid_small", 16, {"a": 1, "b": 1}, {}), pixels)
