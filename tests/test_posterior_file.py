"""Posteriors on disk: exact round trips, priors of first steps, refusals that change nothing."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys

import pytest
import torch
from torch import nn

import filteropt
from filteropt import FilterOptimizer, load_prior, read_posterior, save_posterior, variant
from filteropt.approximations import (
    Dense,
    Diagonal,
    FixedPoint,
    GaussNewton,
    Retracted,
    SquaredGradient,
)
from filteropt.engine import Filter
from filteropt.models import (
    FixedNoise,
    ForgetToPrior,
    MomentumAugmented,
    ProportionalNoise,
    RandomWalk,
    Static,
)
from filteropt.presets import adabayes_fp

pytest.importorskip("safetensors")


def composed(posterior=None, dynamics=None, likelihood=None):
    def preset():
        return Filter(
            dynamics or RandomWalk(0.01), likelihood or SquaredGradient(beta1=None),
            posterior or Diagonal(0.1),
        )  # fmt: skip

    return preset


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).to(dtype)


def step(model, opt, seed=0, steps=1):
    for i in range(steps):
        opt.zero_grad()
        g = torch.Generator().manual_seed(seed + i)
        x = torch.randn(4, 3, generator=g, dtype=torch.float64).to(next(model.parameters()).dtype)
        with opt.sampled_params(train=True, generator=g):
            model(x).square().mean().backward()
        opt.step()
    return opt


def trained(preset, model, **kwargs):
    if isinstance(preset, type):
        return step(model, preset(model.parameters(), **kwargs), steps=3)
    opt = FilterOptimizer(model.parameters(), preset, model=model, **kwargs)
    return step(model, opt, steps=3)


def beliefs(model, opt):
    return [opt.posterior_covariance(p) for p in model.parameters()]


def everything(model, opt):
    tensors = [*model.parameters(), *(x for s in opt.state.values() for x in s.values())]
    return [x.detach().clone() for x in tensors]


def unchanged(before, after):
    return len(before) == len(after) and all(map(torch.equal, before, after))


COMPOSITIONS = {
    "diagonal": composed(),
    "static": composed(dynamics=Static()),
    "retracted": composed(Retracted(0.1)),
    "dense": composed(Dense(0.1)),
    "gauss-newton": composed(Dense(0.1), likelihood=GaussNewton()),
    "momentum": composed(Diagonal(), MomentumAugmented(0.1, 0.3)),
    "dense momentum": composed(Dense(), MomentumAugmented(0.1, 0.3)),
}


# Round trips -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_posterior_of_one_run_is_bit_for_bit_the_prior_of_the_next(name, dtype, tmp_path):
    model, later = network(dtype), network(dtype, seed=1)
    opt = trained(COMPOSITIONS[name], model)
    new = FilterOptimizer(later.parameters(), COMPOSITIONS[name], model=later)
    before = everything(model, opt)
    save_posterior(tmp_path / "p", model, opt)
    assert unchanged(before, everything(model, opt))
    load_prior(tmp_path / "p", later, new)
    assert unchanged(list(model.parameters()), list(later.parameters()))
    assert unchanged(beliefs(model, opt), beliefs(later, new))
    assert os.listdir(tmp_path) == ["p"]


def test_half_precision_weights_keep_their_float32_belief(tmp_path):
    model, later = network(torch.bfloat16), network(torch.bfloat16, seed=1)
    opt = trained(composed(), model)
    new = FilterOptimizer(later.parameters(), composed())
    save_posterior(tmp_path / "p", model, opt)
    load_prior(tmp_path / "p", later, new)
    assert unchanged(list(model.parameters()), list(later.parameters()))
    assert unchanged(beliefs(model, opt), beliefs(later, new))


def test_the_file_says_where_it_comes_from(tmp_path):
    model = network()
    opt = trained(filteropt.AdaBayes, model, lr_sgd=0.1, batch_size=4)
    save_posterior(tmp_path / "p", model, opt)
    metadata, tensors = read_posterior(tmp_path / "p")
    assert metadata["library_version"] == filteropt.__version__
    assert metadata["optimizer"] == "AdaBayes"
    (group,) = metadata["groups"]
    assert group["hyperparameters"]["batch_size"] == 4
    assert group["composition"].startswith("Filter(dynamics=FixedNoise(")
    assert metadata["steps"] == dict.fromkeys([n for n, _ in model.named_parameters()], 3)
    for name, p in model.named_parameters():
        assert torch.equal(tensors[name]["mean"], p)
        assert torch.equal(tensors[name]["variance"], opt.posterior_variance(p))


def test_metadata_are_strict_json(tmp_path):
    model = network()
    save_posterior(
        tmp_path / "p", model, filteropt.AdaBayesFP(model.parameters(), betas=(0.5, 0.9))
    )
    safetensors = importlib.import_module("safetensors")
    with safetensors.safe_open(tmp_path / "p", framework="pt") as file:
        found = json.loads(file.metadata()["groups"], parse_constant=pytest.fail)
    assert found[0]["hyperparameters"]["betas"] == [0.5, 0.9]


def test_at_the_prediction_the_posterior_mean_is_saved(tmp_path):
    model = network()
    opt = trained(composed(dynamics=FixedNoise(0.3, 0.5)), model, linearize_at="prediction")
    prediction = everything(model, opt)
    save_posterior(tmp_path / "p", model, opt)
    assert unchanged(prediction, everything(model, opt))
    opt.eval()
    for name, p in model.named_parameters():
        assert torch.equal(read_posterior(tmp_path / "p").beliefs[name]["mean"], p)
        assert not torch.equal(prediction[0], next(model.parameters()))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    model = network()
    opt = trained(composed(), model)
    save_posterior(tmp_path / "p", model, opt)
    before = (tmp_path / "p").read_bytes()
    step(model, opt)

    def full(_descriptor):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            save_posterior(tmp_path / "p", model, opt)
    assert (tmp_path / "p").read_bytes() == before
    assert os.listdir(tmp_path) == ["p"]
    save_posterior(tmp_path / "p", model, opt)
    assert (tmp_path / "p").read_bytes() != before


# As a prior --------------------------------------------------------------------------------------


def test_the_first_step_takes_it_as_its_prior(tmp_path):
    """μ = m − g/(1/s + g²) and 1/Σ = 1/s + g², by hand; the next step ages by the drift."""
    model, later = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    opt = trained(composed(), model)
    save_posterior(tmp_path / "p", model, opt)
    new = FilterOptimizer(later.parameters(), composed(Diagonal(0.5), RandomWalk(0.2)))
    load_prior(tmp_path / "p", later, new)
    mean, prior = model.weight.detach().clone(), opt.posterior_variance(model.weight)
    for drift in (0.0, 0.2):
        prior = prior + drift**2  # the first step does not age its prior
        grad = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
        later.weight.grad, later.bias.grad = grad.clone(), torch.zeros_like(later.bias)
        new.step()
        prior = 1 / (1 / prior + grad**2)
        mean = mean - prior * grad
        torch.testing.assert_close(new.posterior_variance(later.weight), prior)
        torch.testing.assert_close(later.weight.detach(), mean)
        assert float(new.state[later.weight]["step"]) in {1.0, 2.0}


@pytest.mark.parametrize("name", ["static", "gauss-newton"])
def test_two_static_runs_are_one(name, tmp_path):
    """Evidence of still optima adds up, whoever gathered it."""
    preset = {
        "static": COMPOSITIONS["static"],
        "gauss-newton": composed(Dense(0.1), Static(), GaussNewton()),
    }[name]
    model, later, whole = network(), network(seed=1), network()
    opt = trained(preset, model)
    save_posterior(tmp_path / "p", model, opt)
    new = FilterOptimizer(later.parameters(), preset, model=later)
    load_prior(tmp_path / "p", later, new)
    step(later, new, seed=3, steps=3)
    one = trained(preset, whole)
    step(whole, one, seed=3, steps=3)
    assert unchanged(list(later.parameters()), list(whole.parameters()))
    assert unchanged(beliefs(later, new), beliefs(whole, one))


def test_a_prior_survives_checkpoints_copies_and_a_warm_up_from_zero(tmp_path):
    model, later = network(), network(seed=1)
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    expected = None
    for way in ("plain", "checkpoint", "warm-up"):
        new = FilterOptimizer(later.parameters(), composed())
        load_prior(tmp_path / "p", later, new)
        if way == "checkpoint":
            other = FilterOptimizer(later.parameters(), composed())
            other.load_state_dict(new.state_dict())
            new = other
        if way == "warm-up":
            new.param_groups[0]["lr"] = 0.0
            step(later, new)
            new.param_groups[0]["lr"] = 1.0
        step(later, new)
        found = everything(later, new)
        expected = expected or found
        assert unchanged(expected, found)


def test_running_averages_start_anew(tmp_path):
    model, later = network(), network(seed=1)
    preset = composed(likelihood=SquaredGradient())
    opt = trained(preset, model)
    save_posterior(tmp_path / "p", model, opt)
    new = FilterOptimizer(later.parameters(), preset)
    load_prior(tmp_path / "p", later, new)
    fresh = FilterOptimizer(network().parameters(), preset)
    step(network(), fresh)
    for p in later.parameters():
        averages = {k: v for k, v in new.state[p].items() if k not in {"variance", "step"}}
        assert averages
        assert not any(x.any() for x in averages.values())


def test_it_works_where_gradients_are_taken_at_the_prediction(tmp_path):
    model, later = network(), network(seed=1)
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    results = []
    for linearize_at in ("posterior", "prediction"):  # without decay they are the same
        new = FilterOptimizer(later.parameters(), composed(), linearize_at=linearize_at)
        load_prior(tmp_path / "p", later, new)
        step(later, new, steps=2)
        results.append([p.detach().clone() for p in later.parameters()])
    assert unchanged(*results)


def test_what_a_warm_up_left_behind_is_forgotten(tmp_path):
    model, later = network(), network(seed=1)
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    new = FilterOptimizer(later.parameters(), composed(), linearize_at="prediction")
    new.param_groups[0]["lr"] = 0.0
    step(later, new)
    new.eval()
    load_prior(tmp_path / "p", later, new)
    assert not any("prediction" in state for state in new.state.values())
    new.train()
    assert unchanged(list(model.parameters()), list(later.parameters()))


# From one family to another ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        composed(),
        COMPOSITIONS["momentum"],
        variant(adabayes_fp, posterior=FixedPoint("exact")),
        composed(Retracted(0.1), ForgetToPrior(0.1, 0.2)),
    ],
)
@pytest.mark.parametrize("target", ["static", "retracted", "dense", "momentum"])
def test_independent_variances_fit_every_family_that_keeps_some(source, target, tmp_path):
    model, later = network(), network(seed=1)
    opt = trained(source, model)
    save_posterior(tmp_path / "p", model, opt)
    new = FilterOptimizer(later.parameters(), COMPOSITIONS[target], model=later)
    load_prior(tmp_path / "p", later, new)
    for p, q in zip(model.parameters(), later.parameters(), strict=True):
        torch.testing.assert_close(new.posterior_variance(q), opt.posterior_variance(p))
    step(later, new)


def refused(tmp_path, target, message, error=ValueError, later=None, **kwargs):
    later = later or network(seed=1)
    new = target
    if not isinstance(target, torch.optim.Optimizer):
        new = FilterOptimizer(later.parameters(), target, model=later)
    before = everything(later, new)
    with pytest.raises(error, match=message):
        load_prior(tmp_path / "p", later, new, **kwargs)
    assert unchanged(before, everything(later, new))
    assert all("step" in s for s in new.state.values())


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("dense", COMPOSITIONS["diagonal"], "'0.weight' has correlations .* Diagonal would drop"),
        ("dense", COMPOSITIONS["dense momentum"], "'0.weight' has another covariance_root there"),
        ("diagonal", COMPOSITIONS["dense momentum"], "but Dense keeps covariance_root"),
        ("diagonal", adabayes_fp, "FixedPoint keeps none"),
        ("diagonal", composed(dynamics=ForgetToPrior()), "would forget its new prior: ForgetToPr"),
    ],
)
def test_other_structures_are_refused(source, target, message, tmp_path):
    model = network()
    save_posterior(tmp_path / "p", model, trained(COMPOSITIONS[source], model))
    refused(tmp_path, target, message)


def test_dynamics_that_forget_to_a_prior_take_it_if_told_so(tmp_path):
    model, later = network(), network(seed=1)
    opt = trained(COMPOSITIONS["retracted"], model)
    save_posterior(tmp_path / "p", model, opt)
    new = filteropt.IVON(later.parameters(), lr=0.1, ess=10)
    load_prior(tmp_path / "p", later, new, fading=True)
    assert unchanged(beliefs(model, opt), beliefs(later, new))
    step(later, new)
    still = FilterOptimizer(later.parameters(), composed(dynamics=ForgetToPrior(0.0)))
    load_prior(tmp_path / "p", later, still)  # forgets nothing


def test_evidence_beside_another_prior_is_no_prior(tmp_path):
    """Vadam keeps what it knows beyond its own prior."""
    model = network()
    opt = trained(filteropt.Vadam, model, lr=0.1, dataset_size=10)
    save_posterior(tmp_path / "p", model, opt)
    later = network()
    other = filteropt.Vadam(later.parameters(), lr=0.1, dataset_size=10, prior_precision=9.0)
    refused(tmp_path, other, "relative to another prior", later=later, fading=True)
    same = filteropt.Vadam(later.parameters(), lr=0.1, dataset_size=10)
    load_prior(tmp_path / "p", later, same, fading=True)
    assert unchanged(beliefs(model, opt), beliefs(later, same))


# Names -------------------------------------------------------------------------------------------


class Grown(nn.Module):
    """A network with another head than the saved one's."""

    def __init__(self):
        super().__init__()
        old = network(seed=1)
        self.add_module("0", old[0])
        self.head = nn.Linear(2, 3).double()


def test_unknown_and_missing_names(tmp_path):
    model, later = network(), Grown()
    opt = trained(composed(), model)
    save_posterior(tmp_path / "p", model, opt)
    new = FilterOptimizer(later.parameters(), composed())
    message = r"lacks \['head.bias', 'head.weight'\] and has \['2.bias', '2.weight'\] beside"
    refused(tmp_path, new, message, later=later)
    head = later.head.weight.detach().clone()
    load_prior(tmp_path / "p", later, new, strict=False)
    assert torch.equal(getattr(later, "0").weight, model[0].weight)
    assert torch.equal(later.head.weight, head)
    own = new.posterior_variance(later.head.weight)
    assert torch.equal(own, torch.full_like(own, 0.1))
    later.head.weight.grad = torch.zeros_like(head)
    getattr(later, "0").weight.grad = torch.zeros_like(getattr(later, "0").weight)
    new.step()


def test_other_shapes_are_refused_as_a_whole(tmp_path):
    model = network()
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    later = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 4)).double()
    refused(tmp_path, composed(), r"'2.weight' has the shape \(4, 2\), but \(1, 2\)", later=later)


def test_frozen_parameters_have_means_alone(tmp_path):
    model, later = network(), network(seed=1)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    opt = step(model, FilterOptimizer(groups, composed()))
    save_posterior(tmp_path / "p", model, opt)
    assert set(read_posterior(tmp_path / "p").beliefs["0.weight"]) == {"mean"}
    refused(tmp_path, composed(), "'0.weight' was frozen there")
    groups = [{"params": later[0].parameters(), "lr": 0.0}, {"params": later[2].parameters()}]
    new = FilterOptimizer(groups, composed())
    load_prior(tmp_path / "p", later, new)
    assert unchanged(list(model.parameters()), list(later.parameters()))
    assert set(new.state) == set(later[2].parameters())
    step(later, new)


# Refusals ----------------------------------------------------------------------------------------


def test_a_run_that_has_begun_takes_no_prior(tmp_path):
    model, later = network(), network(seed=1)
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    begun = trained(composed(), later)
    refused(tmp_path, begun, "0.weight.* has been stepped already", RuntimeError, later=later)


def damaged(tmp_path, change):
    """The file with something changed in its tensors and metadata."""
    safetensors, torch_part = map(importlib.import_module, ("safetensors", "safetensors.torch"))
    with safetensors.safe_open(tmp_path / "p", framework="pt") as file:
        metadata = file.metadata()
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    change(tensors, metadata)
    torch_part.save_file(tensors, tmp_path / "p", metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.pop("format"), "no posterior that can be read: its metadata say nothing"),
        (lambda t, m: m.update(format_version="2"), "version 2, from a later filteropt"),
        (lambda t, m: m.update(steps="{"), "no posterior that can be read"),
        (lambda t, m: m.pop("groups"), "no posterior that can be read"),
        (lambda t, m: t["variance/2.bias"].fill_(0.0), "'2.bias' has variances there that are not"),
        (lambda t, m: t["variance/2.bias"].fill_(math.nan), "'2.bias' has variances there"),
        (lambda t, m: t["mean/2.bias"].fill_(math.inf), "'2.bias' has a mean there that is not"),
        (lambda t, m: t.pop("mean/2.bias"), "'2.bias' has no mean there"),
        (lambda t, m: t.update({"variance/2.bias": t["variance/2.weight"].clone()}),
         "'2.bias' has variances there"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(change, message, tmp_path):
    model = network()
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    damaged(tmp_path, change)
    refused(tmp_path, composed(), message)


def test_a_root_that_is_not_the_variances_is_refused(tmp_path):
    model = network()
    save_posterior(tmp_path / "p", model, trained(COMPOSITIONS["dense"], model))
    damaged(tmp_path, lambda t, m: t["covariance_root/0.weight"].mul_(1.1))
    refused(tmp_path, COMPOSITIONS["dense"], "'0.weight' would have other variances")


@pytest.mark.parametrize("content", [b"", b"not a posterior at all", None])
def test_other_files_are_refused(content, tmp_path):
    model = network()
    save_posterior(tmp_path / "p", model, trained(composed(), model))
    whole = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(whole[: len(whole) // 2] if content is None else content)
    refused(tmp_path, composed(), "no posterior that can be read")
    (tmp_path / "p").unlink()
    refused(tmp_path, composed(), "there is no such file")


def test_other_optimizers_models_and_draws_are_refused(tmp_path):
    model = network()
    opt = trained(composed(), model)
    save_posterior(tmp_path / "p", model, opt)
    for call in (save_posterior, load_prior):
        with pytest.raises(TypeError, match="opt is SGD, which keeps no belief"):
            call(tmp_path / "p", model, torch.optim.SGD(model.parameters(), 0.1))
        with pytest.raises(TypeError, match="must be a torch"):
            call(tmp_path / "p", "model", opt)
        with pytest.raises(ValueError, match="none of the optimizer's parameters is Sequential's"):
            call(tmp_path / "p", network(), opt)
        with opt.sampled_params(), pytest.raises(RuntimeError, match="hold a draw"):
            call(tmp_path / "p", model, opt)


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    model = network()
    opt = FilterOptimizer(model.parameters(), composed())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (save_posterior, load_prior):
        with pytest.raises(ImportError, match=r"pip install 'filteropt\[safetensors\]'"):
            call(tmp_path / "p", model, opt)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("dynamics", [ProportionalNoise(0.1), FixedNoise(0.1, 0.5), Static()])
def test_dynamics_of_every_other_kind_take_it(dynamics, tmp_path):
    model, later = network(), network(seed=1)
    opt = trained(composed(), model)
    save_posterior(tmp_path / "p", model, opt)
    new = FilterOptimizer(later.parameters(), composed(dynamics=dynamics))
    load_prior(tmp_path / "p", later, new)
    assert unchanged(beliefs(model, opt), beliefs(later, new))
