"""A variance stays in (0, its bound], whatever the gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import filteropt

EXTREMES = {
    torch.float32: [0.0, 1e-30, 1e-15, 1e-3, 1.0, 1e3, 1e15],
    torch.float64: [0.0, 1e-100, 1e-30, 1.0, 1e15, 1e100],
}
VARIANTS = {
    "euler": (filteropt.AdaBayes, {"discretization": "euler"}),
    "exact": (filteropt.AdaBayes, {"discretization": "exact"}),
    "taylor": (filteropt.AdaBayesFP, {"fixed_point": "taylor"}),
    "stationary": (filteropt.AdaBayesFP, {"fixed_point": "exact"}),
}


def bound(variant, lr, sigma2):
    """The stationary variance without evidence, never below the initial one."""
    overshoot = {"euler": 4, "stationary": 4}.get(variant)
    return sigma2 / (1 - lr**2 / (overshoot * sigma2)) if overshoot else sigma2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", EXTREMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_variance_is_positive_and_bounded(variant, dtype, data):
    cls, options = VARIANTS[variant]
    pool = st.sampled_from([s * x for x in EXTREMES[dtype] for s in (1, -1)])
    pattern = data.draw(
        st.one_of(
            st.lists(pool, min_size=1, max_size=30),
            pool.map(lambda g: [g] * 30),  # repeated
            st.tuples(pool, pool).map(lambda gs: list(gs) * 15),  # alternating
        )
    )
    lr = data.draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    lr_sgd = data.draw(st.sampled_from([0.01, 0.1, 100.0]))
    batch = data.draw(st.sampled_from([1, 100]))
    sigma2 = lr_sgd / batch
    if lr**2 >= 4 * sigma2:
        return
    p = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    opt = cls([p], lr, lr_sgd, batch_size=batch, **options)
    slack = 1 + (1e-5 if dtype == torch.float32 else 1e-12)
    for g in pattern:
        p.grad = torch.tensor([g, 0.0], dtype=dtype)
        opt.step()
        variance = opt.posterior_variance(p)
        assert (variance > 0).all()
        assert (variance <= bound(variant, lr, sigma2) * slack).all()
        assert p.isfinite().all()
        assert variance.dtype == dtype


@pytest.mark.parametrize("cls", [filteropt.AdaBayes, filteropt.AdaBayesFP])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e19), (torch.float64, 1e154)])
def test_square_that_overflows_counts_as_non_finite(cls, dtype, size):
    """The largest gradient whose square fits is taken, twice that is refused; the batch counts."""
    p = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    opt = cls([p], batch_size=10)
    p.grad = torch.tensor([size / 10], dtype=dtype)
    opt.step()
    before, variance = p.detach().clone(), opt.posterior_variance(p)
    p.grad = torch.tensor([2 * size / 10], dtype=dtype)
    with pytest.raises(filteropt.NonFiniteGradientError, match="square"):
        opt.step()
    assert torch.equal(p, before)
    assert torch.equal(opt.posterior_variance(p), variance)
    assert variance.item() > 0
