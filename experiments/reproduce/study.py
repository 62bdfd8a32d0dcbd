"""The subcommands of ``reproduce``."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from experiments.reproduce.appendix_a import AppendixA
from experiments.reproduce.appendix_b import AppendixB
from experiments.reproduce.benchmark import Fig4, Table1
from experiments.reproduce.fig1 import Fig1
from experiments.reproduce.fig3 import Fig3

What = (
    Annotated[Fig1, tyro.conf.subcommand("fig1")]
    | Annotated[Fig3, tyro.conf.subcommand("fig3")]
    | Annotated[Fig4, tyro.conf.subcommand("fig4")]
    | Annotated[Table1, tyro.conf.subcommand("table1")]
    | Annotated[AppendixA, tyro.conf.subcommand("appendix-a")]
    | Annotated[AppendixB, tyro.conf.subcommand("appendix-b")]
)


@dataclass(frozen=True)
class Reproduce:
    """Reproduce the paper's figures, its table and its empirical appendices."""

    what: What

    def run(self, console: Console) -> int:
        """Run the part that was named.

        Args:
            console: Where to write.

        Returns:
            Its exit code.
        """
        return self.what.run(console)
