"""Runs of an optimizer by a given executor, over tensors of many kinds, for tests of executors."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import strategies as st

import filteropt
from filteropt import engine
from filteropt.blocks import Block
from filteropt.engine import IncompatibleComposition, check
from filteropt.execute import Item, is_elementwise
from filteropt.testing import compositions
from filteropt.trees import leaves
from filteropt.types import Raw

update = sys.modules["filteropt.execute.update"]
standing = sys.modules["filteropt.execute.standing"]

LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "channels last": lambda x: (
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    ),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "inside": lambda x: torch.cat([x.new_zeros(3), x.flatten(), x.new_zeros(2)])[
        3 : 3 + x.numel()
    ].view(x.shape),
}
CASES = {
    "shapes": st.lists(
        st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.just((200,)), min_size=1, max_size=6
    ),
    "layouts": st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=6, max_size=6),
    "dtypes": st.lists(
        st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), min_size=6, max_size=6
    ),
    "groups": st.lists(st.integers(0, 2), min_size=6, max_size=6),
    "late": st.lists(st.booleans(), min_size=6, max_size=6),
}
"""Parameters of all kinds, in groups; some have no gradient in the first step."""
SHAPES = [(), (0,), (1,), (5,), (3, 4), (2, 3, 2, 2), (40,), (7, 9)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def fits(filter):
    try:
        check(filter)
    except IncompatibleComposition:
        return False
    return True


FITTING = [filter for filter in compositions() if fits(filter)]
ELEMENTWISE = [filter for filter in FITTING if is_elementwise(filter)]


def called(filter):
    return "-".join(type(part).__name__ for part in (filter.dynamics, filter.likelihood,
                                                     filter.posterior))  # fmt: skip


def parameters(shapes, layouts=(), dtypes=(), seed=0):
    """Parameters in memory as asked for; contiguous and float64 where nothing is said."""
    generator, params = torch.Generator().manual_seed(seed), []
    for i, shape in enumerate(shapes):
        dtype = dtypes[i] if i < len(dtypes) else torch.float64
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        params.append(torch.nn.Parameter(LAYOUTS[layouts[i]](x) if i < len(layouts) else x))
    return params


def stepped(
    preset,
    executor=None,
    *,
    shapes=SHAPES,
    layouts=(),
    dtypes=(),
    groups=(),
    late=(),
    params=None,
    lrs=(None,) * 3,
    after_first=None,
    **options,
):
    """Parameters and states after a few steps.

    Where an executor is given, it steps, and every step looks at everything anew.
    """
    params = parameters(shapes, layouts, dtypes) if params is None else params
    members = [groups[i] if i < len(groups) else 0 for i in range(len(params))]
    named = [
        {"params": [p for p, m in zip(params, members, strict=True) if m == i]}
        for i in sorted(set(members))
    ]
    generator = torch.Generator().manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        if executor is not None:
            patch.setattr(update, "choose", lambda *_: executor)
            patch.setattr(standing.Standings, "find", lambda *_: None)
        opt = filteropt.FilterOptimizer(named, preset, **options)
        for t, lr in enumerate(lrs):
            for i, p in enumerate(params):
                grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                p.grad = None if t == 0 and i < len(late) and late[i] else grad
            for group in opt.param_groups:
                group["lr"] = group["lr"] if lr is None else lr
            opt.step()
            if t == 0 and after_first is not None:
                after_first(opt)
    return [(p, opt.state[p]) for p in params]


def made(filter, executor, steps=3):
    """The same for one composition, with squares and products as they may be gathered."""
    generator = torch.Generator().manual_seed(0)
    params = parameters([(5,), (40,), (3, 4), (1,), ()])
    states = [dict(enumerate(leaves(engine.init(filter, p.detach())))) for p in params]
    for t in range(1, steps + 1):
        items = []
        for p, state in zip(params, states, strict=True):
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            fields = {"squares": grad * grad, "products": grad * p.detach()}
            seen = {k: v for k, v in fields.items() if k in filter.likelihood.needs}
            form, kept = engine.init(filter, p.detach()), list(state.values())
            held = filteropt.trees.restore(form, kept)
            items.append(Item(Block(p), Raw(grad, **seen), held, kept))
        with torch.no_grad():
            executor(filter, engine.scalars(filter, t), items, 0.5)
    return list(zip(params, states, strict=True))


def assert_alike(found, expected, rtol=None):
    """All parameters and all that is remembered about them, to the dtype's tolerance."""
    for (p, state), (q, other) in zip(found, expected, strict=True):
        assert p.stride() == q.stride()
        assert list(state) == list(other)
        near = TOLERANCE[p.dtype] if rtol is None else rtol
        torch.testing.assert_close(p, q, rtol=near, atol=near * 1e-3)
        for name in state:
            torch.testing.assert_close(state[name], other[name], rtol=near, atol=near * 1e-6)
