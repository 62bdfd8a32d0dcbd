"""What an optimizer believes, and which mean its parameters hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from filteropt import engine
from filteropt.blocks import Block, blocks_of
from filteropt.checkpoint import CheckpointedOptimizer
from filteropt.dtypes import belief_dtype
from filteropt.engine import Filter, Scalars
from filteropt.recipe import Bound
from filteropt.report import Report, report
from filteropt.rounding import held
from filteropt.trees import leaves, restore, tree_map
from filteropt.types import State

__all__ = [
    "BeliefOptimizer",
    "hold_posterior",
    "hold_prediction",
    "require_kept",
    "strict_state",
]


class BeliefOptimizer(CheckpointedOptimizer):
    """An optimizer that can be asked for its belief about every parameter."""

    _drawn: str = ""  # "train" or "eval" while the parameters hold a draw

    def _bind(self, group: dict[str, Any]) -> Bound:
        """The composition for a group's present hyperparameters."""
        raise NotImplementedError

    def _fresh(self, group: dict[str, Any], block: Block, p: Tensor) -> dict[str, Any]:
        """A member's state before the first gradient."""
        raise NotImplementedError

    def _blocks(self, group: dict[str, Any], bound: Bound) -> list[tuple[int, Block]]:
        """A group's parameters, a bias with its weight where they go together, and their places."""
        found = blocks_of(group["params"], bound.filter.likelihood)
        places = itertools.accumulate((len(block.members) for block in found), initial=0)
        return list(zip(places, found, strict=False))

    def _block(self, group: dict[str, Any], bound: Bound, p: Tensor) -> Block:
        """The block that a parameter of a group is in."""
        found = blocks_of(group["params"], bound.filter.likelihood)
        return next(block for block in found if any(q is p for q in block.members))

    @torch.no_grad()
    def posterior_variance(self, p: Tensor) -> Tensor:
        r"""The variance of every weight's optimum given the other weights' present values.

        This is :math:`\Sigma^+`, not the marginal of a joint posterior over all the weights. For a
        :class:`~filteropt.approximations.Dense` posterior, which is joint over one tensor, it is
        the marginal within that tensor.

        Args:
            p: one of the optimizer's parameters.

        Returns:
            A new tensor shaped like ``p``, in squared weight units; before the first step, the
            prior's variance.

        Raises:
            ValueError: ``p`` is not one of the optimizer's parameters, or its group's slots do not
                fit (:class:`~filteropt.IncompatibleComposition`), as without any rate so far.
            RuntimeError: the group's hyperparameters now need state that was not kept.
        """
        filter, scalars, state, block = self._belief("posterior_variance", p)
        found = engine.variance(filter, scalars, state, _mean(block))
        variance = next(part for q, part in block.split(found) if q is p)
        return variance if variance.shape == p.shape else variance.reshape(p.shape)

    @torch.no_grad()
    def posterior_covariance(self, p: Tensor) -> Any:
        r"""The covariance that the posterior family keeps about one parameter.

        Args:
            p: one of the optimizer's parameters. A weight that is filtered with its bias stands for
                both: the bias is its last input.

        Returns:
            A new tensor in squared weight units. Families that treat every weight on its own give
            each weight's covariance with its other latents, ``(*p.shape, k, k)``;
            :class:`~filteropt.approximations.Dense` gives the covariance of all of the parameter's
            n weights, ``(n, n)``, in the order of ``p.flatten()``, or with k latents of all
            weights' latents, ``(kn, kn)``, each weight's side by side;
            :class:`~filteropt.approximations.Kronecker` the two factors of a matrix'. Under a basis
            other than :class:`~filteropt.approximations.Identity` all are in its coordinates.

        Raises:
            ValueError: ``p`` is not one of the optimizer's parameters, or a bias that is filtered
                with its weight; or its group's slots do not fit
                (:class:`~filteropt.IncompatibleComposition`), as without any rate so far.
            RuntimeError: the group's hyperparameters now need state that was not kept.
        """
        filter, scalars, state, block = self._belief("posterior_covariance", p)
        if p is not block.weight:
            raise ValueError(
                f"posterior_covariance: the bias of shape {tuple(p.shape)} is the last input of "
                f"its weight, of shape {tuple(block.weight.shape)}; ask for the weight's, which "
                f"is that of both"
            )
        return engine.covariance(filter, scalars, state, _mean(block))

    def report(self) -> Report:
        r"""Tell for every parameter how sure the optimizer is, and how its weights move.

        A variance that rests where drift, forgetting and evidence balance,
        :math:`Q = \rho\Sigma + h\Sigma^2`, is :math:`\sigma^2 = Q/\rho` without evidence (SGD) and
        :math:`\sqrt{Q/h}` without forgetting (Adam). With :math:`r = \Sigma^+/\sigma^2` it is

        .. math:: \Sigma^+ = r\,\sigma^2 = \sqrt{1-r}\,\sqrt{Q/h} ,

        so that r alone says where a weight stands between them. Data-poor weights are within a
        tenth of SGD's limit, r > 0.9; data-rich ones within a tenth of Adam's, r < 0.19. Dynamics
        that forget to a prior have :math:`\Sigma^+ = r\,\Sigma_0 = (1-r)\,\rho/h`: their data-rich
        limit is the natural gradient's, r < 0.1. With several latents per weight only the data-poor
        limit is told; where the dynamics have no variance of their own (random walks, static ones)
        neither. What is approximated: balance to first order in the step, and a variance that has
        not settled is judged as if it had.

        Returns:
            A tuple of :class:`filteropt.report.Row`, one for every parameter. Printed, a table;
            ``to_dict()`` gives columns, and ``pandas.DataFrame`` takes either.

        Raises:
            RuntimeError: a group's hyperparameters now need state that was not kept.

        Example:
            >>> import torch, filteropt
            >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
            >>> opt = filteropt.AdaBayes([("w", w)], lr=0.1, lr_sgd=0.1)
            >>> for _ in range(50):
            ...     w.grad = torch.tensor([0.1, 10.0])
            ...     opt.step()
            >>> print(opt.report())    # doctest: +ELLIPSIS
            parameter  shape  steps     sd    5 %  95 %  sd/rms  data-poor  between  data-rich ...
            ...
            w          2         50  0.078  0.078  0.32   0.031        50%       0%        50% ...
            data-poor weights move as SGD moves them, data-rich ones as Adam moves them
            >>> opt.report()[0].data_rich, opt.report().to_dict()["steps"]
            (0.5, [50])

        Source: P (Aitchison 2020) Fig. 3 and Eq. 20; see :eq:`eq-fixed-point-taylor`.
        """
        return report(self)

    def _belief(self, asked: str, p: Tensor) -> tuple[Filter, Scalars, State, Block]:
        """A parameter's filter, its last step's numbers, and the state of the block it is in."""
        for group in self.param_groups:
            if any(q is p for q in group["params"]):
                bound = self._bind(group)
                engine.check(bound.filter)
                block = self._block(group, bound, p)
                age, state = self._recall(group, bound, block)
                scalars = tree_map(float, engine.scalars(bound.filter, age))
                return bound.filter, scalars, state, block
        raise ValueError(f"{asked}: a tensor of shape {tuple(p.shape)} is not optimized")

    def _recall(self, group: dict[str, Any], bound: Bound, block: Block) -> tuple[float, State]:
        """A block's age, and what the filter remembers about it."""
        p = block.weight
        state = self.state.get(p) or self._fresh(group, block, p)
        require_kept(bound, block, state, lambda: "the parameter")
        kept = [held(state[name]) for name in bound.names(block)]
        return float(state["step"]), restore(bound.form(block), kept)

    def train(self, mode: bool = True) -> BeliefOptimizer:
        """Let the parameters hold the mean at which gradients are due; idempotent.

        Under ``linearize_at="prediction"`` that is the predicted mean; otherwise nothing changes.

        Args:
            mode: ``False`` is the same as :meth:`eval`.

        Returns:
            The optimizer itself.

        Raises:
            RuntimeError: the parameters hold a draw.
        """
        if self._drawn:
            raise RuntimeError(
                "train, eval: the parameters hold a draw; leave sampled_params first"
            )
        hold = hold_prediction if mode else hold_posterior
        for p, state in self.state.items():
            hold(p, state)
        return self

    def eval(self) -> BeliefOptimizer:
        """Let the parameters hold the posterior mean, for evaluation and saving; idempotent.

        Returns:
            The optimizer itself.
        """
        return self.train(False)


def _mean(block: Block) -> Tensor:
    """The block's parameters as one tensor, in the belief's dtype."""
    weight, *bias = (p.detach() for p in block.members)
    return block.whole(weight.to(belief_dtype(weight)), *bias)


def require_kept(
    bound: Bound, block: Block, state: dict[str, Any], name: Callable[[], str]
) -> None:
    """Refuse hyperparameters that need state which a parameter has not kept.

    Args:
        bound: the composition for the group's present hyperparameters.
        block: the parameter, with its bias if that is filtered with it.
        state: what it has kept.
        name: how to call it.

    Raises:
        RuntimeError: naming what is missing.
    """
    needed, advice = (
        bound.names(block),
        "start a new optimizer, or change them before the first step",
    )
    if missing := [key for key in needed if key not in state]:
        raise RuntimeError(
            f"the group's hyperparameters now need {', '.join(missing)}, which {name()} has not "
            f"kept; {advice}"
        )
    if bound.filter.basis.turns:  # all else is in its coordinates
        like = dict(zip(needed, leaves(bound.form(block)), strict=True))
        other = [k for k in needed if state[k].shape != like[k].shape]
        other += [k for k in state if k.startswith("eigenvectors") and k not in like]
        if other:
            raise RuntimeError(
                f"the group's hyperparameters now need other {', '.join(other)} than {name()} has "
                f"kept; {advice}"
            )


def strict_state(k: int) -> dict[str, Any]:
    """What a parameter keeps besides its belief where gradients are taken at the prediction.

    Args:
        k: latents per weight.

    Returns:
        ``decay``, by which the last step predicted the mean to shrink, ``drift_1``, …, by which it
        moved with each of the other latents (if there are any), and ``evaluating``, whether the
        parameter holds its posterior mean instead.
    """
    numbers = {"decay": torch.zeros((), dtype=torch.float64, device="cpu")}
    for i in range(1, k):
        numbers[f"drift_{i}"] = torch.zeros((), dtype=torch.float64, device="cpu")
    return {**numbers, "evaluating": torch.tensor(False, device="cpu")}


@torch.no_grad()
def hold_posterior(p: Tensor, state: dict[str, Any]) -> None:
    """Turn a parameter's prediction into its posterior mean, keeping the prediction aside."""
    torch.clear_autocast_cache()
    if "evaluating" in state and not state["evaluating"]:
        state["prediction"] = p.detach().clone()
        p.sub_(_drifted(p, state)).div_(1 - float(state["decay"]))
        state["evaluating"].fill_(True)


@torch.no_grad()
def hold_prediction(p: Tensor, state: dict[str, Any]) -> None:
    """Bring the prediction back, bit for bit where the parameter was left alone meanwhile."""
    torch.clear_autocast_cache()
    if state.get("evaluating"):
        shrink, drift = 1 - float(state["decay"]), _drifted(p, state)
        prediction = state.pop("prediction", p * shrink + drift)
        posterior = (prediction - drift).div_(shrink)
        p.copy_(torch.where(p == posterior, prediction, p * shrink + drift))
        state["evaluating"].fill_(False)


def _drifted(p: Tensor, state: dict[str, Any]) -> Tensor | float:
    """How far the other latents moved the parameter to its prediction."""
    drifted: Any = 0.0
    for name in [name for name in state if name.startswith("drift_")]:
        drifted = drifted + float(state[name]) * state[name.replace("drift", "mean")]
    return drifted.to(p.dtype) if isinstance(drifted, Tensor) else 0.0
