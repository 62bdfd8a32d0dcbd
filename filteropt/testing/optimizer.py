"""Laws of a whole optimizer: what a change of units must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from filteropt.optimizer import FilterOptimizer
from filteropt.testing._laws import law, near

__all__ = ["check_scale_equivariance"]


def check_scale_equivariance(
    make: Callable[..., FilterOptimizer], hyperparameters: Mapping[str, Any], *, steps: int = 20
) -> None:
    r"""Check that the units of the loss do not matter.

    A loss multiplied by c with ``batch_size / c`` is the same summed log-likelihood, and
    ``lr_sgd / c`` the same prior variance: every weight and variance stays the same, up to
    rounding.

    Args:
        make: an optimizer class, or a function of parameters and hyperparameters.
        hyperparameters: at least ``batch_size``, and ``lr_sgd`` where the optimizer takes one.
        steps: how many gradients to feed.

    Raises:
        LawViolation: a trajectory or a variance that depends on the loss' units.

    Example:
        >>> import filteropt
        >>> check_scale_equivariance(
        ...     filteropt.AdaBayes, {"lr": 1e-2, "lr_sgd": 0.5, "batch_size": 8.0})
    """
    reference = _run(make, hyperparameters, 1.0, steps)
    for c in (1 / 128, 3.0, 1e3):
        scaled = {
            name: value / c if name in {"batch_size", "lr_sgd"} else value
            for name, value in hyperparameters.items()
        }
        weights, variance = _run(make, scaled, c, steps)
        law(near(weights, reference[0], 1e-9), f"a loss times {c:g} leaves the weights alone")
        law(near(variance, reference[1], 1e-9), f"a loss times {c:g} leaves variances alone")


def _run(
    make: Callable[..., FilterOptimizer], hyperparameters: Mapping[str, Any], c: float, steps: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    opt = make([p], **hyperparameters)
    for _ in range(steps):
        p.grad = c * torch.randn(5, dtype=torch.float64, generator=generator)
        opt.step()
    return p.detach(), opt.posterior_variance(p)
