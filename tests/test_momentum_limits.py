"""When the momentum filter is Adam: a limit, with its order of error, and no everyday setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import filteropt
from filteropt import regression
from filteropt.models import MomentumAugmented
from filteropt.stationary_pair import stationary_pair
from filteropt.trees import tree_map
from tests.oracles.riccati import conditioned, iterate, momentum_model, scipys_prior


def ratios(lr, decay, root_h):
    """S_wp and S_ww at rest, over the paper's limits of them."""
    h = torch.tensor(root_h**2, dtype=torch.float64)
    transition = tree_map(float, MomentumAugmented(lr, math.inf, 0.0, decay).transition(1))
    found = regression.covariance(stationary_pair(h, transition))
    cross = decay / root_h
    weight = math.sqrt(2 * lr * decay) / root_h**1.5
    return found[..., 0, 1].item() / cross, found[..., 0, 0].item() / weight


def root_h(k, lr, decay):
    """From k = eta sqrt(h)/eta_p."""
    return k * decay / lr


def test_limit_table():
    """At eta_p = 1e-6 and k = 1e4 the limits hold within 2 %; an oracle says the same numbers."""
    lr, decay = 1e-3, 1e-6
    cross, weight = ratios(lr, decay, root_h(1e4, lr, decay))
    assert cross == pytest.approx(0.986, abs=5e-4)
    assert weight == pytest.approx(0.993, abs=5e-4)
    factor, noise = momentum_model(lr, 0.0, decay, math.inf)
    prior = iterate(scipys_prior(factor, noise, 100.0), factor, noise, np.longdouble(100), 60)
    exact = conditioned(prior, np.longdouble(100)).astype(float)
    assert exact[0, 1] / (decay / 10) == pytest.approx(cross, rel=1e-9)
    assert exact[0, 0] / (math.sqrt(2 * lr * decay) / 10**1.5) == pytest.approx(weight, rel=1e-9)


def test_error_of_the_limit_falls_like_one_over_root_k():
    """1 - S_wp/limit = sqrt(2/k) and 1 - S_ww/limit = 1/sqrt(2 k), while eta_p sqrt(2 k) -> 0."""
    lr, decay = 1e-3, 1e-9
    for k in (1e3, 1e4, 1e5, 1e6):
        cross, weight = ratios(lr, decay, root_h(k, lr, decay))
        slack = 0.1 + 2 / math.sqrt(k)
        assert (1 - cross) * math.sqrt(k / 2) == pytest.approx(1, rel=slack)
        assert (1 - weight) * math.sqrt(2 * k) == pytest.approx(1, rel=slack)


@pytest.mark.parametrize("k", [0.01, 1.0, 100.0, 1e4])
def test_weight_and_momentum_together_move_as_far_as_adam_whatever_k(k):
    """A steady gradient moves the weight by (S_ww + eta S_wp/eta_p) g per step in the long run.

    That is Adam's eta g/sqrt(h) at any k, short of it by eta_p (sqrt(1 + 2 k) - 1)/2 alone.
    """
    for decay in (1e-5, 1e-6):
        cross, weight = ratios(1e-3, decay, root_h(k, 1e-3, decay))
        short = 1 - (cross + weight * math.sqrt(2 / k))
        assert short == pytest.approx(decay * (math.sqrt(1 + 2 * k) - 1) / 2, rel=0.01)


def test_everyday_setting_is_far_from_the_limit():
    """At lr = 1e-3 and momentum 0.9 a unit gradient moves the momentum 200 times less than Adam."""
    cross, _ = ratios(1e-3, 0.1, 1.0)
    assert 1 / cross == pytest.approx(200, rel=0.15)


def test_k_alone_is_not_enough():
    """However large k, the steps must be small, too: eta_p sqrt(2 k) is the other parameter."""
    for decay in (1e-2, 1e-3):
        k = 50 / decay**2
        cross, _ = ratios(1e-3, decay, root_h(k, 1e-3, decay))
        assert cross < 0.5


class Adam:
    """Adam without debiasing of its momentum, which a filter's prior mean of 0 does not do."""

    def __init__(self, lr, beta1, beta2):
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2
        self.weights = self.m = self.v = 0.0
        self.t = 0

    def step(self, g):
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.root = np.sqrt(self.v / (1 - self.beta2**self.t))
        self.weights = self.weights - self.lr * self.m / self.root


def both(lr, decay, ks, gradients):
    """The stationary filter and Adam, fed with the same gradients of mean square h: all weights."""
    scales = np.array([root_h(k, lr, decay) for k in ks])
    p = torch.nn.Parameter(torch.zeros(len(ks), dtype=torch.float64))
    opt = filteropt.MomentumFilter([p], lr, 1e12, momentum_decay=decay, stationary=True)
    adam, weights, others = Adam(lr, 1 - decay, 0.999), [], []
    for g in gradients * scales:
        p.grad = torch.tensor(g)
        opt.step()
        adam.step(g)
        weights.append(p.detach().numpy().copy())
        others.append(adam.weights)
    return np.array(weights), np.array(others), opt.state[p]["mean_1"].numpy(), adam


def test_momentum_is_adams_first_moment_over_the_root_of_its_second():
    """Up to the error of S_wp, sqrt(2/k), while v rests (as |g| never changes)."""
    ks = np.array([1e3, 1e4, 1e5])
    signs = np.where(np.random.default_rng(0).random((60, 3)) < 0.8, 1.0, -1.0)
    *_, momentum, adam = both(1e-3, 1e-8, ks, signs)
    error = 1 - momentum / -(adam.m / adam.root)
    np.testing.assert_allclose(error * np.sqrt(ks / 2), 1, rtol=0.05)


def test_weights_follow_adams():
    """All along a run of 4/eta_p steps, to sqrt(2/k)/4 + eta_p sqrt(k/2) of Adam's way.

    The momentum falls short of Adam's by sqrt(2/k), and S_ww g adds just that to the step (see
    above), but at once, where Adam's follows 1/eta_p steps later.
    """
    lr, decay, steps = 1e-3, 4e-3, 1000
    ks = np.array([30.0, 100.0, 300.0, 1000.0])
    rng = np.random.default_rng(0)
    pulls = 0.8 * np.array([1.0, -1.0, 1.0, -1.0])  # a steady pull, and noise: mean square 1
    gradients = pulls + 0.6 * rng.choice([-1.0, 1.0], (steps, 4))
    weights, others, *_ = both(lr, decay, ks, gradients)
    error = np.abs(weights - others).max(0) / np.abs(others).max(0)
    assert (error < np.sqrt(2 / ks) / (decay * steps) + decay * np.sqrt(ks / 2)).all()
    assert error.min() < 0.04
    assert (np.abs(others).max(0) > 0.4 * lr * steps).all()  # a way that is worth comparing
