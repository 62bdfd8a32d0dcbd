"""Curvature from a gradient at a draw: the reparameterised Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from filteropt.approximations._gradient_average import GradientLikelihood
from filteropt.types import Belief, Diag, Memory, Observation, Packed, Raw

__all__ = ["Price"]


@dataclass(frozen=True)
class Price(GradientLikelihood):
    r"""The product of a draw's offset and the gradient there, over the variance, is the precision.

    With :math:`w = \mu + \sigma\epsilon` drawn from the belief and :math:`g(w)` the gradient there,

    .. math:: \Lambda = \frac{\epsilon}{\sigma}\, g(\mu + \sigma\epsilon), \qquad
        E[\Lambda] = E[\operatorname{diag} H(w)] .

    It is the diagonal of the Hessian averaged over the belief, without bias and without second
    derivatives (Price's, Bonnet's or Stein's identity), at the price of a high variance: one
    estimate may be negative, so the posterior must be one that stays positive, such as
    :class:`Retracted`. Nothing is approximated in expectation. Losses and gradients must be
    computed inside of ``with opt.sampled_params(train=True):``.

    Args:
        scale: factor from ``p.grad`` to the gradient of the summed loss: the batch size for a
            mean loss, 1 for a summed one; (0, inf).
        beta1: decay of the average that moves the mean; [0, 1). ``None`` keeps none and moves the
            mean by the gradient itself.
        bias_correction: whether that average is debiased.
        sync: whether gradients and products are averaged over the processes that train together,
            each with its own draws.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> from filteropt.approximations import Price
        >>> like, p = Price(beta1=None), torch.zeros(1)
        >>> obs, _ = like.observe((), Raw(p + 3, products=p - 2), p, None, like.scalars(1))
        >>> obs.curvature.values
        tensor([-2.])

    Source: Khan et al. (2018) Sec. 3; Shen et al. (2024); derived in :eq:`eq-price`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"grad", "products"})
    source: ClassVar[str] = "samples"
    signed: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    sync: bool = False

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The largest ``|p.grad|`` that is finite when scaled."""
        return torch.finfo(dtype).max / max(2.0, 2 * float(self.scale))

    def observe(
        self, like: Any, raw: Raw, p: Tensor, prior: Belief, scalars: Packed
    ) -> tuple[Observation, Memory]:
        """Λ = g·ε/σ, and the average gradient."""
        assert raw.products is not None, "what a likelihood needs is gathered"
        scale, *numbers = scalars
        pull, like = self._pull(like, scale * raw.grad, tuple(numbers))
        return Observation(pull, Diag(scale * raw.products)), like
