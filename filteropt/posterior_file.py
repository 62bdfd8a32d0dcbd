"""Posteriors on disk: saved by one run, the prior of the next."""

from __future__ import annotations

import importlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filteropt.measure import is_dtensor
from filteropt.passes import at_mean
from filteropt.priors import give, leaves_of, priors_for
from filteropt.sampling import SamplingOptimizer
from filteropt.signature import plain

__all__ = ["Saved", "load_prior", "read_posterior", "save_posterior"]

FORMAT, VERSION = "filteropt posterior", 1


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
        metadata: who wrote it, the composition, hyperparameters and steps.
        beliefs: tensors by the parameter's name, then by their own: ``mean``, ``variance``, and
            under the names of the family's own leaves what it keeps beside the variances.
    """

    metadata: dict[str, Any]
    beliefs: dict[str, dict[str, Tensor]]


@torch.no_grad()
def save_posterior(path: str | os.PathLike[str], model: nn.Module, opt: SamplingOptimizer) -> None:
    r"""Write what an optimizer believes about a model to a safetensors file.

    .. math:: \{\,\text{name}: (\mu, \Sigma)\,\}

    For every parameter of the model that the optimizer has: ``mean/<name>``, the posterior mean
    (under ``linearize_at="prediction"``, too), ``variance/<name>``, the marginal variance of every
    weight, and what the family keeps of its covariance beside, such as ``covariance_root/<name>``.
    The metadata say which composition and hyperparameters they come from. Buffers, such as
    BatchNorm's statistics, are no belief: save ``model.state_dict()`` for these, and
    ``opt.state_dict()`` to resume the same run. The file appears whole or not at all.

    Args:
        path: where to write; what is there is replaced.
        model: names the parameters.
        opt: the optimizer.

    Raises:
        ImportError: safetensors is not installed.
        RuntimeError: the parameters hold a draw.
        TypeError: an optimizer without a belief, or a sharded parameter.
        ValueError: none of the optimizer's parameters is the model's.

    Example:
        >>> import tempfile, torch, filteropt
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = filteropt.AdaBayes(model.parameters(), lr=0.01, lr_sgd=0.1)
        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> opt.step()
        >>> later = torch.nn.Linear(2, 1)
        >>> new = filteropt.AdaBayes(later.parameters(), lr=0.01, lr_sgd=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     filteropt.save_posterior(f"{folder}/first.safetensors", model, opt)
        ...     filteropt.load_prior(f"{folder}/first.safetensors", later, new)
        >>> torch.equal(later.weight, model.weight)
        True
        >>> torch.equal(new.posterior_variance(later.weight), opt.posterior_variance(model.weight))
        True

    Source: posteriors as priors: Opper (1998), online Bayesian learning; Nguyen et al. (2018).
    """
    named = _named("save_posterior", model, opt)
    tensors, steps = {}, {}
    with at_mean(opt):
        for name, (p, group) in named.items():
            tensors[f"mean/{name}"] = p.detach().clone()
            if not (group["base_lr"] or group["lr"]):
                continue  # frozen from the start: nothing is believed
            steps[name] = int(opt.state.get(p, {}).get("step", 0))
            kept = {**leaves_of(opt, p), "variance": opt.posterior_variance(p)}
            tensors |= {f"{leaf}/{name}": x.detach().clone() for leaf, x in kept.items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "library_version": importlib.import_module("filteropt").__version__,
        "optimizer": type(opt).__name__,
        "groups": json.dumps([_described(opt, group, named) for group in opt.param_groups]),
        "steps": json.dumps(steps),
    }
    _write(Path(path), {key: x.contiguous() for key, x in tensors.items()}, metadata)


@torch.no_grad()
def load_prior(
    path: str | os.PathLike[str],
    model: nn.Module,
    opt: SamplingOptimizer,
    *,
    strict: bool = True,
    fading: bool = False,
) -> None:
    r"""Let a saved posterior be the prior of a new run.

    .. math:: \mu_0 = \mu^{\text{saved}}, \qquad \Sigma_0 = \Sigma^{\text{saved}}

    The parameters become the saved means, and the new optimizer's belief before its first step the
    saved covariance, which that step takes as it is (it ages the mean, where the dynamics decay,
    but not the covariance). Averages of gradients and momenta start anew. From then on the new
    run's dynamics rule: under ``Static`` the prior counts for ever, under a random walk its
    evidence fades as any other does, and ``FixedNoise`` also lets the means decay to 0 and the
    variances return to its own σ².

    What is approximated: correlations between parameters (or weights) that the family has dropped.

    Args:
        path: a file of :func:`save_posterior`.
        model: names the parameters.
        opt: the optimizer, before its first step. Per-weight variances fit ``Diagonal`` and
            ``Retracted``, also of runs whose variance was never stored (``FixedPoint``), and
            ``Dense``, whose own roots fit no other family; ``FixedPoint`` has no prior variance to
            be given. In groups without a rate so far, which believe nothing, only means are loaded.
        strict: whether the file must hold the optimizer's parameters and no others. Otherwise, what
            both have is loaded, and new parameters keep their own prior.
        fading: whether to take dynamics that forget to a prior N(0, Σ₀) (``ForgetToPrior``; VON,
            VOGN, Vadam, IVON). The saved posterior is then where they start from, but they forget
            it for N(0, Σ₀), and go on pulling to 0: no pull to the saved means is carried over.

    Raises:
        ImportError: safetensors is not installed.
        RuntimeError: the optimizer has taken a step, or its parameters hold a draw.
        TypeError: an optimizer without a belief, or a sharded parameter.
        ValueError: no such file, missing or unknown names, other shapes, numbers that are no
            belief, or a composition that cannot start from it; nothing was changed.

    Example:
        >>> import tempfile, torch, filteropt
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = filteropt.OnlineNaturalGradient(model.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     filteropt.save_posterior(f"{folder}/first.safetensors", model, opt)
        ...     filteropt.load_prior(f"{folder}/first.safetensors", torch.nn.Linear(2, 2), opt)
        Traceback (most recent call last):
            ...
        ValueError: load_prior: none of the optimizer's parameters is Linear's

    Source: Opper (1998); Nguyen et al. (2018).
    """
    named = _named("load_prior", model, opt)
    if opt._drawn:
        raise RuntimeError("load_prior: the parameters hold a draw; leave sampled_params first")
    stepped = [n for n, (p, _) in named.items() if float(opt.state.get(p, {}).get("step", 0)) >= 1]
    if stepped:
        raise RuntimeError(
            f"load_prior: {', '.join(stepped)} has been stepped already; a prior is given to a new "
            f"optimizer, before its first step"
        )
    saved = read_posterior(path)
    if strict and (odd := sorted(saved.beliefs.keys() ^ named.keys())):
        missing, unknown = ([n for n in odd if n in names] for names in (named, saved.beliefs))
        raise ValueError(
            f"load_prior: {os.fspath(path)} is of other parameters: it lacks {missing} and has "
            f"{unknown} beside; strict=False takes what both have"
        )
    priors = []
    there = {p: saved.beliefs[name] for name, (p, _) in named.items() if name in saved.beliefs}
    for name, (p, group) in named.items():
        block = opt._block(group, opt._bind(group), p)
        found = {q: there[q] for q in block.members if q in there}
        if found and p is block.weight:
            try:
                priors += priors_for(opt, group, block, found, fading=fading)
            except ValueError as error:
                raise ValueError(f"load_prior: {os.fspath(path)}: {name!r} {error}") from error
    give(opt, priors)


def read_posterior(path: str | os.PathLike[str]) -> Saved:
    """Read a file without an optimizer.

    Args:
        path: a file of :func:`save_posterior`.

    Returns:
        Its metadata and its tensors, on the CPU.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: no such file, or no file of :func:`save_posterior` or of this version.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata.get("format") != FORMAT:
            raise ValueError("its metadata say nothing of a posterior")
        if int(metadata["format_version"]) > VERSION:
            raise ValueError(
                f"its format is version {metadata['format_version']}, from a later filteropt; "
                f"this one reads up to {VERSION}"
            )
        for key in ("groups", "steps"):
            metadata[key] = json.loads(metadata[key])
    except FileNotFoundError as error:
        raise ValueError(f"{os.fspath(path)}: there is no such file") from error
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is no posterior that can be read: {error}") from error
    beliefs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        leaf, _, name = key.partition("/")
        beliefs.setdefault(name, {})[leaf] = tensor
    return Saved(metadata, beliefs)


def _named(asked: str, model: nn.Module, opt: Any) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The model's parameters that are the optimizer's, by name, with their groups."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{asked}: model is {type(model).__name__}, but must be a torch.nn.Module")
    if not isinstance(opt, SamplingOptimizer):
        raise TypeError(f"{asked}: opt is {type(opt).__name__}, which keeps no belief")
    groups = {p: group for group in opt.param_groups for p in group["params"]}
    named: dict[str, tuple[Tensor, dict[str, Any]]] = {
        name.replace("_orig_mod.", ""): (p, groups[p])  # the name in a model that was not compiled
        for name, p in model.named_parameters()
        if p in groups
    }
    if not named:
        raise ValueError(f"{asked}: none of the optimizer's parameters is {type(model).__name__}'s")
    if sharded := [name for name, (p, _) in named.items() if is_dtensor(p)]:
        raise TypeError(f"{asked}: {', '.join(sharded)} is sharded; gather the model first")
    return named


def _described(opt: Any, group: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """A group's parameters by name, hyperparameters and composition, for people to read."""
    own = {name for name, (_, of) in named.items() if of is group}
    values = {k: v for k, v in group.items() if k not in {"params", "param_names"}}
    return {
        "params": sorted(own),
        "hyperparameters": {name: _readable(plain(value)) for name, value in values.items()},
        "composition": repr(opt._bind(group).filter),
    }


def _readable(value: Any) -> Any:
    """A value that JSON has, else how it is written."""
    if isinstance(value, (tuple, list)):
        return [_readable(x) for x in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite and isinstance(value, (int, float, str, type(None))) else repr(value)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file that appears whole or not at all."""
    save_file = _safetensors("safetensors.torch").save_file
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_file(tensors, draft, metadata)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _safetensors(module: str = "safetensors") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "posteriors are saved by safetensors, which is not installed: "
            "pip install 'filteropt[safetensors]'"
        ) from error
