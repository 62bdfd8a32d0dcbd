"""Saving and loading: a belief comes back in the dtype it was saved in, or not at all."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["CheckpointedOptimizer"]


HOST = frozenset({"decay", "evaluating", *(f"drift_{i}" for i in range(1, 16))})
"""Numbers that stay on the CPU, as ``step`` does, where reading them stalls no device."""


class CheckpointedOptimizer(Optimizer):
    """An optimizer whose state keeps its own dtype and is checked before it is loaded."""

    def _expected_state(self, group: dict[str, Any], p: Tensor) -> set[str]:
        """The names of the tensors that a parameter of such a group keeps."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same composition, bit for bit.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            ValueError: the checkpoint is another composition's; nothing was changed.
        """
        checkpoint: dict[str, Any] = {}

        def inspect(_: Optimizer, loaded: dict[str, Any]) -> None:
            checkpoint.update(loaded)
            self._check(checkpoint)

        def keep_dtypes(_: Optimizer) -> None:
            # The base class casts state to the parameter's dtype, which would halve the precision
            # of a float32 belief about bfloat16 weights: put the saved values in again.
            for i, p in self._pairs(checkpoint):
                for name, saved in checkpoint["state"].get(i, {}).items():
                    cast = self.state[p][name]
                    if isinstance(saved, Tensor) and (saved.dtype != cast.dtype or name in HOST):
                        device = "cpu" if name in HOST else cast.device
                        self.state[p][name] = saved.detach().to(device, copy=True)

        hooks = [
            self.register_load_state_dict_pre_hook(inspect),
            self.register_load_state_dict_post_hook(keep_dtypes, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()
        self._loaded()

    def _loaded(self) -> None:
        """Go on from a checkpoint that was just loaded."""

    def _pairs(self, checkpoint: dict[str, Any]) -> list[tuple[int, Tensor]]:
        """Saved parameter numbers with the parameters they now stand for."""
        ids = [i for group in checkpoint["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        return list(zip(ids, params, strict=False))  # the base class compares the lengths

    def _check(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another optimizer's checkpoint before anything is changed."""
        groups = {}
        for saved in checkpoint["param_groups"]:
            needed = {*self.defaults, "base_lr"} - {
                "differentiable"
            }  # PyTorch's, of what was loaded
            if missing := sorted(needed - saved.keys()):
                self._refuse(f"has groups without {', '.join(missing)}")
            groups.update(dict.fromkeys(saved["params"], saved))
        for i, p in self._pairs(checkpoint):
            found = set(checkpoint["state"].get(i, ()))
            expected = self._expected_state(groups[i], p)
            if found and found - {"prediction"} != expected:
                self._refuse(f"holds {sorted(found)} for a parameter, not {sorted(expected)}")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"the checkpoint {what}: load it into the optimizer that saved it, which was not "
            f"{type(self).__name__} with this composition"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, a copy or a checkpoint; groups get the keys they lack."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: everything but hooks, and a scheduler's wrapped step."""
        dropped = {name for name in self.__dict__ if name.endswith("_hooks")} | {"step"}
        kept = {name: value for name, value in self.__dict__.items() if name not in dropped}
        return {**kept, **super().__getstate__()}
