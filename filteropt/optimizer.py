"""The engine as a ``torch.optim.Optimizer``: groups, state and contexts, and no mathematics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from filteropt import execute, finite, measure
from filteropt.blocks import blocks_of
from filteropt.engine import Filter
from filteropt.gathering import Gathering
from filteropt.hyperparameters import check_values, hints_of
from filteropt.recipe import Bound, Recipe
from filteropt.signature import constructor, native
from filteropt.stepping import SteppingOptimizer

__all__ = ["FilterOptimizer"]

Preset = Callable[..., Filter]
Group = dict[str, Any]


class FilterOptimizer(SteppingOptimizer):
    r"""Any composition as a PyTorch optimizer.

    .. math:: \mu \leftarrow \mu + r\,\Delta\mu, \qquad r = \text{lr}/\text{base\_lr},

    where :math:`\Delta\mu` is what the engine's step returns. The preset is called again when
    a group's hyperparameters have changed, so schedulers and per-group values need nothing
    from any part. See :eq:`eq-schedule` and :eq:`eq-linearize`.

    Args:
        params: parameters, named parameters or groups of them, as in every PyTorch optimizer.
        preset: a pure function from hyperparameters to a :class:`filteropt.engine.Filter`, such
            as :func:`filteropt.variant` makes. Where its signature ends in ``**``, it is passed
            what is named here, and no other key of a group.
        schedule: what a scheduler's ``lr`` means. ``"gain"``: the belief is filtered with the lr
            given at construction, kept as ``base_lr``, and r multiplies the displacement.
            ``"model"``: the dynamics themselves use the present lr, with the other learning rates
            (``lr_sgd``) multiplied by r, and the displacement is taken as it is. A preset without
            an ``lr`` of its own has the gain alone.
        linearize_at: where the gradient is taken. ``"posterior"``: a step predicts, then
            conditions, and the parameters hold the posterior mean (P Algorithms 1 and 2; AdamW).
            ``"prediction"``, the strict filter: a step conditions, then predicts, and the
            parameters hold the predicted mean while training (see :meth:`eval`).
        maximize: maximise the objective instead of minimising it.
        on_nonfinite: ``"raise"`` a :class:`filteropt.NonFiniteGradientError` when a gradient or its
            square is not finite, or ``"skip"`` the whole step; either way nothing changes.
            ``"ignore"`` looks at no gradient, as torch's own optimizers, for loops that have looked
            already (``clip_grad_norm_(error_if_nonfinite=True)``, ``GradScaler``).
        fused: whether steps are compiled; ``None`` compiles those of groups of 10 million weights
            or more where every part treats every weight on its own. See :doc:`/executors`.
        capturable: whether steps can be captured in CUDA graphs: they are compiled, counted on the
            parameters' device, and read no number from there. See :doc:`/executors`.
        belief_dtype: ``torch.bfloat16`` keeps beliefs in half the memory, rounded at random, of
            weights of 32 bits or fewer in elementwise compositions of one latent; ``None`` in
            float32, or float64 for such weights. See :doc:`/executors`.
        model: the parameters' module, to name them in messages where ``params`` does not.
        **hyperparameters: the preset's own, by name; stored in every group.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind, or a complex parameter.
        ValueError: a hyperparameter outside its range.
        IncompatibleComposition: the preset's slots do not fit.

    Example:
        >>> import torch, filteropt
        >>> from filteropt.approximations import FixedPoint
        >>> from filteropt.presets import adabayes_fp
        >>> exact = filteropt.variant(adabayes_fp, posterior=FixedPoint("exact"))
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> opt = filteropt.FilterOptimizer([w], exact, lr=1e-2, batch_size=32)
        >>> w.square().sum().backward()
        >>> opt.step()

    Note:
        ``lr = 0`` freezes a group: parameters and beliefs stay as they are, bit for bit. A group
        built with it has no base, so a later lr is taken as it is (r = 1). A preset without a
        hyperparameter ``lr`` gets the group key ``lr = 1.0``, a plain gain.
    """

    preset: Preset
    keywords: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """The keywords of :class:`FilterOptimizer` whose default differs in a named optimizer."""

    def _construct(
        self,
        params: ParamsT,
        preset: Preset,
        *,
        schedule: Literal["gain", "model"] = "gain",
        linearize_at: Literal["posterior", "prediction"] = "posterior",
        maximize: bool = False,
        on_nonfinite: Literal["raise", "skip", "ignore"] = "raise",
        fused: bool | None = None,
        capturable: bool = False,
        belief_dtype: torch.dtype | None = None,
        model: nn.Module | None = None,
        **hyperparameters: Any,
    ) -> None:
        options = {"schedule": schedule, "linearize_at": linearize_at, "maximize": maximize}
        check_values(
            type(self).__name__,
            {
                **options,
                "on_nonfinite": on_nonfinite,
                "fused": fused,
                "capturable": capturable,
            },
            hints_of(FilterOptimizer.__init__),
        )
        if not (model is None or isinstance(model, nn.Module)):
            raise TypeError(f"{type(self).__name__}: model={model!r} must be a torch.nn.Module")
        if belief_dtype not in {None, torch.bfloat16}:
            raise ValueError(
                f"{type(self).__name__}: belief_dtype={belief_dtype} must be None or torch.bfloat16"
            )
        if capturable and (on_nonfinite != "ignore" or fused is False):
            raise ValueError(
                f"{type(self).__name__}: capturable=True needs on_nonfinite='ignore', since what "
                f"is captured cannot be decided again, and a compiled step, fused=True or None"
            )
        self.preset, self.model, self.belief_dtype = preset, model, belief_dtype
        self.on_nonfinite, self.fused, self.capturable = on_nonfinite, fused, capturable
        self._recipe = Recipe(type(self).__name__, preset, hyperparameters)
        self._gathering, self._standings = Gathering(), execute.Standings()
        values = {name: native(value) for name, value in self._recipe.defaults.items()}
        super().__init__(params, {"lr": 1.0, **values, **options})

    if TYPE_CHECKING:  # a named optimizer's own arguments follow, made in __init_subclass__

        def __init__(self, params: ParamsT, *args: Any, **keywords: Any) -> None: ...
    else:
        __init__ = _construct

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a class that states its ``preset`` a constructor with the preset's signature."""
        super().__init_subclass__(**kwargs)
        made = hasattr(cls.__init__, "__signature__") or cls.__init__ is FilterOptimizer.__init__
        if "preset" in cls.__dict__ and made:  # else a constructor written by hand is in between
            made_from = cls.preset, FilterOptimizer.__init__, cls.keywords
            cls.__init__ = constructor(*made_from)  # type: ignore[method-assign]  # made, not written

    # Groups -----------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its ``lr`` is kept as ``base_lr``.

        Args:
            param_group: ``params`` and any hyperparameter that differs from the defaults.

        Raises:
            TypeError: a hyperparameter of the wrong kind, or a complex parameter.
            ValueError: a hyperparameter outside its range.
        """
        if isinstance(param_group, dict) and "params" in param_group:
            measure.reject_complex(param_group)
            param_group.update({k: native(v) for k, v in param_group.items() if k in self.defaults})
            merged = {**self.defaults, "base_lr": None, **param_group}
            bound = self._bind({**merged, "base_lr": merged["base_lr"] or merged["lr"]})
            params = measure.tensors_of(param_group)
            self._watch(bound, params)
            if merged["lr"] and merged["linearize_at"] == "prediction":
                execute.require_prediction(bound.filter)
            for block in blocks_of(params, bound.filter.likelihood):
                bound.form(block)  # a family may refuse a tensor that is too large for it
            self._require_short(bound.filter, params)
            if merged["base_lr"] is None:
                param_group["base_lr"] = float(merged["lr"])
        super().add_param_group(param_group)

    def _bind(self, group: Group) -> Bound:
        """The composition for a group's present hyperparameters, once they are found to be fine."""
        options = {k: group[k] for k in ("schedule", "linearize_at", "maximize")}
        check_values(type(self).__name__, options, hints_of(FilterOptimizer.__init__))
        bound = self._recipe.bind(group)
        if self.fused and (why := execute.objection(bound.filter)) is not None:
            raise ValueError(f"{type(self).__name__}: fused=True, but {why}; use fused=None")
        if self.capturable:
            strict = group["linearize_at"] == "prediction"
            if (why := execute.capture_objection(bound.filter, strict=strict)) is not None:
                raise ValueError(
                    f"{type(self).__name__}: capturable=True, but {why}; use capturable=False"
                )
        return bound

    def _loaded(self) -> None:
        self._standings.clear()  # which would hold the former state while memory is needed
        self._gathering.clear(self.state)
        for p, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(self._clock_of(p))
        for group in self.param_groups:
            if execute.is_elementwise(self._bind(group).filter):
                states = [self.state[p] for p in group["params"] if p in self.state]
                execute.side_by_side(states)

    # The step ---------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # executors decide what to compile
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, calls ``backward`` and returns the loss.

        Returns:
            The closure's loss, if there is one.

        Raises:
            NonFiniteGradientError: a gradient, or its square, is not finite; nothing was changed.
            RuntimeError: the parameters hold the posterior mean (after :meth:`eval`) although
                gradients are due at the prediction; a group's hyperparameters were changed to
                need state that was not kept; or what a likelihood needs is not there; or inside of
                ``sampled_params`` or ``fisher_pass``.
            TypeError: a sparse gradient, or a model whose inputs do not lead with the examples.
            ValueError: a model of which there are no per-example Jacobians.
        """
        loss = None
        if closure is not None:
            draws = max((int(group.get("mc_samples", 1)) for group in self.param_groups), default=1)
            with torch.enable_grad():
                losses = [closure() for _ in range(draws)]
            loss = sum(losses) / draws if draws > 1 else losses[0]
        if self._drawn or self._gathering.ledger.paused:
            inside = "sampled_params" if self._drawn else "fisher_pass"
            raise RuntimeError(f"step: leave {inside} first")
        self._standings.attend(self.param_groups)
        bounds = [self._bind(group) for group in self.param_groups]
        work = [self._read(i, bound) for i, bound in enumerate(bounds)]
        every = [reading for found in work for reading in found.readings]
        if self.on_nonfinite != "ignore" and not finite.all_finite(every):
            self._gathering.clear()
            if self.on_nonfinite == "skip":
                return loss
            finite.raise_nonfinite(every)
        for group, bound, found in zip(self.param_groups, bounds, work, strict=True):
            self._advance(group, bound, found)
        self._gathering.clear(self.state)
        return loss
