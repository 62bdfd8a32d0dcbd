"""Rows of what passes through the model's layers, for weights that are matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filteropt.blocks import Block, blocks_of
from filteropt.dtypes import belief_dtype
from filteropt.gathering.example_gradients import adds_up
from filteropt.gathering.layer_homes import biases, covered, describe, owners
from filteropt.gathering.layer_rows import Sharing, rows_of
from filteropt.gathering.layer_uses import Arrival, Use, fault, sums, use_of
from filteropt.gathering.ledger import Ledger
from filteropt.gathering.pass_watch import PassWatch, coarsest
from filteropt.measure import several
from filteropt.types import LayerRows

__all__ = ["LayerWatch"]

MEMORY = 2**28
"""Bytes that gradients may take while rows are checked against the parameter's own."""


class Asked(NamedTuple):
    """What a part asks for.

    Attributes:
        sharing: what to do with the places of an example.
        rows: the most rows per backward pass; ``None`` for all.
        joint: whether a layer's bias is one more column of this weight.
    """

    sharing: Sharing = "expand"
    rows: int | None = None
    joint: bool = False


class LayerWatch(PassWatch):
    r"""Gathers the rows :math:`(x_r, \delta_r)` of all backward passes since the last step.

    A row is a layer's input and the gradient at its output, in one place of one example (see
    :mod:`filteropt.gathering.layer_rows`); :math:`\sum_r \delta_r x_r^\top` is the weight's
    gradient, where places are not reduced and no sub-sample is taken. That the layers' gradients
    add up to the parameter's own is checked when a parameter is first seen, or first seen with as
    many uses. Rows of several backward passes, and of several uses of a weight, are put together.

    What is assumed: the loss is a sum or mean of one term per example. A layer that sees something
    else than examples, such as an embedding of positions, tells rows of the summed gradient of all
    examples in a place, whose outer product holds the examples' products too.

    Args:
        model: the module whose output the loss is computed from.
        ledger: where to put the rows, as ``"inputs"`` and ``"deltas"``.
    """

    fields = ("inputs", "deltas")
    calls = False

    def __init__(self, model: nn.Module, ledger: Ledger) -> None:
        self._homes: dict[Tensor, str] = {}
        self._biases: dict[Tensor, Tensor | None] = {}
        self.ages: dict[Tensor, int] = {}  # steps taken, at which a sub-sample goes on
        super().__init__(model, ledger)

    def _reset(self) -> None:
        self._asked: dict[Tensor, tuple[str, Asked]] = {}
        super()._reset()

    def clear(self) -> None:
        """Forget everything since the last step; the ledger is its owner's to clear."""
        super().clear()
        self._asked.clear()
        self._kept: dict[Tensor, int] = {}  # rows that were sub-sampled in this step

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: nothing that was seen."""
        kept = {name: vars(self)[name] for name in ("_homes", "_biases", "ages")}
        return {**super().__getstate__(), **kept}

    @property
    def by_example(self) -> bool:  # type: ignore[override]  # settable elsewhere
        """Whether layers must tell examples apart."""
        return any(asked.sharing == "reduce" for asked in self.wanted.values())

    def require(self, params: list[Tensor], part: Any, *, vectors: bool = False) -> None:
        """Watch parameters, and refuse those of which there are no rows.

        Args:
            params: the parameters.
            part: says by ``sharing``, ``rows`` and ``joint``, where it has them, what to gather.
                With ``joint``, a bias follows its weight in ``params``; it is not watched itself.
            vectors: whether there may be vectors among them, which are left out.

        Raises:
            ValueError: a parameter that the model does not own, or without rows; a vector after a
                weight that is not its bias; or two parts that ask for different rows.
        """
        given = {name: getattr(part, name) for name in Asked._fields if hasattr(part, name)}
        who, wanted = type(part).__name__, dict[Asked, list[Block]]()
        for p, bias in blocks_of(params, part):
            if p.dim() < 2 and vectors:
                continue
            asked = Asked(**{**given, "joint": bias is not None})
            wanted.setdefault(asked, []).append(Block(p, bias))
            other, theirs = self._asked.setdefault(p, (who, asked))
            if other != who and theirs != asked:
                raise ValueError(
                    f"{other} asks for {theirs} of a layer, and {who} for {asked}; rows are "
                    f"gathered once: give both the same"
                )
            self._asked[p] = who, asked
        for asked, found in wanted.items():
            if any(self.wanted.get(p) != asked or p not in self._homes for p, _ in found):
                self._learn(found, asked)

    def _learn(self, found: list[Block], asked: Asked) -> None:
        """Find out about parameters, and watch them."""
        known, columns = covered(self.model), biases(self.model)
        names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        for p, bias in found:
            if bias is not None and p in known and columns.get(p) is not bias:
                raise ValueError(
                    f"the vector after parameter {names[p]!r} in its group is not the bias of its "
                    f"layer alone; give it to another filter"
                )
            if p in names and p not in known:
                homes = describe(owners(self.model)[p])
                raise ValueError(
                    f"parameter {names[p]!r} of {homes}, of shape {tuple(p.shape)}, is no matrix "
                    f"of a layer whose rows can be gathered (see "
                    f"filteropt.gathering.layer_homes.covered); give it to another filter"
                )
        self.watch([p for p, _ in found], asked)
        self._homes = known
        self._biases.update(found)
        for p, _ in found:
            self.coverage.setdefault(self.names[p], "not seen")

    # Backward passes ----------------------------------------------------------------------------

    def _take(self, p: Tensor, arrived: list[Arrival]) -> None:
        """A parameter's gradient was accumulated: put its rows into the ledger."""
        why = self._objection(p, arrived) or self._add(p, arrived)
        if why:
            self._failed[p] = why

    def _objection(self, p: Tensor, arrived: list[Arrival]) -> str:
        """Why uses do not tell a parameter's rows; else nothing."""
        if not arrived:
            return (
                "its layer's hook never fired: the model uses the weight without calling the "
                "layer, as MultiheadAttention does its out_proj's"
            )
        for seen, _, _ in arrived:
            places = seen.x is not None and seen.x.dim() > seen.kind.dims(seen.layer)
            if why := fault(seen):
                return why
            if seen.apart and places and self.wanted[p].sharing == "reduce":
                return f"{seen.apart}, so that there are no places to reduce: use 'expand'"
        return ""

    def _add(self, p: Tensor, arrived: list[Arrival]) -> str:
        """Put a parameter's rows into the ledger, unless something is amiss: then return that."""
        asked: Asked = self.wanted[p]
        uses = [_batched(arrival, belief_dtype(p)) for arrival in arrived]
        new = len(uses) not in self._verified.get(p, ())
        grew = self._growth(p) if new else None
        if grew is not None:
            found = [sums(p, [use], MEMORY, total=True) for use in uses]
            squares, total = (sum(x) for x in zip(*found, strict=True))
            if not adds_up(total, squares, grew, coarsest(p, arrived[0].delta)):
                return "its layers' gradients do not add up to its own: it is used elsewhere"
            self._verified.setdefault(p, set()).add(len(uses))
        if new:
            self._cover(p, arrived)
        bias, theirs = self._biases[p], [getattr(use.layer, "bias", None) for use in uses]
        ones = None if bias is None else [float(it is bias) for it in theirs]
        before = self._kept.get(p, 0)
        start = self.ages.get(p, 0) * (asked.rows or 0) + before
        rows, kept = rows_of(uses, asked.sharing, asked.rows, start, ones)
        self._kept[p] = before + kept
        self.ledger.add(p, "inputs", rows.inputs)
        self.ledger.add(p, "deltas", rows.deltas)
        return ""

    # The step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, params: list[Tensor], part: Any) -> dict[Tensor, dict[str, LayerRows]]:
        """What was gathered since the last step.

        Args:
            params: parameters that have a gradient; vectors that were left out have no entry.
            part: the part that asks.

        Returns:
            ``layer``: the rows of every parameter, their deltas in units of ``p.grad``. Over
            several draws of the weights their outer products are averages.

        Raises:
            RuntimeError: nothing was gathered, or could be; or several processes train together.
        """
        if several():
            raise RuntimeError(
                "rows of layers are gathered on one process; several are training here"
            )
        self._take_due()
        self._release()
        return {p: {"layer": self._rows(p)} for p in params if p in self.wanted}

    def _rows(self, p: Tensor) -> LayerRows:
        """One parameter's rows."""
        inputs, deltas = (self.ledger.look(p, field) for field in self.fields)
        why = self._failed.get(p, "")
        if not why and inputs is None and p.grad is not None and not p.grad.any():
            return LayerRows(*(p.new_zeros(0, n) for n in self._sides(p)))  # not used in this step
        if inputs is None or deltas is None:
            why = why or "no gradient was backpropagated since the last step or zero_grad"
        if why:
            raise RuntimeError(
                f"parameter {self.names[p]!r} of {self._homes[p]} has a gradient, but no rows: "
                f"{why}. Give it to another filter (KroneckerFilter's diagonal=), or train it "
                f"by the layer's own call alone (penalties by weight_decay)"
            )
        assert inputs is not None
        assert deltas is not None
        return LayerRows(inputs, deltas)

    def _sides(self, p: Tensor) -> tuple[int, int]:
        """N, with the bias' column, and M."""
        return p[0].numel() + (self._biases[p] is not None), len(p)


def _batched(arrival: Arrival, dtype: torch.dtype) -> Use:
    """A use whose first dimension is examples, or whatever the layer sees in their stead."""
    use, seen = use_of(arrival, dtype), arrival.seen
    if use.x.dim() >= seen.kind.dims(seen.layer):
        return use
    return use._replace(x=use.x[None], delta=use.delta[None])
