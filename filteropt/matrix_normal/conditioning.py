r"""Bayes' rule for rows :math:`e = x \otimes \delta`, projected back onto Kronecker products.

In coordinates where the prior is white, :math:`u = S_x^\top x` and :math:`v = S_\delta^\top\delta`,
a row leaves :math:`\Sigma^+ = I - s\,\hat u\hat u^\top \otimes \hat v\hat v^\top` with
:math:`s = |u|^2|v|^2/(1 + |u|^2|v|^2)`. Both factors of its projection are a multiple of the
identity but along :math:`\hat u` or :math:`\hat v`, so that roots change by rank one.
"""

from __future__ import annotations

from torch import Tensor

from filteropt.matrix_normal.factors import Factors
from filteropt.matrix_normal.flip_flop import jointly
from filteropt.matrix_normal.members import unless
from filteropt.matrix_normal.rank_one import first_order, forward, one_by_one, reverse

__all__ = ["condition_first_order", "condition_forward", "condition_reverse"]

TOGETHER = 256
"""Rows that are projected together; their joint posterior takes a matrix of that size."""


def condition_first_order(factors: Factors, inputs: Tensor, deltas: Tensor) -> Factors:
    r"""Rows one after the other, each projected to first order (U Eq. 24, corrected).

    .. math::
        \Sigma_x^+ = \Sigma_x + \frac{\tfrac12\Delta X\,\Sigma_x
            - \Delta\,\Sigma_x xx^\top\Sigma_x}{1 + M\Delta\,NX}, \qquad
        \Sigma_\delta^+ = \Sigma_\delta + \frac{\tfrac12\Delta X\,\Sigma_\delta
            - X\,\Sigma_\delta\delta\delta^\top\Sigma_\delta}{1 + M\Delta\,NX},

    with :math:`X = x^\top\Sigma_xx/N` and :math:`\Delta = \delta^\top\Sigma_\delta\delta/M`. As
    printed, the normalisers are missing and Δ stands in the place of X. What is approximated: the
    projection of Bayes' rule that minimises KL(P‖Q), to first order in the row's evidence. Both
    eigenvalues are positive for any row, so that a root stays a root; O(N² + M²) per row.

    Args:
        factors: roots of the prior.
        inputs: x, ``(..., R, N)``.
        deltas: δ, ``(..., R, M)``, in inverse weight units with x.

    Returns:
        Roots of the posterior.

    Example:
        >>> import torch
        >>> one = Factors(torch.eye(1), torch.eye(1))
        >>> post = condition_first_order(one, torch.ones(1, 1), torch.ones(1, 1))
        >>> (post.input_root * post.output_root) ** 2    # 1/2, to first order
        tensor([[0.5625]])

    Source: U (Aitchison 2018) Eq. 24 and Sec. 4.3.
    """
    return one_by_one(factors, inputs, deltas, first_order)


def condition_forward(
    factors: Factors, inputs: Tensor, deltas: Tensor, rounds: int = 20
) -> Factors:
    r"""The Kronecker product that minimises KL(P‖Q) to the rows' exact posterior P.

    With :math:`K = (I + UU^\top \circ VV^\top)^{-1}` of the white rows, the optimum solves

    .. math::
        A = \tfrac1M\bigl[\mathrm{tr}(B^{-1}) I - U^\top (K \circ VB^{-1}V^\top) U\bigr], \qquad
        B = \tfrac1N\bigl[\mathrm{tr}(A^{-1}) I - V^\top (K \circ UA^{-1}U^\top) V\bigr] ,

    which are solved in turn, in float64, in the coordinates that the rows span: O(R(N² + M²)) and
    O(R³) per round. A single row takes a quadratic equation. What is approximated: nothing, for up
    to 256 rows; more are taken in runs of 256, each projected. Where rows are so strong that the
    differences above lose all digits, they are taken one by one.

    Args:
        factors: roots of the prior.
        inputs: x, ``(..., R, N)``.
        deltas: δ, ``(..., R, M)``, in inverse weight units with x.
        rounds: the most rounds; they stop where nothing changes any more. ≥ 1.

    Returns:
        Roots of the posterior.

    Example:
        >>> import torch
        >>> one = Factors(torch.eye(1), torch.eye(1))
        >>> post = condition_forward(one, torch.ones(1, 1), torch.ones(1, 1))
        >>> (post.input_root * post.output_root) ** 2
        tensor([[0.5000]])

    Source: the objective is U (Aitchison 2018) Sec. 4.3.
    """
    for i in range(0, inputs.shape[-2], TOGETHER):
        x, delta = (rows[..., i : i + TOGETHER, :] for rows in (inputs, deltas))
        if x.shape[-2] == 1:
            factors = one_by_one(factors, x, delta, forward)
            continue
        together, failed = jointly(factors, x, delta, rounds, reverse=False)
        if bool(failed.any()):
            alone = one_by_one(factors, x, delta, forward)
            pairs = zip(alone, together, strict=True)
            together = Factors(*(unless(~failed, one, other) for one, other in pairs))
        factors = together
    return factors


def condition_reverse(
    factors: Factors, inputs: Tensor, deltas: Tensor, rounds: int = 20
) -> Factors:
    r"""The Kronecker product that minimises KL(Q‖P) to the rows' exact posterior P.

    On precisions, with the prior's :math:`\Lambda_x \otimes \Lambda_\delta`, the optimum
    :math:`A \otimes B` solves

    .. math::
        A = \tfrac1M\Bigl[\mathrm{tr}(B^{-1}\Lambda_\delta)\Lambda_x
            + \sum_b (\delta_b^\top B^{-1}\delta_b)\, x_bx_b^\top\Bigr]

    and its mirror image: each row's input counts by its output's uncertainty. They are solved in
    turn from the prior on, in float64, in the coordinates that the rows span: O(R(N² + M²)) and
    O(R³) per round, or O(RN² + N³) for R > N. A single row takes a quadratic equation. What is
    approximated: nothing, for any number of rows.

    Args:
        factors: roots of the prior.
        inputs: x, ``(..., R, N)``.
        deltas: δ, ``(..., R, M)``, in inverse weight units with x.
        rounds: the most rounds; they stop where nothing changes any more. ≥ 1.

    Returns:
        Roots of the posterior.

    Example:
        >>> import torch
        >>> one = Factors(torch.eye(1), torch.eye(1))
        >>> post = condition_reverse(one, torch.ones(1, 1), torch.ones(1, 1))
        >>> (post.input_root * post.output_root) ** 2
        tensor([[0.5000]])
    """
    if inputs.shape[-2] <= 1:
        return one_by_one(factors, inputs, deltas, reverse)
    found, _ = jointly(factors, inputs, deltas, rounds, reverse=True)  # precisions add
    return found
