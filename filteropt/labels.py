"""Labels drawn from a model's own prediction."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from filteropt.hyperparameters import Positive, check_values

__all__ = ["sample_labels"]

KINDS = Literal["categorical", "bernoulli", "gaussian"]


@torch.no_grad()
def sample_labels(
    outputs: Tensor,
    kind: KINDS,
    *,
    noise_variance: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw labels from the predictive distribution that the model's outputs stand for.

    .. math:: \tilde y \sim p(y \mid f), \qquad p = \begin{cases}
        \mathrm{Cat}(\operatorname{softmax} f) & \text{categorical} \\
        \mathrm{Bern}(\operatorname{sigmoid} f) & \text{Bernoulli} \\
        N(f, r) & \text{Gaussian} \end{cases}

    Their loss' gradient has the Fisher information as its covariance.

    Args:
        outputs: the model's outputs. Categorical: logits, ``(*, classes)`` for up to two
            dimensions, else ``(N, classes, *)``, as ``F.cross_entropy`` takes them.
        kind: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        noise_variance: r, for Gaussian outputs, in squared output units; (0, inf). A mean squared
            error without its factor ½ has r = ½.
        generator: source of randomness on the outputs' device; ``None`` for the default.

    Returns:
        Class numbers without the dimension of classes, 0 and 1 in the outputs' dtype, or real
        targets, as the loss takes them; without gradients.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range, or outputs without classes to choose from.

    Example:
        >>> import torch, filteropt
        >>> g = torch.Generator().manual_seed(0)
        >>> logits = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
        >>> filteropt.sample_labels(logits, "categorical", generator=g)
        tensor([1, 0])

    Source: U (Aitchison 2018) Sec. 2.1; see :eq:`eq-sampled-fisher`.
    """
    if not (isinstance(outputs, Tensor) and outputs.dtype.is_floating_point):
        kind_of = getattr(outputs, "dtype", type(outputs).__name__)
        raise TypeError(f"sample_labels: outputs must be a floating-point tensor, not {kind_of}")
    hints = {"kind": KINDS, "noise_variance": Positive}
    check_values("sample_labels", {"kind": kind, "noise_variance": noise_variance}, hints)
    outputs = outputs.detach()
    if kind == "categorical":
        if not outputs.dim() or outputs.shape[1 if outputs.dim() > 2 else -1] < 2:
            raise ValueError(
                f"sample_labels: outputs of shape {tuple(outputs.shape)} are no logits of two or "
                f"more classes; use kind='bernoulli' for one logit"
            )
        logits = outputs.movedim(1 if outputs.dim() > 2 else -1, -1)
        chances = logits.float().softmax(-1).reshape(-1, logits.shape[-1])
        return torch.multinomial(chances, 1, generator=generator).reshape(logits.shape[:-1])
    if kind == "bernoulli":
        return torch.bernoulli(outputs.sigmoid(), generator=generator)
    noise = torch.empty_like(outputs).normal_(generator=generator)
    return outputs + math.sqrt(noise_variance) * noise
