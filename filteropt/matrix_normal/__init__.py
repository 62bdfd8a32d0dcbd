r"""Gaussians over a weight matrix with a Kronecker-factored covariance, as pairs of square roots.

A weight matrix W, M×N, has :math:`\Sigma = \Sigma_x \otimes \Sigma_\delta`, with
:math:`\Sigma_x = S_xS_x^\top` over its N inputs and :math:`\Sigma_\delta = S_\delta S_\delta^\top`
over its M outputs. Both stay roots throughout: symmetric and positive by form. Only the product is
determined; :func:`~filteropt.matrix_normal.factors.balance` shares the scale out.

Everything takes leading dimensions, of many matrices at once. What stops where nothing changes any
more stops for each by itself.
"""

from filteropt.matrix_normal.ageing import (
    drift_first_order,
    drift_forward,
    drift_reverse,
    drifted,
    mixed,
)
from filteropt.matrix_normal.conditioning import (
    condition_first_order,
    condition_forward,
    condition_reverse,
)
from filteropt.matrix_normal.factors import Factors, balance
from filteropt.matrix_normal.members import present
from filteropt.matrix_normal.sums import Spread, project_sum

__all__ = [
    "Factors",
    "Spread",
    "balance",
    "condition_first_order",
    "condition_forward",
    "condition_reverse",
    "drift_first_order",
    "drift_forward",
    "drift_reverse",
    "drifted",
    "mixed",
    "present",
    "project_sum",
]
