"""Beliefs through unusual lives: changed hyperparameters, groups that wake up, wide priors."""

from __future__ import annotations

import copy

import pytest
import torch

import filteropt
from filteropt import FilterOptimizer, presets
from filteropt.approximations import Dense, Diagonal, SquaredGradient
from filteropt.engine import Filter
from filteropt.models import ForgetToPrior, ProportionalNoise

DOUBLE = torch.float64


def step(opt, p, gradient):
    p.grad = torch.full_like(p, gradient)
    opt.step()


def test_state_that_is_no_longer_needed_is_dropped_and_checkpoints_stay_loadable():
    p = torch.nn.Parameter(torch.ones(2, dtype=DOUBLE))
    opt = FilterOptimizer([p], presets.sgd, lr=0.1, momentum=0.9)
    step(opt, p, 1.0)
    opt.param_groups[0]["momentum"] = 0.0
    step(opt, p, 1.0)
    assert set(opt.state[p]) == {"step"}
    resumed = FilterOptimizer([p], presets.sgd, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(RuntimeError, match="now need exp_avg"):
        opt.step()


def test_a_checkpoint_is_loaded_as_often_as_one_likes():
    w = torch.nn.Parameter(torch.ones(3))
    opt = filteropt.AdaBayes([w])
    saved = copy.deepcopy(opt.state_dict())
    for _ in range(2):
        opt.load_state_dict(saved)
    w.grad = torch.ones(3)
    opt.step()
    assert opt.state_dict()["param_groups"][0].keys() >= saved["param_groups"][0].keys()


def test_the_belief_asked_for_after_such_a_change_says_what_is_missing():
    p = torch.nn.Parameter(torch.ones(2, dtype=DOUBLE))
    opt = filteropt.BayesRMSprop([p], fixed_point=True)
    step(opt, p, 1.0)
    opt.param_groups[0]["fixed_point"] = False
    with pytest.raises(RuntimeError, match="now need variance"):
        opt.posterior_variance(p)


def test_a_group_built_at_rest_takes_its_prior_from_the_first_positive_rate():
    """None takes one step of drift, lr², also where a warm-up starts from 0."""
    p, q = (torch.nn.Parameter(torch.ones(2, dtype=DOUBLE)) for _ in range(2))
    sleeper, awake = filteropt.BayesRMSprop([p], lr=0.0), filteropt.BayesRMSprop([q], lr=0.01)
    step(sleeper, p, 1.0)
    assert torch.equal(p, torch.ones_like(p))
    sleeper.param_groups[0]["lr"] = 0.01
    for _ in range(3):
        step(sleeper, p, 1.0)
        step(awake, q, 1.0)
    torch.testing.assert_close(p, q, rtol=1e-14, atol=0)


def test_a_group_without_a_rate_has_no_stationary_belief():
    p = torch.nn.Parameter(torch.ones(2, dtype=DOUBLE))
    opt = FilterOptimizer([p], presets.adam, lr=0.0)
    step(opt, p, 1.0)
    with pytest.raises(filteropt.IncompatibleComposition, match="no stationary point"):
        opt.posterior_variance(p)


def test_a_scalar_weight_keeps_its_beliefs_dtype():
    p = torch.nn.Parameter(torch.tensor(1.0))
    opt = filteropt.BayesRMSprop([p])
    step(opt, p, 1.0)
    assert opt.state[p]["variance"].dtype == torch.float32


def test_a_prior_wider_than_the_one_forgotten_to_is_pulled_stably():
    """Without evidence the first step is exact Bayes for an observation of 0, not an explosion."""
    p = torch.nn.Parameter(torch.ones(1, dtype=DOUBLE))
    dynamics = ForgetToPrior(0.1, 0.01)
    opt = FilterOptimizer([p], lambda: Filter(dynamics, SquaredGradient(beta1=None), Diagonal(1.0)))
    step(opt, p, 0.0)
    precision = 0.9 / 1.0 + 0.1 / 0.01
    assert p.item() == pytest.approx(0.9 / precision, rel=1e-12)
    assert opt.posterior_variance(p).item() == pytest.approx(1 / precision, rel=1e-12)


@pytest.mark.parametrize("spike", [1e6, 1e12])
def test_one_weights_evidence_leaves_anothers_variance_alone(spike):
    """Fading memory in the dense family: growth is stopped weight by weight, if at all."""
    p = torch.nn.Parameter(torch.zeros(2))
    dense = Filter(ProportionalNoise(0.01), SquaredGradient(beta1=None), Dense(1.0))
    opt = FilterOptimizer([p], lambda: dense)
    p.grad = torch.tensor([spike, 0.0])
    opt.step()
    p.grad = torch.zeros(2)
    opt.step()
    assert opt.posterior_variance(p)[1].item() == pytest.approx(1 / 0.99, rel=1e-5)


def test_the_smallest_priors_stay_positive():
    p = torch.nn.Parameter(torch.zeros(2))
    tiny = Filter(ProportionalNoise(0.01), SquaredGradient(beta1=None), Dense(1e-100))
    opt = FilterOptimizer([p], lambda: tiny)
    for _ in range(3):
        step(opt, p, 1.0)
    assert p.isfinite().all()
    assert (opt.posterior_covariance(p).diagonal() > 0).all()


@pytest.mark.parametrize(("lr", "momentum"), [(5.0, 0.0), (30.0, 0.5)])
def test_sgd_takes_any_rate(lr, momentum):
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=DOUBLE)) for _ in range(2))
    opt = FilterOptimizer([p], presets.sgd, lr=lr, momentum=momentum)
    reference = torch.optim.SGD([q], lr=lr, momentum=momentum)
    for t in range(20):
        gradient = torch.linspace(-1, 1, 3, dtype=DOUBLE) + 0.1 * t
        p.grad, q.grad = gradient.clone(), gradient.clone()
        opt.step()
        reference.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
