"""Beam search over labels against every sequence there is, and what must hold of its paths."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from embed.label_search import beam_search
from embed.labelling import LabelNet, Seen, build_label_net, next_log_p, pooled_maps
from embed.towers import grams_of
from udr.errors import ConfigError, UnknownNameError

TEXTS = ["a red kite", "blue", "one two three four"]


def net_and_seen(count: int = 4, seed: int = 0) -> tuple[LabelNet, Seen]:
    torch.manual_seed(seed)
    net = build_label_net("text", count, width=8, hidden=6, attention=5, embedding=3).eval()
    torch.nn.init.normal_(net.last.weight, std=2.0)  # so that paths differ
    with torch.no_grad():
        return net, net.see(grams_of(TEXTS))


@torch.no_grad()
def log_p_of(net: LabelNet, seen: Seen, labels: tuple[int, ...], most: int) -> float:
    """The log-probability of a path and its end, one step after another."""
    state, before, said = net.begin(1), seen.preliminary.sigmoid(), torch.zeros(1, net.count, dtype=torch.bool)
    total = 0.0
    for t, label in enumerate((*labels, net.count)):
        logits, state, _ = net.step(seen, state, before)
        step = next_log_p(logits, said if t < most else torch.ones_like(said))
        total += float(step[0, label])
        if label < net.count:
            said[0, label] = True
            before = torch.nn.functional.one_hot(torch.tensor([label]), net.count).float()
    return total


@pytest.mark.parametrize("most", [2, 4])
def test_a_beam_of_all_paths_finds_what_trying_every_sequence_finds(most: int) -> None:
    net, seen = net_and_seen()
    found = beam_search(net, seen, width=100, most=most)
    sequences = [s for length in range(most + 1) for s in permutations(range(4), length)]
    for i in range(len(TEXTS)):
        one = seen.rows(torch.tensor([i]))
        every = sorted(((log_p_of(net, one, s, most), s) for s in sequences), reverse=True)
        assert [path.labels for path in found[i]] == [s for _, s in every]
        assert [path.log_p for path in found[i]] == pytest.approx([log_p for log_p, _ in every], abs=1e-4)
        assert sum(2.718281828**log_p for log_p, _ in every) == pytest.approx(1, abs=1e-4)


def test_a_beam_of_one_takes_the_most_probable_step_each_time() -> None:
    net, seen = net_and_seen(seed=3)
    for i, (path,) in enumerate(beam_search(net, seen, width=1)):
        one, labels = seen.rows(torch.tensor([i])), ()
        while len(labels) < 4:
            ways = {label: log_p_of_step(net, one, labels, label) for label in range(5) if label not in labels}
            best = max(ways, key=lambda label: ways[label])
            if best == 4:
                break
            labels = (*labels, best)
        assert path.labels == labels


@torch.no_grad()
def log_p_of_step(net: LabelNet, seen: Seen, labels: tuple[int, ...], label: int) -> float:
    state, before, said = net.begin(1), seen.preliminary.sigmoid(), torch.zeros(1, net.count, dtype=torch.bool)
    for one in labels:
        _, state, _ = net.step(seen, state, before)
        said[0, one] = True
        before = torch.nn.functional.one_hot(torch.tensor([one]), net.count).float()
    return float(next_log_p(net.step(seen, state, before)[0], said)[0, label])


def test_no_label_comes_twice_and_no_path_is_longer_than_it_may_be() -> None:
    net, seen = net_and_seen(count=9, seed=5)
    net.last.bias.data[-1] = -20.0  # never ends by itself
    for most in (1, 3, 9):
        for paths in beam_search(net, seen, width=4, most=most):
            for path in paths:
                assert len(set(path.labels)) == len(path.labels) == most
                assert path.attention.shape == (most, 4)


def test_a_thing_is_labelled_alike_alone_and_beside_longer_ones() -> None:
    net, seen = net_and_seen()
    together = beam_search(net, seen, 2)
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            (alone,) = beam_search(net, net.see(grams_of([text])), 2)
        assert [p.labels for p in alone] == [p.labels for p in together[i]]
        assert [p.log_p for p in alone] == pytest.approx([p.log_p for p in together[i]], abs=1e-4)
        words = len(text.split())
        assert bool((together[i][0].attention[:, words:] == 0).all())


def test_attention_is_a_share_of_valid_parts() -> None:
    net, seen = net_and_seen()
    with torch.no_grad():
        _, _, attention = net.step(seen, net.begin(3), seen.preliminary.sigmoid())
    torch.testing.assert_close(attention.sum(1), torch.ones(3))
    assert bool((attention[~seen.valid] == 0).all())


def test_maps_are_pooled_between_their_mean_and_their_largest() -> None:
    maps = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [99.0, 99.0]]])
    found = pooled_maps(maps, torch.tensor([[True, True, False]]))
    r = 4.0
    expected = torch.tensor([(torch.tensor([r, 3 * r]).exp().mean().log() / r).item(), 0.0])
    torch.testing.assert_close(found[0], expected)
    assert 2 < float(found[0, 0]) < 3


def test_settings_that_make_no_sense_are_told() -> None:
    net, seen = net_and_seen()
    with pytest.raises(ConfigError, match="beam: 0 paths"):
        beam_search(net, seen, 0)
    with pytest.raises(UnknownNameError, match="image"):
        build_label_net("imege", 3)
    with pytest.raises(ConfigError, match="no labels"):
        build_label_net("text", 0)
