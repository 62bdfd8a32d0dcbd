"""IVON, beside its authors' trajectory, their package and a literal transcription."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import filteropt
from tests.oracles import variational

GOLDEN = json.loads((Path(__file__).parent / "data" / "ivon.json").read_text())
BASE = {"lr": 0.1, "ess": 100.0, "hess_init": 0.5, "beta2": 0.99, "weight_decay": 1e-3}
OPTIONS = [
    {},
    {"hess_approx": "gradsq"},
    {"clip_radius": 0.3},
    {"hess_approx": "gradsq", "clip_radius": 0.3},
    {"debias": False},
    {"rescale_lr": False, "lr": 0.05},
    {"weight_decay": 0.0},
    {"weight_decay": 0.0, "hess_approx": "gradsq"},
    {"weight_decay": 0.1},
    {"beta1": 0.0},
    {"beta1": 0.5, "beta2": 0.9},
]


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.fixture
def model():
    """Parameters of several shapes, their flat vector, and a loss that is not quadratic."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2), (4,), ())
    ps = [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes
    ]
    root = torch.randn(11, 11, generator=generator, dtype=torch.float64)

    def loss(factor=1.0):
        w = torch.cat([p.flatten() for p in ps])
        return factor * (0.05 * w @ root @ root.T @ w + 0.1 * (w**4).sum())

    return ps, loss


def flat(ps):
    return torch.cat([p.detach().flatten() for p in ps])


def close(found, expected, rtol=1e-10, atol=1e-13):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=rtol, atol=atol)


# The authors' own trajectory ----------------------------------------------------------------------


def test_golden_trajectory(monkeypatch):
    """Fed with the recorded noise; the transcription says which standard normals that is."""
    options = {k: v for k, v in GOLDEN["hyperparameters"].items() if k != "curvature"}
    curvature = tensor(GOLDEN["hyperparameters"]["curvature"])
    w = torch.nn.Parameter(tensor(GOLDEN["initial"]))
    opt = filteropt.IVON([w], **options)
    oracle = variational.IVON(
        GOLDEN["initial"], options["lr"], options["ess"], options["hess_init"],
        options["beta1"], options["beta2"], options["weight_decay"],
    )  # fmt: skip
    pairs = zip(GOLDEN["weight_noise"], GOLDEN["parameters_after_each_step"], strict=True)
    for noise, expected in pairs:
        eps = tensor(np.array(noise) / oracle.sigma())
        monkeypatch.setattr(torch, "randn", lambda *size, eps=eps, **_: eps.reshape(*size))
        with opt.sampled_params(train=True):
            opt.zero_grad()
            drawn = w.detach().clone()
            (w @ (curvature * w) / 2).backward()
        close(drawn - w.detach(), tensor(noise), atol=1e-15)
        opt.step()
        oracle.step([drawn.numpy()], [(curvature * drawn).numpy()])
        close(w.detach(), tensor(expected), atol=0)
        np.testing.assert_allclose(oracle.mean, expected, rtol=1e-10)
    precision = 1 / opt.posterior_variance(w)
    hessian = precision / options["ess"] - options["weight_decay"]
    close(hessian, tensor(GOLDEN["final_hessian"]), atol=0)
    np.testing.assert_allclose(oracle.h, GOLDEN["final_hessian"], rtol=1e-10)


# Their package ------------------------------------------------------------------------------------


def ivon_opt():
    return pytest.importorskip("ivon", reason="compares with ivon-opt, which is an extra").IVON


def train(opt, ps, loss, steps=15, samples=1):
    """The loop of ivon-opt's README."""
    torch.manual_seed(1)
    for t in range(steps):
        for _ in range(samples):
            with opt.sampled_params(train=True):
                opt.zero_grad()
                loss(1 + 0.3 * np.sin(t)).backward()
        opt.step()
    return flat(ps)


def variance_of(opt, ps):
    """1/(ess (h + delta)), whoever keeps it."""
    if hasattr(opt, "posterior_variance"):
        return torch.cat([opt.posterior_variance(p).flatten() for p in ps])
    (group,) = opt.param_groups
    return 1 / (group["ess"] * (group["hess"] + group["weight_decay"]))


def reset(ps, start):
    with torch.no_grad():
        for p, x in zip(ps, start, strict=True):
            p.copy_(x)
            p.grad = None


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_draws_and_steps_as_ivon_opt(model, options, samples):
    (ps, loss), theirs = model, ivon_opt()
    start, found = [p.detach().clone() for p in ps], []
    for cls in (theirs, filteropt.IVON):
        reset(ps, start)
        opt = cls(ps, **{**BASE, **options})
        found.append((train(opt, ps, loss, samples=samples), variance_of(opt, ps)))
    close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])


def test_closures_and_learning_rates_are_those_of_ivon_opt(model):
    """``mc_samples`` calls of a closure that samples itself, under a scheduler."""
    (ps, loss), theirs = model, ivon_opt()
    start, found = [p.detach().clone() for p in ps], []
    for cls in (theirs, filteropt.IVON):
        reset(ps, start)
        opt = cls(ps, **BASE, mc_samples=2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)

        def closure(opt=opt):
            with opt.sampled_params(train=True):
                opt.zero_grad()
                value = loss()
                value.backward()
            return value.detach()

        torch.manual_seed(2)
        losses = []
        for _ in range(20):
            losses.append(opt.step(closure))
            scheduler.step()
        found.append((flat(ps), variance_of(opt, ps), torch.stack(losses)))
    for ours, other in zip(found[1], found[0], strict=True):
        close(ours, other, atol=1e-12)


def test_the_constructor_is_ivon_opts():
    shared = inspect.signature(ivon_opt().__init__).parameters
    own = inspect.signature(filteropt.IVON.__init__).parameters
    assert list(own)[: len(shared)] == list(shared)
    for name in list(shared)[2:]:  # after self and params
        assert own[name].default == shared[name].default
        assert own[name].kind == shared[name].kind


def test_the_constructor():
    """What the test above says, where ivon-opt is not installed."""
    w = torch.nn.Parameter(torch.zeros(1))
    (group,) = filteropt.IVON([w], 0.3, 50.0, 0.5, 0.8, 0.9, 0.1, 3, "gradsq").param_groups
    names = ("lr", "ess", "hess_init", "beta1", "beta2", "weight_decay", "mc_samples")
    assert [group[name] for name in names] == [0.3, 50.0, 0.5, 0.8, 0.9, 0.1, 3]
    (group,) = filteropt.IVON([w], 0.3, 50.0).param_groups
    expected = {
        "hess_init": 1.0, "beta1": 0.9, "beta2": 0.99999, "weight_decay": 1e-4, "mc_samples": 1,
        "hess_approx": "price", "clip_radius": float("inf"), "sync": False, "debias": True,
        "rescale_lr": True,
    }  # fmt: skip
    assert {name: group[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1), ("ess", 0.0), ("hess_init", 0.0), ("beta1", 1.5), ("beta2", -0.1),
        ("weight_decay", -1e-4), ("mc_samples", 0), ("mc_samples", -1), ("hess_approx", "hessian"),
        ("clip_radius", 0.0),
    ],
)  # fmt: skip
def test_what_ivon_opt_refuses_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        filteropt.IVON([torch.nn.Parameter(torch.zeros(1))], **{**BASE, name: value})


# The paper's algorithm ----------------------------------------------------------------------------

NAMES = {
    "lr": "alpha", "ess": "ess", "hess_init": "h0", "beta1": "beta1", "beta2": "beta2",
    "weight_decay": "delta", "clip_radius": "clip", "debias": "debias", "rescale_lr": "rescale",
}  # fmt: skip


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_algorithm_1(model, options, samples):
    """Draws are mean + sigma * eps of one stream of standard normals, parameter by parameter."""
    ps, loss = model
    options = {**BASE, **options}
    opt = filteropt.IVON(ps, **options)
    squared = options.pop("hess_approx", "price") == "gradsq"
    renamed = {NAMES[name]: value for name, value in options.items()}
    oracle = variational.IVON(flat(ps).numpy(), squared=squared, **renamed)
    ours, stream = (torch.Generator().manual_seed(5) for _ in range(2))
    for t in range(20):
        thetas, gradients = [], []
        for _ in range(samples):
            eps = torch.randn(11, generator=stream, dtype=torch.float64)
            thetas.append(oracle.mean + oracle.sigma() * eps.numpy())
            with opt.sampled_params(train=True, generator=ours):
                opt.zero_grad()
                close(flat(ps), thetas[-1])
                loss(1 + 0.3 * np.sin(t)).backward()
                gradients.append(torch.cat([p.grad.flatten() for p in ps]).numpy())
        opt.step()
        oracle.step(thetas, gradients)
        close(flat(ps), oracle.mean)
        close(torch.cat([opt.posterior_variance(p).flatten() for p in ps]), oracle.sigma() ** 2)
