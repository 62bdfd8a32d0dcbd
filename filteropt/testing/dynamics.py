"""Laws of a dynamics prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from filteropt.linalg import lost_variance, scalar
from filteropt.testing._laws import law
from filteropt.trees import tree_map
from filteropt.types import Dynamics, Flow, Transition

__all__ = ["check_dynamics", "compose"]


def check_dynamics(dynamics: Dynamics) -> None:
    """Check the laws of a dynamics prior.

    F is k×k and Q packed; every number is finite and depends on the step alone; Q is positive
    semi-definite, c positive and a pull not negative, so that propagated covariances are positive
    definite; a stated continuous-time limit, and a stated loss of variance, agree with the
    transition.

    Args:
        dynamics: the part.

    Raises:
        LawViolation: the law that broke.

    Example:
        >>> from filteropt.models import FixedNoise
        >>> check_dynamics(FixedNoise(lr=1e-3, prior_variance=0.1))
    """
    k = dynamics.k
    for t in (1, 2, 10, 1000):
        transition = dynamics.transition(scalar(t))
        law(isinstance(transition, Transition), "transition(t) returns a Transition")
        law([len(row) for row in transition.F] == [k] * k, f"F has {k} rows of {k} numbers")
        law(len(transition.Q) == k * (k + 1) // 2, f"Q has {k * (k + 1) // 2} numbers")
        numbers = _flat(transition)
        law(all(map(math.isfinite, numbers)), "every number of the transition is finite")
        law(numbers == _flat(dynamics.transition(scalar(t))), "equal steps, equal transitions")
        law(float(transition.c) > 0, "c is positive")
        law(transition.pull is None or float(transition.pull) >= 0, "a pull is not negative")
        lost = 1 - float(transition.c * transition.F[0][0] ** 2)
        gap = abs(float(lost_variance(transition)) - lost)
        law(gap <= 1e-12, "`lost` is 1 - cF²")
        factor, noise = _dense(transition)
        eigenvalues = torch.linalg.eigvalsh(noise)
        law(bool(eigenvalues.min() >= -1e-12 * eigenvalues.max()), "Q is positive semi-definite")
        for seed in range(3):
            prior = float(transition.c) * factor @ _covariance(k, seed) @ factor.T + noise
            lowest = torch.linalg.eigvalsh(prior).min()
            law(bool(lowest > 0), "propagated covariances are positive definite")
        if transition.flow is not None and k == 1:
            _check_flow(transition, transition.flow)


def _check_flow(transition: Transition, flow: Flow) -> None:
    lost = 1 - float(transition.c * transition.F[0][0] ** 2)
    rate, noise = float(flow.rate), 0.0 if flow.noise is None else float(flow.noise)
    law(
        abs(rate - lost) <= 1.1 * max(rate**2, lost**2) + 1e-12,
        "flow.rate is 1 - cF² to first order",
    )
    law(noise >= 0, "flow.noise is not negative, or None")
    law(flow.noise is None or rate >= 0, "flow.rate is not negative where there is flow.noise")
    gap = abs(noise - float(transition.Q[0]))
    law(gap <= (abs(rate) + 1e-12) * noise, "flow.noise is Q to first order")


def _flat(transition: Transition) -> list[float]:
    numbers: list[float] = []
    tree_map(lambda x: numbers.append(float(x)), transition)
    return numbers


def _dense(transition: Transition) -> tuple[Tensor, Tensor]:
    """F and Q as k×k float64 matrices."""
    rows = [[float(x) for x in row] for row in transition.F]
    upper = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    i, j = torch.triu_indices(len(rows), len(rows))
    upper[i, j] = torch.tensor([float(x) for x in transition.Q], dtype=torch.float64)
    return torch.tensor(rows, dtype=torch.float64), upper + upper.triu(1).T


def _covariance(k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(k, k, dtype=torch.float64, generator=generator)
    return root @ root.T + 1e-3 * torch.eye(k, dtype=torch.float64)


def compose(first: Transition, then: Transition) -> Transition:
    r"""Two steps of ageing as one: :math:`c_2F_2(c_1F_1PF_1^\top + Q_1)F_2^\top + Q_2`.

    Args:
        first: the transition that is made first, without a pull.
        then: the one after it, without a pull.

    Returns:
        The transition with the same effect on covariances.

    Raises:
        ValueError: a transition that pulls.

    Example:
        >>> once = Transition(((0.5,),), (1.0,))
        >>> twice = compose(once, once)
        >>> float(twice.F[0][0]), float(twice.Q[0])
        (0.25, 1.25)
    """
    if first.pull is not None or then.pull is not None:
        raise ValueError("compose: a pull does not compose into one transition of this form")
    (f1, q1), (f2, q2) = _dense(first), _dense(then)
    noise = float(then.c) * f2 @ q1 @ f2.T + q2
    i, j = torch.triu_indices(len(noise), len(noise))
    rows = tuple(tuple(row.unbind()) for row in f2 @ f1)
    return Transition(rows, tuple(noise[i, j].unbind()), c=first.c * then.c)
