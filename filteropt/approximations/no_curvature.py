"""No curvature: a gradient moves the mean and teaches nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import GradientLikelihood
from filteropt.types import Belief, Diag, Memory, Observation, Packed, Raw

__all__ = ["NoCurvature"]


@dataclass(frozen=True)
class NoCurvature(GradientLikelihood):
    r"""The loss is taken to be a slope: :math:`\Lambda = 0`.

    No gradient makes the belief any surer, so the variance stays what the dynamics make of it and
    every step is SGD's, at the rate Σ:

    .. math:: \Sigma^+ = \Sigma^-, \qquad \mu^+ = \mu^- - \Sigma^- \hat g .

    What is approximated: the objective, by its tangent.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the gradient's running average; [0, 1). ``None`` keeps no average.
        bias_correction: whether the average is debiased. Without, it is heavy-ball momentum's
            buffer times 1 − β₁.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import NoCurvature
        >>> like, p = NoCurvature(beta1=None), torch.zeros(1)
        >>> obs, _ = like.observe((), Raw(p + 3), p, None, like.scalars(1))
        >>> obs.grad, obs.curvature.values
        (tensor([3.]), tensor([0.]))

    Source: P (Aitchison 2020) Sec. 3.2; see :eq:`eq-sgd-limit`.
    """

    averages: ClassVar[bool] = True
    informative: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` that is finite when scaled."""
        return torch.finfo(dtype).max / max(2.0, 2 * float(self.scale))

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """Λ = 0, and the average gradient."""
        scale, *numbers = scalars
        grad = scale * raw.grad
        pull, like = self._pull(like, grad, tuple(numbers))
        return Observation(pull, Diag(torch.zeros_like(grad))), like

    def curvature(self, like: Any, p: Tensor, scalars: Packed) -> Diag:
        """Zero for every weight."""
        return Diag(torch.zeros_like(p))
