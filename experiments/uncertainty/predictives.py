"""Predictive distributions of a trained network: at its mean, and averaged over weights.

A belief's covariance is that of every weight's optimum given the other weights, not of all weights
together, and a variational posterior is a mean field, too. So every method's spread has one free
factor, the temperature (for the last layer's Laplace approximation the prior precision), fitted on
validation images; and a factor on the logits, the usual temperature scaling, is fitted alike.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from experiments.uncertainty.laplace import LastLayer, fit_last_layer, sample_logits
from experiments.uncertainty.methods import Method

DRAWS, TUNING_DRAWS, QUICK_DRAWS = 20, 10, 2
LAPLACE_DRAWS = 100
TEMPERATURES = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
PRECISIONS = tuple(10.0**k for k in range(-2, 5))
SCALES = tuple(2.0 ** (k / 20) for k in range(-60, 41))
_CHUNK = 500

Fitted = dict[str, float]
Sampler = Callable[[float], AbstractContextManager[None]]


@dataclass
class Trained:
    """A trained method.

    Attributes:
        method: The method.
        networks: Its networks, one but for an ensemble, in evaluation mode.
        optimizer: The optimizer of the first.
        generator: Source of randomness of draws.
        last_layer: The Laplace approximation, where there is one.
    """

    method: Method
    networks: list[nn.Module]
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    last_layer: LastLayer | None = None

    @property
    def network(self) -> nn.Module:
        """The first network."""
        return self.networks[0]

    def sampler(self) -> Sampler:
        """Contexts in which the network's weights are a draw, at a temperature."""
        if self.method.asks == "dropout":
            return lambda _: _dropping(self.network)
        drawn: Any = getattr(self.optimizer, "sampled_params", None)
        return lambda temperature: drawn(generator=self.generator, temperature=temperature)


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Evaluate a network on many images.

    Args:
        network: The network.
        images: Images, ready for the network.

    Returns:
        Logits, ``(n, classes)``.
    """
    return torch.cat([network(part) for part in images.split(_CHUNK)])


def mixture(drawn: Iterable[Tensor]) -> Tensor:
    """Average probabilities.

    Args:
        drawn: Logits of each draw, ``(n, classes)``.

    Returns:
        Logarithms of the mean probabilities, ``(n, classes)``.
    """
    total, count = None, 0
    for out in drawn:
        log_p = out.double().log_softmax(-1)
        total = log_p if total is None else torch.logaddexp(total, log_p)
        count += 1
    assert total is not None, "at least one draw"
    return total - math.log(count)


def _draws(trained: Trained, images: Tensor, temperature: float, count: int) -> Iterator[Tensor]:
    if trained.method.asks == "ensemble":
        yield from (logits(network, images) for network in trained.networks)
        return
    sampler = trained.sampler()
    for _ in range(count):
        with sampler(temperature):
            yield logits(trained.network, images)


@contextmanager
def _dropping(network: nn.Module) -> Generator[None, None, None]:
    """Let a network's dropout drop, in evaluation."""
    network.train()
    try:
        yield
    finally:
        network.eval()


def attach_last_layer(trained: Trained, images: Tensor) -> None:
    """Fit the last layer's Laplace approximation to a network that was trained.

    Args:
        trained: The network, to which the approximation is added.
        images: Training images, ready for the network.
    """
    trained.last_layer = fit_last_layer(*_features(trained.network, images))


def _features(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the last linear layer is given, and what it returns."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        out = logits(network, images)
    finally:
        handle.remove()
    return torch.cat(seen), out


def _laplace(trained: Trained, images: Tensor, precision: float) -> Tensor:
    assert trained.last_layer is not None, "attached after training"
    features, out = _features(trained.network, images)
    covariance = trained.last_layer.logit_covariance(features, precision)
    return mixture(sample_logits(out.double(), covariance, LAPLACE_DRAWS, trained.generator))


def predict(trained: Trained, images: Tensor, fitted: Fitted, draws: int) -> dict[str, Tensor]:
    """Ask for every predictive distribution that a method has.

    Args:
        trained: The trained method.
        images: Images, ready for the network.
        fitted: What was fitted on validation images; see :func:`fit`.
        draws: Draws of the weights that are averaged.

    Returns:
        Log-probabilities ``(n, classes)``: ``point``, at the mean; ``scaled``, there with the
        fitted factor on the logits; ``posterior``, averaged over weights; ``laplace``.
    """
    asks, found = trained.method.asks, {}
    if asks != "ensemble":
        out = logits(trained.network, images).double()
        found["point"] = out.log_softmax(-1)
        found["scaled"] = (fitted["scale"] * out).log_softmax(-1)
    if asks != "point":
        found["posterior"] = mixture(_draws(trained, images, fitted.get("temperature", 1.0), draws))
    if trained.last_layer is not None:
        found["laplace"] = _laplace(trained, images, fitted["prior_precision"])
    return found


def fit(trained: Trained, images: Tensor, labels: Tensor, draws: int) -> Fitted:
    """Fit what a method's predictive distributions leave free to validation images, by the NLL.

    Args:
        trained: The trained method.
        images: Validation images, ready for the network.
        labels: Their labels.
        draws: Draws of the weights that are averaged.

    Returns:
        ``scale``, the factor on the logits; ``temperature``, the factor on the covariance, for a
        belief; ``prior_precision``, for the last layer's Laplace approximation.
    """
    out = logits(trained.network, images).double()

    def best(grid: Iterable[float], ask: Callable[[float], Tensor]) -> float:
        losses = {x: nll_loss(ask(x), labels).item() for x in grid}
        return min(losses, key=lambda x: (math.isnan(losses[x]), losses[x]))

    fitted = {"scale": best(SCALES, lambda scale: (scale * out).log_softmax(-1))}
    if trained.method.asks == "belief":
        fitted["temperature"] = best(
            TEMPERATURES, lambda t: mixture(_draws(trained, images, t, draws))
        )
    if trained.last_layer is not None:
        fitted["prior_precision"] = best(PRECISIONS, lambda x: _laplace(trained, images, x))
    return fitted
