"""How the losses of several tasks make one step: weights of losses, and combinations of gradients.

A step over T tasks has losses L_1 … L_T and, over the parameters that the tasks share, gradients g_1 … g_T. Every
method here ends as weights c with shared gradient Σ c_i g_i: gradient methods find c from the products g_i·g_j, loss
methods from the losses alone. Compared by Vandenhende et al. 2021 (arXiv 2004.13379), whose finding holds for many sets
of tasks: equal weights are hard to beat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udr.errors import UnknownNameError

__all__ = ["WEIGHTINGS", "Weighting", "build_weighting"]

Matrix = NDArray[np.float64]
TINY = 1e-12


class Weighting(nn.Module, ABC):
    """Turns the losses of a step into gradients.

    Parameters, where a method learns its weights, want an optimiser; what it remembers of earlier steps are buffers, so
    that `state_dict` holds all of it.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    @abstractmethod
    def backward(
        self, losses: Sequence[Tensor], shared: Sequence[nn.Parameter], which: Sequence[int] | None = None
    ) -> Tensor:
        """Add this step's gradients to `.grad` of every parameter; return the weights c (t,) of the shared ones.

        `which` numbers the tasks of the losses where a step holds some of all; parameters that are not shared belong to
        their task.
        """

    def _numbers(self, losses: Sequence[Tensor], which: Sequence[int] | None) -> Tensor:
        numbers = range(self.tasks) if which is None else which
        if len(numbers) != len(losses) or len(set(numbers)) != len(numbers):
            raise ValueError(f"{len(losses)} losses of the tasks {list(numbers)}")
        return torch.tensor(list(numbers), device=losses[0].device)


# -- weights of losses: one backward pass


class LossWeighting(Weighting):
    """A total of the losses whose gradient is the step."""

    def backward(
        self, losses: Sequence[Tensor], shared: Sequence[nn.Parameter], which: Sequence[int] | None = None
    ) -> Tensor:
        numbers = self._numbers(losses, which)
        total, weights = self.total(torch.stack(list(losses)), numbers)
        total.backward()  # type: ignore[no-untyped-call]
        return weights.detach()

    @abstractmethod
    def total(self, losses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The scalar to go down, and each loss's weight in its gradient (t,)."""


class Equal(LossWeighting):
    """The sum of all losses."""

    def total(self, losses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return losses.sum(), torch.ones_like(losses)


class Uncertainty(LossWeighting):
    """Σ L_i / (2 e^{s_i}) + s_i / 2 with learnt s, the log of each task's noise.

    Source: Kendall et al. 2018, arXiv 1705.07115.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(tasks))

    def total(self, losses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        own = self.log_variance[numbers]
        weights = (-own).exp() / 2
        return (weights * losses + own / 2).sum(), weights


class DynamicAverage(LossWeighting):
    """Tasks whose loss falls slowly weigh more (dynamic weight average; Liu et al. 2019, arXiv 1803.10704, eq. 7).

    w = T · softmax(r / temperature) with r_i the mean loss of the last `period` steps of a task by that of the period
    before; equal until two periods are over.
    """

    recent: Tensor  # (T,) sum of the losses of the current period
    steps: Tensor  # (T,) their number
    means: Tensor  # (2, T) mean losses of the last two periods, the older first; 0: none yet

    def __init__(self, tasks: int, period: int = 100, temperature: float = 2.0) -> None:
        super().__init__(tasks)
        self.period, self.temperature = period, temperature
        self.register_buffer("recent", torch.zeros(tasks))
        self.register_buffer("steps", torch.zeros(tasks))
        self.register_buffer("means", torch.zeros(2, tasks))

    def total(self, losses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        before, last = self.means
        rates = torch.where(before > 0, last / before.clamp_min(TINY), torch.ones_like(last))
        weights = self.tasks * (rates / self.temperature).softmax(0)[numbers]
        self.recent[numbers] += losses.detach().float()
        self.steps[numbers] += 1
        full = self.steps >= self.period
        passed = torch.where(full, self.recent / self.steps.clamp_min(1), last)
        self.means = torch.stack([torch.where(full, last, before), passed])
        self.recent = self.recent.masked_fill(full, 0)
        self.steps = self.steps.masked_fill(full, 0)
        return (weights * losses).sum(), weights


class GeometricMean(LossWeighting):
    """(Π L_i)^{1/T}: a loss counts by the share of it that falls, not by its scale (GLS).

    Source: Chennupati et al. 2019, arXiv 1904.08492.
    """

    def total(self, losses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        mean = losses.clamp_min(TINY).log().mean().exp()
        return mean, mean / (len(losses) * losses.clamp_min(TINY))


class RandomWeights(LossWeighting):
    """softmax of normal draws, anew in each step (RLW; Lin et al. 2022, arXiv 2111.10603)."""

    def total(self, losses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.randn(len(losses), device=losses.device).softmax(0)
        return (weights * losses).sum(), weights


# -- combinations of gradients: one backward pass a task


class GradientWeighting(Weighting):
    """Weights that depend on the tasks' gradients over the shared parameters.

    Parameters of one task alone get their own loss's gradient.
    """

    def backward(
        self, losses: Sequence[Tensor], shared: Sequence[nn.Parameter], which: Sequence[int] | None = None
    ) -> Tensor:
        numbers = self._numbers(losses, which)
        values = torch.stack([loss.detach() for loss in losses])
        scales = self.scales(numbers)
        before = [p.grad for p in shared]
        gradients: list[list[Tensor]] = []
        for n, loss in enumerate(losses):  # each by itself: through their stack every one would walk all graphs
            for p in shared:
                p.grad = None
            (loss * scales[n]).backward(retain_graph=n + 1 < len(losses))  # type: ignore[no-untyped-call]
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in shared])
        rows = torch.stack([torch.cat([g.reshape(-1) for g in own]) for own in gradients])
        products = (rows @ rows.T).double().cpu().numpy()
        if np.isfinite(products).all():
            weights = self.weights(products, values, numbers)
        else:  # training has diverged, which its loop will tell
            weights = torch.full_like(values, float("nan"))
        for n, (p, earlier) in enumerate(zip(shared, before, strict=True)):
            p.grad = torch.zeros_like(p) if earlier is None else earlier
            for weight, own in zip(weights.tolist(), gradients, strict=True):
                p.grad.add_(own[n], alpha=weight)
        return weights * scales

    def scales(self, numbers: Tensor) -> Tensor:
        """Factors of the losses whose gradients are taken (t,)."""
        return torch.ones(len(numbers), device=numbers.device)

    @abstractmethod
    def weights(self, products: Matrix, losses: Tensor, numbers: Tensor) -> Tensor:
        """c (t,) from the products of gradients (t, t) and the losses as they were given (t,)."""


class GradNorm(GradientWeighting):
    """Learnt weights under which tasks learn at one rate (Chen et al. 2018, arXiv 1711.02257).

    w = T · softmax(s); s goes down Σ |G_i − Ḡ r_i^alpha|, where G_i = w_i ‖g_i‖, Ḡ is their mean, and r_i is a task's
    loss by its first one, divided by the mean of those ratios. Parameters of one task alone are weighted likewise.
    """

    first: Tensor  # (T,) a task's first loss; 0: none yet

    def __init__(self, tasks: int, alpha: float = 1.5) -> None:
        super().__init__(tasks)
        self.alpha = alpha
        self.scores = nn.Parameter(torch.zeros(tasks))
        self.register_buffer("first", torch.zeros(tasks))

    def scales(self, numbers: Tensor) -> Tensor:
        return self._own(numbers).detach()

    def weights(self, products: Matrix, losses: Tensor, numbers: Tensor) -> Tensor:
        own = self._own(numbers)
        norms = own.new_tensor(np.sqrt(np.diag(products))) / own.detach()
        first = self.first[numbers]
        self.first[numbers] = torch.where(first > 0, first, losses.float())
        ratios = losses / self.first[numbers].clamp_min(TINY)
        found = own * norms
        wanted = (found.mean() * (ratios / ratios.mean()) ** self.alpha).detach()
        (found - wanted).abs().sum().backward()  # type: ignore[no-untyped-call]
        return torch.ones_like(losses)  # the losses are scaled already

    def _own(self, numbers: Tensor) -> Tensor:
        return len(numbers) * self.scores[numbers].softmax(0)


class MinNorm(GradientWeighting):
    """The shortest vector among all averages of the gradients (MGDA; Sener and Koltun 2018, arXiv 1810.04650)."""

    def weights(self, products: Matrix, losses: Tensor, numbers: Tensor) -> Tensor:
        return losses.new_tensor(_min_norm(products))


class Projected(GradientWeighting):
    """From each gradient what points against another one is taken away, then all are added (PCGrad; Yu et al. 2020).

    The others come in random order (arXiv 2001.06782, algorithm 1).
    """

    def weights(self, products: Matrix, losses: Tensor, numbers: Tensor) -> Tensor:
        tasks = len(products)
        parts = np.eye(tasks)  # each projected gradient in terms of the given ones
        for i in range(tasks):
            for j in torch.randperm(tasks).tolist():
                against = parts[i] @ products[:, j]
                if j != i and against < 0:
                    parts[i, j] -= against / products[j, j]
        return losses.new_tensor(parts.sum(0))


class ConflictAverse(GradientWeighting):
    """Near the mean gradient, the step that helps the worst-off task most (CAGrad; Liu et al. 2021, arXiv 2110.14048).

    g = (g_0 + c ‖g_0‖ g_w / ‖g_w‖) / (1 + c²) with the mean g_0, and the average g_w that minimises
    g_w·g_0 + c ‖g_0‖ ‖g_w‖.
    """

    def __init__(self, tasks: int, c: float = 0.5) -> None:
        super().__init__(tasks)
        self.c = c

    def weights(self, products: Matrix, losses: Tensor, numbers: Tensor) -> Tensor:
        mean = np.full(len(products), 1 / len(products))
        radius = self.c * np.sqrt(max(mean @ products @ mean, 0.0))

        def objective(w: Matrix) -> float:
            return float(w @ products @ mean + radius * np.sqrt(w @ products @ w + TINY))

        w = _on_simplex(objective, len(products), float(np.trace(products)))
        length = np.sqrt(w @ products @ w)
        return losses.new_tensor((mean + (radius / length * w if length > 0 else 0)) / (1 + self.c**2))


class Impartial(GradientWeighting):
    """A step equally long in the direction of every task's gradient, of losses brought to one scale (IMTL).

    The losses are e^{s_i} L_i − s_i with learnt s; the weights, which add up to 1 and may be negative, give Σ c_i g_i
    the same product with every g_i / ‖g_i‖ (Liu et al. 2021, ICLR, "Towards Impartial Multi-task Learning").
    """

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.log_scale = nn.Parameter(torch.zeros(tasks))

    def scales(self, numbers: Tensor) -> Tensor:
        return self.log_scale[numbers].detach().exp()

    def weights(self, products: Matrix, losses: Tensor, numbers: Tensor) -> Tensor:
        own = self.log_scale[numbers]
        (own.exp() * losses - own).sum().backward()  # type: ignore[no-untyped-call]
        lengths = np.sqrt(np.maximum(np.diag(products), TINY))
        along = products / lengths  # g_i · u_j
        # Σ_i c_i (g_i·u_1 − g_i·u_j) = 0 for every j, and Σ c_i = 1; least squares where gradients are alike
        system = np.vstack([(along[:, :1] - along[:, 1:]).T / max(lengths.max(), TINY), np.ones(len(products))])
        right = np.append(np.zeros(len(products) - 1), 1.0)
        return losses.new_tensor(np.linalg.lstsq(system, right, rcond=None)[0])


def _min_norm(products: Matrix) -> Matrix:
    """Weights on the simplex that minimise w·P·w.

    With P = AᵀA, min ‖A u‖² + (1·u − 1)² over u ≥ 0 has its solution along the wanted weights: scipy's non-negative
    least squares is exact.
    """
    from scipy.optimize import nnls

    values, vectors = np.linalg.eigh(products / max(np.trace(products), TINY))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    found, _ = nnls(np.vstack([root, np.ones(len(products))]), np.append(np.zeros(len(products)), 1.0))
    weights: Matrix = found / found.sum()
    return weights


def _on_simplex(objective: Callable[[Matrix], float], size: int, scale: float) -> Matrix:
    """Weights on the simplex that minimise a convex function whose values are of the size of `scale`."""
    from scipy.optimize import minimize

    found = minimize(
        lambda w: objective(w) / max(scale, TINY),
        np.full(size, 1 / size),
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    positive = np.maximum(found.x, 0)
    weights: Matrix = positive / positive.sum()
    return weights


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "equal": Equal,
    "uncertainty": Uncertainty,
    "dwa": DynamicAverage,
    "gradnorm": GradNorm,
    "mgda": MinNorm,
    "pcgrad": Projected,
    "cagrad": ConflictAverse,
    "gls": GeometricMean,
    "rlw": RandomWeights,
    "imtl": Impartial,
}


def build_weighting(name: str, tasks: int, **settings: float) -> Weighting:
    """Make a weighting by name for a number of tasks.

    Raises:
        UnknownNameError: no weighting has that name (names the near ones).
    """
    if name not in WEIGHTINGS:
        raise UnknownNameError("weighting", name, WEIGHTINGS)
    return WEIGHTINGS[name](tasks, **settings)
