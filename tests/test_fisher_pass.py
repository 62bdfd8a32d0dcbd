"""Sampled labels, and the Fisher information that they estimate."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import filteropt
from filteropt import presets, sample_labels
from filteropt.approximations import SampledFisher

DOUBLE = torch.float64
PRIOR = 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def close(found, expected, rtol=1e-10, atol=1e-13):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_classes_are_drawn_as_often_as_they_are_predicted(shape, dtype):
    """With every further dimension's own logits; counts within 6 standard errors of n p."""
    n, classes = 4000, 4
    if not shape and dtype == torch.float16:
        dtype = torch.float32
    logits = normal(1, classes, *shape).to(dtype).expand(n, classes, *shape).requires_grad_()
    labels = sample_labels(logits, "categorical", generator=seeded(1))
    assert labels.dtype == torch.int64
    assert labels.shape == (n, *shape)
    assert not labels.requires_grad
    if dtype in (DOUBLE, torch.float32):
        functional.cross_entropy(logits, labels)
    chances = logits[0].detach().double().softmax(0)
    for c in range(classes):
        found, p = (labels == c).double().sum(0), chances[c]
        assert ((found - n * p).abs() < 6 * (n * p * (1 - p)).sqrt() + 1e-3 * n * p).all()
    apart = (labels[1:] == labels[:-1]).double().mean(0)  # draws of different rows: independent
    assert ((apart - chances.square().sum(0)).abs() < 6 / (n - 1) ** 0.5).all()


def test_one_example_of_logits_gives_one_label():
    """As cross_entropy takes them: (classes,) and a number."""
    logits = torch.tensor([0.0, 50.0, 0.0])
    label = sample_labels(logits, "categorical")
    assert label.shape == ()
    assert label == 1
    functional.cross_entropy(logits, label)
    assert sample_labels(torch.zeros(0, 3), "categorical").shape == (0,)


def test_impossible_classes_are_never_drawn():
    logits = torch.tensor([[0.0, -torch.inf, 3.0, -torch.inf]]).expand(2000, 4)
    assert set(sample_labels(logits, "categorical").tolist()) == {0, 2}


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
def test_binary_labels_are_drawn_as_often_as_they_are_predicted(dtype):
    n = 4000
    logits = torch.tensor([-2.0, 0.0, 1.0], dtype=dtype).expand(n, 3).requires_grad_()
    labels = sample_labels(logits, "bernoulli", generator=seeded(1))
    assert labels.dtype == dtype
    assert labels.shape == (n, 3)
    assert not labels.requires_grad
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    p = logits[0].detach().double().sigmoid()
    assert ((labels.double().mean(0) - p).abs() < 6 * (p * (1 - p) / n).sqrt() + 4e-3 * p).all()
    assert (torch.corrcoef(labels.double().T) - torch.eye(3)).abs().max() < 6 / n**0.5


@pytest.mark.parametrize("variance", [1.0, 0.5, 9.0])
def test_real_targets_scatter_about_the_outputs(variance):
    n = 4000
    outputs = normal(1, 2).expand(n, 2).requires_grad_()
    z = sample_labels(outputs, "gaussian", noise_variance=variance, generator=seeded(1)) - outputs
    assert not sample_labels(outputs, "gaussian").requires_grad
    z = z.detach() / math.sqrt(variance)
    for found, expected, spread in (
        (z.mean(0), 0.0, 1.0), (z.square().mean(0), 1.0, 2.0), ((z**4).mean(0), 3.0, 96.0),
        (z.prod(1).mean(), 0.0, 1.0),
    ):  # fmt: skip
        assert ((found - expected).abs() < 6 * (spread / n) ** 0.5).all()


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
def test_labels_come_from_the_generator(kind):
    outputs, state = normal(50, 4), torch.get_rng_state()
    first = sample_labels(outputs, kind, generator=seeded(2))
    assert torch.equal(sample_labels(outputs, kind, generator=seeded(2)), first)
    assert not torch.equal(sample_labels(outputs, kind, generator=seeded(3)), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(sample_labels(outputs, kind), first)


def test_labels_that_cannot_be_drawn_are_refused():
    for outputs in (torch.zeros(()), torch.zeros(4, 1), torch.zeros(4, 1, 3)):
        with pytest.raises(ValueError, match="no logits of two or more classes"):
            sample_labels(outputs, "categorical")
    with pytest.raises(ValueError, match="kind"):
        sample_labels(torch.zeros(3), "poisson")
    for bad, error in ((0.0, ValueError), (-1.0, ValueError), ("one", TypeError)):
        with pytest.raises(error, match="noise_variance"):
            sample_labels(torch.zeros(3), "gaussian", noise_variance=bad)
    for outputs in ([0.0, 1.0], torch.zeros(2, 3, dtype=torch.int64)):
        for kind in ("categorical", "bernoulli", "gaussian"):
            with pytest.raises(TypeError, match="floating-point tensor"):
                sample_labels(outputs, kind)


# The Fisher information ---------------------------------------------------------------------------

KINDS = ("categorical", "bernoulli", "gaussian")
NOISE = 0.7
STILL = filteropt.variant(
    presets.online_natural_gradient, likelihood=lambda batch_size: SampledFisher(batch_size, None)
)


def optimizer(model, batch_size=1.0, preset=STILL, **options):
    """One whose precision after the first step is 1/PRIOR + what was gathered."""
    return filteropt.FilterOptimizer(
        model.parameters(), preset, batch_size=batch_size, initial_variance=PRIOR, **options
    )


def gained(opt, model):
    return torch.cat(
        [(1 / opt.posterior_variance(p) - 1 / PRIOR).flatten() for p in model.parameters()]
    )


def network(hidden, outputs):
    layers = [nn.Linear(2, outputs)]
    if hidden:
        layers = [nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(normal(*p.shape, seed=i))
    return model


def losses(kind, outputs, labels, reduction):
    """The negative log-likelihood, without constants."""
    if kind == "categorical":
        return functional.cross_entropy(outputs, labels, reduction=reduction)
    if kind == "bernoulli":
        total = functional.binary_cross_entropy_with_logits(outputs, labels, reduction="sum")
    else:
        total = (outputs - labels).square().sum() / (2 * NOISE)
    return total / len(outputs) if reduction == "mean" else total


def fisher(kind, model, x):
    """Sum over examples of diag J' F J, F the outputs' own Fisher information."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    total = 0.0
    for one in x:
        jacobian = jacrev(lambda w, one=one: functional_call(model, w, one))(weights)
        rows = torch.cat([j.flatten(1) for j in jacobian.values()], 1)
        outputs = model(one).detach()
        if kind == "categorical":
            p = outputs.softmax(-1)
            inner = p.diag() - torch.outer(p, p)
        elif kind == "bernoulli":
            p = outputs.sigmoid()
            inner = (p * (1 - p)).diag()
        else:
            inner = torch.eye(len(outputs), dtype=DOUBLE) / NOISE
        total = total + (rows * (inner @ rows)).sum(0)
    return total


def outcomes(kind, outputs):
    """All label combinations, with probabilities; for real targets two points of variance r."""
    n, c = outputs.shape
    outputs = outputs.detach()
    if kind == "categorical":
        p = outputs.softmax(-1)
        for labels in itertools.product(range(c), repeat=n):
            yield torch.tensor(labels), math.prod(p[i, k].item() for i, k in enumerate(labels))
        return
    for signs in itertools.product((0.0, 1.0), repeat=n * c):
        labels = torch.tensor(signs, dtype=DOUBLE).reshape(n, c)
        if kind == "bernoulli":
            p = outputs.sigmoid()
            yield labels, torch.where(labels > 0, p, 1 - p).prod().item()
        else:
            yield outputs + math.sqrt(NOISE) * (2 * labels - 1), 0.5 ** (n * c)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_pass_is_the_fisher_information(kind, hidden, reduction):
    """Every outcome, weighted by its probability: exactly, cross terms of examples included."""
    model, x = network(hidden, 2), normal(3, 2, seed=9)
    opt = optimizer(model, len(x) if reduction == "mean" else 1.0)
    outputs, expected = model(x), fisher(kind, model, x)
    for labels, chance in outcomes(kind, outputs):
        with opt.fisher_pass(weight=chance):
            losses(kind, outputs, labels, reduction).backward(retain_graph=True)
    outputs.sum().backward()
    opt.step()
    close(gained(opt, model), expected)


@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_sampled_passes_are_unbiased(kind, hidden):
    """Within 6 standard errors of n passes, whose spread is that of the outcomes enumerated."""
    n, model, x = 400, network(hidden, 2), normal(3, 2, seed=9)
    opt, stream = optimizer(model, len(x)), seeded(4)
    outputs = model(x)
    for _ in range(n):
        labels = sample_labels(outputs, kind, noise_variance=NOISE, generator=stream)
        with opt.fisher_pass(weight=1 / n):
            losses(kind, outputs, labels, "mean").backward(retain_graph=True)
    expected = fisher(kind, model, x)
    spread = math.sqrt(2) * expected  # of a squared Gaussian; the outcomes' own where they are few
    if kind != "gaussian":
        fourth = 0.0
        for labels, chance in outcomes(kind, outputs):
            loss = losses(kind, outputs, labels, "sum")
            parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            fourth = fourth + chance * torch.cat([e.flatten() for e in parts]) ** 4
        spread = (fourth - expected**2).sqrt()
    outputs.sum().backward()
    opt.step()
    assert ((gained(opt, model) - expected).abs() < 6 * spread / n**0.5).all()


# The context --------------------------------------------------------------------------------------


@pytest.fixture
def scene():
    """A model, an optimizer, and a loss whose gradient is ``factor`` in each weight."""
    model = nn.Linear(2, 1, bias=False).double()
    opt = optimizer(model)

    def loss(factor):
        return factor * model.weight.sum()

    return model, opt, loss


def after(opt, model):
    opt.step()
    return gained(opt, model)


def test_gradients_are_left_alone(scene):
    model, opt, loss = scene
    with opt.fisher_pass():
        loss(2.0).backward()
    assert model.weight.grad is None
    loss(3.0).backward()
    grad, kept = model.weight.grad, model.weight.grad.clone()
    with opt.fisher_pass():
        assert model.weight.grad is None
        loss(4.0).backward()
    assert model.weight.grad is grad
    assert torch.equal(grad, kept)
    before = model.weight.detach().clone()
    close(after(opt, model), torch.full((2,), 20.0, dtype=DOUBLE))
    close(before - model.weight.detach(), kept / (2 + 20.0))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_leaves_everything_as_it_was(scene, error):
    model, opt, loss = scene
    loss(3.0).backward()
    grad = model.weight.grad
    with opt.fisher_pass():
        loss(1.0).backward()

    def fail():
        with opt.fisher_pass():
            loss(5.0).backward()
            raise error

    with pytest.raises(error):
        fail()
    assert model.weight.grad is grad
    close(grad, torch.full((1, 2), 3.0, dtype=DOUBLE))
    close(after(opt, model), torch.ones(2, dtype=DOUBLE))


def test_weights_scales_and_several_passes(scene):
    """The sum of w (e/s)^2; backward passes of one context are one gradient."""
    model, opt, loss = scene
    loss(1.0).backward()
    with opt.fisher_pass(weight=0.5):
        loss(2.0).backward()
    with opt.fisher_pass(scale=10.0):
        loss(30.0).backward()
    with opt.fisher_pass(0.25, 0.5):
        loss(1.0).backward()
        loss(3.0).backward()
    with opt.fisher_pass(weight=0.0):
        loss(100.0).backward()
    with opt.fisher_pass():
        pass
    close(after(opt, model), torch.full((2,), 2.0 + 9.0 + 16.0, dtype=DOUBLE))
    loss(1.0).backward()
    with pytest.raises(RuntimeError, match="no sampled labels were seen"):
        opt.step()  # what was gathered belongs to the step before


def test_the_scale_of_the_likelihood_is_squared(scene):
    model, _, loss = scene
    opt = optimizer(model, batch_size=8.0)
    loss(1.0).backward()
    with opt.fisher_pass():
        loss(2.0).backward()
    close(after(opt, model), torch.full((2,), 64 * 4.0, dtype=DOUBLE))


def test_passes_do_not_nest_and_arguments_are_checked(scene):
    _, opt, _ = scene
    with (
        opt.fisher_pass(),
        pytest.raises(RuntimeError, match="under way already"),
        opt.fisher_pass(),
    ):
        pass
    for arguments, error in (
        ({"weight": -1.0}, ValueError), ({"weight": float("inf")}, ValueError),
        ({"scale": 0.0}, ValueError), ({"scale": "big"}, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match=next(iter(arguments))), opt.fisher_pass(**arguments):
            pass


def test_parameters_without_sampled_gradients_gain_nothing():
    """Unused by the pass, unused by the loss, or frozen."""
    a, b, c = (nn.Parameter(torch.ones(1, dtype=DOUBLE)) for _ in range(3))
    frozen = nn.Parameter(torch.ones(1, dtype=DOUBLE), requires_grad=False)
    opt = filteropt.FilterOptimizer([a, b, c, frozen], STILL, initial_variance=PRIOR)
    (a + b).backward()
    with opt.fisher_pass():
        (3 * a + 5 * c).backward()
    opt.step()
    found = [1 / opt.posterior_variance(p).item() - 1 / PRIOR for p in (a, b, c, frozen)]
    assert found == pytest.approx([9.0, 0.0, 0.0, 0.0])
    assert c.item() == frozen.item() == 1.0
    assert b.item() == pytest.approx(0.5)


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("by", ["optimizer", "model"])
def test_passes_are_forgotten_with_the_gradients(scene, by, set_to_none):
    model, opt, loss = scene
    loss(1.0).backward()
    with opt.fisher_pass():
        loss(7.0).backward()
    (opt if by == "optimizer" else model).zero_grad(set_to_none)
    loss(1.0).backward()
    with opt.fisher_pass():
        loss(2.0).backward()
    close(after(opt, model), torch.full((2,), 4.0, dtype=DOUBLE))


def test_passes_count_where_the_training_gradient_is_zero(scene):
    model, opt, loss = scene
    loss(0.0).backward()
    for factor in (2.0, 3.0):
        with opt.fisher_pass():
            loss(factor).backward()
    close(after(opt, model), torch.full((2,), 13.0, dtype=DOUBLE))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("how", ["raise", "skip"])
def test_nonfinite_sampled_gradients(how, bad):
    """Or those whose square overflows; the next step has forgotten them."""
    model = nn.Linear(2, 1, bias=False).double()
    opt = optimizer(model, on_nonfinite=how)
    for factor in (bad, 2.0):
        opt.zero_grad()
        model.weight.sum().backward()
        with opt.fisher_pass():
            (factor * model.weight.sum()).backward()
        before = model.weight.detach().clone()
        if factor is bad and how == "raise":
            with pytest.raises(filteropt.NonFiniteGradientError, match="sum of squares"):
                opt.step()
        else:
            opt.step()
        assert torch.equal(model.weight.detach(), before) == (factor is bad)
    close(gained(opt, model), torch.full((2,), 4.0, dtype=DOUBLE))


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("samples", [1, 2])
def test_scalers_and_clipping_do_not_change_the_information(scene, drawn, samples):
    """``scale`` undoes the scaler; a clipped training gradient tells nothing of the model's own."""
    model, opt, loss = scene
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for s in range(samples if drawn else 1):
        with opt.sampled_params(train=True) if drawn else nullcontext():
            opt.zero_grad()
            scaler.scale(loss(1.0)).backward()
            with opt.fisher_pass(scale=scaler.get_scale()):
                scaler.scale(loss(2.0 + s)).backward()
    scaler.unscale_(opt)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(opt)
    expected = 6.5 if drawn and samples == 2 else 4.0  # samples are averaged
    close(gained(opt, model), torch.full((2,), expected, dtype=DOUBLE))


def test_passes_count_for_no_other_likelihood():
    """A pass inside of a draw leaves its products, and the examples' squares, alone."""
    found = []
    for passes in (0, 2):
        model, x = network(2, 1), normal(4, 2)
        for make in (
            lambda ps: filteropt.IVON(ps, 0.1, 20.0, beta2=0.9),
            lambda ps, model=model: filteropt.VOGN(ps, 0.1, 20, batch_size=4, model=model),
        ):
            opt = make(model.parameters())
            with opt.sampled_params(train=True, generator=seeded(1)):
                outputs = model(x)
                outputs.square().mean().backward(retain_graph=True)
                for _ in range(passes):
                    with opt.fisher_pass():
                        (3 * outputs.sum()).backward(retain_graph=True)
            opt.step()
            found.append([opt.posterior_variance(p) for p in model.parameters()])
    for ours, plain in zip(found[2:], found[:2], strict=True):
        for one, other in zip(ours, plain, strict=True):
            close(one, other)


def test_information_of_a_batch_in_parts_is_that_of_the_batch():
    """Microbatches, each with its own pass, for a mean loss over them all."""
    model, x = network(0, 2), normal(4, 2, seed=9)
    opt = optimizer(model, len(x))
    expected = fisher("categorical", model, x)
    for rows in (slice(0, 2), slice(2, 4)):
        outputs = model(x[rows])
        for labels, chance in outcomes("categorical", outputs):
            with opt.fisher_pass(weight=chance):
                (losses("categorical", outputs, labels, "sum") / 4).backward(retain_graph=True)
        outputs.sum().backward()
    opt.step()
    close(gained(opt, model), expected)
