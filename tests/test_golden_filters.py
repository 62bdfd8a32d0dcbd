"""Bayesian RMSprop and natural gradient, beside literal transcriptions of their rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt
from tests.oracles.filters import BlogRMSprop, FadingNaturalGradient


def gradients(seed, steps=60):
    """Gradients of five weights that differ by six decades."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(steps, 5)) * np.array([1e-3, 0.1, 1.0, 10.0, 1e3])


def train(opt, p, gs, batch):
    for g in gs:
        p.grad = torch.tensor(g / batch)
        opt.step()


@settings(max_examples=10, deadline=None)
@given(
    lr=st.floats(1e-4, 0.3),
    beta2=st.floats(0.0, 0.999),
    batch=st.sampled_from([1, 7, 128]),
    seed=st.integers(0, 99),
)
def test_bayes_rmsprop_is_the_blogs_recursion(lr, beta2, batch, seed):
    p = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    oracle = BlogRMSprop(p.detach().numpy(), lr, beta2)
    train(filteropt.BayesRMSprop([p], lr, beta2, batch_size=batch), p, gradients(seed), batch)
    for g in gradients(seed):
        oracle.step(g)
    np.testing.assert_allclose(
        p.detach(), oracle.w, rtol=1e-10, atol=1e-12 * np.abs(oracle.w).max()
    )


def test_bayes_rmsprop_debiases_and_starts_where_it_is_told():
    """With g constant the debiased average is g^2 from the first step on."""
    g, eta, start = 3.0, 0.2, 0.7
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = filteropt.BayesRMSprop([p], eta, 0.99, initial_variance=start, bias_correction=True)
    predicted, w = start, 0.0
    for _ in range(20):
        p.grad = torch.full_like(p, g)
        opt.step()
        predicted = 1 / (g**2 + 1 / predicted) + eta**2
        w -= predicted * g
        assert p.item() == pytest.approx(w, rel=1e-12)


def test_bayes_rmsprop_at_its_fixed_point_steps_by_the_blogs_closed_form():
    eta, beta2 = 0.05, 0.9
    p = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    opt = filteropt.BayesRMSprop([p], eta, beta2, fixed_point=True)
    s, w = np.zeros(5), np.zeros(5)
    for g in gradients(3):
        p.grad = torch.tensor(g)
        opt.step()
        s = beta2 * s + (1 - beta2) * g**2
        w -= g * (eta**2 / 2 + eta / np.sqrt(s) * np.sqrt(eta**2 * s / 4 + 1))
    np.testing.assert_allclose(p.detach(), w, rtol=1e-11)


@settings(max_examples=10, deadline=None)
@given(
    forgetting=st.floats(0.0, 0.5),
    initial=st.floats(1e-4, 1.0),
    batch=st.sampled_from([1, 7, 128]),
    lr=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_online_natural_gradient_is_the_fading_memory_recursion(
    forgetting, initial, batch, lr, seed
):
    """``lr`` is a plain gain on the displacement."""
    p = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    opt = filteropt.OnlineNaturalGradient(
        [p], lr, forgetting=forgetting, initial_variance=initial, batch_size=batch
    )
    oracle = FadingNaturalGradient(np.zeros(5), forgetting, initial)
    train(opt, p, gradients(seed), batch)
    for g in gradients(seed):
        oracle.step(g)
    scale = 1e-12 * np.abs(oracle.w).max()
    np.testing.assert_allclose(p.detach(), lr * oracle.w, rtol=1e-10, atol=scale)
    np.testing.assert_allclose(opt.posterior_variance(p), 1 / oracle.precision, rtol=1e-12)
