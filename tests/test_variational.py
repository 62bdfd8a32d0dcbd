"""VON, VOGN and Vadam, beside literal transcriptions that are given the same standard normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import filteropt
from tests.oracles import variational

STEPS = 50
DATA, BATCH, PRIOR = 60, 6, 2.0


class Problem:
    """Logistic regression of two tensors, a minibatch per step, and the draws' own stream."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.x = self.normal(DATA, 3)
        self.y = (self.normal(DATA, 1) > 0).double()
        self.model = nn.Linear(3, 1).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(0.5 * self.normal(*p.shape))
        self.streams = [torch.Generator().manual_seed(3) for _ in range(2)]

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def minibatch(self):
        rows = torch.randperm(DATA, generator=self.generator)[:BATCH]
        return self.x[rows], self.y[rows]

    def mean(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()]).numpy()

    def gradients(self, theta, x, y):
        """Every example's own gradient at ``theta``, ``(examples, weights)``."""
        x, y = np.hstack([x.numpy(), np.ones((len(x), 1))]), y.numpy()
        return (1 / (1 + np.exp(-x @ theta[:, None])) - y) * x

    def train(self, opt, oracle, *, samples, per_example=False):
        """Train both on the same minibatches and noise; they must agree all along."""
        ours, stream = self.streams
        loss = nn.BCEWithLogitsLoss()
        for _ in range(STEPS):
            x, y = self.minibatch()
            thetas, gradients, squares = [], [], []
            for _ in range(samples):
                eps = torch.randn(4, generator=stream, dtype=torch.float64).numpy()
                thetas.append(oracle.mean + oracle.sigma() * eps)
                found = self.gradients(thetas[-1], x, y)
                gradients.append(found.mean(0))
                squares.append((found**2).mean(0))
                with opt.sampled_params(train=True, generator=ours):
                    opt.zero_grad()
                    np.testing.assert_allclose(self.mean(), thetas[-1], rtol=1e-10, atol=1e-13)
                    loss(self.model(x), y).backward()
            opt.step()
            oracle.step(thetas, gradients, *([squares] if per_example else []))
            np.testing.assert_allclose(self.mean(), oracle.mean, rtol=1e-10, atol=1e-13)
            variance = [opt.posterior_variance(p).flatten() for p in self.model.parameters()]
            np.testing.assert_allclose(
                torch.cat(variance), oracle.sigma() ** 2, rtol=1e-10, atol=1e-13
            )


@pytest.fixture
def problem():
    return Problem()


@pytest.mark.parametrize(("beta1", "samples"), [(0.0, 1), (0.9, 1), (0.9, 3)])
@pytest.mark.parametrize("retracted", [False, True])
def test_von(problem, retracted, beta1, samples):
    """Without retraction, as long as no step takes half of the precision away."""
    rate, lr, s = 0.02, 0.05, 1.0
    opt = filteropt.VON(
        problem.model.parameters(), lr, DATA, prior_precision=PRIOR, initial_curvature=s,
        beta1=beta1, beta2=1 - rate, retracted=retracted,
    )  # fmt: skip
    method = variational.RetractedVON if retracted else variational.VON
    oracle = method(problem.mean(), DATA, PRIOR, s, rate, lr, beta1)
    problem.train(opt, oracle, samples=samples)


def test_von_with_its_own_rate_is_the_filter_itself(problem):
    """Eq. 7-8 have one rate: the preset without projection, that is."""
    rate = 0.02
    (scaled,) = filteropt.presets.von(rate, DATA, beta1=0.0, beta2=1 - rate).projections
    assert scaled.factor == pytest.approx(1, rel=1e-12)
    bare = filteropt.variant(filteropt.presets.von, projections=())
    opt = filteropt.FilterOptimizer(
        problem.model.parameters(), bare, lr=rate, dataset_size=DATA, prior_precision=PRIOR,
        beta1=0.0, beta2=1 - rate, retracted=False,
    )  # fmt: skip
    oracle = variational.VON(problem.mean(), DATA, PRIOR, 1.0, rate, rate)
    problem.train(opt, oracle, samples=1)


@pytest.mark.parametrize("order", [1, 2])
def test_a_hessian_below_zero_leaves_the_precision_positive(order):
    """A draw where the product is -40: order 1 halves the precision, order 2 follows (V^2)/2P."""
    w = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    rate, n, lam, s = 0.1, 10.0, 1.0, 1.0
    opt = filteropt.VON(
        [w], 0.01, n, prior_precision=lam, initial_curvature=s, beta2=1 - rate, retracted=order == 2
    )
    with opt.sampled_params(train=True):
        score = (w.detach() - 0.3) * (n * s + lam)
        (-40 / score * w).sum().backward()
    opt.step()
    precision, velocity = n * s + lam, n * rate * (-40 - s)
    expected = precision / 2 if order == 1 else precision + velocity + velocity**2 / 2 / precision
    assert 1 / opt.posterior_variance(w).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("beta1", "samples"), [(0.0, 1), (0.9, 1), (0.9, 3)])
@pytest.mark.parametrize("s", [0.0, 0.5])
def test_vogn(problem, s, beta1, samples):
    rate, lr = 0.05, 0.02
    opt = filteropt.VOGN(
        problem.model.parameters(), lr, DATA, batch_size=BATCH, prior_precision=PRIOR,
        initial_curvature=s, beta1=beta1, beta2=1 - rate, model=problem.model,
    )  # fmt: skip
    oracle = variational.VON(problem.mean(), DATA, PRIOR, s, rate, lr, beta1)
    problem.train(opt, oracle, samples=samples, per_example=True)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.9), (0.9, 0.999)])
def test_vadam(problem, beta1, beta2, samples):
    lr = 0.02
    opt = filteropt.Vadam(
        problem.model.parameters(), lr, DATA, prior_precision=PRIOR, beta1=beta1, beta2=beta2
    )
    oracle = variational.Vadam(problem.mean(), DATA, PRIOR, lr, beta1, beta2)
    problem.train(opt, oracle, samples=samples)


def test_vadam_without_noise_and_prior_is_adam(problem):
    """With lambda = 0 nothing but Adam is left of Fig. 1; a tiny prior and no noise come near."""
    start = [p.detach().clone() for p in problem.model.parameters()]
    found = []
    for make in (
        lambda ps: filteropt.Vadam(ps, 0.02, 1e12, prior_precision=1e-4),
        lambda ps: torch.optim.Adam(ps, 0.02, eps=1e-16),
    ):
        with torch.no_grad():
            for p, x in zip(problem.model.parameters(), start, strict=True):
                p.copy_(x)
        opt = make(problem.model.parameters())
        sampled = hasattr(opt, "sampled_params")
        for _ in range(20):
            opt.zero_grad()
            if sampled:
                with opt.sampled_params(train=True, temperature=0.0):
                    problem.model(problem.x).square().mean().backward()
            else:
                problem.model(problem.x).square().mean().backward()
            opt.step()
        found.append(problem.mean())
    np.testing.assert_allclose(*found, rtol=1e-8)


@pytest.mark.parametrize("name", ["VON", "VOGN", "Vadam"])
def test_schedules_multiply_the_rate_of_the_mean_alone(name):
    """A scheduler that halves lr: the belief, given the same gradients, stays what it was."""
    variances, moves = [], []
    for factor in (1.0, 0.5):
        torch.manual_seed(0)
        model, x = nn.Linear(2, 1).double(), torch.ones(4, 2, dtype=torch.float64)
        options = {"batch_size": 4, "model": model} if name == "VOGN" else {}
        opt = getattr(filteropt, name)(model.parameters(), 0.1, 30.0, **options)
        opt.param_groups[0]["lr"] *= factor
        before = model.weight.detach().clone()
        with opt.sampled_params(train=True):
            model(x).square().mean().backward()
        opt.step()
        variances.append(opt.posterior_variance(model.weight))
        moves.append(model.weight.detach() - before)
    torch.testing.assert_close(variances[1], variances[0], rtol=0, atol=0)
    torch.testing.assert_close(2 * moves[1], moves[0], rtol=1e-10, atol=0)
