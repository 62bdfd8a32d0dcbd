"""The momentum filter: weight and momentum inferred jointly."""

from __future__ import annotations

from types import MappingProxyType

from filteropt.approximations import (
    Averaged,
    CentredGradient,
    Diagonal,
    FixedPoint,
    SquaredGradient,
)
from filteropt.engine import Filter
from filteropt.hyperparameters import (
    LearningRate,
    Momentum,
    Nonnegative,
    Positive,
    PositiveFraction,
    ScheduledNonnegative,
    ScheduledRate,
    checked,
)
from filteropt.models import MomentumAugmented
from filteropt.optimizer import FilterOptimizer

__all__ = ["MomentumFilter", "momentum_filter"]


@checked
def momentum_filter(
    lr: LearningRate = 1e-3,
    lr_sgd: ScheduledRate = 0.1,
    lr_w: ScheduledNonnegative = 0.0,
    momentum_decay: PositiveFraction = 0.1,
    *,
    batch_size: Positive = 1,
    centred_beta: Momentum | None = None,
    stationary: bool = False,
    beta2: Momentum | None = None,
    weight_decay: Nonnegative | None = None,
) -> Filter:
    """The composition of :class:`~filteropt.MomentumFilter` (same arguments)."""
    if beta2 is not None and not stationary:
        raise ValueError(
            f"momentum_filter: beta2={beta2!r} is the decay of the average that stationary=True "
            f"keeps; leave it out, or pass stationary=True"
        )
    likelihood = (
        SquaredGradient(batch_size, beta1=None)
        if centred_beta is None
        else CentredGradient(batch_size, beta1=None, centre_beta=centred_beta)
    )
    return Filter(
        MomentumAugmented(lr, lr_sgd / batch_size, lr_w, momentum_decay, weight_decay),
        Averaged(likelihood, 0.999 if beta2 is None else beta2) if stationary else likelihood,
        FixedPoint("exact") if stationary else Diagonal(),
    )


class MomentumFilter(FilterOptimizer):
    r"""The momentum filter: a 2×2 Kalman filter of every weight and its momentum.

    With :math:`g = B\,` ``p.grad`` taken at the prediction, :math:`\eta` = ``lr``, :math:`\eta_w` =
    ``lr_w``, :math:`\eta_p` = ``momentum_decay``, :math:`\sigma^2` = ``lr_sgd / B`` and
    :math:`d = (\eta^2+\eta_w^2)/(2\sigma^2)`,

    .. math::
        w^- &= (1-d)\,w^+ + \eta\,p^+, & w^+ &= w^- - \Sigma^+_{ww}\,g(w^-), \\
        p^- &= (1-\eta_p)\,p^+, & p^+ &= p^- - \Sigma^+_{wp}\,g(w^-).

    That is Nesterov's momentum, with a rate of its own for every weight and for its momentum, and
    weight decay applied before the gradient is taken. What is approximated: each weight's optimum
    drifts on its own, and one squared minibatch gradient stands for the curvature. While training
    the parameters hold the predicted mean :math:`w^-`; ``opt.eval()`` gives the posterior mean.

    Args:
        params: parameters, named parameters or groups of them.
        lr: η, how far a momentum of 1 moves a weight per step; [0, inf). 0 freezes the group.
        lr_sgd: the rate in the data-poor limit, B times the prior variance; (0, inf).
        lr_w: :math:`\eta_w`, standard deviation of the weights' own drift per step; [0, inf).
        momentum_decay: :math:`\eta_p`, fraction of momentum lost per step; (0, 1].
        batch_size: B, the examples that the loss averages over: the batch size for a mean loss, 1
            for a summed one; (0, inf).
        centred_beta: decay of the average about which squared gradients are centred; [0, 1).
            ``None`` does not centre them. Centred squares of noiseless gradients are nearly 0, and
            the rates then near ``lr_sgd``.
        stationary: whether the covariance is always at rest, the exact Riccati solution for the
            running average of squared gradients. It stores two numbers per weight instead of four.
        beta2: decay of that average; [0, 1). ``None``, which the recursion needs, takes 0.999.
        weight_decay: decoupled, per unit of ``lr``; [0, inf). ``None`` takes the model's own d,
            :math:`B(\text{lr}^2 + \text{lr}_w^2)/(2\,\text{lr}_{sgd})` per step, which is strong
            where ``lr`` is large.
        schedule: see :class:`filteropt.FilterOptimizer`, as for the keywords that follow.
        linearize_at: ``"prediction"``, the filter proper, or ``"posterior"``, where a step predicts
            and then conditions on the gradient taken before.
        maximize: maximise instead of minimise.
        on_nonfinite: ``"raise"``, ``"skip"`` the step, or ``"ignore"``: look at no gradient.
        fused: ``None``, ``True`` to compile the step, or ``False``.
        capturable: ``True`` for steps that CUDA graphs can capture.
        belief_dtype: ``None``; the covariance of two latents needs all its bits.
        model: the module that owns the parameters, for their names.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind.
        ValueError: a hyperparameter outside its range.

    Example:
        >>> import torch, filteropt
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> opt = filteropt.MomentumFilter([w], lr=1e-2, lr_sgd=0.1)
        >>> for _ in range(200):
        ...     opt.zero_grad()
        ...     w.square().sum().backward()
        ...     opt.step()
        >>> _ = opt.eval()    # the posterior mean
        >>> opt.posterior_covariance(w).shape    # of every weight and its momentum
        torch.Size([2, 2, 2])

    Source: Aitchison (2018) Eq. 15–17 and Sec. 2.2.4–2.2.7; derived in
    :eq:`eq-momentum-augmented` and :eq:`eq-nesterov`.
    """

    preset = staticmethod(momentum_filter)
    keywords = MappingProxyType({"linearize_at": "prediction"})
