"""From what the user asked for to arms and jobs, with every mistake found before training."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from experiments.ablate.arms import Arm, Values, grid, read_axes, read_ranges
from experiments.ablate.examples import Data, examples
from experiments.ablate.jobs import Job, step_once
from experiments.ablate.tuning import RandomSearch
from experiments.errors import UserError
from experiments.fetch import fingerprint
from experiments.optimizers import parse_choice, split_choices
from experiments.plan import installed, prepare_data, read_device, read_seeds, read_tasks
from experiments.registry import COMPOSITIONS, Plugin, read_plugins
from experiments.tasks import Task
from filteropt.engine import IncompatibleComposition

if TYPE_CHECKING:
    from experiments.ablate.study import Ablate

SELECTION_SEED = 0
EPOCHS = 20
"""Passes over the training examples where the user does not say, and the task has no fewer."""
TOGETHER = 16
"""The most settings that are trained at once; fixed, so that more trials add jobs to those kept."""
_BYTES_OF_A_RUN = 16_384


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        asked: The user's options.
        tasks: What is learned.
        arms: What is compared, the same on every task.
        reference: The arm that the others are compared with.
        seeds: The fresh seeds.
        skipped: What was left out, and why.
        swept: Arms that are trained several settings at once, by task.
        data_dir: Where data files are.
        data: Fingerprints of the data files, by task.
        plugins: The user's own files.
        versions: Versions of the libraries that compute.
    """

    asked: "Ablate"
    tasks: tuple[Task, ...]
    arms: tuple[Arm, ...]
    reference: Arm
    seeds: tuple[int, ...]
    skipped: tuple[str, ...]
    swept: frozenset[tuple[str, Arm]]
    data_dir: Path
    data: dict[str, str]
    plugins: tuple[Plugin, ...]
    versions: tuple[tuple[str, str], ...]

    def jobs_of(
        self, purpose: str, task: Task, arm: Arm, settings: Sequence[Values], seed: int
    ) -> list[Job]:
        """The jobs that train some settings of an arm.

        Args:
            purpose: What for.
            task: What is learned.
            arm: What is compared.
            settings: What is tuned, of every run.
            seed: Of all of them.

        Returns:
            As few jobs as can be: settings in one job are trained at once.
        """
        size = TOGETHER if (task.name, arm) in self.swept else 1
        common = (self.asked.schedule, self.asked.device, self.data_dir, self.data[task.name])
        return [
            Job(
                *(purpose, task.name, arm, tuple(settings[k : k + size]), seed),
                *(self.epochs(task), *common, self.plugins, self.versions),
            )
            for k in range(0, len(settings), size)
        ]

    def epochs(self, task: Task) -> int:
        """Passes over a task's training examples."""
        return self.asked.epochs or min(EPOCHS, task.quick_epochs)

    @property
    def expected(self) -> list[Job]:
        """As many jobs as there will be; of what is not known yet, the first draws stand in."""
        found = []
        for task in self.tasks:
            for arm in self.arms:
                trials = RandomSearch(arm, SELECTION_SEED).ask(self.asked.trials or 1)
                found += self.jobs_of("tune", task, arm, trials, SELECTION_SEED)
                for seed in self.seeds:
                    rates = trials[:1] * (self.asked.rates or 0 if arm.rate else 0)
                    found += self.jobs_of("rate", task, arm, rates, seed)
                    found += self.jobs_of("test", task, arm, trials[:1], seed)
        return found

    @property
    def jobs(self) -> int:
        """How many jobs there will be."""
        return len(self.expected)

    @property
    def runs(self) -> int:
        """How many runs there will be."""
        return sum(len(job.settings) for job in self.expected)

    @property
    def work(self) -> float:
        """Their cost."""
        return sum(job.cost for job in self.expected)


def make_plan(asked: "Ablate", console: Console) -> Plan:
    """Read the options.

    Args:
        asked: The options.
        console: Where download bars are drawn.

    Returns:
        The plan.

    Raises:
        UserError: If something that was asked for cannot be.
    """
    plugins = read_plugins(asked.plugin)
    tasks = read_tasks(asked.tasks)
    seeds = read_seeds(asked.seeds)
    seeds = [seed + 1 for seed in seeds] if len(asked.seeds) == 1 else seeds
    if SELECTION_SEED in seeds:
        raise UserError(f"--seeds {SELECTION_SEED} is the seed of tuning; give fresh ones")
    arms = grid(_named(asked), read_ranges(asked.search), read_axes(asked.vary))
    read_device(asked.device)
    data_dir = prepare_data(tasks, asked.data_dir, console)
    held = {task.name: _examples(task, data_dir) for task in tasks}
    whys = {arm: [_objection(arm, task, held[task.name]) for task in tasks] for arm in arms}
    bad = {arm: next(why for why in found if why) for arm, found in whys.items() if any(found)}
    if bad and not asked.skip_impossible:
        arm, why = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(arms)} compositions are impossible, such as {arm.label}: "
            f"{why.rstrip('.')}. "
            "Give --skip-impossible to leave such ones out."
        )
    arms = [arm for arm in arms if arm not in bad]
    if not arms:
        raise UserError("no arm is left; give parts that fit, --compositions or --optimizers")
    named = {arm.label: arm for arm in arms}
    if asked.reference is not None and asked.reference not in named:
        raise UserError(
            f"--reference {asked.reference!r} is no arm; the arms are {'; '.join(named)}"
        )
    versions = (("torch", torch.__version__), ("filteropt", installed("filteropt")))
    return Plan(
        asked=asked,
        tasks=tuple(tasks),
        arms=tuple(arms),
        reference=arms[0] if asked.reference is None else named[asked.reference],
        seeds=tuple(seeds),
        skipped=tuple(f"{arm.label}: {why}" for arm, why in bad.items()),
        swept=frozenset(
            (task.name, arm) for task in tasks for arm in arms if _swept(arm, task, held[task.name])
        ),
        data_dir=data_dir,
        data={task.name: fingerprint(task.source.files, data_dir) for task in tasks},
        plugins=plugins,
        versions=versions,
    )


def _named(asked: "Ablate") -> list[tuple[str, tuple[str, ...]]]:
    """Kinds and names of the arms, those of the grid first."""
    slots = [_words(getattr(asked, slot)) for slot in ("dynamics", "likelihood", "posterior")]
    named = [
        ("parts", (one, two, three, four))
        for one in slots[0]
        for two in slots[1]
        for three in slots[2]
        for four in _words(asked.basis)
    ]
    for name in asked.compositions:
        if name not in COMPOSITIONS:
            raise UserError(f"unknown composition {name!r}; there are {', '.join(COMPOSITIONS)}")
    named += [("composition", (name,)) for name in asked.compositions]
    for name in split_choices(asked.optimizers):
        parse_choice(name).settings(1)
        named.append(("optimizer", (name,)))
    if not named:
        raise UserError("nothing to compare: give parts of every slot, or --compositions")
    return named


def _words(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def _examples(task: Task, data_dir: Path) -> Data:
    """What a task is tuned on."""
    try:
        data = Data(*examples(task.name, "tune", data_dir))
        count = len(data.y)
    except UserError:
        raise
    except Exception as fault:  # a user's own function may raise anything
        raise UserError(f"task {task.name}: its data cannot be made: {fault}") from fault
    if count < task.batch_size:
        raise UserError(
            f"task {task.name}: {count} training examples do not fill one batch of "
            f"{task.batch_size}"
        )
    return data


def _objection(arm: Arm, task: Task, data: Data) -> str:
    """Why an arm cannot be trained, found by one step; empty if it can."""
    count = len(data.y)
    low, high = ({name: ends[k] for name, *ends in arm.ranges} for k in (0, 1))
    try:
        for setting in (low, high):
            arm.filter(arm.values(task, count, setting))
    except (ImportError, TypeError, ValueError) as fault:
        if not isinstance(fault, IncompatibleComposition):
            raise UserError(f"{arm.label}: {' '.join(str(fault).split())}") from fault
    middle = {name: statistics.geometric_mean(ends) for name, *ends in arm.ranges}
    try:
        step_once(arm, task, arm.values(task, count, middle), data)
    except ArithmeticError:
        return ""
    except (TypeError, ValueError, RuntimeError) as fault:
        return " ".join(str(fault).split())
    return ""


def _swept(arm: Arm, task: Task, data: Data) -> bool:
    """Whether draws of an arm's settings are one program."""
    trials: list[Any] = RandomSearch(arm, SELECTION_SEED).ask(2)
    return arm.swept([arm.values(task, len(data.y), dict(one)) for one in trials])


def room(out: Path, runs: int) -> None:
    """Make sure that the disk has room for the runs.

    Args:
        out: The folder.
        runs: How many there will be.

    Raises:
        UserError: If it has not.
    """
    size, probe = runs * _BYTES_OF_A_RUN, out / f".room-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise UserError(
            f"--out {out} has no room for {size / 2**20:.0f} MiB of results: {fault.strerror}"
        ) from fault
    finally:
        probe.unlink(missing_ok=True)
