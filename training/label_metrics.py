"""How right sets of labels are: precision and recall by label and overall."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["label_scores", "top_labels"]

Flags = NDArray[np.bool_]


def label_scores(found: Flags, truth: Flags) -> dict[str, float]:
    """CP, CR, CF1 (by label) and OP, OR, OF1 (overall) of labels found, from 0 to 1.

    CP and CR are means over labels of the share of findings that are true and of truths that are found; OP and OR the
    same shares over all labels together; F1 = 2PR / (P + R). A label that is never found has precision 0; labels that
    are true of nothing here have no part in CP and CR, but their findings count against OP. What has no findings or no
    truths at all scores 0. Source: Wang et al. 2016, "CNN-RNN", arXiv 1604.04573, section 4.1.

    Shape: both (n, c).
    """
    right = (found & truth).sum(0)
    known = truth.any(0)
    by_label = [_share(right[known], total.sum(0)[known]) for total in (found, truth)]
    cp, cr = (float(shares.mean()) if len(shares) else 0.0 for shares in by_label)
    op, or_ = (float(_share(right.sum(), total.sum())) for total in (found, truth))
    return {"CP": cp, "CR": cr, "CF1": _f1(cp, cr), "OP": op, "OR": or_, "OF1": _f1(op, or_)}


def top_labels(scores: NDArray[np.floating], k: int) -> Flags:
    """The k labels of each thing with the highest scores (n, c) above 0, as flags; equal ones in their order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(found, order, True, axis=1)
    return found & (scores > 0)


def _share(right: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.asarray(right, np.float64) / np.maximum(total, 1)
    return shares


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
