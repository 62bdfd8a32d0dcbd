"""An epoch's second look at the data is no new evidence: what the options count.

Two hundred and fifty regressions of one weight each, side by side: `y = w x + noise` with known
noise, so that Bayes' rule has the exact posterior of every weight, and the normalised error of its
mean, `(mean - w)^2 / variance`, averages 1 if the variance is honest.
"""

from __future__ import annotations

import math

import pytest
import torch

from filteropt import FilterOptimizer
from filteropt.approximations import Diagonal, GaussNewtonDiagonal, Repeated
from filteropt.engine import Filter
from filteropt.models import ForgetToPrior, Static

PROBLEMS, EXAMPLES, BATCHES, PRIOR = 250, 40, 8, 1.0


class Slopes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(PROBLEMS, dtype=torch.float64))

    def forward(self, x):
        return x * self.weight


def data(equal=False):
    generator = torch.Generator().manual_seed(0)
    truth = PRIOR**0.5 * torch.randn(PROBLEMS, dtype=torch.float64, generator=generator)
    x = torch.randn(EXAMPLES, PROBLEMS, dtype=torch.float64, generator=generator)
    x = x.sign() if equal else x
    noise = torch.randn(EXAMPLES, PROBLEMS, dtype=torch.float64, generator=generator)
    return truth, x, truth * x + noise


def trained(dynamics, likelihood, x, y, epochs):
    """The filter after some epochs of minibatches in random order."""
    model, generator = Slopes(), torch.Generator().manual_seed(1)
    filter = Filter(dynamics, likelihood, Diagonal(PRIOR))
    opt = FilterOptimizer(model.parameters(), lambda: filter, model=model)
    for _ in range(epochs):
        for rows in torch.randperm(EXAMPLES, generator=generator).chunk(BATCHES):
            opt.zero_grad()
            (0.5 * (model(x[rows]) - y[rows]).square().sum()).backward()
            opt.step()
    return model.weight.detach(), opt.posterior_variance(model.weight)


ONCE = ForgetToPrior(1 / BATCHES, PRIOR, after=BATCHES)
LIKELIHOOD = GaussNewtonDiagonal()


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_equal_batches_are_counted_once_however_often_they_are_seen(epochs):
    _, x, y = data(equal=True)
    _, variance = trained(ONCE, LIKELIHOOD, x, y, epochs)
    exact = torch.full_like(variance, 1 / (1 / PRIOR + EXAMPLES))
    torch.testing.assert_close(variance, exact, rtol=1e-12, atol=0)


def test_the_first_epoch_is_bayes_rule():
    _, x, y = data()
    mean, variance = trained(ONCE, LIKELIHOOD, x, y, 1)
    precision = 1 / PRIOR + x.square().sum(0)
    torch.testing.assert_close(1 / variance, precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, (x * y).sum(0) / precision, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_power_one_over_epochs_counts_the_harmonic_number(epochs):
    _, x, y = data()
    likelihood = Repeated(LIKELIHOOD, BATCHES)
    _, variance = trained(Static(), likelihood, x, y, epochs)
    harmonic = sum(1 / e for e in range(1, epochs + 1))
    exact = 1 / PRIOR + harmonic * x.square().sum(0)
    torch.testing.assert_close(1 / variance, exact, rtol=1e-12, atol=0)


def normalised_error(dynamics, likelihood, epochs):
    truth, x, y = data()
    mean, variance = trained(dynamics, likelihood, x, y, epochs)
    return ((mean - truth).square() / variance).mean().item()


def test_honest_variances_stay_honest_over_ten_epochs():
    """Within six standard errors of an exact posterior's 1; ignored repetition is 10 times off."""
    error = 6 * math.sqrt(2 / PROBLEMS)
    assert abs(normalised_error(Static(), LIKELIHOOD, 1) - 1) < error
    once = normalised_error(ONCE, LIKELIHOOD, 10)
    ignored = normalised_error(Static(), LIKELIHOOD, 10)
    harmonic = normalised_error(Static(), Repeated(LIKELIHOOD, BATCHES), 10)
    assert abs(once - 1) < error
    assert 7 < ignored < 13
    assert 2 < harmonic < 4


def test_unequal_batches_are_counted_once_on_average():
    """Fading weighs the last minibatches more: precisions spread, and do not drift."""
    _, x, y = data()
    exact = 1 / PRIOR + x.square().sum(0)
    for epochs in (2, 20):
        _, variance = trained(ONCE, LIKELIHOOD, x, y, epochs)
        ratio = 1 / variance / exact
        assert abs(ratio.mean() - 1) < 6 * ratio.std() / PROBLEMS**0.5
        assert 0.02 < ratio.std() < 0.2
