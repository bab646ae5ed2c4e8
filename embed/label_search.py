"""Which labels, by beam search: the most probable paths over the labels that were not said yet."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from embed.labelling import LabelNet, Seen, State, next_log_p
from udr.errors import ConfigError

__all__ = ["Path", "beam_search"]


class Path(NamedTuple):
    """Labels of one thing in the order in which they were said."""

    labels: tuple[int, ...]
    log_p: float  # of the whole path, its end included
    attention: Tensor  # (labels, l)


class _Beam(NamedTuple):
    """w paths of each of n things, the most probable first; those that there are not have log-probability −∞."""

    log_p: Tensor  # (n, w)
    done: Tensor  # (n, w)
    labels: Tensor  # (n, w, t), −1 behind the end
    attention: Tensor  # (n, w, t, l)


@torch.inference_mode()
def beam_search(net: LabelNet, seen: Seen, width: int = 3, most: int = 0) -> list[list[Path]]:
    """The `width` most probable paths of each thing, best first, each ended by its own end.

    The pool of a path are the labels that it has not said, so none comes twice. It stops where the end is chosen, and
    must stop where nothing else may be said. With a beam as wide as there are paths the search is exact. Source: Chen
    et al. 2018, arXiv 1707.05495, section 3.3.

    Args:
        net: in eval mode.
        seen: n things.
        width: of the beam; 1: the most probable step each time.
        most: labels of a path; 0: any number. Behind so many the end is certain.

    Raises:
        ConfigError: a width below 1.
    """
    if width < 1:
        raise ConfigError(f"beam: {width} paths; expected one at least")
    n, parts, end = len(seen.maps), seen.maps.shape[1], net.count
    most = min(most or net.count, net.count)
    start = seen.maps.new_zeros(n, 1)
    none = start.new_zeros(n, 1, 0)
    beam = _Beam(start, start.bool(), none.long(), start.new_zeros(n, 1, 0, parts))
    state, before = net.begin(n), seen.preliminary.sigmoid()
    for t in range(most + 1):
        paths = beam.log_p.shape[1]
        owners = torch.arange(n, device=start.device).repeat_interleave(paths)
        said = _said(beam.labels, end).flatten(0, 1)
        logits, state, attention = net.step(seen.rows(owners), state, before)
        own = next_log_p(logits, said if t < most else torch.ones_like(said)).view(n, paths, end + 1)
        # a path that has ended stays as it is: one way on, which costs nothing
        stays = torch.full_like(own, float("-inf"))
        stays[..., end] = 0
        scores = beam.log_p[..., None] + torch.where(beam.done[..., None], stays, own)
        log_p, places = scores.flatten(1).topk(min(width, paths * (end + 1)), 1)
        origin, label = places // (end + 1), places % (end + 1)
        beam = _grown(beam, log_p, origin, label, attention.view(n, paths, parts), end)
        rows = (torch.arange(n, device=start.device)[:, None] * paths + origin).flatten()
        state = State(state.hidden[rows], state.cell[rows])
        before = torch.nn.functional.one_hot(label.flatten(), end + 1)[:, :end].to(start.dtype)
        if bool((beam.done | beam.log_p.isneginf()).all()):
            break
    return [_paths(beam, i) for i in range(n)]


def _said(labels: Tensor, count: int) -> Tensor:
    """Which labels are among (n, w, t), (n, w, count)."""
    found = torch.zeros(*labels.shape[:2], count + 1, dtype=torch.bool, device=labels.device)
    return found.scatter(2, labels.masked_fill(labels < 0, count), True)[..., :count]


def _grown(beam: _Beam, log_p: Tensor, origin: Tensor, label: Tensor, attention: Tensor, end: int) -> _Beam:
    """The beam one step longer, of paths (n, w) by the places that they come from and what they say."""

    def of(values: Tensor) -> Tensor:
        places = origin.view(*origin.shape, *[1] * (values.dim() - 2)).expand(*origin.shape, *values.shape[2:])
        return values.gather(1, places)

    was_done = of(beam.done)
    speaks = ~was_done & (label < end)
    return _Beam(
        log_p,
        was_done | (label == end),
        torch.cat([of(beam.labels), label.masked_fill(~speaks, -1)[..., None]], 2),
        torch.cat([of(beam.attention), of(attention)[:, :, None]], 2),
    )


def _paths(beam: _Beam, i: int) -> list[Path]:
    found = []
    for j, log_p in enumerate(beam.log_p[i].tolist()):
        if log_p == float("-inf"):
            continue
        length = int((beam.labels[i, j] >= 0).sum())
        found.append(Path(tuple(beam.labels[i, j, :length].tolist()), log_p, beam.attention[i, j, :length]))
    return found
