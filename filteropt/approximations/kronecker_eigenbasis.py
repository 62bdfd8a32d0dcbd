"""The eigenbasis of Kronecker factors: coordinates in which a matrix' weights hardly correlate."""

from __future__ import annotations

import functools
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from filteropt.hyperparameters import Count, Momentum, check_fields
from filteropt.types import Basis, Leaves, Raw, Turn

__all__ = ["KroneckerEigenbasis"]

DAMPING = 1e-6
"""Relative to the mean eigenvalue: what keeps directions without gradients as they are."""

BLOCK = 128
"""Rows of a second moment that are computed together."""


@dataclass(frozen=True)
class KroneckerEigenbasis(Basis):
    r"""One rotation per dimension of a weight tensor, to the eigenvectors of its factor.

    A matrix W of gradient G is rotated to :math:`U_\delta^\top W U_x`, with the eigenvectors of

    .. math::
        F_\delta \leftarrow \beta F_\delta + (1-\beta)\,GG^\top, \qquad
        F_x \leftarrow \beta F_x + (1-\beta)\,G^\top G

    (``"gradients"``: Shampoo's and SOAP's) or of the second moments of the layer's inputs x and of
    the gradients δ at its outputs, :math:`\sum_r \delta_r\delta_r^\top` and
    :math:`\sum_r x_r x_r^\top` (``"layers"``: K-FAC's and EKFAC's). Tensors of d dimensions have d
    rotations; a convolution's kernel is one dimension, or with ``"layers"`` part of the inputs.
    Dynamics that treat all weights alike are diagonal in any such coordinates, so that every family
    of independent weights can be kept in them.

    The coordinates of a step are chosen by the gradients before it: seen in its own eigenvectors a
    gradient is diagonal, and what is left elsewhere is rounding. So the first gradient of a matrix
    makes its basis and moves nothing. Every ``update_every`` steps, the first included, the
    coordinates turn by :math:`R = U'^\top U`, and the belief with them: means and averaged
    gradients exactly, variances and curvature by

    .. math:: d'_i = \sum_j R_{ij}^2 d_j ,

    the diagonal of :math:`R\,\mathrm{diag}(d)R^\top`. What is approximated: correlations in these
    coordinates are dropped, those that a turn makes among them.

    Args:
        factors: what the factors are second moments of.
        beta: β, decay of the factors; [0, 1).
        update_every: steps between two turns; [1, inf).
        refresh_by: ``"qr"``, one step of orthogonal iteration from the present basis,
            :math:`U' = \mathrm{qr}(FU)` (the first time ``"eigh"``), or ``"eigh"``, exact.
        transport: ``"project"`` as above, or ``"keep"``: every coordinate keeps its number, as in
            SOAP.
        max_dim: the longest dimension that is rotated; [1, inf). Longer ones, and vectors, stay as
            they are.
        sharing: with ``"layers"``, whether places (times, pixels) where an example met the layer
            are rows of their own (``"expand"``) or are summed (``"reduce"``).
        rows: with ``"layers"``, the most rows per backward pass, a sample; ``None`` for all.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument outside its range.

    Example:
        >>> import torch, filteropt
        >>> from filteropt.approximations import KroneckerEigenbasis
        >>> from filteropt.presets import adabayes
        >>> rotated = filteropt.variant(adabayes, basis=KroneckerEigenbasis(update_every=5))
        >>> w = torch.nn.Parameter(torch.eye(3))
        >>> opt = filteropt.FilterOptimizer([w], rotated, lr=1e-2, lr_sgd=0.5, batch_size=10)
        >>> w.square().sum().backward()
        >>> opt.step()
        >>> opt.state[w]["eigenvectors_0"].shape
        torch.Size([3, 3])

    Source: Vyas et al. (2024), George et al. (2018); the filter and its transport are derived in
    :eq:`eq-eigenbasis`, :eq:`eq-basis-refresh` and :eq:`eq-transport`.
    """

    turns: ClassVar[bool] = True

    factors: Literal["gradients", "layers"] = "gradients"
    beta: Momentum = 0.95
    update_every: Count = 10
    refresh_by: Literal["qr", "eigh"] = "qr"
    transport: Literal["project", "keep"] = "project"
    max_dim: Count = 2048
    sharing: Literal["expand", "reduce"] = "expand"
    rows: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # a ClassVar elsewhere
        """The layer's inputs and outputs, if the factors are theirs."""
        return frozenset({"grad"} if self.factors == "gradients" else {"grad", "layer"})

    def init(self, p: Tensor) -> Leaves:
        """Factors at zero, and the parameter's own coordinates."""
        sizes = {i: n for i, n in enumerate(self._sides(p)) if self._turns(p, n)}
        leaves = (x for n in sizes.values() for x in (p.new_zeros(n, n), _eye(p, n)))
        made: Leaves = form(tuple(sizes))(*leaves)
        return made

    def forward(self, basis: Any, x: Tensor) -> Tensor:
        """Every dimension, times its eigenvectors."""
        return self._each(_eigenvectors(basis), x)

    def backward(self, basis: Any, x: Tensor) -> Tensor:
        """Every dimension, times its eigenvectors transposed."""
        return self._each({i: u.mT for i, u in _eigenvectors(basis).items()}, x)

    def variance(self, basis: Any, variance: Tensor) -> Tensor:
        """Every dimension, times the squares of its eigenvectors transposed."""
        return self._each({i: u.mT.square() for i, u in _eigenvectors(basis).items()}, variance)

    def ready(self, basis: Any) -> bool:
        """Whether it has seen a gradient, or has nothing to learn."""
        return not basis or bool(basis[0].any())

    def refresh(self, basis: Any, raw: Raw, t: float) -> tuple[Leaves, Turn | None]:
        """Turn, where it is due, then update the factors."""
        if not basis:
            return basis, None
        due = (t - 1) % self.update_every == 0 and (t > 1 or self.ready(basis))
        moments = self._moments(raw)
        leaves: dict[str, Tensor] = {}
        turned: dict[int, Tensor] = {}
        for i, old in _eigenvectors(basis).items():
            factor, new = getattr(basis, f"factor_{i}"), old
            if due:
                exact = t == 1 or self.refresh_by == "eigh"
                new = _eigh(factor) if exact else _iterate(factor, old)
                turned[i] = new.mT @ old
            leaves[f"factor_{i}"] = factor.lerp(moments(i), 1 - self.beta)
            leaves[f"eigenvectors_{i}"] = new
        return type(basis)(**leaves), self._turn(turned) if due else None

    def _turn(self, turned: dict[int, Tensor]) -> Turn:
        """The change of coordinates by these R, one per dimension."""
        transposed = {i: r.mT for i, r in turned.items()}
        squared = {i: r.mT.square() for i, r in turned.items()}
        keep = self.transport == "keep"
        return Turn(
            lambda x: self._each(transposed, x),
            lambda d: d if keep else self._each(squared, d),
        )

    def _moments(self, raw: Raw) -> Callable[[int], Tensor]:
        """What each dimension's factor learns from this step."""
        if raw.layer is not None:
            layer = raw.layer
            sides = layer.deltas, layer.inputs
            return lambda i: _gram(sides[i].to(raw.grad.dtype).mT)
        grad = _inputs_last(raw.grad.reshape(self._sides(raw.grad)))

        def moment(i: int) -> Tensor:
            if i == 0:
                return _gram(grad.flatten(1))
            return _gram(grad.flatten(0, -2).mT) if i == 1 else (grad @ grad.mT).sum(0)

        return moment

    def _sides(self, x: Tensor) -> tuple[int, ...]:
        """The sizes of the dimensions that may be rotated."""
        if x.dim() < 2:
            return ()
        kernel = math.prod(x.shape[2:])
        if self.factors == "layers":
            return x.shape[0], x.shape[1] * kernel
        return (*x.shape[:2], kernel) if x.dim() > 2 else tuple(x.shape)

    def _turns(self, p: Tensor, size: int) -> bool:
        return 1 < size <= self.max_dim and p.numel() > 0

    def _each(self, factors: dict[int, Tensor], x: Tensor) -> Tensor:
        """Multiply every dimension by its matrix, from the right."""
        if not factors:
            return x
        rotated = x.reshape(self._sides(x))
        # O×K×I, where the kernel's product needs no copy
        rotated = factors[2].mT @ rotated.mT if 2 in factors else _inputs_last(rotated)
        if 1 in factors:
            rotated = (rotated.flatten(0, -2) @ factors[1]).view(rotated.shape)
        if 0 in factors:
            rotated = (factors[0].mT @ rotated.flatten(1)).view(rotated.shape)
        rotated = rotated.mT if rotated.dim() > 2 else rotated
        if x.is_contiguous():
            rotated = rotated.contiguous()
        return rotated.reshape(x.shape)


@functools.cache
def form(dims: tuple[int, ...]) -> Any:
    """The NamedTuple of these dimensions' factors and eigenvectors."""
    names = [f"{name}_{i}" for i in dims for name in ("factor", "eigenvectors")]
    return namedtuple("Eigenbasis", names)


def _eigenvectors(basis: Any) -> dict[int, Tensor]:
    found = zip(basis._fields, basis, strict=True)
    return {int(k.rsplit("_", 1)[1]): x for k, x in found if k.startswith("eigenvectors")}


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.mT``, of whose halves that mirror each other one is computed."""
    size = len(rows)
    found = rows.new_empty(size, size)
    for i in range(0, size, BLOCK):
        here, above = slice(i, i + BLOCK), slice(i)
        found[here, : i + BLOCK] = rows[here] @ rows[: i + BLOCK].mT
        found[above, here] = found[here, above].mT
    return found


def _inputs_last(x: Tensor) -> Tensor:
    """A matrix as it is; of O×I×K weights, the O×K×I in which all products are of matrices."""
    return x.mT.contiguous() if x.dim() > 2 else x


def _eye(p: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=p.dtype, device=p.device)


def _eigh(factor: Tensor) -> Tensor:
    """Eigenvectors, those of the largest eigenvalues first."""
    vectors: Tensor = torch.linalg.eigh(_damped(factor)).eigenvectors
    return vectors.flip(-1)


def _iterate(factor: Tensor, old: Tensor) -> Tensor:
    """One step of orthogonal iteration."""
    vectors: Tensor = torch.linalg.qr(_damped(factor) @ old).Q
    return vectors


def _damped(factor: Tensor) -> Tensor:
    """A factor whose null space, if it has one, has eigenvectors that rounding does not choose."""
    size = len(factor)
    least = max(DAMPING / size, 16 * torch.finfo(factor.dtype).eps)  # above a product's rounding
    apart = torch.linspace(2, 1, size, dtype=factor.dtype, device=factor.device)
    return factor + (least * factor.diagonal().sum() * apart).diag()
