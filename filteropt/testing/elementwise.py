"""The law of what is said to treat every weight on its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filteropt.engine import Filter, init, scalars, step
from filteropt.execute import objection
from filteropt.testing._laws import DTYPES, law, near
from filteropt.trees import leaves, tree_map
from filteropt.types import Raw

__all__ = ["check_elementwise"]

STEPS = 4


def check_elementwise(filter: Filter) -> None:
    """Check that a composition which says so treats every weight on its own.

    Executors lay weights of many tensors in a row and step the row in pieces. So a step of all
    weights must be the steps of either half, in every number that is moved or remembered, over
    several steps and in float64 and float32. A state's tensor without dimensions is shared: it must
    come out the same from either half.

    Args:
        filter: the composition, each of whose parts states ``elementwise = True``.

    Raises:
        LawViolation: the law that broke.

    Example:
        >>> import filteropt
        >>> from filteropt.approximations import Clipped
        >>> from dataclasses import replace
        >>> check_elementwise(replace(filteropt.presets.adabayes(), projections=(Clipped(0.1),)))
    """
    why = objection(filter)
    law(why is None, f"every part states that it is elementwise: {why}")
    for dtype in DTYPES:
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(8, dtype=dtype, generator=generator)
        grads = torch.randn(STEPS, 8, dtype=dtype, generator=generator)
        whole = _stepped(filter, p, grads)
        for half in (slice(0, 4), slice(4, 8)):
            parts = _stepped(filter, p[half], grads[:, half])
            for x, part in zip(whole, parts, strict=True):
                rtol = 1e-10 if dtype == torch.float64 else 1e-5
                alike = near(x[half] if x.dim() else x, part, rtol)
                law(alike, "a step of half the weights is half of a step of all")


def _stepped(filter: Filter, p: Tensor, grads: Tensor) -> list[Tensor]:
    """The weights and the state after some steps."""
    state = init(filter, p)
    for t, grad in enumerate(grads, 1):
        numbers = tree_map(float, scalars(filter, t))
        fields: dict[str, Any] = {"squares": grad * grad, "products": grad * p}
        seen = {k: v for k, v in fields.items() if k in filter.likelihood.needs}
        disp, state = step(filter, numbers, state, Raw(grad, **seen), p)
        p = p + disp
    return [p, *leaves(state)]
