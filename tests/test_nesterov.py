"""With a fixed covariance, the strict order is Nesterov's accelerated gradient, as an identity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import scipy.linalg
import torch

import filteropt
from filteropt.approximations import FixedPoint
from filteropt.engine import Filter
from filteropt.models import MomentumAugmented
from filteropt.types import Belief, Diag, Likelihood, Observation, Posterior

CURVATURE = np.array([0.3, 2.0, 9.0])
TARGET = np.array([1.0, -2.0, 0.5])
START = np.array([-1.0, 3.0, 0.7])
STEPS = 120


@dataclass(frozen=True)
class Known(Likelihood):
    """A curvature of h for every weight, whatever the gradient."""

    averages: ClassVar[bool] = True
    h: float = 4.0

    def observe(self, like, raw, p, prior, scalars):
        return Observation(raw.grad, self.curvature(like, p, scalars)), like

    def curvature(self, like, p, scalars):
        return Diag(torch.full_like(p, self.h))


@dataclass(frozen=True)
class Gains(Posterior):
    """A covariance whose first column is (weight, momentum) for ever."""

    latents: ClassVar[range] = range(2, 3)
    weight: float
    momentum: float
    initial_variance: float = 1.0

    def init(self, p, var0, k):
        return Belief((torch.zeros_like(p),), ())

    def drift(self, belief, transition):
        return transition.F[0][1] * belief.aux[0]

    def propagate(self, belief, transition, p=None):
        kept = (transition.F[1][1] * belief.aux[0],)
        return self.drift(belief, transition), Belief(kept, ())

    def condition(self, disp, prior, obs, transition):
        grad = obs.grad + obs.curvature.values * disp
        momentum = (prior.aux[0] - self.momentum * grad,)
        return disp - self.weight * grad, Belief(momentum, ())

    def variance(self, belief, curvature, transition):
        return torch.full_like(belief.aux[0], self.weight)


def gradient(weights):
    """Of a smooth convex function that is no quadratic."""
    return CURVATURE * (weights - TARGET) + 0.1 * (weights - TARGET) ** 3


def trained(filter):
    """The parameters before every gradient, and the posterior means after."""
    p = torch.nn.Parameter(torch.tensor(START))
    opt = filteropt.FilterOptimizer([p], lambda: filter, linearize_at="prediction")
    looked, means = [], []
    for _ in range(STEPS):
        looked.append(p.detach().numpy().copy())
        p.grad = torch.tensor(gradient(p.detach().numpy()))
        opt.step()
        opt.eval()
        means.append(p.detach().numpy().copy())
        opt.train()
    return np.array(looked), np.array(means)


def nesterov(rate, momentum, extra=0.0, decay=0.0):
    """Nesterov's method: the gradient is taken where the velocity (and the decay) will lead.

    v <- momentum v - rate g(ahead); theta <- ahead - rate g - extra g, both with g at
    ahead = (1 - decay) theta + momentum v.
    """
    theta, velocity = START, np.zeros(3)
    looked, means = [], []
    for t in range(STEPS):
        ahead = (1 - decay) * theta + momentum * velocity if t else theta
        looked.append(ahead)
        g = gradient(ahead)
        theta = ahead - (rate + extra) * g
        velocity = momentum * velocity - rate * g
        means.append(theta)
    return np.array(looked), np.array(means)


def close(found, expected, rtol=1e-11):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("decay", [0.1, 0.02])
@pytest.mark.parametrize("rate", [0.03, 0.1])
def test_matching_gains_are_nesterovs_method(rate, decay):
    """With eta S_wp = (1 - eta_p) S_ww: momentum 1 - eta_p, rate S_ww, velocity eta p/(1 - eta_p).

    The parameters are the points that gradients are taken at, eval() gives the iterates.
    """
    lr = 0.5
    dynamics = MomentumAugmented(lr, math.inf, momentum_decay=decay)
    family = Gains(rate, (1 - decay) * rate / lr)
    found = trained(Filter(dynamics, Known(), family))
    close(found, nesterov(rate, 1 - decay))
    q = torch.nn.Parameter(torch.tensor(START))
    sgd = torch.optim.SGD([q], lr=rate, momentum=1 - decay, nesterov=True)
    for expected in found[0]:
        np.testing.assert_allclose(q.detach().numpy(), expected, rtol=1e-11, atol=1e-11)
        q.grad = torch.tensor(gradient(q.detach().numpy()))
        sgd.step()
    assert np.abs(found[0][-1] - TARGET).max() < 0.2 * np.abs(START - TARGET).max()


@pytest.mark.parametrize("sigma2", [0.2, 5.0])
def test_decay_is_nesterov_accelerated_weight_decay(sigma2):
    """The gradient is taken after the weights decayed by d, and decay never enters the velocity."""
    lr, decay, rate = 0.1, 0.1, 0.05
    shrink = lr**2 / (2 * sigma2)
    dynamics = MomentumAugmented(lr, sigma2, momentum_decay=decay)
    family = Gains(rate, (1 - decay) * rate / lr)
    found = trained(Filter(dynamics, Known(), family))
    close(found, nesterov(rate, 1 - decay, decay=shrink))
    undecayed = nesterov(rate, 1 - decay)
    assert np.abs(found[0] - undecayed[0]).max() > 0.1 * shrink


@pytest.mark.parametrize("sigma2", [0.3, 10.0])
@pytest.mark.parametrize("lr_w", [0.0, 0.05])
def test_filter_at_rest_is_nesterovs_method_plus_a_step_of_its_own(sigma2, lr_w):
    """The Riccati gains need not match: what S_ww has above the velocity's rate is plain SGD."""
    lr, decay, h = 0.2, 0.1, 4.0
    shrink = (lr**2 + lr_w**2) / (2 * sigma2)
    factor = np.array([[1 - shrink, lr], [0.0, 1 - decay]])
    prior = scipy.linalg.solve_discrete_are(
        factor.T, np.eye(2)[:, :1], np.diag([lr_w**2, decay**2]), [[1 / h]]
    )
    weight, slow = np.linalg.inv(np.linalg.inv(prior) + np.diag([h, 0.0]))[0]
    rate = lr * slow / (1 - decay)
    dynamics = MomentumAugmented(lr, sigma2, lr_w, decay)
    found = trained(Filter(dynamics, Known(h), FixedPoint("exact")))
    close(found, nesterov(rate, 1 - decay, extra=weight - rate, decay=shrink), 1e-10)


def test_posterior_order_is_heavy_ball_momentum_when_nothing_is_known():
    """Without curvature the gradient before the move counts: velocity first, Polyak's method."""
    lr, decay, rate = 0.5, 0.1, 0.05
    slow = (1 - decay) * rate / lr
    dynamics = MomentumAugmented(lr, math.inf, momentum_decay=decay)
    p = torch.nn.Parameter(torch.tensor(START))
    filter = Filter(dynamics, Known(0.0), Gains(rate, slow))
    opt = filteropt.FilterOptimizer([p], lambda: filter, linearize_at="posterior")
    theta, velocity = START, np.zeros(3)
    for _ in range(STEPS):
        g = gradient(theta)
        theta = theta + (1 - decay) * velocity - rate * g
        velocity = (1 - decay) * velocity - rate * g
        p.grad = torch.tensor(gradient(p.detach().numpy()))
        opt.step()
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-11, atol=1e-11)
