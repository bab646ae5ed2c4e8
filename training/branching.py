"""Which stages tasks should share: by how alike networks of one task each see the same pictures.

Source: Vandenhende et al. 2020, "Branched Multi-Task Networks: Deciding What Layers To Share", arXiv 1904.02920.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from embed.media import open_picture, pixels_of
from embed.multi_task import MultiTaskEncoder
from embed.multi_task_nets import BranchedNet, Branching
from embed.registry import open_encoder
from training.pictures import picture_rows
from udr.errors import ConfigError, DataError

__all__ = [
    "affinity",
    "branching_cost",
    "compare_tasks",
    "find_branching",
    "partitions",
    "random_branchings",
    "rdm",
    "stage_rdms",
    "stage_sizes",
]

LEAST = 3  # pictures; of two all distances are one number

Matrix = NDArray[np.float64]
Partition = tuple[tuple[int, ...], ...]  # groups of task numbers, each in order, by their first
AT_ONCE = 100  # pictures in one forward pass


def rdm(features: NDArray[np.floating]) -> Matrix:
    """How unlike pictures are to a network: 1 − Pearson's correlation of their features.

    Shape: (k, d) -> (k, k).
    """
    centred = features.astype(np.float64) - features.mean(1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found: Matrix = 1 - unit @ unit.T
    return found


def affinity(rdms: Sequence[Matrix]) -> Matrix:
    """Spearman's correlation of the upper triangles of tasks' RDMs: 1 where they order pairs of pictures alike.

    Shape: t of (k, k) -> (t, t).
    """
    above = np.triu_indices(len(rdms[0]), 1)
    ranks = np.stack([_ranks(own[above]) for own in rdms])
    found: Matrix = 1 - rdm(ranks)
    return found


def _ranks(values: Matrix) -> Matrix:
    """Ranks from 0; equal values have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Matrix = (ends - (counts + 1) / 2)[places]
    return found


def compare_tasks(
    source: Path, addresses: Sequence[str], split: str | None = None, count: int = 200
) -> tuple[list[str], list[Matrix], list[int]]:
    """Of encoders of one task each: the tasks, their affinities at each stage, and the sizes of stages.

    Raises:
        ConfigError: fewer than two encoders, one of several tasks or of other stages, or a task twice.
        DataError: too few pictures.
    """
    nets = [_of_one_task(address) for address in addresses]
    tasks = [net.tasks[0] for net in nets]
    sizes = stage_sizes(nets[0]) if nets else []
    if len(set(tasks)) < max(2, len(tasks)):
        raise ConfigError(f"--encoder: two different tasks at least, and these are of {', '.join(tasks) or 'none'}")
    if any(net.size != nets[0].size or stage_sizes(net) != sizes for net in nets):
        raise ConfigError("--encoder: the encoders must have one size and one backbone")
    rows = list(islice(picture_rows(source, split), count))
    if len(rows) < LEAST:
        where = f" of split {split}" if split else ""
        raise DataError(f"{source}: {len(rows)} pictures{where}; tasks are compared on {LEAST} at least")
    pixels = np.stack([pixels_of(open_picture(picture, name), nets[0].size) for name, picture, _ in rows])
    rdms = [stage_rdms(net, pixels) for net in nets]
    return tasks, [affinity([own[stage] for own in rdms]) for stage in range(len(sizes))], sizes


def _of_one_task(address: str) -> BranchedNet:
    encoder = open_encoder(address)
    net = encoder.net if isinstance(encoder, MultiTaskEncoder) else None
    if not isinstance(net, BranchedNet) or len(net.tasks) > 1:
        raise ConfigError(f"--encoder {address}: expected a multi-task encoder that was trained on one task")
    return net


@torch.inference_mode()
def stage_rdms(net: BranchedNet, pixels: NDArray[np.uint8]) -> list[Matrix]:
    """Of a network of one task the RDM of each stage, for pictures (k, 3, size, size), each (k, k).

    Raises:
        ConfigError: a network of several tasks.
    """
    if len(net.tasks) > 1:
        raise ConfigError(f"a network of one task is wanted, and this has {', '.join(net.tasks)}")
    net.eval()
    parts: list[list[NDArray[np.float32]]] = [[] for _ in net.copies]
    for start in range(0, len(pixels), AT_ONCE):
        part = torch.from_numpy(np.array(pixels[start : start + AT_ONCE])).to(net.device).float() / 255
        for own, level in zip(parts, net.features(part), strict=True):
            own.append(level[0].flatten(1).cpu().numpy())
    return [rdm(np.concatenate(own)) for own in parts]


def stage_sizes(net: BranchedNet) -> list[int]:
    """Parameters of one copy of each stage."""
    return [sum(p.numel() for p in level[0].parameters()) for level in net.copies]


def partitions(items: Sequence[tuple[int, ...]]) -> Iterator[Partition]:
    """All ways to put groups together; of single tasks, all partitions. There are 15 of four, 877 of seven."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for found in partitions(rest):
        yield _ordered([first, *found])
        for i, group in enumerate(found):
            yield _ordered([*found[:i], first + group, *found[i + 1 :]])


def _ordered(groups: Sequence[tuple[int, ...]]) -> Partition:
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def branching_cost(levels: Sequence[Partition], affinities: Sequence[Matrix]) -> float:
    """Sum over stages of the mean over groups of the largest 1 − affinity inside; a task alone costs nothing."""
    return sum(_cost(groups, own) for groups, own in zip(levels, affinities, strict=True))


def _cost(groups: Partition, affinities: Matrix) -> float:
    return float(np.mean([(1 - affinities[np.ix_(group, group)]).max() if len(group) > 1 else 0.0 for group in groups]))


def find_branching(
    tasks: Sequence[str], affinities: Sequence[Matrix], sizes: Sequence[int], budget: float, beam: int = 10
) -> Branching:
    """The branching of least cost that beam search finds within the budget.

    It goes from the last stage, where tasks may be apart, to the first: a stage's groups are those of the next one,
    some put together. For so few tasks all groupings are looked at, where the paper clusters.

    Args:
        tasks: names.
        affinities: of each stage, from the first, (t, t).
        sizes: parameters of one copy of each stage.
        budget: parameters of all copies, in those of a trunk that is shared whole; 1 allows no branch.
        beam: branchings that are kept at each stage.

    Raises:
        ConfigError: a budget below 1.
    """
    if budget < 1:
        raise ConfigError(f"budget {budget}: a trunk that all share takes 1")
    most = budget * sum(sizes)
    kept: list[tuple[float, list[Partition]]] = [(0.0, [])]
    for stage in range(len(sizes) - 1, -1, -1):
        grown: list[tuple[float, list[Partition]]] = []
        for cost, levels in kept:
            spent = sum(len(groups) * size for groups, size in zip(levels, sizes[stage + 1 :], strict=True))
            below = levels[0] if levels else tuple((i,) for i in range(len(tasks)))
            for groups in set(partitions(below)):
                if spent + len(groups) * sizes[stage] + sum(sizes[:stage]) <= most:
                    grown.append((cost + _cost(groups, affinities[stage]), [groups, *levels]))
        kept = sorted(grown)[:beam]
    return [[[tasks[i] for i in group] for group in groups] for groups in kept[0][1]]


def random_branchings(branching: Branching, count: int, rng: np.random.Generator) -> list[Branching]:
    """Others with as many groups at each stage, so of the same size: `count` different ones, or all that there are."""
    tasks = sorted(task for group in branching[0] for task in group)
    own = [_ordered([tuple(tasks.index(task) for task in group) for group in level]) for level in branching]
    found: list[list[Partition]] = [[]]
    for level in reversed(own):
        grown = []
        for levels in found:
            below = levels[0] if levels else tuple((i,) for i in range(len(tasks)))
            grown += [[groups, *levels] for groups in sorted(set(partitions(below))) if len(groups) == len(level)]
        found = grown
    others = [levels for levels in found if levels != own]
    drawn = rng.permutation(len(others))[:count]
    return [[[[tasks[i] for i in group] for group in groups] for groups in others[j]] for j in drawn]
