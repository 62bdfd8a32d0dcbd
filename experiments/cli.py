"""The command line: one subcommand per study."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from rich.console import Console
from rich.table import Table

from experiments.ablate import Ablate
from experiments.compare import Compare
from experiments.config import Options, read_config
from experiments.errors import UserError
from experiments.gap import Gap
from experiments.kronecker import Kronecker
from experiments.kronecker.arms import CONTENDERS
from experiments.limits import Limits
from experiments.limits.catalogue import CASES
from experiments.momentum import Momentum
from experiments.momentum.quadratic import QUADRATICS
from experiments.optimizers import MORE_OPTIMIZERS, OPTIMIZERS
from experiments.registry import listing, read_plugins
from experiments.reproduce import Reproduce
from experiments.reproduce.study import What
from experiments.sweep import Sensitivity
from experiments.sweep.arms import ARMS
from experiments.tasks import TASKS, Task
from experiments.uncertainty import Uncertainty
from experiments.uncertainty.methods import METHODS


@dataclass(frozen=True)
class List:
    """Describe the tasks, the optimizers, the compositions, their parts and the limiting cases."""

    plugin: tuple[Path, ...] = ()
    """Your own files, with tasks and compositions."""

    def run(self, console: Console) -> int:
        """Print the lists.

        Args:
            console: Where to write.

        Returns:
            The exit code, 0.
        """
        read_plugins(self.plugin)
        sections: dict[str, dict[str, str]] = {
            "Tasks that need no network (epochs of the quick and of the full form)": {
                name: _describe(task) for name, task in TASKS.items() if task.source.offline
            },
            "Tasks that need a network or --data-dir": {
                name: _describe(task) for name, task in TASKS.items() if not task.source.offline
            },
            **listing(),
            "Optimizers": {name: entry.description for name, entry in OPTIMIZERS.items()},
            "Optimizers to name": {n: entry.description for n, entry in MORE_OPTIMIZERS.items()},
            "Quadratics of the study of the momentum filter": {
                name: problem.description for name, problem in QUADRATICS.items()
            },
            "Methods of the study of weight uncertainty": {
                name: method.arm.entry.description for name, method in METHODS.items()
            },
            "Optimizers of the study of Kronecker-factored filters": {
                name: contender.arm.entry.description for name, contender in CONTENDERS.items()
            },
            "Optimizers of the study of sensitivity": {n: arm.title for n, arm in ARMS.items()},
            "Cases of the study of limits": {
                name: f"{case.composition}: {case.limit}" for name, case in CASES.items()
            },
        }
        for title, lines in sections.items():
            table = Table(box=None, show_header=False, padding=(0, 2))
            table.add_column(no_wrap=True)
            for name, description in lines.items():
                table.add_row(name, description)
            console.print(f"[bold]{title}[/bold]", table, highlight=False)
        return 0


def _describe(task: Task) -> str:
    return f"{task.description}; {task.quick_epochs} / {task.full_epochs} epochs"


# A new study: its file, and one line here.
Study = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Limits, tyro.conf.subcommand("limits")]
    | Annotated[Gap, tyro.conf.subcommand("gap")]
    | Annotated[Momentum, tyro.conf.subcommand("momentum")]
    | Annotated[Uncertainty, tyro.conf.subcommand("uncertainty")]
    | Annotated[Kronecker, tyro.conf.subcommand("kronecker")]
    | Annotated[Sensitivity, tyro.conf.subcommand("sweep")]
    | Annotated[Ablate, tyro.conf.subcommand("ablate")]
    | Annotated[
        Reproduce,
        tyro.conf.subcommand("reproduce"),
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.OmitArgPrefixes,
    ]
    | Annotated[List, tyro.conf.subcommand("list")]
)


def main(arguments: Sequence[str], console: Console | None = None) -> int:
    """Parse the command line and run the study it names.

    Args:
        arguments: Words after ``python -m experiments``.
        console: Where to write; the standard output by default.

    Returns:
        The exit code: 0 done, 1 a law missed, 2 a mistake in the request, 130 interrupted.
    """
    errors = io.StringIO()
    try:
        default = _defaults(arguments)
        with contextlib.redirect_stderr(errors):
            study = tyro.cli(
                Study,
                default=tyro.MISSING if default is None else default,
                prog="python -m experiments",
                description="Experiments with filteropt's optimizers.",
                args=list(arguments),
            )
    except SystemExit as end:
        if end.code:
            print(f"error: {one_line(errors.getvalue())}", file=sys.stderr)
        return int(end.code or 0)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    try:
        return int(study.run(console or Console()))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; whatever has finished is kept.", file=sys.stderr)
        return 130


def _defaults(arguments: Sequence[str]) -> Any:
    """The options of a file that ``--config`` names, of the study that the first words name."""
    words = [part for word in arguments for part in word.split("=", 1)]
    path = next((b for a, b in itertools.pairwise(words) if a == "--config"), None)
    if path is None:
        return None
    kind: Any = subcommands(Study).get(words[0])
    if kind is Reproduce:
        kind = subcommands(What).get(words[1])
    if kind is None or not issubclass(kind, Options):
        return None
    found: Any = read_config(Path(path), kind)
    return found if words[0] != "reproduce" else Reproduce(found)


def subcommands(union: Any) -> dict[str, Any]:
    """The members of a union of subcommands by their names.

    Args:
        union: The union.

    Returns:
        Dataclasses by the words that name them.
    """
    found = (get_args(one) for one in get_args(union))
    return {subcommand.name: kind for kind, subcommand, *_ in found}


def one_line(boxed: str) -> str:
    """Reduce the parser's framed message to its first paragraph on one line.

    Args:
        boxed: The message, in a frame of box-drawing characters.

    Returns:
        The paragraph, and where to find help.
    """
    body = re.split(r"─{8,}", re.sub(r"^.*╮\s*$", "", boxed, flags=re.MULTILINE))[0]
    text = " ".join(body.replace("│", " ").replace("\N{BULLET}", " ").split())
    return f"{text or 'cannot read the command line'} (see python -m experiments --help)"
