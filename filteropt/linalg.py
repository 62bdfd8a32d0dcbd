r"""Small algebra shared by parts and engine: scalars, and variances at rest."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt.types import Scalar

__all__ = ["belief_dtype", "scalar", "stationary_flow", "stationary_variance"]


def scalar(x: Scalar) -> Tensor:
    """``x`` as a 0-d float64 tensor: hyperparameter arithmetic is done in double precision."""
    return torch.as_tensor(x, dtype=torch.float64, device=getattr(x, "device", "cpu"))


def belief_dtype(p: Tensor) -> torch.dtype:
    """Beliefs about half-precision weights are kept in float32, others in the weights' dtype."""
    return torch.float32 if p.dtype in {torch.bfloat16, torch.float16} else p.dtype


def stationary_variance(h: Tensor, a: Scalar, q: Scalar, lost: Scalar | None = None) -> Tensor:
    r"""The posterior variance at which predict and condition balance exactly.

    Solves :math:`1/\Sigma = 1/(a\Sigma + q) + h`:

    .. math:: \Sigma = \frac{2q}{b + \sqrt{b^2 + 4haq}}, \qquad b = 1 - a + hq,

    a form without cancellation that equals :math:`q/(1-a)` at h = 0. The root is taken as a
    hypotenuse, so that no square overflows.

    Derived in :eq:`eq-fixed-point-exact`.

    Args:
        h: precision observed per step, any shape, inverse squared weight units, ≥ 0.
        a: factor on the carried variance, 0 ≤ a ≤ 1.
        q: process noise variance per step, squared weight units, > 0.
        lost: 1 - a, where it is known better than by subtraction.

    Returns:
        The stationary posterior variance, shaped like ``h``.

    Example:
        >>> h = torch.tensor([0.0, 1e4], dtype=torch.float64)
        >>> v = stationary_variance(h, a=0.99, q=1e-6)
        >>> bool(torch.allclose(1 / v, 1 / (0.99 * v + 1e-6) + h))
        True
    """
    b = (1 - a if lost is None else lost) + h * q
    return 2 * q / (b + torch.hypot(b, h.sqrt() * (2 * (a * q) ** 0.5)))


def stationary_flow(h: Tensor, rate: Scalar, noise: Scalar) -> Tensor:
    r"""The variance at which the Kalman–Bucy filter rests; to first order in the step, P Eq. 20.

    Solves :math:`0 = q - \rho\Sigma - h\Sigma^2`. For fixed noise (:math:`\rho = \eta^2/\sigma^2`,
    :math:`q = \eta^2`) this is :math:`1/\Sigma = 1/(2\sigma^2) + \sqrt{1/(4\sigma^4) + h/\eta^2}`,
    here as :math:`\sqrt q/(u + \sqrt{u^2 + h})` with :math:`u = \rho/(2\sqrt q)`, where nothing
    overflows unless h or u² does.

    Derived in :eq:`eq-kalman-bucy`.

    Args:
        h: precision observed per step, any shape, inverse squared weight units, ≥ 0.
        rate: :math:`\rho`, fraction of variance forgotten per step, ≥ 0.
        noise: :math:`q`, process noise variance per step, squared weight units, > 0.

    Returns:
        The stationary variance, shaped like ``h``; infinite where h and ρ are both 0.

    Example:
        >>> h = torch.tensor([0.0, 4.0], dtype=torch.float64)
        >>> stationary_flow(h, rate=0.0, noise=0.01)    # no prior: Adam's lr / sqrt(h)
        tensor([   inf, 0.0500], dtype=torch.float64)
    """
    root = noise**0.5
    u = rate / (2 * root)
    return root / (u + (u * u + h).sqrt())
