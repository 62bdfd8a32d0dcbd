"""The engine as a ``torch.optim.Optimizer``: groups, state and contexts, and no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from filteropt import engine, execute, measure
from filteropt.checkpoint import CheckpointedOptimizer
from filteropt.engine import Filter
from filteropt.hyperparameters import LearningRate, check_values, hints_of
from filteropt.measure import Reading
from filteropt.signature import constructor, plain, preset_values, scheduled_names
from filteropt.trees import leaves, names, restore, tree_map

__all__ = ["FilterOptimizer"]

Preset = Callable[..., Filter]
Group = dict[str, Any]


class FilterOptimizer(CheckpointedOptimizer):
    r"""Any composition as a PyTorch optimizer.

    .. math:: \mu \leftarrow \mu + r\,\Delta\mu, \qquad r = \text{lr}/\text{base\_lr},

    where :math:`\Delta\mu` is what the engine's step returns. The preset is called again in every
    step with the group's present hyperparameters, so schedulers and per-group values need nothing
    from any part. See :eq:`eq-schedule` and :eq:`eq-linearize`.

    Args:
        params: parameters, named parameters or groups of them, as in every PyTorch optimizer.
        preset: a function from hyperparameters to a :class:`filteropt.engine.Filter`.
        schedule: what a scheduler's ``lr`` means. ``"gain"``: the belief is filtered with the lr
            given at construction, kept as ``base_lr``, and r multiplies the displacement.
            ``"model"``: the dynamics themselves use the present lr, with the other learning rates
            (``lr_sgd``) multiplied by r, and the displacement is taken as it is.
        linearize_at: where the gradient is taken. ``"posterior"``: a step predicts, then
            conditions, and the parameters hold the posterior mean (P Algorithms 1 and 2; AdamW).
            ``"prediction"``, the strict filter: a step conditions, then predicts, and the
            parameters hold the predicted mean while training (see :meth:`eval`).
        maximize: maximise the objective instead of minimising it.
        on_nonfinite: ``"raise"`` a :class:`filteropt.NonFiniteGradientError` when a gradient or its
            square is not finite, or ``"skip"`` the whole step; either way nothing changes.
        fused: ``None`` or ``False``: the eager executor, which is the only one so far.
        model: the parameters' module, to name them in messages where ``params`` does not.
        **hyperparameters: the preset's own, by name; stored in every group.

    Raises:
        TypeError: an unknown hyperparameter or one of the wrong kind, or a complex parameter.
        ValueError: a hyperparameter outside its range.
        IncompatibleComposition: the preset's slots do not fit.

    Example:
        >>> from dataclasses import replace
        >>> import torch, filteropt
        >>> from filteropt.approximations import FixedPoint
        >>> from filteropt.presets import adabayes_fp
        >>> def exact(**h):
        ...     return replace(adabayes_fp(**h), posterior=FixedPoint("exact"))
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

    def __init__(
        self,
        params: ParamsT,
        preset: Preset,
        *,
        schedule: Literal["gain", "model"] = "gain",
        linearize_at: Literal["posterior", "prediction"] = "posterior",
        maximize: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        fused: bool | None = None,
        model: nn.Module | None = None,
        **hyperparameters: Any,
    ) -> None:
        options = {"schedule": schedule, "linearize_at": linearize_at, "maximize": maximize}
        check_values(
            type(self).__name__,
            {**options, "on_nonfinite": on_nonfinite, "fused": fused},
            hints_of(FilterOptimizer.__init__),
        )
        if fused:
            raise ValueError(
                "fused=True: there is no compiled executor yet; use fused=None or fused=False"
            )
        self.preset = preset
        self.model = model
        self.on_nonfinite = on_nonfinite
        self.fused = fused
        self._filters: dict[object, Filter] = {}
        values = preset_values(type(self).__name__, preset, hyperparameters)
        self._hyperparameters = tuple(values)
        super().__init__(params, {"lr": 1.0, **values, **options})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a class that states its ``preset`` a constructor with the preset's signature."""
        super().__init_subclass__(**kwargs)
        if "preset" in cls.__dict__ and "__init__" not in cls.__dict__:
            cls.__init__ = constructor(cls.preset, FilterOptimizer.__init__)  # type: ignore[method-assign]  # made, not written

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
            merged = {**self.defaults, "base_lr": None, **param_group}
            self._filter(merged)
            if merged["base_lr"] is None:
                param_group["base_lr"] = float(merged["lr"])
        super().add_param_group(param_group)

    def _filter(self, group: Group) -> Filter:
        """The composition for a group's present hyperparameters, once they are found to be fine."""
        lr, owner = plain(group["lr"]), type(self).__name__
        options = {k: group[k] for k in ("schedule", "linearize_at", "maximize")}
        hints = {**hints_of(FilterOptimizer.__init__), "lr": LearningRate}
        check_values(owner, {"lr": lr, **options}, hints)
        values = {name: plain(group[name]) for name in self._hyperparameters}
        base_lr, ratio = group["base_lr"] or lr, 1.0
        if "lr" in values:
            by_model = lr and group["schedule"] == "model"
            values["lr"], ratio = (lr, lr / base_lr) if by_model else (base_lr, 1.0)
        key = (ratio, repr(values))
        if key not in self._filters:
            check_values(owner, values, hints_of(self.preset))
            for name in scheduled_names(self.preset) & values.keys():
                values[name] *= ratio
            filter = self.preset(**values)
            if base_lr:  # else frozen until an lr is given
                engine.check(filter)
            if len(self._filters) >= 64:
                self._filters.clear()
            self._filters[key] = filter
        return self._filters[key]

    def _ahead(self, group: Group, filter: Filter) -> float | None:
        """The shrinkage that a strict step predicts; ``None`` where gradients are posterior."""
        if group["linearize_at"] == "posterior":
            return None
        decay = self._gain(group) * float(engine.scalars(filter, 1).decay)
        if decay >= 1:
            raise ValueError(
                f"{type(self).__name__}: the decay per step, {decay:.3g} (lr * weight_decay), must "
                f"be below 1 with linearize_at='prediction'; lower either of them"
            )
        return decay

    def _gain(self, group: Group) -> float:
        """r, the factor on the displacement."""
        by_model = group["schedule"] == "model" and "lr" in self._hyperparameters
        return 1.0 if by_model or not group["base_lr"] else float(group["lr"]) / group["base_lr"]

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
                gradients are due at the prediction.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        filters = [self._filter(group) for group in groups]
        aheads = [self._ahead(g, f) for g, f in zip(groups, filters, strict=True)]
        readings = [self._read(i, f) for i, f in enumerate(filters)]
        live = [r for g, read in zip(groups, readings, strict=True) if g["lr"] for r in read]
        if not measure.all_finite(live):
            if self.on_nonfinite == "skip":
                return loss
            measure.raise_nonfinite(live)
        for group, filter, ahead, read in zip(groups, filters, aheads, readings, strict=True):
            states = [self.state[r.p] for r in read]
            for reading, state in zip(read, states, strict=True):
                state.update({} if state else self._fresh(group, reading.p))
            if group["lr"]:
                execute.update(filter, read, states, gain=self._gain(group), ahead=ahead)
        return loss

    def _read(self, index: int, filter: Filter) -> list[Reading]:
        """Gather what the likelihood needs, before anything is changed."""
        group, readings = self.param_groups[index], []
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            name = partial(measure.name_of, self.param_groups, index, i, self.model)
            if self.state.get(p, {}).get("evaluating"):
                raise RuntimeError(f"{name()} holds its posterior mean: call train() before step()")
            raw = measure.gather(p, name, maximize=group["maximize"])
            limit = filter.likelihood.gradient_limit(raw.grad.dtype)
            readings.append(Reading(name, p, raw, limit))
        return readings

    def _fresh(self, group: Group, p: Tensor) -> Group:
        """The state before the first gradient: the constructed ``lr``'s prior."""
        filter = self._filter({**group, "lr": group["base_lr"]})
        step = torch.zeros((), dtype=torch.float32, device="cpu")
        strict = execute.strict_state() if group["linearize_at"] == "prediction" else {}
        initial = engine.init(filter, p)
        return {"step": step, **dict(zip(names(initial), leaves(initial), strict=True)), **strict}

    # The belief -------------------------------------------------------------------------------

    @torch.no_grad()
    def posterior_variance(self, p: Tensor) -> Tensor:
        r"""The variance of every weight's optimum given the other weights' present values.

        This is :math:`\Sigma^+`, not the marginal of a joint posterior over all the weights.

        Args:
            p: one of the optimizer's parameters.

        Returns:
            A new tensor shaped like ``p``, in squared weight units; before the first step, the
            prior's variance.

        Raises:
            ValueError: ``p`` is not one of the optimizer's parameters.
        """
        for group in self.param_groups:
            if any(q is p for q in group["params"]):
                filter = self._filter(group)
                engine.check(filter)
                state = self.state.get(p) or self._fresh(group, p)
                scalars = engine.scalars(filter, float(state["step"]))
                form = engine.template(filter)
                belief = restore(form, [state[name] for name in names(form)])
                return engine.variance(filter, tree_map(float, scalars), belief)
        raise ValueError(f"posterior_variance: a tensor of shape {tuple(p.shape)} is not optimized")

    def train(self, mode: bool = True) -> FilterOptimizer:
        """Let the parameters hold the mean at which gradients are due; idempotent.

        Under ``linearize_at="prediction"`` that is the predicted mean; otherwise nothing changes.

        Args:
            mode: ``False`` is the same as :meth:`eval`.

        Returns:
            The optimizer itself.
        """
        hold = execute.hold_prediction if mode else execute.hold_posterior
        for p, state in self.state.items():
            hold(p, state)
        return self

    def eval(self) -> FilterOptimizer:
        """Let the parameters hold the posterior mean, for evaluation and saving; idempotent.

        Returns:
            The optimizer itself.
        """
        return self.train(False)

    def _expected_state(self, group: Group) -> set[str]:
        """The names of the tensors that a group's parameters keep."""
        return set(self._fresh({**group, "base_lr": group["lr"]}, torch.empty(0, device="cpu")))
