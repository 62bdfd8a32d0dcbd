"""Gauss–Newton curvature from per-example Jacobians: the extended Kalman filter's likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import PulledLikelihood
from filteropt.dtypes import squarable
from filteropt.hyperparameters import Momentum, Positive
from filteropt.types import (
    Belief,
    Diag,
    LowRank,
    Memory,
    Observation,
    Packed,
    Raw,
)

__all__ = ["GaussNewton", "GaussNewtonDiagonal"]


@dataclass(frozen=True)
class GaussNewton(PulledLikelihood):
    r"""The minibatch's Gauss–Newton matrix is its precision.

    With :math:`J_i` the Jacobian of the model's outputs :math:`f(x_i)` with respect to the weights
    and :math:`R_i^{-1}` the Hessian of the i-th loss with respect to those outputs,

    .. math:: \Lambda = \sum_i J_i^\top R_i^{-1} J_i, \qquad
        R^{-1} = \begin{cases} I/r & \text{squared error} \\
        \operatorname{diag}(\pi) - \pi\pi^\top & \text{softmax cross-entropy.} \end{cases}

    It is the Fisher information of the model's own predictive distribution, and on a linear model
    with squared error the Hessian itself. What is approximated: the model, by its tangent at the
    present weights.

    The loss must be the negative log-likelihood: :math:`\lVert f - y\rVert^2/(2r)` or the
    cross-entropy, summed or averaged over examples as ``scale`` says. ``F.mse_loss`` of one output
    per example is that for r = ½. The Jacobians are those of the forward passes whose outputs were
    backpropagated into since the last step, so gradients may be accumulated; call ``zero_grad``
    after other uses of ``backward`` or ``autograd.grad``. The optimizer needs ``model=``, whose
    tensor inputs have the examples in their first dimension.

    Args:
        loss: ``"squared_error"`` or ``"cross_entropy"``.
        noise_variance: r, variance of the targets about the model, in squared output units;
            (0, inf). For squared error only.
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the average that moves the mean; [0, 1). ``None``, the filter proper, keeps
            none.
        bias_correction: whether that average is debiased.
        memory: bytes that the Jacobians of the examples worked on at a time may take; (0, inf). At
            least one example is worked on, and what is kept is at most as large as the covariance.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import GaussNewton
        >>> root = GaussNewton("cross_entropy").root(torch.tensor([0.0, 1.0]))
        >>> pi = torch.softmax(torch.tensor([0.0, 1.0]), 0)
        >>> bool(torch.allclose(root @ root.T, pi.diag() - torch.outer(pi, pi)))
        True

    Source: Ollivier (2018); derived in :eq:`eq-gauss-newton` and :eq:`eq-softmax-root`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad", "rows"})
    gives: ClassVar[type] = LowRank

    loss: Literal["squared_error", "cross_entropy"] = "squared_error"
    noise_variance: Positive = 1.0
    scale: Positive = 1.0
    beta1: Momentum | None = None
    bias_correction: bool = True
    memory: Positive = 2**28

    def root(self, output: Tensor) -> Tensor:
        r"""A square root of :math:`R^{-1}`, the loss' Hessian at one example's outputs.

        Args:
            output: the model's outputs for one example, ``(c,)``; any shape for squared error.

        Returns:
            B with :math:`B B^\top = R^{-1}`, ``(c, c)``.

        Raises:
            ValueError: outputs that are not one vector of logits.
        """
        if self.loss == "squared_error":
            eye = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
            return eye / math.sqrt(self.noise_variance)
        if output.dim() != 1 or len(output) < 2:
            raise ValueError(
                f"GaussNewton: cross_entropy needs one vector of at least two logits per example, "
                f"and the model gave {tuple(output.shape)} for one; use one example per prediction"
            )
        root = (output.log_softmax(0) / 2).exp()
        return root.diag() - torch.outer(root * root, root)

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` whose scaled square is finite."""
        return squarable(dtype) / max(1.0, float(self.scale))

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """Λ = the Gauss–Newton matrix by its rows, and the gradient's average."""
        scale, *numbers = scalars
        pull, like = self._pull(like, scale * raw.grad, tuple(numbers))
        return Observation(pull, self._curvature(raw)), like

    def _curvature(self, raw: Raw) -> Diag | LowRank:
        assert raw.rows is not None, "what a likelihood needs is gathered"
        return LowRank(raw.rows)


@dataclass(frozen=True)
class GaussNewtonDiagonal(GaussNewton):
    r"""The diagonal of the minibatch's Gauss–Newton matrix is its precision.

    .. math:: \Lambda_{jj} = \sum_i (J_i^\top R_i^{-1} J_i)_{jj}

    What is approximated: as :class:`GaussNewton`, and correlations are dropped. Arguments, losses
    and errors are the same; what is kept is as large as the parameter.

    Example:
        >>> from filteropt.approximations import GaussNewtonDiagonal
        >>> like, p = GaussNewtonDiagonal(), torch.zeros(2)
        >>> obs, _ = like.observe((), Raw(p + 1, squares=p + 4), p, None, like.scalars(1))
        >>> obs.curvature.values
        tensor([4., 4.])

    Source: Ollivier (2018); see :eq:`eq-gauss-newton`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad", "squares"})
    gives: ClassVar[type] = Diag
    elementwise: ClassVar[bool] = True

    def _curvature(self, raw: Raw) -> Diag | LowRank:
        assert raw.squares is not None, "what a likelihood needs is gathered"
        return Diag(raw.squares)
