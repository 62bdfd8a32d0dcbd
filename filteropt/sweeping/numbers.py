"""Every step's numbers for every setting, worked out for many steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from filteropt import engine
from filteropt.engine import Scalars
from filteropt.signature import plain, scheduled_names
from filteropt.sweeping.settings import Setting
from filteropt.trees import tree_map

__all__ = ["Tables", "flat"]

Values = Callable[[Tensor], Tensor]

BLOCK = 512
"""Steps whose numbers are worked out together."""


class Tables:
    """The scalar programs of all settings, read step by step.

    Args:
        settings: the settings.
        factors: what a schedule multiplies the learning rate by, for every step; a step at factor
            0 is none, and does not count.
        strict: whether gradients are taken at the prediction.
        device: where the numbers are wanted.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        factors: Sequence[float],
        *,
        strict: bool,
        device: torch.device,
    ) -> None:
        self.settings, self.factors, self.strict = settings, factors, strict
        self.device = device
        counted = torch.tensor([factor > 0 for factor in factors], dtype=torch.float64)
        self.ages = counted.cumsum(0)
        self.form: Scalars = engine.scalars(settings[0].bound().filter, 1)
        self.count = len(flat(self.form))
        self._block, self._met = -1, dict[Values, Tensor]()
        self._table = torch.empty(0)

    def at(self, step: int, places: Tensor) -> Tensor:
        """The numbers of one step.

        Args:
            step: 0 for the first.
            places: the setting of every member.

        Returns:
            A row for every number, ``(numbers, members)``: those of the engine's step, in the order
            of the tree; the factor on displacements; and, where gradients are taken at the
            prediction, the decay of the mean until the next step and what each of the other
            latents' means adds to it, per unit.
        """
        return self._of_block(step)[step % BLOCK][:, places]

    def met(self, step: int, places: Tensor, values: Values) -> Tensor:
        """What a program makes of one step's numbers, which is worked out for many steps at once.

        Args:
            step: 0 for the first.
            places: the setting of every member.
            values: from numbers, ``(steps, numbers, settings)``, to what is wanted of them,
                ``(steps, settings, ...)``.

        Returns:
            The step's, ``(members, ...)``.
        """
        table = self._of_block(step)
        if values not in self._met:
            self._met[values] = values(table)
        return self._met[values][step % BLOCK][places]

    def _of_block(self, step: int) -> Tensor:
        """The numbers of a step and those around it, ``(steps, numbers, settings)``."""
        if step // BLOCK != self._block:
            self._block, self._met = step // BLOCK, {}
            self._table = self._work_out(self._block * BLOCK).to(self.device)
        return self._table

    def _work_out(self, start: int) -> Tensor:
        """The numbers of a block of steps, ``(steps, numbers, settings)``."""
        factors = torch.tensor(self.factors[start : start + BLOCK], dtype=torch.float64)
        ages = self.ages[start : start + BLOCK].clamp_min(1)
        found = [self._of(setting, factors, ages) for setting in self.settings]
        return torch.stack(found, -1)

    def _of(self, setting: Setting, factors: Tensor, ages: Tensor) -> Tensor:
        """One setting's numbers, ``(steps, numbers)``: all steps at once where that works."""
        moving = factors[factors > 0]
        ends = (float(moving.min()), float(moving.max())) if len(moving) else ()
        for factor in ends:
            setting.bound(factor)  # the whole range must be admissible
        used = factors.where(factors > 0, 1.0)
        try:
            table = vmap(lambda f, t: self._one(setting, f, t))(used, ages)
        except RuntimeError:  # a scalar program that branches on its numbers
            pairs = zip(used, ages, strict=True)
            table = torch.stack([self._one(setting, float(f), t) for f, t in pairs])
        gains = [setting.gain(factor) if factor else 0.0 for factor in factors.tolist()]
        gain = torch.tensor(gains, dtype=torch.float64)
        scalars, ahead = table[:, : self.count], table[:, self.count :]
        if self.strict:
            ahead = gain[:, None] * ahead
            if (decay := float(ahead[:, 0].max())) >= 1:
                raise ValueError(
                    f"sweep: setting {setting.given}: the decay per step, {decay:.3g} (lr * "
                    f"weight_decay, or the dynamics' own), must be below 1 with "
                    f"linearize_at='prediction'; lower lr or weight_decay"
                )
        return torch.cat([scalars, gain[:, None], ahead], 1)

    def _one(self, setting: Setting, factor: Any, t: Tensor) -> Tensor:
        """One step's numbers, and how its mean moves ahead."""
        filter = setting.bound(factor).filter if isinstance(factor, float) else None
        if filter is None:
            filter = _filter(setting, factor)
        scalars, ahead = engine.scalars(filter, t), []
        if self.strict:
            scalars = scalars._replace(decay=torch.zeros_like(t), moves=torch.zeros_like(t))
            then = engine.scalars(filter, t + 1)
            ahead = [then.decay, *then.transition.F[0][1:]]
        numbers = [*flat(scalars), *ahead]
        return torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in numbers])


def _filter(setting: Setting, factor: Tensor) -> engine.Filter:
    """The composition at a factor that is not read."""
    recipe, group = setting.recipe, setting.group
    if "lr" not in recipe.names or group["schedule"] == "gain":
        return setting.bound().filter
    scheduled = scheduled_names(recipe.preset) & set(recipe.names)
    values = {name: plain(group[name]) for name in recipe.names} | {"lr": setting.lr * factor}
    ratio = {k: factor * v for k, v in values.items() if k in scheduled and v is not None}
    return recipe.preset(**(values | ratio))


def flat(scalars: Scalars) -> list[Any]:
    """The numbers of a tree, in order."""
    found: list[Any] = []
    tree_map(found.append, scalars)
    return found
