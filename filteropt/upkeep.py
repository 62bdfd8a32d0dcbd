"""What an optimizer keeps for every parameter: made when it is due, and in which precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filteropt import belief, engine, execute
from filteropt.blocks import Block
from filteropt.engine import Filter
from filteropt.engine.compatibility import RESERVED
from filteropt.recipe import Bound
from filteropt.sampling import SamplingOptimizer
from filteropt.trees import leaves, names

__all__ = ["KeepingOptimizer"]

Group = dict[str, Any]


class KeepingOptimizer(SamplingOptimizer):
    """An optimizer with the state that its groups' options need."""

    belief_dtype: torch.dtype | None
    capturable: bool = False

    def _prepare(self, group: Group, blocks: list[Block], bound: Bound) -> None:
        """Give blocks' parameters the state that their group's options need, and no other."""
        strict = group["linearize_at"] == "prediction"  # and it may change its mind
        made = []
        for block, p in [(b, p) for b in blocks for p in b.members if p.grad is not None]:
            state, own = self.state[p], bound.names(block) if p is block.weight else ()
            if not state or (group["lr"] and not group["base_lr"] and not state["step"]):
                learned = bound.basis(block) if state else ()
                with torch.inference_mode(False), torch.no_grad():  # for steps outside of it, too
                    fresh = self._fresh(group, block, p)
                state.update({k: v for k, v in fresh.items() if k not in learned})
                made.append(state)
            for name in state.keys() - {*own, *(RESERVED if strict else ("step",))}:
                del state[name]
            if strict and "evaluating" not in state:
                state.update(belief.strict_state(bound.filter.dynamics.k))
        if made and execute.is_elementwise(bound.filter):
            with torch.inference_mode(False), torch.no_grad():
                execute.side_by_side(made)

    def _fresh(self, group: Group, block: Block, p: Tensor) -> Group:
        """A member's state before the first gradient: of the constructed ``lr``'s prior."""
        filter = self._bind({**group, "lr": group["base_lr"] or group["lr"]}).filter
        step = {"step": torch.zeros((), dtype=torch.float32, device=self._clock_of(p))}
        strict = group["linearize_at"] == "prediction"
        kept = belief.strict_state(filter.dynamics.k) if strict else {}
        if p is not block.weight:
            return {**step, **kept}
        initial = engine.init(filter, block.whole(*block.members))
        return {
            **step,
            **self._short(dict(zip(names(initial), leaves(initial), strict=True))),
            **kept,
        }

    def _clock_of(self, p: Tensor) -> torch.device:
        """Where a parameter's steps are counted; on the CPU, reading them stalls no device."""
        return p.device if self.capturable else torch.device("cpu")

    def _expected_state(self, group: Group, p: Tensor) -> set[str]:
        """The names of the tensors that a parameter of such a group keeps."""
        mine = next(g for g in self.param_groups if any(q is p for q in g["params"]))
        block = self._block(mine, self._bind(group), p)
        bare = [torch.empty(q.shape, device="meta") for q in block.members]
        return set(self._fresh(group, Block(*bare), bare[p is not block.weight]))

    def _short(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """A belief's tensors in the precision that was asked for; numbers stay as they are."""
        if self.belief_dtype is None:
            return kept
        return {name: x.to(self.belief_dtype) if x.dim() else x for name, x in kept.items()}

    def _require_short(self, filter: Filter, params: list[Tensor]) -> None:
        """Refuse what cannot be believed of in fewer bits."""
        if self.belief_dtype is None:
            return
        asked = f"{type(self).__name__}: belief_dtype={self.belief_dtype}"
        if not execute.is_elementwise(filter):
            raise ValueError(
                f"{asked}, but not every part of the composition treats every weight on its own; "
                f"matrices need all their bits: use belief_dtype=None"
            )
        if filter.dynamics.k > 1:
            raise ValueError(
                f"{asked}, but {type(filter.dynamics).__name__} has {filter.dynamics.k} latents, "
                f"whose covariance would not stay positive definite: use belief_dtype=None"
            )
        for p in params:
            if p.dtype is torch.float64:
                raise ValueError(
                    f"{asked}, but a parameter of shape {tuple(p.shape)} is float64; use "
                    f"belief_dtype=None, or weights of 32 bits or fewer"
                )
