"""Parameters that hold a draw: what is drawn, that it is taken back, and gradients there."""

from __future__ import annotations

import copy
import pickle
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

import filteropt
from filteropt import presets
from filteropt.approximations import Dense

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def parameter(*shape, seed=0, dtype=DOUBLE):
    return nn.Parameter(torch.randn(shape, generator=seeded(seed), dtype=dtype))


def bits(x):
    """What tells -0.0 from 0.0."""
    return x.detach().contiguous().view(torch.uint8 if x.dim() else x.dtype).clone()


def close(found, expected, rtol=1e-10, atol=1e-14):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# What is drawn ------------------------------------------------------------------------------------


def composed(preset, **slots):
    return partial(filteropt.FilterOptimizer, preset=filteropt.variant(preset, **slots))


FAMILIES = {
    "Diagonal": partial(filteropt.AdaBayes, lr=0.05, lr_sgd=0.5),
    "Diagonal of a pair": partial(filteropt.MomentumFilter, lr=0.05),
    "FixedPoint": partial(filteropt.AdaBayesFP, lr=0.05, lr_sgd=0.5),
    "FixedPoint exact": partial(filteropt.AdaBayesFP, lr=0.05, lr_sgd=0.5, fixed_point="exact"),
    "FixedPoint of a pair": partial(filteropt.MomentumFilter, lr=0.05, stationary=True),
    "Dense": composed(presets.adabayes, posterior=Dense()),
    "Dense pairs": composed(presets.momentum_filter, posterior=Dense()),
    "Retracted": partial(filteropt.VON, lr=0.05, dataset_size=10),
    "Retracted tangent": partial(filteropt.VON, lr=0.05, dataset_size=10, retracted=False),
    "SquareRooted": partial(filteropt.Vadam, lr=0.05, dataset_size=10),
    "OneStepAhead": partial(filteropt.BayesRMSprop, lr=0.05),
    "OneStepAhead at rest": partial(filteropt.BayesRMSprop, lr=0.05, fixed_point=True),
}
DENSE = ("Dense", "Dense pairs")


def trained(name, p, steps=3):
    """An optimizer of ``p`` that has seen some gradients, of different sizes and correlated."""
    opt = FAMILIES[name]([p])
    size = torch.linspace(0.1, 3, p.numel(), dtype=p.dtype).reshape(p.shape)
    for t in range(steps):
        noise = torch.randn(p.shape, generator=seeded(t), dtype=p.dtype)
        at_draws = name.startswith(("Retracted", "SquareRooted"))
        with opt.sampled_params(True, generator=seeded(t)) if at_draws else nullcontext():
            ((1 + noise) * size * p + size * p.square()).sum().backward()
        opt.step()
        opt.zero_grad()
    opt.eval()
    return opt


def offset(opt, p, **options):
    mean = p.detach().clone()
    with opt.sampled_params(**options):
        return p.detach() - mean


def weights_covariance(opt, p):
    """The kept covariance of the weights alone, ``(n, n)``."""
    kept = opt.posterior_covariance(p)
    if kept.dim() == 2 and len(kept) >= p.numel() > 1:
        k = len(kept) // p.numel()
        return kept[::k, ::k]
    return kept[..., 0, 0].flatten().diag()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_draws_are_a_root_of_the_covariance_times_standard_normals(name, steps, monkeypatch):
    """Linear in the normals; their unit vectors give L, and L L' is the covariance kept."""
    p = parameter(2, 3)
    opt = trained(name, p, steps)
    if name == "OneStepAhead at rest" and not steps:
        with pytest.raises(ValueError, match="variance of parameter 0"):
            offset(opt, p)  # a random walk at rest, of which no gradient has been seen
        return
    columns = []
    for eps in torch.eye(6, dtype=DOUBLE):
        monkeypatch.setattr(torch, "randn", lambda *size, eps=eps, **_: eps.reshape(*size))
        columns.append(offset(opt, p).flatten())
        close(offset(opt, p, temperature=4.0).flatten(), 2 * columns[-1], atol=1e-13)
        assert torch.equal(offset(opt, p, temperature=0.0), torch.zeros(2, 3, dtype=DOUBLE))
    root = torch.stack(columns, 1)
    close(root @ root.mT, weights_covariance(opt, p), rtol=1e-9, atol=1e-14)
    close((root @ root.mT).diagonal().reshape(2, 3), opt.posterior_variance(p), rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in DENSE])
def test_draws_have_the_posteriors_moments(name, temperature):
    """Of n standardised independent draws, mean, variance and fourth moment, to 6 errors."""
    p = parameter(20_000)
    opt = trained(name, p)
    drawn = offset(opt, p, generator=seeded(7), temperature=temperature)
    z, n = drawn / (temperature * opt.posterior_variance(p)).sqrt(), p.numel()
    for found, expected, spread in (
        (z.mean(), 0.0, 1.0), (z.square().mean(), 1.0, 2.0), ((z**4).mean(), 3.0, 96.0),
        ((z[1:] * z[:-1]).mean(), 0.0, 1.0),
    ):  # fmt: skip
        assert abs(found - expected) < 6 * (spread / n) ** 0.5


@pytest.mark.parametrize("name", DENSE)
def test_draws_have_the_dense_posteriors_covariance(name):
    p, n = parameter(3), 400
    opt, stream = trained(name, p), seeded(8)
    drawn = torch.stack([offset(opt, p, generator=stream) for _ in range(n)])
    cov = weights_covariance(opt, p)
    variances = cov.diagonal()
    spread = ((variances[:, None] * variances + cov**2) / n).sqrt()
    assert ((drawn.T @ drawn / n - cov).abs() < 6 * spread).all()
    assert (drawn.mean(0).abs() < 6 * (variances / n).sqrt()).all()


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_prices_estimate_is_unbiased_at_every_temperature(temperature):
    """Of n weights with loss c w^2/2 each, c = eps^2 c + eps c mu/(sqrt(T) sigma) on average."""
    n, c, mu, rate, data, prior = 20_000, 3.0, 0.2, 0.02, 10.0, 1.0
    p = nn.Parameter(torch.full((n,), mu, dtype=DOUBLE))
    opt = filteropt.VON(
        [p], 0.1, data, prior_precision=prior, initial_curvature=1.0, beta2=1 - rate,
        retracted=False,
    )  # fmt: skip
    variance = opt.posterior_variance(p)[0].item()
    with opt.sampled_params(True, generator=seeded(5), temperature=temperature):
        (c * p.square().sum() / 2).backward()
    opt.step()
    gained = (1 / opt.posterior_variance(p) - (1 - rate) / variance - rate * prior) / rate / data
    spread = 2 * c**2 + (c * mu) ** 2 / (temperature * variance)
    assert abs(gained.mean() - c) < 6 * (spread / n) ** 0.5
    assert abs(gained.var() / spread - 1) < 0.2


def test_before_the_first_step_the_prior_is_drawn_from():
    p = parameter(20_000)
    opt = filteropt.IVON([p], 0.1, ess=10.0, hess_init=2.0, weight_decay=0.5)
    drawn = offset(opt, p, generator=seeded(1))
    assert drawn.var().item() == pytest.approx(1 / 25, rel=6 * (2 / 20_000) ** 0.5)
    assert not opt.state


def test_generators_make_draws_reproducible():
    p, q = parameter(3, 2), parameter(4)
    opt = filteropt.AdaBayes([p, q])
    state = torch.get_rng_state()
    generator = seeded(3)
    first, second = (offset(opt, p, generator=generator) for _ in range(2))
    again = offset(opt, p, generator=seeded(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)  # the default one was left alone
    torch.manual_seed(3)
    assert torch.equal(offset(opt, p), again)
    assert not torch.equal(offset(opt, p), again)


# That it is taken back ----------------------------------------------------------------------------


class Stop(BaseException):
    """Neither an Exception nor an interrupt."""


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, Stop])
def test_weights_come_back_bit_for_bit(train, error):
    p = nn.Parameter(torch.tensor([1e-320, -0.0, 0.1, 1e300, 3.0], dtype=DOUBLE))
    opt = filteropt.AdaBayes([p], lr_sgd=0.5)
    kept, place = bits(p), p.data_ptr()
    for _ in range(2):  # nothing is left behind that would hinder another context
        try:
            with opt.sampled_params(train=train):
                assert not torch.equal(bits(p), kept)
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt, Stop):
            assert error is not None
        assert torch.equal(bits(p), kept)
        assert p.data_ptr() == place
        assert p.grad is None


def test_weights_come_back_when_a_generator_or_a_function_is_left():
    p = parameter(3)
    opt, kept = filteropt.AdaBayes([p], lr_sgd=0.5), bits(p)

    def members():
        with opt.sampled_params():
            yield p.detach().clone()

    def first():
        with opt.sampled_params():
            return p.detach().clone()

    left = members()
    assert not torch.equal(bits(next(left)), kept)
    left.close()
    assert torch.equal(bits(p), kept)
    assert not torch.equal(bits(first()), kept)
    assert torch.equal(bits(p), kept)


def test_an_error_inside_forgets_what_was_gathered():
    p = parameter(3)
    opt = filteropt.IVON([p], 0.1, 10.0)

    def fail():
        with opt.sampled_params(train=True):
            p.square().sum().backward()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    with pytest.raises(RuntimeError, match="no gradient was taken at a draw"):
        opt.step()


def test_draws_are_written_in_place_where_others_see_them():
    """A flat buffer whose views are the parameters; layouts other than row by row."""
    flat = torch.randn(12, generator=seeded(), dtype=DOUBLE)
    a, b = nn.Parameter(flat[:8].view(2, 4)), nn.Parameter(flat[8:].view(2, 2).t())
    image = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    alias, buffers = image.detach(), [p.untyped_storage().data_ptr() for p in (a, b, image)]
    strides = [p.stride() for p in (a, b, image)]
    opt = filteropt.AdaBayes([a, b, image], lr_sgd=0.5)
    kept, before = flat.clone(), alias.clone()
    with opt.sampled_params():
        assert (flat != kept).all()
        assert torch.equal(flat[8:].view(2, 2).t(), b.detach())
        assert torch.equal(alias, image.detach())
        assert not torch.equal(alias, before)
        assert strides == [p.stride() for p in (a, b, image)]
    assert torch.equal(flat, kept)
    assert torch.equal(alias, before)
    assert strides == [p.stride() for p in (a, b, image)]
    assert buffers == [p.untyped_storage().data_ptr() for p in (a, b, image)]


def test_what_is_frozen_stays_and_what_is_odd_is_drawn():
    frozen, unused, used = parameter(3), parameter(3), parameter(3)
    still, late = parameter(2), parameter(2)
    empty, number = parameter(0, 3), parameter()
    frozen.requires_grad_(False)
    groups = [
        {"params": [frozen, unused, used, empty, number]},
        {"params": [still], "lr": 0.0},
        {"params": [late]},
    ]
    opt = filteropt.IVON(groups, lr=0.1, ess=10.0)
    opt.param_groups[2]["lr"] = 0.0  # a scheduler's last lr: believed, but not moved
    kept = {p: bits(p) for p in (frozen, unused, used, still, late, number)}
    variance = opt.posterior_variance(unused)
    with opt.sampled_params(train=True, generator=seeded()):
        for p in (unused, used, late, number):
            assert not torch.equal(bits(p), kept[p])
        for p in (frozen, still):
            assert torch.equal(bits(p), kept[p])
        loss = sum(p.square().sum() for p in (used, still, late, empty, number))
        loss.backward()
    opt.step()
    for p in (frozen, unused, still, late):
        assert torch.equal(bits(p), kept[p])
    for p in (used, number):
        assert not torch.equal(bits(p), kept[p])
    assert torch.equal(opt.posterior_variance(unused), variance)


def test_half_precision_weights_are_drawn_and_trained():
    p = nn.Parameter(torch.randn(500, generator=seeded()).bfloat16())
    opt, kept = filteropt.IVON([p], 0.1, ess=10.0), bits(p)
    for _ in range(2):
        with opt.sampled_params(train=True, generator=seeded(1)):
            opt.zero_grad()
            assert p.dtype == torch.bfloat16
            drawn = p.detach().clone()
            p.square().sum().backward()
        assert torch.equal(bits(p), kept)
    assert p.grad.dtype == torch.bfloat16
    torch.testing.assert_close(p.grad, 2 * drawn)
    variance = opt.posterior_variance(p)
    assert variance.dtype == torch.float32
    spread = (drawn.float() - p.detach().float()).square().mean() / variance.mean()
    assert abs(spread - 1) < 6 * (2 / 500) ** 0.5
    opt.step()
    assert p.isfinite().all()
    assert not torch.equal(bits(p), kept)


@pytest.mark.parametrize("make", [
    partial(filteropt.AdaBayes, lr=0.1, lr_sgd=0.5, weight_decay=1.0),
    partial(filteropt.MomentumFilter, lr=0.3, linearize_at="prediction"),
])  # fmt: skip
def test_under_prediction_draws_for_evaluation_are_about_the_posterior_mean(make):
    p = parameter(5)
    opt = make([p], linearize_at="prediction")
    for _ in range(3):
        opt.zero_grad()
        p.square().sum().backward()
        opt.step()
    prediction = bits(p)
    opt.eval()
    posterior = p.detach().clone()
    opt.train()
    assert not torch.equal(posterior, p.detach())
    with opt.sampled_params(temperature=0.0):
        assert torch.equal(p.detach(), posterior)
    assert torch.equal(bits(p), prediction)
    with opt.sampled_params(generator=seeded(1)):
        drawn = p.detach() - posterior
    assert torch.equal(bits(p), prediction)
    with opt.sampled_params(train=True, generator=seeded(1)):
        close(p.detach() - torch.frombuffer(bytearray(prediction.numpy()), dtype=DOUBLE), drawn)
    assert torch.equal(bits(p), prediction)
    opt.eval()
    with opt.sampled_params(generator=seeded(1)):
        close(p.detach() - posterior, drawn)
    assert torch.equal(p.detach(), posterior)


def test_contexts_refuse_what_makes_no_sense():
    p = parameter(3)
    opt = filteropt.IVON([p], 0.1, 10.0)
    kept = bits(p)
    with opt.sampled_params(train=True):
        drawn = p.detach().clone()
        for train in (False, True):
            with (
                pytest.raises(RuntimeError, match="hold a draw already"),
                opt.sampled_params(train),
            ):
                pass
        assert torch.equal(p.detach(), drawn)
        p.square().sum().backward()
        with pytest.raises(RuntimeError, match="leave sampled_params first"):
            opt.step()
    assert torch.equal(bits(p), kept)
    for bad, error in (("warm", TypeError), (-1.0, ValueError), (float("nan"), ValueError)):
        with pytest.raises(error, match="temperature"), opt.sampled_params(temperature=bad):
            pass
    with pytest.raises(TypeError, match="train"), opt.sampled_params(train=1):
        pass
    with (
        pytest.raises(ValueError, match="temperature"),
        opt.sampled_params(train=True, temperature=0.0),
    ):
        pass
    unbounded = filteropt.AdaBayesFP([p], lr_sgd=float("inf"))
    with pytest.raises(ValueError, match="variance of parameter 0"), unbounded.sampled_params():
        pass
    assert torch.equal(bits(p), kept)


# Training at draws --------------------------------------------------------------------------------

TRAINED = {
    "price": partial(filteropt.IVON, lr=0.3, ess=20.0, hess_init=0.5, beta2=0.9),
    "gradsq": partial(
        filteropt.IVON, lr=0.3, ess=20.0, hess_init=0.5, beta2=0.9, hess_approx="gradsq"
    ),
    "examples": partial(
        filteropt.VOGN, lr=0.1, dataset_size=20, batch_size=8, beta1=0.0, beta2=0.9
    ),
    "mean's": partial(filteropt.AdaBayes, lr=0.1, lr_sgd=0.5, batch_size=8),
}
GATHERED = list(TRAINED)[:3]
INPUTS, TARGETS = (torch.randn(5, 8, n, generator=seeded(n), dtype=DOUBLE) for n in (3, 1))


class Run:
    """A small network, an optimizer that trains it at draws, and its state."""

    def __init__(self, name, **changes):
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        with torch.no_grad():
            for i, p in enumerate(self.model.parameters()):
                p.copy_(parameter(*p.shape, seed=i))
        options = {"model": self.model, **changes} if name == "examples" else changes
        self.opt = TRAINED[name](self.model.parameters(), **options)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def loss(self, t, rows=slice(None)):
        return (self.model(INPUTS[t][rows]) - TARGETS[t][rows]).square().sum() / 8

    def draw(self, seed):
        return self.opt.sampled_params(train=True, generator=seeded(seed))

    def backward(self, t, seed, factor=1.0, inside=None):
        with self.draw(seed):
            if inside is not None:
                inside()
            self.scaler.scale(factor * self.loss(t)).backward()

    def step(self):
        self.scaler.step(self.opt)
        self.scaler.update()

    def belief(self):
        params = list(self.model.parameters())
        return [*(p.detach().clone() for p in params), *map(self.opt.posterior_variance, params)]

    def grads(self):
        return [p.grad.clone() for p in self.model.parameters()]


def agree(one, other, rtol=1e-10):
    for found, expected in zip(one.belief(), other.belief(), strict=True):
        close(found, expected, rtol=rtol)


def differ(one, other):
    pairs = zip(one.belief(), other.belief(), strict=True)
    assert all(not torch.allclose(a, b, rtol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_the_draws_and_moves_are_the_means(name):
    """Statistical linearisation: what the step reads off p.grad, it applies to the mean."""
    run = Run(name)
    before = [p.detach().clone() for p in run.model.parameters()]
    with run.draw(3):
        loss = run.loss(0)
        expected = torch.autograd.grad(loss, list(run.model.parameters()), retain_graph=True)
        loss.backward()
    for found, there in zip(run.grads(), expected, strict=True):
        close(found, there)
    at_mean = torch.autograd.grad(run.loss(0), list(run.model.parameters()))
    assert not torch.allclose(at_mean[0], expected[0], rtol=1e-2)
    run.opt.step()
    if name == "mean's":
        plain = Run(name)
        for p, g in zip(plain.model.parameters(), expected, strict=True):
            p.grad = g
        plain.opt.step()
        agree(run, plain, rtol=0)
    assert all((p != b).all() for p, b in zip(run.model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_zeroing_inside_starts_another_sample_and_gradients_are_averaged(name):
    run, single = Run(name), []
    run.opt.zero_grad()
    for seed in range(3):
        alone = Run(name)
        alone.backward(0, seed)
        single.append(alone.grads())
        run.backward(0, seed, inside=run.opt.zero_grad)
        for found, *parts in zip(run.grads(), *single, strict=True):
            close(found, sum(parts) / (seed + 1))
    run.opt.step()
    assert run.opt._gathering.ledger.samples == 1  # the next step starts afresh


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_what_zeroes_gradients_does_not_matter_with_one_sample(name, set_to_none):
    """Before the context or inside of it; by the optimizer, or, before, by the model."""
    runs = [Run(name) for _ in range(4)]
    for t in range(3):
        for place, run in enumerate(runs):
            zero = partial(run.opt.zero_grad, set_to_none)
            if place == 1:
                run.model.zero_grad(set_to_none)
            elif place == 2:
                zero()
            run.backward(t, t, inside=zero if place in (0, 3) else None)
            run.opt.step()
            if place == 3:
                zero()
    for run in runs[1:]:
        agree(run, runs[0], rtol=0)


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("name", GATHERED)
@pytest.mark.parametrize("by", ["optimizer", "model", "model inside", "hand"])
@pytest.mark.filterwarnings("ignore:zero_grad")
def test_gradients_that_were_taken_away_do_not_count(name, by, set_to_none):
    """Nor what was gathered with them: the weights' and the belief's next step."""
    run, fresh = Run(name), Run(name)
    for one in (run, fresh):
        one.backward(0, 0)
        one.opt.step()
        one.opt.zero_grad()
    run.backward(1, 1, factor=10.0)
    zero = {
        "optimizer": partial(run.opt.zero_grad, set_to_none),
        "model": partial(run.model.zero_grad, set_to_none),
        "model inside": partial(run.model.zero_grad, set_to_none),
        "hand": partial(take_away, run.model, set_to_none),
    }[by]
    if by != "model inside":
        zero()
    run.backward(2, 2, inside=zero if by == "model inside" else None)
    fresh.backward(2, 2)
    for one in (run, fresh):
        one.opt.step()
    agree(run, fresh)


@pytest.mark.parametrize("overflow", [None, 0, 1])
@pytest.mark.parametrize("by", ["optimizer", "model", "hand"])
@pytest.mark.filterwarnings("ignore:zero_grad")
def test_samples_that_were_taken_away_do_not_count(by, overflow):
    """Two complete ones, of which one may have overflowed so that the step was skipped."""
    run, fresh = Run("price"), Run("price")
    for s in range(2):
        run.backward(0, s, float("inf") if s == overflow else 1.0, run.opt.zero_grad)
    if by == "hand":
        take_away(run.model, True)
    else:
        (run.opt if by == "optimizer" else run.model).zero_grad()
    for one in (run, fresh):
        for s in range(2):
            one.backward(1, 10 + s, inside=one.opt.zero_grad)
        one.opt.step()
    agree(run, fresh)


def take_away(model, set_to_none):
    for p in model.parameters():
        p.grad = None if set_to_none else torch.zeros_like(p)


def test_a_forgotten_draw_is_warned_of_once():
    run = Run("price")
    for t in range(3):  # the plain loop has nothing to warn of
        run.opt.zero_grad()
        run.backward(t, t)
        run.opt.step()
    run.backward(0, 1)
    with pytest.warns(UserWarning, match="forgot a gradient taken at a draw"):
        run.opt.zero_grad()
    run.backward(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.opt.zero_grad()


@pytest.mark.parametrize("contexts", [1, 4])
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_accumulate_over_microbatches(name, contexts):
    """Four microbatches at one draw are the whole batch, in one context or in four."""
    whole, parts = Run(name), Run(name)
    rows = [slice(i, i + 2) for i in range(0, 8, 2)]
    for t in range(3):
        whole.backward(t, t)
        if contexts == 1:
            with parts.draw(t):
                for few in rows:
                    parts.loss(t, few).backward()
        else:
            for few in rows:
                with parts.draw(t):
                    parts.loss(t, few).backward()
        for found, expected in zip(parts.grads(), whole.grads(), strict=True):
            close(found, expected)
        for run in (parts, whole):
            run.opt.step()
            run.opt.zero_grad()
    agree(parts, whole)


@pytest.mark.parametrize("drawn", [False, True])
def test_examples_whose_gradients_cancel_still_have_squares(drawn):
    """A model that starts at zero, with balanced labels: the minibatch's gradient is 0 exactly."""
    model = nn.Linear(1, 1).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    opt = filteropt.VOGN(
        model.parameters(), 0.1, 100, batch_size=4, beta2=0.5, initial_curvature=0.0, model=model
    )
    x, y = torch.ones(2, 1, dtype=DOUBLE), torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
    for _ in range(2):
        with opt.sampled_params(True, temperature=0.0) if drawn else nullcontext():
            losses = nn.functional.binary_cross_entropy_with_logits(model(x), y, reduction="sum")
            (losses / 4).backward()
    assert not model.bias.grad.any()
    opt.step()
    close(1 / opt.posterior_variance(model.bias), torch.tensor([1 + 100 * 0.5 * 0.25]).double())


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", TRAINED)
def test_a_scaled_loss_is_unscaled_and_skipped_steps_leave_no_trace(name, samples):
    """GradScaler; the second step has an overflow, after which it halves its scale."""
    plain, scaled = Run(name), Run(name)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for t in range(4):
        for s in range(samples):
            for run in (plain, scaled):
                overflows = t == 1 and s == samples - 1
                if run is scaled or t != 1:
                    factor = float("inf") if overflows else 1.0
                    run.backward(t, 10 * t + s, factor, run.opt.zero_grad)
        scaled.step()
        if t != 1:
            plain.step()
    assert scaled.scaler.get_scale() == 32.0
    agree(scaled, plain)


@pytest.mark.parametrize("zero", ["optimizer", "model", "inside", "model inside"])
@pytest.mark.parametrize("how", ["skip", "raise"])
@pytest.mark.parametrize("name", GATHERED)
def test_nonfinite_gradients_leave_no_trace(name, how, zero):
    """Whatever zeroes gradients after a step that was skipped or refused."""
    run, fresh = (Run(name, on_nonfinite=how) for _ in range(2))
    for t in range(3):
        for one in (run, fresh):
            if t == 1 and one is fresh:
                continue
            if zero in ("optimizer", "model"):
                (one.opt if zero == "optimizer" else one.model).zero_grad()
            inside = {"inside": one.opt.zero_grad, "model inside": one.model.zero_grad}.get(zero)
            one.backward(t, t, float("nan") if t == 1 else 1.0, inside)
            if t == 1 and how == "raise":
                with pytest.raises(filteropt.NonFiniteGradientError):
                    one.opt.step()
            else:
                one.opt.step()
    agree(run, fresh)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_clipping_the_norm_scales_curvature_as_a_smaller_loss_would(name, samples):
    """With factor r on the gradient: r for products, r^2 for squares."""
    clipped, smaller, free = Run(name), Run(name), Run(name)
    for s in range(samples):
        for run in (clipped, free):
            run.backward(0, s, inside=run.opt.zero_grad)
    norm = nn.utils.clip_grad_norm_(clipped.model.parameters(), 0.05)
    ratio = 0.05 / (norm.item() + 1e-6)
    assert ratio < 0.5
    for s in range(samples):
        smaller.backward(0, s, ratio, smaller.opt.zero_grad)
    for run in (clipped, smaller, free):
        run.opt.step()
    agree(clipped, smaller)
    differ(clipped, free)


@pytest.mark.parametrize("name", TRAINED)
def test_other_uses_of_autograd_inside_do_not_count(name):
    """Gradients that are asked for, and not accumulated, as a saliency map or a penalty does."""
    run, plain = Run(name), Run(name)
    for t in range(2):
        with run.draw(t):
            run.opt.zero_grad()
            params = list(run.model.parameters())
            torch.autograd.grad(run.loss(t), params)
            x = INPUTS[t].clone().requires_grad_()
            torch.autograd.grad(run.model(x).sum(), x)
            run.loss(t).backward()
        plain.backward(t, t, inside=plain.opt.zero_grad)
        run.opt.step()
        plain.opt.step()
    agree(run, plain)


@pytest.mark.parametrize("name", GATHERED)
def test_maximizing_is_minimizing_the_negative(name):
    up, down = Run(name, maximize=True), Run(name)
    for t in range(3):
        up.backward(t, t, -1.0, up.opt.zero_grad)
        down.backward(t, t, 1.0, down.opt.zero_grad)
        up.opt.step()
        down.opt.step()
    agree(up, down)


@pytest.mark.parametrize("name", TRAINED)
def test_closures_draw_for_themselves(name):
    samples = {"mc_samples": 3} if name in ("price", "gradsq") else {}
    run, plain = Run(name, **samples), Run(name)
    seeds = iter(range(3))

    def closure():
        seed = next(seeds)
        run.backward(0, seed, inside=run.opt.zero_grad)
        return torch.tensor(float(seed))

    loss = run.opt.step(closure)
    assert loss == (1.0 if samples else 0.0)
    for seed in range(3 if samples else 1):
        plain.backward(0, seed, inside=plain.opt.zero_grad)
    plain.opt.step()
    agree(run, plain)


@pytest.mark.parametrize("how", ["checkpoint", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", TRAINED)
def test_training_resumes_bit_for_bit(name, how):
    """With the stream of draws, whose state is the caller's to save."""
    whole, stream = Run(name), seeded(9)

    def train(run, stream, steps):
        for t in steps:
            with run.opt.sampled_params(train=True, generator=stream):
                run.opt.zero_grad()
                run.loss(t).backward()
            run.opt.step()

    train(whole, stream, range(2))
    if how == "checkpoint":
        resumed = Run(name)
        resumed.model.load_state_dict(whole.model.state_dict())
        resumed.opt.load_state_dict(copy.deepcopy(whole.opt.state_dict()))
    else:  # model and optimizer in one, so that they share their parameters
        copier = copy.deepcopy if how == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
        resumed = Run(name)
        resumed.model, resumed.opt = copier((whole.model, whole.opt))
    other = torch.Generator()
    other.set_state(stream.get_state())
    train(whole, stream, range(2, 5))
    train(resumed, other, range(2, 5))
    agree(resumed, whole, rtol=0)


def test_copies_between_backward_and_step_have_gathered_nothing():
    run = Run("price")
    run.backward(0, 0)
    model, opt = copy.deepcopy((run.model, run.opt))
    for p, q in zip(model.parameters(), run.model.parameters(), strict=True):
        p.grad = q.grad.clone()
    with pytest.raises(RuntimeError, match="no gradient was taken at a draw"):
        opt.step()
    run.opt.step()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_brings_back_an_optimizer_that_trains(protocol):
    run = Run("price")
    run.backward(0, 0)
    run.opt.step()
    other = Run("price")
    other.model, other.opt = pickle.loads(pickle.dumps((run.model, run.opt), protocol))
    for one in (run, other):
        one.backward(1, 1, inside=one.opt.zero_grad)
        one.opt.step()
    agree(other, run, rtol=0)


@pytest.mark.parametrize("name", ["price", "gradsq"])
def test_a_gradient_from_outside_of_the_context_is_none_at_a_draw(name):
    """Autograd does not notice where the loss is linear in the weights."""
    p = parameter(3)
    opt = TRAINED[name]([p])
    with opt.sampled_params(train=True):
        loss = p.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="no gradient was taken at a draw"):
        opt.step()
