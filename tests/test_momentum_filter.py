"""The momentum filter is a joint Kalman filter of weights and momenta, in either order."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt
from filteropt.approximations import Dense
from filteropt.presets import momentum_filter
from filteropt.testing import parts
from filteropt.types import Diag
from tests.gathering import backward
from tests.oracles.kalman import JointKalman

DATA = Path(__file__).parent / "data"
START = np.array([0.4, -1.1, 0.05, 2.0])


def model(lr, sigma2, lr_w, decay):
    """F and Q of Aitchison (2018), Eq. 15 and 16."""
    factor = [[1 - (lr**2 + lr_w**2) / (2 * sigma2), lr], [0.0, 1 - decay]]
    return factor, np.diag([lr_w**2, decay**2])


def parameter(weights=START):
    return torch.nn.Parameter(torch.tensor(weights, dtype=torch.float64))


def gradients(seed, steps, scale=1.0):
    """Gradients of very different sizes, exact zeros among them."""
    rng = np.random.default_rng(seed)
    found = scale * rng.standard_normal((steps, len(START))) * 10.0 ** np.array([-3, -1, 0, 1])
    found[rng.random(found.shape) < 0.1] = 0.0
    return found


def close(found, expected, rtol=1e-10):
    np.testing.assert_allclose(
        found.detach().numpy(), expected, rtol=rtol, atol=rtol * np.abs(expected).max()
    )


def step(opt, p, gradient):
    p.grad = torch.tensor(gradient, dtype=p.dtype)
    opt.step()


hyperparameters = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-4, 0.2),
        "lr_sgd": st.floats(0.4, 10.0),
        "lr_w": st.sampled_from([0.0, 1e-3, 0.1]),
        "momentum_decay": st.floats(1e-3, 1.0),
        "batch_size": st.sampled_from([1, 8]),
        "weight_decay": st.sampled_from([None, 0.0, 0.5]),
    }
)


def test_trajectory_matches_reference():
    reference = json.loads((DATA / "momentum_filter.json").read_text())
    given_ = reference["hyperparameters"]
    p = parameter(reference["initial"])
    opt = filteropt.MomentumFilter(
        [p],
        lr=given_["eta"],
        lr_sgd=given_["sigma2"] * given_["batch_size"],
        lr_w=given_["eta_w"],
        momentum_decay=given_["eta_p"],
        batch_size=given_["batch_size"],
    )
    pairs = zip(
        reference["mean_loss_gradients"], reference["parameters_after_each_step"], strict=True
    )
    for gradient, expected in pairs:
        step(opt, p, gradient)
        close(p, np.array(expected))
    close(opt.posterior_covariance(p), np.array(reference["final_posterior_covariance"]))


@settings(max_examples=50, deadline=None)
@given(
    options=hyperparameters,
    linearize_at=st.sampled_from(["prediction", "posterior"]),
    schedule=st.sampled_from(["gain", "model"]),
    seed=st.integers(0, 10**6),
)
def test_equals_a_joint_kalman_filter_in_both_orders_under_both_schedules(
    options, linearize_at, schedule, seed
):
    p = parameter()
    opt = filteropt.MomentumFilter([p], linearize_at=linearize_at, schedule=schedule, **options)
    batch, decay = options["batch_size"], options["momentum_decay"]
    sigma2 = options["lr_sgd"] / batch
    oracle = JointKalman(START, [sigma2, decay / 2], strict=linearize_at == "prediction")
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 - 0.6 * math.sin(t) ** 2)
    for gradient in gradients(seed, 12, 1 / batch):
        ratio = opt.param_groups[0]["lr"] / options["lr"]
        by_model = ratio if schedule == "model" else 1.0
        lr, lr_w = by_model * options["lr"], by_model * options["lr_w"]
        step(opt, p, gradient)
        scheduler.step()
        oracle.step(
            batch * gradient,
            (batch * gradient) ** 2,
            *model(lr, by_model * sigma2, lr_w, decay),
            gain=1.0 if schedule == "model" else ratio,
            decay=None if options["weight_decay"] is None else lr * options["weight_decay"],
        )
        close(p, oracle.weights(), 1e-9)
        close(opt.posterior_covariance(p), oracle.blocks(), 1e-9)
        close(opt.posterior_variance(p), oracle.blocks()[:, 0, 0], 1e-9)
    opt.eval()
    close(p, oracle.posterior, 1e-9)


@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
def test_centred_beta_centres_the_squared_gradients(linearize_at):
    """The centre is the debiased average of the gradients before; its own error is taken out."""
    beta, centre, p = 0.8, np.zeros(4), parameter()
    opt = filteropt.MomentumFilter([p], 0.05, 0.5, centred_beta=beta, linearize_at=linearize_at)
    oracle = JointKalman(START, [0.5, 0.05], strict=linearize_at == "prediction")
    factor, noise = model(0.05, 0.5, 0.0, 0.1)
    for t, gradient in enumerate(gradients(3, 20), 1):
        weights = (1 - beta) * beta ** np.arange(t - 1) / (1 - beta ** (t - 1)) if t > 1 else [0.0]
        unbias = 1 / (1 + np.sum(np.square(weights))) if t > 1 else 0.0
        mean = centre / (1 - beta ** (t - 1)) if t > 1 else 0.0
        oracle.step(gradient, unbias * (gradient - mean) ** 2, factor, noise)
        centre = beta * centre + (1 - beta) * gradient
        step(opt, p, gradient)
        close(p, oracle.weights())
        close(opt.posterior_covariance(p), oracle.blocks())


def test_groups_may_differ_in_order_and_in_everything_else():
    strict, loose = parameter(), parameter()
    options = {"lr": 0.1, "lr_sgd": 2.0, "lr_w": 0.01, "momentum_decay": 0.3}
    opt = filteropt.MomentumFilter(
        [{"params": [strict]}, {"params": [loose], "linearize_at": "posterior", **options}]
    )
    first = JointKalman(START, [0.1, 0.05], strict=True)
    second = JointKalman(START, [2.0, 0.15], strict=False)
    for gradient in gradients(5, 20):
        strict.grad = loose.grad = torch.tensor(gradient)
        opt.step()
        first.step(gradient, gradient**2, *model(1e-3, 0.1, 0.0, 0.1))
        second.step(gradient, gradient**2, *model(0.1, 2.0, 0.01, 0.3))
        close(strict, first.weights())
        close(loose, second.weights())
    opt.eval()
    close(strict, first.posterior)
    close(loose, second.weights())
    opt.train()
    close(strict, first.weights())


@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
def test_dense_family_equals_the_diagonal_one(linearize_at):
    def dense(**values):
        return replace(momentum_filter(**values), posterior=Dense())

    options = {"lr": 0.1, "lr_sgd": 0.5, "lr_w": 0.02, "linearize_at": linearize_at}
    p, q = parameter(), parameter()
    opt = filteropt.MomentumFilter([p], **options)
    joint = filteropt.FilterOptimizer([q], dense, **options)
    for gradient in gradients(7, 30):
        step(opt, p, gradient)
        step(joint, q, gradient)
        close(p, q.detach().numpy(), 1e-12)
        close(joint.posterior_variance(q), opt.posterior_variance(p).numpy(), 1e-12)
    whole = joint.posterior_covariance(q).reshape(4, 2, 4, 2)
    close(torch.einsum("iaib->iab", whole), opt.posterior_covariance(p).numpy(), 1e-12)
    between = torch.einsum("iajb,ij->iajb", whole, 1 - torch.eye(4, dtype=whole.dtype))
    assert between.abs().max() < 1e-14


def diagonal_likelihoods():
    found = {name: cls() for name, cls in parts("likelihood").items()}
    return {k: type(v) for k, v in found.items() if v.gives is Diag and not v.signed}


@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
@pytest.mark.parametrize("name", diagonal_likelihoods())
def test_every_diagonal_likelihood_gives_the_joint_kalman_filter(name, linearize_at):
    """What the likelihood observed is fed to the oracle: all else is the filter's."""
    likelihood, seen = diagonal_likelihoods()[name](), []

    class Watched(type(likelihood)):
        def observe(self, *args):
            obs, like = super().observe(*args)
            seen.append([x.detach().flatten().numpy() for x in (obs.grad, obs.curvature.values)])
            return obs, like

    watched = Watched(**{k: getattr(likelihood, k) for k in vars(likelihood)})
    x = torch.tensor(np.random.default_rng(0).standard_normal((12, 4)))
    net = torch.nn.Linear(4, 1, bias=False).double()
    net.weight.data.copy_(torch.tensor(START)[None])
    opt = filteropt.FilterOptimizer(
        net.parameters(),
        lambda: replace(momentum_filter(0.01, 0.02), likelihood=watched),
        linearize_at=linearize_at,
        model=net,
    )
    oracle = JointKalman(START, [0.02, 0.05], strict=linearize_at == "prediction")
    losses, generator = [], torch.Generator().manual_seed(0)
    for _ in range(40):
        opt.zero_grad()
        losses.append(0.5 * net(x).detach().square().sum().item())
        backward(opt, net, x, lambda output: 0.5 * output.square().sum(), generator)
        opt.step()
        oracle.step(*seen.pop(), *model(0.01, 0.02, 0.0, 0.1))
        close(net.weight.flatten(), oracle.weights(), 1e-9)
    assert losses[-1] < losses[0] / 2
