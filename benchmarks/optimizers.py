"""The benchmark of optimizers' steps: what is measured, kept, resumed and reported."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

import filteropt
from benchmarks.alone import measure_alone
from benchmarks.contenders import (
    COPY,
    REFERENCE,
    Contender,
    contenders,
    objection,
    presets_left_out,
)
from benchmarks.machine import facts
from benchmarks.measure import Effort
from benchmarks.shapes import LISTS
from experiments.config import read_out
from experiments.errors import UserError
from experiments.plan import read_device
from experiments.progress import Meter

PROTOCOL = 1
"""Raise this when the way of measuring changes: older files are then not reused."""

SIZES = (1e5, 2e7, 1e8)
GPU_SIZES = (*SIZES, 1e9)


@dataclass(frozen=True)
class Cell:
    """One optimizer on one list of tensors.

    Attributes:
        shapes: the list's name.
        size: the number of weights that was asked for.
        contender: the optimizer.
    """

    shapes: str
    size: float
    contender: Contender

    @property
    def work(self) -> float:
        """What it costs, in seconds on some machine."""
        once = 8.0 + 2e-7 * self.size
        return once if self.contender.period == 1 else min(60.0, 5 * once)


@dataclass(frozen=True)
class Bench:
    """Time optimizers' steps against torch's fused AdamW, in turns, with what they move and keep.

    Every optimizer takes turns with torch's fused AdamW step by step, so that the machine's noise
    cancels in their ratio. Finished measurements are kept one by one: interrupted, the same
    command resumes. Nothing else should run meanwhile.
    """

    optimizers: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """Names, also comma-separated; an unknown one lists them all."""

    shapes: tuple[str, ...] = tuple(LISTS)
    """Lists of tensors: resnet34, transformer."""

    sizes: Annotated[
        tuple[float, ...], tyro.conf.arg(help_behavior_hint="(default: 1e5 2e7 1e8; GPU: and 1e9)")
    ] = ()
    """Numbers of weights."""

    seconds: float = 3.0
    """What is spent on every optimizer's turns, if that is enough for nine of them."""

    patience: float = 120.0
    """Seconds that an optimizer on a list may take in all; slower ones are left out."""

    threads: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: as torch finds best)")
    ] = None
    """Threads of a step on the CPU."""

    device: str = "cpu"
    """cpu or cuda; the latter has not been run yet."""

    out: Path = Path("results/bench")
    """Folder for the finished measurements, the table, the rows and the figure."""

    fresh: bool = False
    """Measure again even where a finished measurement exists."""

    def run(self, console: Console) -> int:
        """Measure and report; the exit code is 0, or 130 when interrupted."""
        if self.threads is not None:
            if self.threads < 1:
                raise UserError("--threads needs at least 1")
            torch.set_num_threads(self.threads)
        device = torch.device(read_device(self.device))
        chosen = read_contenders(self.optimizers)
        sizes = self.sizes or (GPU_SIZES if device.type == "cuda" else SIZES)
        if min(sizes) < 1 or max(sizes) > 1e10 or min(self.seconds, self.patience) <= 0:
            raise UserError("--sizes are from 1 to 1e10; --seconds and --patience are positive")
        lists = read_names("shapes", self.shapes, LISTS)
        read_out(self.out)
        left_out = {} if self.optimizers else presets_left_out()
        able = []
        for contender in chosen:
            if reason := objection(contender, device):
                left_out[contender.title] = reason
            else:
                able.append(contender)
        for title, reason in left_out.items():
            console.print(f"Left out: {title}: {reason}", highlight=False, markup=False)
        cells = [Cell(name, size, c) for size in sizes for name in lists for c in able]
        kept = Kept(self.out / "cells", facts(device), Effort(self.seconds, self.patience))
        rows: list[dict[str, Any]] = []
        try:
            with Meter(console, max(1, len(cells)), sum(cell.work for cell in cells)) as meter:
                for cell in cells:
                    rows.append(kept.row(cell, self.device, fresh=self.fresh))
                    meter.advance(cell.work)
                    meter.finish_run()
        except KeyboardInterrupt:
            console.print(
                f"Interrupted: {len(rows)} of {len(cells)} measurements are kept in {self.out}; "
                "the same command (without --fresh) resumes.",
                highlight=False,
            )
            return 130
        from benchmarks.report import write_report

        write_report(rows, left_out, kept.machine, self.out, console)
        return 0


def read_names(option: str, words: Sequence[str], known: Any) -> list[str]:
    """Names, also comma-separated, each once."""
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        raise UserError(f"--{option} needs at least one name")
    for name in names:
        if name not in known:
            raise UserError(f"unknown name {name!r} in --{option}; known are {', '.join(known)}")
    return list(dict.fromkeys(names))


def read_contenders(words: Sequence[str]) -> list[Contender]:
    """The optimizers; the reference and a copy are always among them."""
    known = contenders()
    names = read_names("optimizers", words, known) if words else list(known)
    return [known[n] for n in dict.fromkeys((REFERENCE.name, COPY.name, *names))]


class Kept:
    """A folder of finished measurements, each whole or not there."""

    def __init__(self, folder: Path, machine: dict[str, Any], effort: Effort) -> None:
        self.folder, self.machine, self.effort = folder, machine, effort

    def row(self, cell: Cell, device: str, *, fresh: bool) -> dict[str, Any]:
        """What was found of an optimizer, measured now unless it has been."""
        name = cell.contender.name
        identity = {
            "protocol": PROTOCOL,
            "shapes": cell.shapes,
            "size": cell.size,
            "optimizer": name,
            "effort": asdict(self.effort),
            "machine": self.machine,
        }
        if cell.contender.ours:
            identity["sources"] = sources()
        digest = _digest(json.dumps(identity, sort_keys=True).encode())
        path = self.folder / f"{cell.shapes}-{cell.size:.0e}-{name}-{digest}.json"
        if not fresh:
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                pass
        found = measure_alone(name, cell.shapes, cell.size, device, self.effort)
        row = {**identity, "title": cell.contender.title, "ours": cell.contender.ours, **found}
        if found.get("final", True):
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(row, indent=1) + "\n")
        return row


@functools.cache
def sources() -> str:
    """A digest of filteropt's code: what was measured of other code is not reused."""
    home = Path(filteropt.__file__).parent
    return _digest(b"".join(path.read_bytes() for path in sorted(home.rglob("*.py"))))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:12]


def _write(path: Path, text: str) -> None:
    """In one indivisible step."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
