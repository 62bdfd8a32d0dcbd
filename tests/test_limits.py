"""SGD and Adam as limits of AdaBayes, each with its order of error (Aitchison 2020, 3.2)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt

CLASSES = {
    "AdaBayes": lambda p, **kw: filteropt.AdaBayes(p, discretization="exact", **kw),
    "AdaBayesFP": filteropt.AdaBayesFP,
}
gradients = st.lists(
    st.floats(-1, 1).filter(lambda x: abs(x) > 0.05), min_size=3, max_size=12
).filter(lambda gs: abs(sum(gs)) > 0.3)


def displacement(make, gs, scale, **options):
    """Total displacement of one weight fed with ``scale * gs``, per unit of scale."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = make([p], weight_decay=0.0, **options)
    for g in gs:
        p.grad = torch.tensor([scale * g], dtype=torch.float64)
        opt.step()
    return p.item() / scale


def sgd_displacement(gs, lr_sgd, beta1):
    """SGD with a debiased average gradient."""
    m = total = 0.0
    for t, g in enumerate(gs, 1):
        m = beta1 * m + (1 - beta1) * g
        total -= lr_sgd * m / (1 - beta1**t)
    return total


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=30, deadline=None)
@given(gs=gradients, lr_sgd=st.floats(0.02, 2.0), batch=st.sampled_from([1, 16, 128]))
def test_little_data_is_sgd_with_error_of_order_h(name, gs, lr_sgd, batch):
    """A hundredth of the squared gradient, a hundredth of the error."""
    options = {"lr": 1e-2, "lr_sgd": lr_sgd, "batch_size": batch}
    sgd = sgd_displacement(gs, lr_sgd, beta1=0.9)
    # the dimensionless evidence: h sigma^2 in all for the recursion, h sigma^4/eta^2 for its rest
    unit = math.sqrt(1e-4 / (batch * lr_sgd) / max(1.0, lr_sgd / batch / 1e-4))
    errors = [
        abs(displacement(CLASSES[name], gs, scale, **options) / sgd - 1)
        for scale in (unit, unit / 10)
    ]
    reach = sum(abs(g) for g in gs) / abs(sum(gs))
    assert errors[0] < 1e-3 * len(gs) * reach * 10
    if errors[0] > 1e-7:  # else rounding is a hundredth of the smaller error
        assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_euler_tends_to_sgd_at_its_own_stationary_variance():
    """Euler's variance rests at sigma^2 / (1 - eta^2/(4 sigma^2)), not at sigma^2."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = filteropt.AdaBayes([p], lr=0.3, lr_sgd=0.1)
    for _ in range(200):
        p.grad = torch.zeros_like(p)
        opt.step()
    expected = 0.1 / (1 - 0.3**2 / (4 * 0.1))
    assert opt.posterior_variance(p).item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(g=st.floats(0.5, 50.0), sign=st.sampled_from([-1, 1]), lr=st.floats(1e-4, 1e-2))
def test_much_data_is_adamw_with_error_of_order_lr_root_h(g, sign, lr):
    """Under a constant gradient the step is lr (1 - lr|g|/2 + ...), AdamW's is lr."""

    def relative_error(smallness):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        q = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        root_h = smallness / lr
        scale = root_h / g
        opt = filteropt.AdaBayes([p], lr=lr, lr_sgd=1e8 * lr**2, weight_decay=0.05)
        adamw = torch.optim.AdamW([q], lr=lr, eps=0.0, weight_decay=0.05)
        for _ in range(int(20 / smallness)):
            p.data.fill_(0.3)
            q.data.fill_(0.3)
            p.grad = torch.tensor([sign * scale * g], dtype=torch.float64)
            q.grad = p.grad.clone()
            opt.step()
            adamw.step()
        return (p - q).item() / (lr * sign)

    coarse, fine = relative_error(0.2), relative_error(0.02)
    assert coarse == pytest.approx(0.1, rel=0.15)  # the law's coefficient: lr root(h) / 2
    assert fine == pytest.approx(0.01, rel=0.02)


def test_prior_acts_as_adams_epsilon_to_first_order():
    """To first order in 1/sigma^2, AdaBayes-FP is lr/(root(h) + eps) with eps = lr/(2 sigma^2)."""
    lr, g = 1e-3, 2.0

    def error(sigma2, eps):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        opt = filteropt.AdaBayesFP([p], lr, sigma2, weight_decay=0.0)
        p.grad = torch.tensor([g], dtype=torch.float64)
        opt.step()
        return abs(-p.item() / (lr * g / (g + eps)) - 1)

    errors = [error(s, lr / (2 * s)) for s in (1e-2, 1e-1)]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)  # second order in 1/sigma^2
    printed = [error(s, lr / s) for s in (1e-2, 1e-1)]
    assert printed[0] / printed[1] == pytest.approx(10, rel=0.1)  # lr/sigma^2 is only first order
