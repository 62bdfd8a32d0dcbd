"""Presets of every form, what FilterOptimizer passes to them, and ablations by `variant`."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch

import filteropt
from filteropt import FilterOptimizer, IncompatibleComposition, variant
from filteropt.approximations import Diagonal, FixedPoint, SquaredGradient
from filteropt.engine import Filter
from filteropt.models import FixedNoise
from filteropt.presets import adabayes, adabayes_fp, sgd
from filteropt.types import Observation


def weight(value=1.0):
    return torch.nn.Parameter(torch.tensor([value, 2.0], dtype=torch.float64))


def train(opt, p, steps=3, lrs=None):
    for i in range(steps):
        if lrs is not None:
            opt.param_groups[0]["lr"] = lrs[i]
        p.grad = p.detach() - 0.3
        opt.step()
    return p.detach().clone()


def run(make, **options):
    p = weight()
    return train(make([p]), p, **options)


def test_variant_keeps_hyperparameters_ranges_and_schedules():
    """The same slots under another name train the same, whatever the group or schedule says."""
    same = variant(adabayes_fp, posterior=FixedPoint())
    assert inspect.signature(same) == inspect.signature(adabayes_fp)
    for options in ({}, {"lr": 0.02, "lr_sgd": 0.5}, {"schedule": "model", "batch_size": 8}):
        lrs = [1e-3, 5e-4, 1e-4]
        ours = run(lambda p, o=options: FilterOptimizer(p, same, **o), lrs=lrs)
        theirs = run(lambda p, o=options: filteropt.AdaBayesFP(p, **o), lrs=lrs)
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="lr_sgd=-1"):
        FilterOptimizer([weight()], same, lr_sgd=-1)
    with pytest.raises(TypeError, match="'lr_sdg'"):
        FilterOptimizer([weight()], same, lr_sdg=1.0)


def test_variant_replaces_a_slot_by_a_value_or_a_function_of_hyperparameters():
    exact = variant(adabayes_fp, posterior=FixedPoint("exact"))
    ours = run(lambda p: FilterOptimizer(p, exact, lr=0.1))
    assert torch.equal(ours, run(lambda p: filteropt.AdaBayesFP(p, lr=0.1, fixed_point="exact")))
    plain = variant(adabayes, likelihood=lambda batch_size: SquaredGradient(batch_size, 0.0))
    ours = run(lambda p: FilterOptimizer(p, plain, batch_size=4))
    assert torch.equal(ours, run(lambda p: filteropt.AdaBayes(p, beta1=0.0, batch_size=4)))
    with pytest.raises(TypeError, match="no slot 'dynamic'"):
        variant(adabayes, dynamic=FixedNoise(1e-3, 0.1))


def test_keyword_preset_gets_what_is_named():
    """The design of an ablation as a lambda."""
    make = lambda **h: replace(adabayes(**h), posterior=Diagonal(0.05))  # ruff: ignore[lambda-assignment] - as users do
    p = weight()
    opt = FilterOptimizer([p], make, lr=0.02)
    assert opt.posterior_variance(p)[0] == 0.05
    assert not torch.equal(train(opt, p), run(lambda q: filteropt.AdaBayes(q, lr=0.02)))


class CallablePreset:
    def __call__(self, lr=1e-3):
        return adabayes(lr)


@pytest.mark.parametrize(
    "preset",
    [functools.partial(adabayes, beta1=0.9), CallablePreset(), lambda lr=1e-3: adabayes(lr)],
)
def test_partials_objects_and_lambdas_are_presets(preset):
    assert torch.equal(
        run(lambda p: FilterOptimizer(p, preset, lr=0.01)),
        run(lambda p: filteropt.AdaBayes(p, lr=0.01)),
    )


def test_partial_preset_follows_the_model_schedule():
    lrs = [1e-3, 5e-4, 1e-4]
    ours, theirs = (
        run(lambda p, f=f: FilterOptimizer(p, f, schedule="model"), lrs=lrs)
        for f in (functools.partial(adabayes, beta1=0.9), adabayes)
    )
    assert torch.equal(ours, theirs)


def test_named_class_takes_required_and_keyword_arguments():
    def needs_size(lr, dataset_size, *, beta1=0.9):
        return adabayes(lr, batch_size=dataset_size, beta1=beta1)

    class Needy(FilterOptimizer):
        preset = staticmethod(needs_size)

    class Loose(FilterOptimizer):
        preset = staticmethod(lambda **h: adabayes(**h))

    expected = run(lambda p: filteropt.AdaBayes(p, 0.01, batch_size=7))
    assert torch.equal(run(lambda p: Needy(p, 0.01, 7)), expected)
    assert torch.equal(run(lambda p: Needy(p, dataset_size=7, lr=0.01)), expected)
    assert torch.equal(run(lambda p: Loose(p, lr=0.01, batch_size=7)), expected)
    with pytest.raises(TypeError, match="dataset_size"):
        Needy([weight()], 0.01)
    with pytest.raises(TypeError, match="'betta'"):
        Needy([weight()], 0.01, 7, betta=0.5)


def test_subclass_keeps_a_constructor_written_by_hand():
    class Clipped(filteropt.AdaBayes):
        def __init__(self, params, clip=1.0, **options):
            super().__init__(params, **options)
            self.clip = clip

    class ClippedFP(Clipped):
        preset = staticmethod(adabayes_fp)

    assert Clipped([weight()], clip=2.0, lr=0.1).clip == 2.0
    assert ClippedFP([weight()], clip=2.0).clip == 2.0


def test_preset_without_lr_takes_lr_as_a_plain_gain():
    fixed = lambda: adabayes(weight_decay=0.0)  # ruff: ignore[lambda-assignment] - as users do
    steps = [run(lambda p, lr=lr: FilterOptimizer(p, fixed, lr=lr), steps=1) for lr in (1.0, 0.5)]
    start = weight().detach()
    torch.testing.assert_close(steps[1] - start, (steps[0] - start) / 2, rtol=1e-12, atol=0)
    thawed = run(lambda p: FilterOptimizer(p, fixed, lr=0.0), steps=1, lrs=[0.5])
    assert torch.equal(thawed, steps[1])


@dataclass
class Mutable:
    rate: float


def test_hyperparameters_that_may_change_unseen_are_read_again():
    holder = Mutable(0.1)

    def preset(holder=None, lr=1e-3):
        return adabayes(lr, lr_sgd=holder.rate, weight_decay=0.0)

    p = weight()
    opt = FilterOptimizer([p], preset, holder=holder)
    first = opt.posterior_variance(p)
    holder.rate = 0.2
    assert torch.equal(opt.posterior_variance(p), 2 * first)


def test_numbers_of_other_libraries_are_stored_as_plain_ones():
    p = weight()
    opt = filteropt.AdaBayesFP(
        [{"params": [p], "lr": np.float32(0.01)}],
        lr_sgd=Fraction(1, 4),
        betas=(np.float64(0.9), 0.99),
        batch_size=np.int64(8),
    )
    group = opt.param_groups[0]
    assert [type(group[k]) for k in ("lr", "lr_sgd", "batch_size")] == [float, float, int]
    assert type(group["betas"][0]) is float


def test_copy_of_an_optimizer_with_a_scheduler_steps_itself():
    p = weight()
    opt = filteropt.AdaBayes([p], lr=0.01)
    torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=10)
    twin = copy.deepcopy(opt)
    (q,) = twin.param_groups[0]["params"]
    q.grad = torch.ones_like(q)
    twin.step()
    assert torch.equal(p, weight())
    assert not torch.equal(q, p)
    assert pickle.loads(pickle.dumps(opt)).param_groups[0]["lr"] == 0.01


def test_infinite_gradient_is_refused_where_any_finite_one_is_taken():
    p = weight()
    opt = filteropt.AdaBayes([p], batch_size=1e-20, lr_sgd=1e-21, lr=1e-6)
    p.grad = torch.tensor([float("inf"), 0.0], dtype=torch.float64)
    with pytest.raises(filteropt.NonFiniteGradientError):
        opt.step()


def test_checkpoint_is_judged_by_its_own_base_lr():
    """A schedule may take lr beyond what Euler's model could be built with."""
    p = weight()
    opt = filteropt.AdaBayes([p], lr=1e-3, batch_size=128)
    train(opt, p, lrs=[0.06] * 3)
    again = filteropt.AdaBayes([weight()], lr=1e-3, batch_size=128)
    again.load_state_dict(opt.state_dict())
    assert again.param_groups[0]["base_lr"] == 1e-3


class Clash(NamedTuple):
    variance: torch.Tensor


class ClashingName(SquaredGradient):
    def init(self, p):
        return Clash(torch.zeros_like(p))


class NeedsMore(SquaredGradient):
    needs: ClassVar[frozenset[str]] = frozenset({"grad", "per_example"})


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [(ClashingName(), "state name variance"), (NeedsMore(), "per_example")],
)
def test_parts_that_cannot_be_served_are_refused(likelihood, words):
    with pytest.raises(IncompatibleComposition, match=words):
        filteropt.engine.check(Filter(FixedNoise(1e-3, 0.1), likelihood, Diagonal()))


class Waking(FixedNoise):
    """Decay sets in with the third step."""

    def transition(self, t):
        return super().transition(t)._replace(decay=0.1 * (t >= 3).double())


@pytest.mark.parametrize("linearize_at", ["posterior", "prediction"])
def test_decay_that_depends_on_the_step_reaches_the_posterior_mean(linearize_at):
    class Silent(SquaredGradient):
        def observe(self, like, raw, p, prior, scalars):
            obs, like = super().observe(like, raw, p, prior, scalars)
            return Observation(0 * obs.grad, obs.curvature), like

    filter = Filter(Waking(1e-3, 0.1), Silent(), Diagonal())
    p = weight()
    opt = FilterOptimizer([p], lambda: filter, linearize_at=linearize_at)
    train(opt, p, steps=5)
    opt.eval()
    assert p[0].item() == pytest.approx(0.9**3, rel=1e-12)


@pytest.mark.parametrize(
    ("first", "then"), [("posterior", "prediction"), ("prediction", "posterior")]
)
def test_a_group_may_change_where_gradients_are_taken(first, then):
    p = weight()
    opt = filteropt.AdaBayes([p], lr=0.1, linearize_at=first)
    train(opt, p)
    opt.param_groups[0]["linearize_at"] = then
    train(opt, p)
    before = p.detach().clone()
    opt.eval()
    assert torch.equal(p, before) == (then == "posterior")


def test_a_group_cannot_need_state_that_was_not_kept():
    """Momentum that starts in the middle of a run is refused before anything changes."""
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = filteropt.FilterOptimizer([p], sgd, lr=0.1)
    p.grad = torch.ones_like(p)
    opt.step()
    opt.param_groups[0]["momentum"] = 0.9
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="now need exp_avg"):
        opt.step()
    assert torch.equal(p, before)


def test_a_slots_function_keeps_its_own_defaults_and_takes_only_what_there_is():
    made = variant(adabayes, dynamics=lambda lr, form="exact": FixedNoise(lr, discretization=form))
    assert made(lr=0.1).dynamics == FixedNoise(0.1, discretization="exact")
    with pytest.raises(TypeError, match=r"dynamics: its function takes 'rate'.* lr, lr_sgd"):
        variant(adabayes, dynamics=lambda rate: FixedNoise(rate))
