"""The posterior predictive: what a model says, averaged over weights drawn from the belief."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from filteropt.batch_statistics import Batches, Inputs
from filteropt.dtypes import belief_dtype
from filteropt.hyperparameters import Nonnegative, Positive, check_values
from filteropt.passes import Plan, perform
from filteropt.sampling import SamplingOptimizer

__all__ = ["Prediction", "predict"]

KINDS = Literal["categorical", "bernoulli", "gaussian"]


@dataclass(frozen=True, eq=False)
class Prediction:
    r"""A mixture of S predictive distributions, one for each draw of the weights.

    By the law of total variance the parts add up, exactly for this mixture:

    .. math:: \operatorname{Var}[y] = \underbrace{\operatorname{Var}_w\, E[y \mid w]}_{\text{
        epistemic}} + \underbrace{E_w \operatorname{Var}[y \mid w]}_{\text{noise}}, \qquad
        I[y; w] = H[y] - E_w\, H[y \mid w] .

    As a mixture of draws is meant, variances over draws have the divisor S; S/(S−1) times
    ``epistemic`` estimates the belief's own without bias. Labels are independent given the weights,
    and a categorical one is meant as a vector of zeros and a one.

    Attributes:
        kind: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
        mean: E[y], shaped like the model's output: probabilities, or the regression's mean.
        variance: Var[y], shaped like ``mean``; the sum of the next two.
        epistemic: the part due to what is not known of the weights.
        noise: the part that would remain with known weights.
        entropy: H[y] in nats. Categorical: without the dimension of classes; else as ``mean``. The
            entropy of a mixture of Gaussians is replaced by its upper bound, that of one Gaussian
            of this variance.
        mutual_information: I[y; w] in nats, shaped like ``entropy``; with Gaussians an upper bound.
        samples: E[y | w] of every draw, ``(S, *mean.shape)``, if they were asked for.
    """

    kind: str
    mean: Tensor
    variance: Tensor
    epistemic: Tensor
    noise: Tensor
    entropy: Tensor
    mutual_information: Tensor
    samples: Tensor | None = None

    def __repr__(self) -> str:
        draws = "" if self.samples is None else f", {len(self.samples)} samples"
        return f"Prediction({self.kind}, {tuple(self.mean.shape)}{draws})"

    @property
    def probabilities(self) -> Tensor:
        """The classes' probabilities, or those of ones; ``mean`` by another name."""
        if self.kind == "gaussian":
            raise AttributeError(
                "a Gaussian prediction has a mean and a variance, no probabilities"
            )
        return self.mean


@torch.no_grad()
def predict(
    model: nn.Module,
    opt: SamplingOptimizer,
    x: Inputs,
    n_samples: int = 32,
    *,
    kind: KINDS | None = None,
    noise_variance: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    batch_stats: Batches | None = None,
    keep_samples: bool = False,
    memory: float = 2**28,
) -> Prediction:
    r"""Average a model's prediction over weights drawn from the belief.

    .. math:: p(y \mid x) \approx \frac1S \sum_{s=1}^S p(y \mid x, w_s), \qquad
        w_s \sim N(\mu, T\,\Sigma)

    The draws are those of ``opt.sampled_params(generator=generator)``, one after the other. The
    model runs in eval mode; its weights, buffers and modes are afterwards what they were, bit for
    bit and whatever happens. What is approximated: the integral by S draws, and the posterior by
    the filter's, which is given the other weights' present values.

    Draws are looked at together by ``torch.func.vmap`` as far as ``memory`` allows. The first is
    also looked at on its own; where ``vmap`` does not run the model, or finds something else, a
    warning says why, once for a model, and draws are looked at one after the other.

    Args:
        model: returns one tensor: logits, shaped as :func:`filteropt.sample_labels` takes them, or
            the mean of a regression.
        opt: the optimizer of the model's parameters; others of them stay as they are.
        x: a tensor; or a tuple of the model's arguments, or a dict of them by name. On the model's
            device: nothing is moved.
        n_samples: S, the number of draws; [0, inf). 0 is the point estimate: the posterior mean,
            with ``epistemic`` 0.
        kind: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``. ``None`` takes several outputs
            per example for a categorical label's logits, and one output, or any for which a
            ``noise_variance`` is given, for a Gaussian's mean: say it where that is not meant.
        noise_variance: r, of Gaussian labels given the weights, in squared output units; (0, inf).
            A number, or a tensor that fits the output. ``None`` is 1.
        generator: source of randomness on the parameters' device; ``None`` for the default.
        temperature: T, factor on the covariance; [0, inf). 0 is the point estimate.
        batch_stats: data from which the running statistics of BatchNorm layers are estimated anew
            for every draw, one after the other: a batch as ``x``, or an iterable of them that can
            be read again and again. Of a batch that is a list, as a ``DataLoader`` gives, the first
            entry is taken. ``None`` uses the model's own, which belong to the mean.
        keep_samples: whether to return what every draw predicts.
        memory: bytes for draws that are looked at together: their weights, and the largest input
            and output of a layer; [0, inf). 0 takes one after the other, which is faster for
            convolutions on a CPU. ``x`` is not split.

    Returns:
        The prediction, in float32 for half-precision outputs, else in the outputs' dtype.

    Raises:
        RuntimeError: the parameters hold a draw already.
        TypeError: an argument of the wrong kind, or a model that returns no tensor.
        ValueError: an argument outside its range, outputs without classes to choose from, a model
            none of whose parameters are the optimizer's, or a variance that is not finite.

    Example:
        >>> import torch, filteropt
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Linear(2, 3), torch.randn(5, 2)
        >>> opt = filteropt.AdaBayes(model.parameters(), lr_sgd=0.5)
        >>> prediction = filteropt.predict(model, opt, x, n_samples=100)
        >>> prediction.probabilities.shape, prediction.entropy.shape
        (torch.Size([5, 3]), torch.Size([5]))
        >>> bool((prediction.mutual_information > 0).all())
        True

    Source: Bayesian model averaging; the mutual information is that of Houlsby et al. (2011).
    """
    if noise_variance is None:
        noise_variance = 1.0
    elif kind is None:
        kind = "gaussian"
    values = {"kind": kind, "temperature": temperature, "memory": memory}
    hints = {"kind": KINDS | None, "temperature": Nonnegative, "memory": Nonnegative}
    check_values("predict", values, hints)
    check_values("predict", {"keep_samples": keep_samples}, {"keep_samples": bool})
    _check(model, opt, n_samples, noise_variance)
    plan = Plan(model, opt, x, n_samples, generator, float(temperature), batch_stats, memory)
    if not plan.params():
        raise ValueError(
            f"predict: none of the optimizer's parameters is {type(model).__name__}'s; pass the "
            f"module whose parameters it was given"
        )
    mixture = _Mixture(kind, noise_variance, keep_samples)
    perform(plan, mixture.add)
    return mixture.result()


def _check(model: object, opt: object, n_samples: object, noise_variance: object) -> None:
    """Refuse arguments of the wrong kind or range."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"predict: model is {type(model).__name__}, but must be a torch.nn.Module")
    if not isinstance(opt, SamplingOptimizer):
        raise TypeError(
            f"predict: opt is {type(opt).__name__}, which believes nothing about its parameters; "
            f"use one of filteropt's"
        )
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 0:
        raise ValueError(f"predict: n_samples={n_samples!r} must be a whole number in [0, inf)")
    if not isinstance(noise_variance, Tensor):
        check_values("predict", {"noise_variance": noise_variance}, {"noise_variance": Positive})
    elif not bool(((noise_variance > 0) & noise_variance.isfinite()).all()):
        raise ValueError("predict: noise_variance must be in (0, inf)")


class _Mixture:
    """Running averages over draws."""

    def __init__(self, kind: KINDS | None, noise_variance: float | Tensor, keep: bool) -> None:
        self.kind = kind
        self.noise_variance = noise_variance
        self.count = 0
        self.mean: Any = 0.0
        self.spread: Any = 0.0  # the sum of squared distances from the mean
        self.noise: Any = 0.0
        self.entropy: Any = 0.0
        self.kept: list[Tensor] | None = [] if keep else None

    def add(self, outputs: Tensor) -> None:
        """Take in some draws' outputs, ``(draws, *output.shape)``."""
        if self.kind is None:
            several = outputs.dim() > 2 and outputs.shape[self._classes(outputs)] > 1
            self.kind = "categorical" if several else "gaussian"
        means = self._means(outputs.detach().to(belief_dtype(outputs)))
        noise = self._noise(means)
        entropy = self._entropy(means, noise)
        n, count = len(means), self.count + len(means)
        mean = means.mean(0)
        apart = mean - self.mean
        within = (means - mean).square().sum(0)
        self.spread = self.spread + within + apart.square() * (n * self.count / count)
        self.mean = self.mean + apart * (n / count)
        self.noise = self.noise + (noise.mean(0) - self.noise) * (n / count)
        self.entropy = self.entropy + (entropy.mean(0) - self.entropy) * (n / count)
        self.count = count
        if self.kept is not None:
            self.kept.append(means)

    def result(self) -> Prediction:
        """What the draws so far predict together."""
        assert self.kind is not None, "told by the first draw's outputs"
        epistemic = self.spread / self.count
        variance = epistemic + self.noise
        entropy = self._entropy(self.mean[None], variance[None])[0]
        return Prediction(
            self.kind, self.mean, variance, epistemic, self.noise, entropy,
            mutual_information=(entropy - self.entropy).clamp_min(0),
            samples=None if self.kept is None else torch.cat(self.kept),
        )  # fmt: skip

    def _means(self, outputs: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return outputs
        if self.kind == "bernoulli":
            return torch.sigmoid(outputs)
        dim = self._classes(outputs)
        if outputs.dim() < 2 or outputs.shape[dim] < 2:
            raise ValueError(
                f"predict: outputs of shape {tuple(outputs.shape[1:])} are no logits of two or "
                f"more classes; use kind='bernoulli' for one logit"
            )
        return torch.softmax(outputs, dim)

    def _noise(self, means: Tensor) -> Tensor:
        if self.kind != "gaussian":
            return means * (1 - means)
        noise: Tensor = torch.as_tensor(self.noise_variance, dtype=means.dtype, device=means.device)
        return noise.expand_as(means)

    def _entropy(self, means: Tensor, variances: Tensor) -> Tensor:
        """Entropies of labels of these means, or of Gaussian ones of these variances."""
        if self.kind == "gaussian":
            return (variances.log() + math.log(2 * math.pi * math.e)) / 2
        if self.kind == "bernoulli":
            binary: Tensor = torch.special.entr(means) + torch.special.entr(1 - means)
            return binary
        entropy: Tensor = torch.special.entr(means).sum(self._classes(means))
        return entropy

    @staticmethod
    def _classes(stacked: Tensor) -> int:
        """The dimension of classes of outputs that lead with the draws."""
        return 2 if stacked.dim() > 3 else -1
