"""A belief from elsewhere as an optimizer's prior: whether it fits, and how it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filteropt import engine
from filteropt.blocks import Block
from filteropt.dtypes import belief_dtype
from filteropt.linalg import scalar
from filteropt.trees import leaves, names, restore, tree_map
from filteropt.types import Belief, State

__all__ = ["Prior", "give", "leaves_of", "priors_for"]

ROOT = "covariance_root"


class Prior(NamedTuple):
    """What a parameter is to start from.

    Attributes:
        p: the parameter.
        mean: its mean, in its own dtype.
        state: its state before the first step; ``None`` where nothing is believed.
    """

    p: Tensor
    mean: Tensor
    state: dict[str, Tensor] | None


def leaves_of(opt: Any, p: Tensor) -> dict[str, Tensor]:
    """What the posterior family keeps of a parameter's covariance, by name.

    Args:
        opt: the optimizer.
        p: one of its parameters.

    Returns:
        Tensors by the names that they have in a ``state_dict``; none for a bias whose weight has
        them.

    Raises:
        ValueError: covariances in other coordinates than the weights'.
    """
    filter, _, state, block = opt._belief("save_posterior", p)
    _require_own_coordinates(filter)
    if p is not block.weight:
        return {}
    bare = State(Belief((), state.belief.cov), (), ())
    return dict(zip(names(bare), leaves(bare), strict=True))


def priors_for(
    opt: Any,
    group: dict[str, Any],
    block: Block,
    saved: Mapping[Tensor, Mapping[str, Tensor]],
    *,
    fading: bool,
) -> list[Prior]:
    """Make the priors of a block's parameters of what was saved, changing nothing.

    Args:
        opt: the optimizer.
        group: the parameters' group.
        block: a parameter, with its bias if that is filtered with it.
        saved: ``mean``, ``variance`` and the family's leaves, by parameter.
        fading: whether dynamics may forget to a prior of their own.

    Returns:
        The priors.

    Raises:
        ValueError: a clause that says why there is none.
    """
    if len(saved) < len(block.members):
        raise ValueError("is filtered with its bias, of which there is none there, or it alone")
    means = {p: _mean(p, saved[p]) for p in block.members}
    if not (group["base_lr"] or group["lr"]):
        return [Prior(p, mean, None) for p, mean in means.items()]
    variance = block.whole(*(_variance(p, saved[p]) for p in block.members))
    filter = opt._bind(group).filter
    engine.check(filter)
    _require_start(filter, fading=fading)
    start = opt._bind({**group, "lr": group["base_lr"] or group["lr"]}).filter
    fresh = engine.init(start, block.whole(*block.members))
    kept = dict(zip(names(fresh), leaves(fresh), strict=True))
    bare = State(Belief((), fresh.belief.cov), (), ())
    own = dict(zip(names(bare), leaves(bare), strict=True))
    there = {leaf: x.to(variance) for leaf, x in saved[block.weight].items()}
    kept |= _covariance(filter, own, {**there, "variance": variance})
    numbers = tree_map(float, engine.scalars(filter, 0.0))
    mean = block.whole(*means.values()).to(variance)
    found = engine.variance(filter, numbers, restore(fresh, kept.values()), mean)
    if not torch.allclose(found.reshape(variance.shape), variance, rtol=1e-3, atol=0.0):
        raise ValueError(
            "would have other variances than it has there: either the file is damaged, or what "
            f"{type(filter.posterior).__name__} keeps is relative to another prior"
        )
    states = [opt._fresh(group, block, p) for p in block.members]
    states[0].update(opt._short(kept))
    return [Prior(*of, state) for of, state in zip(means.items(), states, strict=True)]


def _mean(p: Tensor, saved: Mapping[str, Tensor]) -> Tensor:
    """A parameter's saved mean, in its own dtype."""
    if "mean" not in saved:
        raise ValueError("has no mean there")
    mean = saved["mean"].to(p.device, p.dtype)
    if mean.shape != p.shape:
        raise ValueError(f"has the shape {tuple(p.shape)}, but {tuple(mean.shape)} there")
    if not bool(mean.isfinite().all()):
        raise ValueError("has a mean there that is not finite")
    return mean


def _variance(p: Tensor, saved: Mapping[str, Tensor]) -> Tensor:
    """A parameter's saved variance, in the belief's dtype."""
    if "variance" not in saved:
        raise ValueError("was frozen there, so that nothing was believed of it")
    variance = saved["variance"].to(p.device, belief_dtype(p))
    if variance.shape != p.shape or not bool(((variance > 0) & variance.isfinite()).all()):
        raise ValueError("has variances there that are not all positive and finite")
    return variance


def _covariance(
    filter: engine.Filter, own: dict[str, Tensor], saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The saved covariance in the family's own form."""
    family = type(filter.posterior).__name__
    if not own:
        raise ValueError(
            f"cannot have a prior variance: {family} keeps none, it takes the one at which its "
            f"dynamics rest; use Diagonal()"
        )
    if ROOT in saved and ROOT not in own:
        raise ValueError(f"has correlations there, which {family} would drop; use Dense()")
    if own.keys() <= saved.keys():
        if wrong := [leaf for leaf in own if saved[leaf].shape != own[leaf].shape]:
            raise ValueError(f"has another {wrong[0]} there: {tuple(saved[wrong[0]].shape)}")
        return {leaf: saved[leaf] for leaf in own}
    variance = saved["variance"]
    if "variance" in own:  # other latents keep their own prior
        return {"variance": variance}
    if own.keys() == {ROOT} and filter.dynamics.k == 1:
        return {ROOT: variance.flatten().sqrt().diag().reshape(own[ROOT].shape)}
    raise ValueError(f"has {', '.join(sorted(saved))} there, but {family} keeps {', '.join(own)}")


def _require_start(filter: engine.Filter, *, fading: bool) -> None:
    """Refuse compositions that cannot start from any belief."""
    _require_own_coordinates(filter)
    pull = filter.dynamics.transition(scalar(1e15)).pull
    if pull is not None and float(pull) > 0 and not fading:
        raise ValueError(
            f"would forget its new prior: {type(filter.dynamics).__name__} forgets to a prior at 0 "
            f"of its own, and pulls there; use other dynamics, such as Static(), or accept that by "
            f"fading=True"
        )


def _require_own_coordinates(filter: engine.Filter) -> None:
    if type(filter.basis).__name__ != "Identity":
        raise ValueError(
            f"is believed of in the coordinates of {type(filter.basis).__name__}, which no file has"
        )


@torch.no_grad()
def give(opt: Any, priors: Iterable[Prior]) -> None:
    """Let parameters start from their priors.

    Args:
        opt: the optimizer.
        priors: what :func:`priors_for` made.
    """
    for p, mean, state in priors:
        p.copy_(mean)
        if state is not None:
            opt.state[p].clear()
            opt.state[p].update(state)
