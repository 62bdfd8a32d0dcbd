"""What a sweep found: a table of its members, their curves and their models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from filteropt.sweeping.models import Made
from filteropt.sweeping.plan import Record

__all__ = ["Sweep"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Sweep:
    """What :func:`filteropt.sweep` found.

    Members are numbered setting by setting, and within a setting seed by seed.

    Attributes:
        settings: the settings, as they were given or as the grid gives them.
        seeds: the seeds.
        steps: how many steps were asked for.
        evaluated_at: after which of them members were evaluated.
        chunk: how many members were trained together.

    Example:
        >>> import torch, filteropt
        >>> x = torch.linspace(-1, 1, 16)[:, None]
        >>> found = filteropt.sweep(
        ...     lambda: torch.nn.Linear(1, 1), filteropt.AdaBayes, {"lr": [1e-3, 1e-1]},
        ...     lambda model, x: (model(x) - 2 * x).square().mean(), [x], steps=50, seeds=[0, 1])
        >>> found.losses.shape    # a row for every member
        (4, 50)
        >>> found.best()    # the lowest loss, averaged over seeds
        {'lr': 0.1}
    """

    settings: list[dict[str, Any]]
    seeds: list[int]
    steps: int
    evaluated_at: list[int]
    chunk: int
    _records: list[Record]
    _factory: Callable[[], nn.Module]

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._records)

    @property
    def members(self) -> list[tuple[dict[str, Any], int]]:
        """Every member's setting and seed."""
        return [(setting, seed) for setting in self.settings for seed in self.seeds]

    @property
    def status(self) -> list[str]:
        """Of every member, ``"finished"``, ``"diverged"``, ``"interrupted"`` or ``"waiting"``.

        A member diverges where a gradient, its square or a weight is no longer finite: a
        :class:`filteropt.FilterOptimizer` would have raised. It is left as it was before that step.
        The last two are members that an interrupt (Ctrl-C) stopped, or kept from starting.
        """
        return [record.status for record in self._records]

    @property
    def losses(self) -> Array:
        """The loss before every step, ``(members, steps)``; NaN where a member took no step."""
        found = np.full((len(self), self.steps), np.nan)
        for row, record in zip(found, self._records, strict=True):
            row[: len(record.losses)] = record.losses
        return found

    @property
    def curves(self) -> dict[str, npt.NDArray[Any]]:
        """What ``evaluate`` found, by name, ``(members, evaluations, …)``; NaN where it did not."""
        names = dict.fromkeys(name for record in self._records for name in record.curves)
        return {name: self._curve(name) for name in names}

    def _curve(self, name: str) -> npt.NDArray[Any]:
        several = [record.curves.get(name, []) for record in self._records]
        shape = np.shape(next(values[0] for values in several if values))
        found = np.full((len(self), len(self.evaluated_at), *shape), np.nan)
        for row, values in zip(found, several, strict=True):
            row[: len(values)] = np.asarray(values, float) if values else row[:0]
        return found

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for every member, of its setting, seed, last loss, last evaluation and fate.

        What a member that did not finish would have had is NaN. ``pandas.DataFrame`` takes it.
        """
        losses = {"loss": self.losses[:, -1]}
        last = {name: values[:, -1] for name, values in self.curves.items()}
        return [
            {**setting, "seed": seed}
            | {name: _native(values[k]) for name, values in (losses | last).items()}
            | {"status": self._records[k].status, "steps": self._records[k].steps}
            for k, (setting, seed) in enumerate(self.members)
        ]

    def mean_and_error(self, name: str = "loss") -> tuple[Array, Array]:
        """The mean over seeds of what the table holds, and its standard error.

        Args:
            name: a column: ``"loss"``, or a number that ``evaluate`` returned.

        Returns:
            Both, one number for every setting. A setting of which a member did not finish has NaN,
            and the error of a single seed is NaN.

        Raises:
            ValueError: no such column.
        """
        values = self._values(name)
        count = values.shape[1]
        error = np.full(len(values), np.nan)
        if count > 1:
            error = values.std(1, ddof=1) / count**0.5
        return values.mean(1), error

    def best(self, name: str = "loss", *, largest: bool = False) -> dict[str, Any]:
        """The setting with the lowest mean over seeds.

        Args:
            name: a column, as for :meth:`mean_and_error`.
            largest: take the highest instead.

        Returns:
            The setting.

        Raises:
            ValueError: no such column, or no setting of which all members finished.
        """
        mean = self.mean_and_error(name)[0]
        if np.isnan(mean).all():
            raise ValueError("best: there is no setting of which all members finished")
        return self.settings[int((np.nanargmax if largest else np.nanargmin)(mean))]

    def _values(self, name: str) -> Array:
        rows = self.table
        if name not in rows[0] or np.ndim(rows[0][name]) or isinstance(rows[0][name], str):
            known = [k for k, v in rows[0].items() if isinstance(v, (int, float))]
            raise ValueError(f"there is no number {name!r} of every member; there are {known}")
        values = np.array([float(row[name]) for row in rows])
        values[[status != "finished" for status in self.status]] = np.nan
        return values.reshape(len(self.settings), len(self.seeds))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Every trained parameter's posterior means, ``(members, *shape)``, by name.

        Raises:
            ValueError: parameters were not kept, or an interrupt kept a member from starting.
        """
        return self._stacked("parameters")

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The same of buffers, such as running statistics, and of frozen parameters."""
        return self._stacked("buffers")

    def _stacked(self, kind: str) -> dict[str, Tensor]:
        several = [getattr(self._record(k), kind) for k in range(len(self))]
        return {name: torch.stack([one[name] for one in several]) for name in several[0]}

    def _record(self, k: int) -> Record:
        record = self._records[range(len(self))[k]]
        if not record.parameters:
            why = "it did not start" if record.status == "waiting" else "keep=False"
            raise ValueError(f"the parameters of member {k} are not there: {why}")
        return record

    def model(self, k: int) -> nn.Module:
        """Build a member's model, at its posterior mean.

        Args:
            k: the member.

        Returns:
            What the factory makes under its seed, with its parameters and buffers.

        Raises:
            IndexError: no such member.
            ValueError: its parameters are not there.
        """
        record = self._record(k)
        device = next(iter(record.parameters.values())).device
        model = Made(self._factory, self.members[k][1], device).model
        own = dict([*model.named_parameters(), *model.named_buffers()])
        with torch.no_grad():
            for name, x in {**record.parameters, **record.buffers}.items():
                own[name].copy_(x)
        return model

    def __repr__(self) -> str:
        """The table, with as many rows as fit a screen."""
        lines = list(_printed(self.table))
        count = ", ".join(f"{self.status.count(s)} {s}" for s in dict.fromkeys(self.status))
        shown = lines if len(lines) <= 25 else [*lines[:21], "…", *lines[-3:]]
        return "\n".join([*shown, f"{len(self)} members of {self.steps} steps: {count}"])


def _native(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


def _printed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table's lines, its columns aligned."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, *cells):
        yield "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
