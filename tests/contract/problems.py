"""Small deterministic training problems, and photographs of an optimizer to compare.

Everything random is a function of the step number, so two runs can be compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

DOUBLE = torch.float64


def noise(*shape: int, seed: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Return standard normal numbers that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = DOUBLE) -> list[nn.Parameter]:
    """Return random parameters of these shapes, by default a 3×4 matrix and a vector."""
    shapes = shapes or ((3, 4), (5,))
    return [nn.Parameter(noise(*s, seed=i, dtype=dtype)) for i, s in enumerate(shapes)]


def clones(params: Iterable[Tensor]) -> list[nn.Parameter]:
    """Return fresh leaf parameters of the same values."""
    return [nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in params]


def weights(opt: Optimizer) -> list[nn.Parameter]:
    """Return every parameter of an optimizer, group by group."""
    return [p for group in opt.param_groups for p in group["params"]]


def give_gradients(params: Iterable[Tensor], t: int) -> None:
    """Set every gradient to noise that depends on the step, the shape and the place in the list."""
    for i, p in enumerate(params):
        p.grad = noise(*p.shape, seed=1000 + 100 * i + t, dtype=p.dtype) * (1 + t % 3)


def drive(opt: Optimizer, steps: int, start: int = 0) -> None:
    """Take steps with synthetic gradients."""
    for t in range(start, start + steps):
        give_gradients(weights(opt), t)
        opt.step()


def network(dtype: torch.dtype = DOUBLE, hidden: int = 5) -> nn.Sequential:
    """Return a small regression network, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        layers = nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2)
    return nn.Sequential(*layers).to(dtype)


def batch(t: int, dtype: torch.dtype = DOUBLE, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of step t."""
    return noise(size, 4, seed=t, dtype=dtype), noise(size, 2, seed=t + 500, dtype=dtype)


def loss_of(model: nn.Module, t: int) -> Tensor:
    """Return the mean squared error on the batch of step t."""
    x, y = batch(t, next(model.parameters()).dtype)
    return nn.functional.mse_loss(model(x), y)


def train(model: nn.Module, opt: Optimizer, steps: int, start: int = 0) -> None:
    """Train in the plainest way; every other manner of training is compared with it."""
    for t in range(start, start + steps):
        opt.zero_grad()
        loss_of(model, t).backward()
        opt.step()


def trained(subject: Any, steps: int, dtype: torch.dtype = DOUBLE, **keywords: Any) -> nn.Module:
    """Return the network after plain training."""
    model = network(dtype)
    train(model, subject(model.parameters(), **keywords), steps)
    return model


def photograph(opt: Optimizer) -> list[dict[str, Any]]:
    """Return a copy of every weight and of its state."""
    return [
        {
            "weight": p.detach().clone(),
            **{k: v.clone() if isinstance(v, Tensor) else v for k, v in opt.state[p].items()},
        }
        if p in opt.state
        else {"weight": p.detach().clone()}
        for p in weights(opt)
    ]


def assert_same(a: Any, b: Any) -> None:
    """Assert equality bit by bit, through lists and dictionaries, dtypes included."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    """Assert that two models have the same weights bit by bit."""
    assert_same([*a.parameters()], [*b.parameters()])


def assert_close(a: Iterable[Tensor], b: Iterable[Tensor], *, rounded: bool = False) -> None:
    """Assert equality up to the rounding that another order of operations may cause.

    Where it is ``rounded``, that goes through eigenvectors of matrices that lack ranks.
    """
    for x, y in zip(a, b, strict=True):
        rtol = 1e-12 if x.dtype == DOUBLE else 1e-5
        rtol = 1e-7 if rounded else rtol
        torch.testing.assert_close(x.detach(), y.detach(), rtol=rtol, atol=rtol * 1e-2)


def moved(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Return whether every tensor differs from its partner, and stayed finite."""
    pairs = list(zip(a, b, strict=True))
    return all(not torch.equal(x, y) and bool(x.isfinite().all()) for x, y in pairs)
