"""Two latents at rest: the discrete Riccati equation of weight and momentum in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt import regression
from filteropt.linalg import lost_variance
from filteropt.types import Scalar, Transition

__all__ = ["stationary_column", "stationary_pair"]


def stationary_pair(h: Tensor, transition: Transition) -> tuple[Tensor, ...]:
    r"""The posterior at which predicting and conditioning balance exactly, for two latents.

    For :math:`F = \begin{pmatrix} f_0 & \eta \\ 0 & f_1\end{pmatrix}`, diagonal Q and
    :math:`\kappa = 1 + h\Sigma^-_{ww}`, the return difference at frequencies 0 and π gives

    .. math::
        \sqrt\kappa + \frac{f_0f_1}{\sqrt\kappa} = \tfrac12(\sqrt{S_+} + \sqrt{S_-}), \qquad
        S_\pm = (1 \mp f_0)^2(1 \mp f_1)^2 + h\,(q_0(1 \mp f_1)^2 + \eta^2q_1) .

    Evaluated as differences from h = 0, in forms that do not cancel for any h ≥ 0.

    Derived in :eq:`eq-stationary-pair`.

    Args:
        h: precision observed per step, any shape, inverse squared weight units, ≥ 0.
        transition: the dynamics, with F as above, :math:`0 \le f_i \le 1`, and c = 1.

    Returns:
        The posterior as a regression, which is the weight's variance (infinite where h = 0 and
        :math:`f_0 = 1`), the momentum's slope on the weight and its residual variance, each shaped
        like ``h``.
    """
    variance, slope, momentum = _solve(h, transition)
    residual = (momentum - slope * slope * variance).clamp_min(0)
    # One more prediction makes the residual, here a difference, a sum of non-negative terms.
    *_, residual = regression.predict(regression.pack(variance, slope, residual), transition)
    return regression.pack(_unless_unbounded(variance, h, transition), slope, residual)


def stationary_column(h: Tensor, transition: Transition) -> tuple[Tensor, Tensor]:
    """The first column of :func:`stationary_pair`'s covariance, all that conditioning needs.

    Args:
        h: precision observed per step, as there.
        transition: the dynamics, as there.

    Returns:
        The weight's variance and its covariance with the momentum, each shaped like ``h``.
    """
    variance, slope, _ = _solve(h, transition)
    variance = _unless_unbounded(variance, h, transition)
    return variance, slope * variance


def _solve(h: Tensor, transition: Transition) -> tuple[Tensor, Tensor, Tensor]:
    """The weight's variance, the momentum's slope on it, and the momentum's variance."""
    (f0, coupling), (_, f1) = transition.F
    q0, _, q1 = transition.Q
    a0, a1 = lost_variance(transition) / (1 + f0), 1 - f1
    both, short = f0 * f1, a0 + f0 * a1  # short = 1 - f0 f1
    tiny = torch.finfo(h.dtype).tiny
    rise = (_rise(h, q0, coupling, q1, a0, a1) + _rise(h, q0, coupling, q1, 1 + f0, 1 + f1)) / 2
    step = h * rise
    r = torch.hypot(short + step, 2 * (both * step).sqrt())
    small = 2 * rise / (r + (short - step)).clamp_min(tiny)
    large = (r + (step - short)) / (2 * h)
    excess = torch.where(step <= short, small, large)  # (sqrt(kappa) - 1) / h
    prior = (excess * (2 + h * excess)).clamp_min(tiny)
    kappa = 1 + h * prior
    settled = (h * prior + short) / kappa  # 1 - f0 f1 / kappa
    lost = a1 * (1 + f1) * settled
    y = 2 * q1 / (lost + torch.hypot(lost, 2 * f1 * coupling * (q1 * (h / kappa)).sqrt()))
    variance, slope = prior / kappa, f1 * coupling * y / prior
    return variance, slope, y * settled


def _unless_unbounded(variance: Tensor, h: Tensor, transition: Transition) -> Tensor:
    """Infinite where neither evidence nor a prior bounds the variance."""
    return torch.where(h + lost_variance(transition) > 0, variance, torch.inf)


def _rise(h: Tensor, q0: Scalar, coupling: Scalar, q1: Scalar, a0: Scalar, a1: Scalar) -> Tensor:
    """(√S − √S at h = 0)/h for S = a₀²a₁² + h(q₀a₁² + η²q₁)."""
    driven = q0 * a1 * a1 + coupling * coupling * q1
    root = torch.hypot(h.sqrt() * driven**0.5, 0 * h + a0 * a1)
    rise: Tensor = driven / (root + a0 * a1).clamp_min(torch.finfo(h.dtype).tiny)
    return rise
