"""Weight, velocity and acceleration: a model of one's own, and no edit in the package."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from filteropt import FilterOptimizer, IncompatibleComposition
from filteropt.approximations import Averaged, Dense, Diagonal, FixedPoint, SquaredGradient
from filteropt.engine import Filter, check
from filteropt.testing import check_dynamics
from filteropt.types import Dynamics, Transition
from tests.oracles.kalman import JointKalman


@dataclass(frozen=True)
class Accelerating(Dynamics):
    """Forces push the weight's optimum about, which remembers its velocity and acceleration."""

    k: ClassVar[int] = 3
    initial_variance: ClassVar[tuple[float, ...]] = (0.3, 0.05, 0.01)
    lr: float = 0.1
    decay: float = 0.01

    def transition(self, t):
        eta, q = self.lr, 0.02**2
        factor = ((1 - self.decay, eta, eta / 2), (0.0, 0.9, 0.5), (0.0, 0.0, 0.7))
        return Transition(factor, Q=(q / 9, q / 6, q / 3, q / 4, q / 2, q))


START = np.array([0.4, -1.1, 0.05, 2.0])
SLOPES = np.array([0.3, 3.0, 1.0, 0.05])


def preset(lr=0.1, dense=False):
    family = Dense() if dense else Diagonal()
    return Filter(Accelerating(lr), SquaredGradient(beta1=None), family)


def built(**options):
    p = torch.nn.Parameter(torch.tensor(START))
    return p, FilterOptimizer([p], preset, lr=0.1, **options)


def gradient(weights, t):
    """Of a drifting quadratic, with noise."""
    noise = np.random.default_rng(t).standard_normal(4)
    return SLOPES * (weights - 0.5 * np.sin(t / 20)) + 0.3 * noise


def drive(p, opt, steps, start=0):
    for t in range(start, start + steps):
        p.grad = torch.tensor(gradient(p.detach().numpy(), t))
        opt.step()


def close(found, expected, rtol=1e-10):
    found = found.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_new_model_obeys_the_laws():
    check_dynamics(Accelerating())


@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
@pytest.mark.parametrize("dense", [False, True])
def test_new_model_is_the_joint_kalman_filter(dense, linearize_at):
    p, opt = built(linearize_at=linearize_at, dense=dense)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.97)
    factor, packed = Accelerating(0.1).transition(1)[:2]
    noise = np.zeros((3, 3))
    noise[np.triu_indices(3)] = packed
    noise = np.maximum(noise, noise.T)
    assert np.linalg.matrix_rank(noise, tol=1e-12) < 3  # one force drives all three
    oracle = JointKalman(START, [0.3, 0.05, 0.01], strict=linearize_at == "prediction")
    for t in range(60):
        gain = opt.param_groups[0]["lr"] / 0.1
        drive(p, opt, 1, t)
        scheduler.step()
        g = gradient(oracle.weights(), t)
        oracle.step(g, g**2, factor, noise, gain=gain)
        close(p, oracle.weights())
        close(opt.posterior_variance(p), oracle.blocks()[:, 0, 0])
        if not dense:
            close(opt.posterior_covariance(p), oracle.blocks())
    names = ["mean_1", "mean_2"]
    close(torch.stack([opt.state[p][name] for name in names], -1), oracle.aside)
    close(opt.eval().param_groups[0]["params"][0], oracle.posterior)


def test_new_model_follows_a_moving_optimum():
    """In steady motion a filter that knows velocities ends nearer than where it began."""
    p, opt = built(linearize_at="prediction")
    drive(p, opt, 400)
    goal = 0.5 * np.sin(400 / 20)
    strong = SLOPES > 0.5
    assert (np.abs(p.detach().numpy() - goal) < 0.35)[strong].all()


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
def test_new_model_resumes_bit_for_bit(linearize_at, evaluating):
    p, opt = built(linearize_at=linearize_at)
    drive(p, opt, 20)
    opt.train(not evaluating)
    q, other = built(linearize_at=linearize_at)
    q.data.copy_(p.detach())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for weight, o in ((p, opt), (q, other)):
        drive(weight, o.train(), 20, 20)
    torch.testing.assert_close(q, p, rtol=0, atol=0)
    kept = {name: x for name, x in opt.state[p].items() if x.shape == p.shape}
    assert len(kept) == 8  # two means and the six numbers of a 3x3 covariance
    for name, x in kept.items():
        torch.testing.assert_close(other.state[q][name], x, rtol=0, atol=0)


@pytest.mark.parametrize("linearize_at", ["prediction", "posterior"])
def test_eval_gives_back_what_train_takes(linearize_at):
    p, opt = built(linearize_at=linearize_at)
    drive(p, opt, 5)
    before = p.detach().clone()
    opt.eval()
    assert torch.equal(p, before) == (linearize_at == "posterior")
    opt.train()
    assert torch.equal(p, before)


def test_what_has_no_closed_form_is_refused():
    with pytest.raises(IncompatibleComposition, match="3 latents per weight"):
        check(Filter(Accelerating(), Averaged(SquaredGradient()), FixedPoint("exact")))


def test_latents_that_feel_the_weight_are_refused():
    class Spring(Accelerating):
        def transition(self, t):
            (first, *rest), *others = super().transition(t)
            (_, *second), third = rest
            return Transition((first, (-0.1, *second), third), *others)

    for family in (Diagonal(), Dense()):
        with pytest.raises(IncompatibleComposition, match="depend on the weight"):
            check(Filter(Spring(), SquaredGradient(beta1=None), family))
