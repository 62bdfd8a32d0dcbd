"""Curvature estimates are what they claim on average, and know no units of the loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import filteropt
from filteropt.approximations import (
    Averaged,
    AveragedPull,
    AveragedSquaredGradient,
    CentredGradient,
    GaussNewton,
    GaussNewtonDiagonal,
    LayerGradients,
    NoCurvature,
    PerExample,
    Price,
    Repeated,
    SampledFisher,
    SampledSquaredGradient,
    SquaredGradient,
    Tempered,
)
from filteropt.linalg import scalar
from filteropt.testing import (
    LawViolation,
    check_scale_equivariance,
    check_unbiased,
    parts,
)
from filteropt.types import Belief, Diag, Raw


def second_moment(mean, std):
    return mean**2 + std**2


def variance(mean, std):
    return std**2


def product(mean, std):
    return mean


def nothing(mean, std):
    return 0.0


UNBIASED = [
    (SquaredGradient(), second_moment, 1),
    (SquaredGradient(beta1=0.5), second_moment, 1),
    (SquaredGradient(beta1=None), second_moment, 1),
    (AveragedSquaredGradient(), second_moment, 1),
    (AveragedSquaredGradient(betas=(0.5, 0.7)), second_moment, 1),
    (Averaged(), second_moment, 1),
    (Averaged(NoCurvature(), beta2=0.5), nothing, 1),
    (Averaged(CentredGradient()), variance, 2),
    (Averaged(CentredGradient(), beta2=0.0), variance, 2),
    (Averaged(Averaged(CentredGradient(), beta2=0.5), beta2=0.9), variance, 2),
    (CentredGradient(), variance, 2),
    (CentredGradient(beta1=None, centre_beta=0.0), variance, 2),
    (CentredGradient(centre_beta=0.5), variance, 2),
    (CentredGradient(centre_beta=0.999), variance, 2),
    (NoCurvature(), nothing, 1),
    (GaussNewton(), second_moment, 1),  # of a minibatch whose one Jacobian row is its gradient
    (GaussNewtonDiagonal(beta1=0.9), second_moment, 1),
    (AveragedPull(), second_moment, 1),
    (LayerGradients(), second_moment, 1),  # test_layer_rows.py: that rows are the layers' own
    (PerExample(), second_moment, 1),  # test_per_example.py: that it is each example's own
    (Price(), product, 1),
    (Repeated(), second_moment, 1),
    (SampledFisher(), second_moment, 1),  # test_fisher_pass.py: against the exact Fisher
    (SampledSquaredGradient(), second_moment, 1),
    (Tempered(), second_moment, 1),
]


@pytest.mark.parametrize(
    ("likelihood", "expected", "first"), UNBIASED, ids=lambda x: getattr(x, "__name__", str(x)[:60])
)
def test_gradient_and_curvature_are_unbiased(likelihood, expected, first):
    check_unbiased(likelihood, expected, first=first)


def test_every_likelihood_states_what_it_estimates():
    assert {type(likelihood).__name__ for likelihood, *_ in UNBIASED} == set(parts("likelihood"))


class Uncorrected(CentredGradient):
    """Without the factor for the centre's own noise."""

    def scalars(self, t):
        return (*super().scalars(t)[:-1], 1.0)


class Included(CentredGradient):
    """Centred about the average that the gradient itself is part of."""

    def observe(self, like, raw, p, prior, scalars):
        beta = scalars[-3]
        included = like._replace(centre=beta * like.centre + (1 - beta) * raw.grad)
        obs, _ = super().observe(included, raw, p, prior, scalars)
        return obs, super().observe(like, raw, p, prior, scalars)[1]


class Halved(SquaredGradient):
    def observe(self, like, raw, p, prior, scalars):
        obs, like = super().observe(like, raw, p, prior, scalars)
        return obs._replace(curvature=Diag(0.97 * obs.curvature.values)), like


@pytest.mark.parametrize(
    ("wrong", "expected", "law"),
    [
        (Uncorrected(), variance, "curvature is unbiased at step 2"),
        (Included(), variance, "curvature is unbiased at step 2"),
        (Halved(), second_moment, "curvature is unbiased at step"),
        (SquaredGradient(), variance, "curvature is unbiased"),
        (SquaredGradient(bias_correction=False), second_moment, "gradient is unbiased"),
        (AveragedSquaredGradient(bias_correction=False), second_moment, "is unbiased"),
        (CentredGradient(bias_correction=False), variance, "gradient is unbiased"),
    ],
)
def test_biased_estimates_are_caught(wrong, expected, law):
    with pytest.raises(LawViolation, match=law):
        check_unbiased(wrong, expected, first=2)


def observed(likelihood, gradients):
    """The curvature reported at every step."""
    p = torch.zeros(gradients.shape[1:], dtype=torch.float64)
    like, found = likelihood.init(p), []
    for t, gradient in enumerate(gradients, 1):
        numbers = likelihood.scalars(scalar(t))
        raw = Raw(torch.tensor(gradient))
        obs, like = likelihood.observe(like, raw, p, Belief((), ()), numbers)
        found.append(obs.curvature.values.numpy())
    return np.stack(found)


def spread(gradients, beta):
    """(g_t - gbar)^2 / (1 + sum of squared weights), the weights of gbar written out."""
    found = [np.zeros_like(gradients[0])]
    for t in range(1, len(gradients)):
        weights = beta ** np.arange(t)[::-1].astype(float)
        weights /= weights.sum()
        centre = np.tensordot(weights, gradients[:t], 1)
        found.append((gradients[t] - centre) ** 2 / (1 + np.sum(weights**2)))
    return np.stack(found)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_centred_gradients_spread_about_the_weighted_mean_before_them(beta, scale):
    gradients = np.random.default_rng(0).normal(size=(30, 4)) + 2.0
    found = observed(CentredGradient(scale, centre_beta=beta), gradients)
    expected = spread(scale * gradients, beta)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * scale**2)


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.999])
def test_an_average_weighs_what_its_likelihood_reported(beta2, bias_correction):
    """Weights (1 - beta2) beta2^s of centred gradients' spreads; debiased, the first has none."""
    gradients = np.random.default_rng(1).normal(size=(30, 4)) + 2.0
    likelihood = Averaged(CentredGradient(), beta2, eps=0.25, bias_correction=bias_correction)
    found, reported = observed(likelihood, gradients), spread(gradients, 0.9)
    np.testing.assert_array_equal(found[0], 0.25)  # eps: one gradient has no spread
    for t in range(2, 31):
        weights = (1 - beta2) * beta2 ** np.arange(t - 1)[::-1].astype(float)
        if bias_correction:
            weights /= weights.sum()
        expected = np.tensordot(weights, reported[1:t], 1) + 0.25
        np.testing.assert_allclose(found[t - 1], expected, rtol=1e-9)


EQUIVARIANT = [
    (filteropt.AdaBayes, {"lr": 1e-2, "lr_sgd": 0.5, "batch_size": 8.0}),
    (filteropt.AdaBayes,
     {"lr": 1e-2, "lr_sgd": 0.5, "batch_size": 8.0, "discretization": "exact",
      "linearize_at": "prediction", "weight_decay": None}),
    (filteropt.AdaBayesFP, {"lr": 1e-2, "lr_sgd": 0.5, "batch_size": 8.0, "eps": 1e-3}),
    (filteropt.AdaBayesFP,
     {"lr": 1e-2, "lr_sgd": 0.5, "batch_size": 8.0, "fixed_point": "exact"}),
    (filteropt.BayesRMSprop, {"lr": 1e-2, "batch_size": 8.0}),
    (filteropt.BayesRMSprop, {"lr": 1e-2, "batch_size": 8.0, "fixed_point": True}),
    (filteropt.OnlineNaturalGradient, {"batch_size": 8.0}),
    (filteropt.OnlineNaturalGradient, {"batch_size": 8.0, "forgetting": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "hyperparameters"), EQUIVARIANT)
def test_the_units_of_the_loss_do_not_matter(make, hyperparameters):
    check_scale_equivariance(make, hyperparameters)


def deaf(params, *, batch_size, **options):
    """Takes the mean loss for the summed one, whatever the batch."""
    return filteropt.OnlineNaturalGradient(params, batch_size=1, **options)


def with_epsilon(params, *, batch_size, **options):
    """Adds epsilon to the variance's denominator in units of the loss."""
    preset = filteropt.variant(
        filteropt.presets.bayes_rmsprop,
        likelihood=Averaged(SquaredGradient(batch_size, None), 0.9, eps=0.1 / batch_size),
    )
    return filteropt.FilterOptimizer(params, preset, **options)


@pytest.mark.parametrize(
    ("wrong", "hyperparameters"),
    [
        (deaf, {"batch_size": 8.0}),
        (with_epsilon, {"lr": 0.1, "batch_size": 8.0}),
        (partial(filteropt.AdaBayes, weight_decay=0.0), {"lr": 1e-2, "batch_size": 8.0}),
    ],
)
def test_an_optimizer_that_depends_on_the_units_is_caught(wrong, hyperparameters):
    """The last one keeps lr_sgd, which has units, at its default."""
    with pytest.raises(LawViolation, match="leaves"):
        check_scale_equivariance(wrong, hyperparameters)
