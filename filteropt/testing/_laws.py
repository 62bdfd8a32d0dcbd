"""What the checkers share: a violation, and comparisons of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from filteropt.types import Diag, LayerRows, Likelihood, LowRank, Observation, Outer, Raw

__all__ = ["DTYPES", "LawViolation", "alike", "diagonal", "law", "near", "raw", "same"]

DTYPES = (torch.float64, torch.float32)


class LawViolation(AssertionError):  # ruff: ignore[error-suffix-on-exception-name] - the name states the fact
    """A part broke a law; the message says which."""


def law(holds: bool, law: str) -> None:
    """Raise unless the law holds."""
    if not holds:
        raise LawViolation(f"broken law: {law}")


def same(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def near(x: Tensor, y: Tensor, rtol: float | None = None, atol: float = 0.0) -> bool:
    """Whether two tensors are equal up to rounding."""
    if rtol is None:
        rtol = 1e-12 if x.dtype == torch.float64 else 1e-5
    return torch.allclose(x, y, rtol=rtol, atol=atol)


def alike(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> bool:
    """Whether all tensors have the same shapes and dtypes."""
    return all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(xs, ys, strict=True))


def diagonal(obs: Observation) -> Tensor:
    """The diagonal of an observation's curvature."""
    if isinstance(obs.curvature, LowRank):
        return obs.curvature.rows.square().sum(0)
    if isinstance(obs.curvature, Outer):
        inputs, deltas = obs.curvature
        return (deltas.square().mT @ inputs.square()).reshape(obs.grad.shape)
    if isinstance(obs.curvature, Outer):
        inputs, deltas = obs.curvature
        return (deltas.square().mT @ inputs.square()).reshape(obs.grad.shape)
    assert isinstance(obs.curvature, Diag)
    return obs.curvature.values


def raw(likelihood: Likelihood, grad: Tensor) -> Raw:
    """What a likelihood needs, for a minibatch whose one Jacobian row is its gradient."""
    layer = LayerRows(grad.new_ones(1, 1), grad[None])
    fields: dict[str, Any] = {"rows": grad[None], "squares": grad * grad, "products": grad}
    fields["layer"] = layer
    return Raw(grad, **{k: v for k, v in fields.items() if k in likelihood.needs})
