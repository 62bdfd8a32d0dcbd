"""Every dynamics with every likelihood, posterior and basis: it trains, or says why it does not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import pytest
import torch

import filteropt
from filteropt import approximations, models
from filteropt.engine import Filter, check
from filteropt.engine.compatibility import _conflict
from filteropt.testing import compositions, parts
from filteropt.types import Basis
from tests.gathering import backward

PARTS = {slot: parts(slot) for slot in ("dynamics", "likelihood", "posterior", "basis")}
MADE = [
    *compositions(),
    *(
        Filter(dynamics(), likelihood(), family)
        for dynamics in parts("dynamics").values()
        for likelihood in parts("likelihood").values()
        for family in (
            approximations.FixedPoint("exact"),
            approximations.OneStepAhead(approximations.FixedPoint("exact")),
        )
    ),
]


def fits(filter):
    return _conflict(filter) is None


def plain(filter):
    return isinstance(filter.basis, approximations.Identity)


def in_place(filter):
    """The same in the weights' own coordinates, which is refused by itself if this is not."""
    return replace(filter, basis=approximations.Identity())


FITTING = [filter for filter in MADE if fits(filter)]


def refusals():
    """One composition for every reason and family; those whose basis is not to blame only once."""
    found = {}
    for filter in MADE:
        refused = _conflict(filter)
        if refused is not None and (plain(filter) or fits(in_place(filter))):
            blamed = (type(getattr(filter, slot)) for slot in refused.slots)
            found.setdefault((*blamed, refused.why, type(filter.posterior)), filter)
    return list(found.values())


REFUSED = refusals()


def called(filter):
    posterior = getattr(filter.posterior, "posterior", None)
    slots = (filter.dynamics, filter.likelihood, filter.posterior, posterior, filter.basis)
    method = getattr(posterior or filter.posterior, "method", "")
    return "-".join([*(type(slot).__name__ for slot in slots if slot is not None), method])


def trained(filter, steps=20, turn=None):
    """Least squares on three weights, the curvature of which is about 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, dtype=torch.float64, generator=generator) / 4
    y = x @ torch.tensor([[0.5], [-0.3], [0.2]], dtype=torch.float64)
    model = torch.nn.Linear(3, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    if turn is not None:
        x = x @ turn.T
    opt = filteropt.FilterOptimizer(model.parameters(), lambda: filter, model=model)
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        losses.append(0.5 * (model(x) - y).detach().square().sum().item())
        backward(opt, model, x, lambda output: 0.5 * (output - y).square().sum(), generator)
        opt.step()
    return model.weight, opt, losses


def unbounded(filter):
    """Natural gradient at rest without a prior steps λ/g: too far where a basis makes g vanish."""
    at_rest = isinstance(filter.posterior, approximations.FixedPoint)
    return at_rest and isinstance(filter.dynamics, models.ProportionalNoise) and filter.basis.turns


@pytest.mark.parametrize("filter", FITTING, ids=called)
def test_what_fits_trains(filter):
    weight, opt, losses = trained(filter)
    assert losses[-1] < losses[0] or unbounded(filter)
    assert weight.isfinite().all()
    variance = opt.posterior_variance(weight)
    assert variance.shape == weight.shape
    assert (variance > 0).all()
    assert variance.isfinite().all()
    covariance = opt.posterior_covariance(weight)
    if isinstance(covariance, tuple):
        assert all(torch.linalg.eigvalsh(factor).min() > 0 for factor in covariance)
        columns, rows = (factor.diagonal() for factor in covariance)
        torch.testing.assert_close(torch.outer(rows, columns), variance, rtol=1e-12, atol=0)
        return
    assert torch.linalg.eigvalsh(covariance).min() > 0
    latents = covariance.diagonal(dim1=-2, dim2=-1).reshape(-1, filter.dynamics.k)[:, 0]
    if filter.basis.turns:  # the covariance is in its coordinates, which keep the trace
        latents, variance = latents.sum(), variance.sum()
    torch.testing.assert_close(latents, variance.flatten().squeeze(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("filter", REFUSED, ids=called)
def test_what_does_not_fit_says_why_and_what_would(filter):
    """Two slots by name, a reason, and shipped parts that remove it when they take a slot."""
    with pytest.raises(filteropt.IncompatibleComposition) as refusal:
        check(filter)
    found = re.fullmatch(r"(\w+) does not fit (\w+): (.+)\. Would fit: (.+)\.", str(refusal.value))
    assert found, str(refusal.value)
    first, second, reason, fitting = found.groups()
    slots = *(getattr(filter, slot) for slot in PARTS), getattr(filter.posterior, "posterior", None)
    names = {type(part).__name__ for part in slots}
    assert {first, second} <= names
    assert len(reason.split()) >= 4
    if fitting == "no single part; change two":
        changes = [(slot, part) for slot in PARTS for part in PARTS[slot].values()]
        assert not any(fits(replace(filter, **{slot: part()})) for slot, part in changes)
    else:
        assert advice_helps(filter, fitting.split(" or "))


def advice_helps(filter, names):
    """Whether every part that would fit removes this refusal, put into its slot."""
    for name in (name.removesuffix(" with other arguments") for name in names):
        part = getattr(models, name, None) or getattr(approximations, name)
        slot = next(slot for slot in PARTS if name in PARTS[slot])
        if not fits(replace(filter, **{slot: part()})):
            return False
    return True


def test_most_compositions_fit():
    """The engine's promise: exchangeable parts. Refusals are the exceptions, each for a reason."""
    special = {  # of one dynamics, a stationary one, or of layers
        *("SquareRooted", "FixedPoint", "OneStepAhead", "Kronecker", "LayerGradients"),
    }

    def general(filter):
        names = {type(part).__name__ for part in (filter.posterior, filter.likelihood)}
        return plain(filter) and special.isdisjoint(names)

    made = [f for f in MADE if general(f)]
    fitting, refused = ([f for f in made if fits(f) is want] for want in (True, False))
    assert len(fitting) > 4 * len(refused)


@dataclass(frozen=True)
class Turned(Basis):
    """A fixed rotation of the last dimension."""

    angle: float

    def matrix(self, x):
        turn = torch.eye(3, dtype=x.dtype)
        c, s = math.cos(self.angle), math.sin(self.angle)
        turn[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=x.dtype)
        return turn

    def init(self, p):
        return ()

    def forward(self, basis, x):
        return x @ self.matrix(x).T

    def backward(self, basis, x):
        return x @ self.matrix(x)

    def variance(self, basis, variance):
        return variance @ self.matrix(variance).square()


@pytest.mark.parametrize(
    "filter",
    [f for f in FITTING if plain(f) and f.likelihood.needs == {"grad"} and f.posterior.elementwise],
    ids=called,
)
def test_a_basis_turns_the_whole_filter(filter):
    """In turned coordinates a composition does what it does to turned data."""
    basis = Turned(0.7)
    turn = basis.matrix(torch.zeros(3, dtype=torch.float64))
    plain, _, losses = trained(filter, turn=turn)
    turned, _, same_losses = trained(replace(filter, basis=basis))
    torch.testing.assert_close(turned @ turn.T, plain, rtol=1e-9, atol=1e-12)
    assert same_losses == pytest.approx(losses, rel=1e-9)
