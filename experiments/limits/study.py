"""The study: run the cases, judge them, write the table and the figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console

from experiments.config import Options, hint, read_names
from experiments.limits.catalogue import CASES
from experiments.limits.laws import Case, Verdict, judge
from experiments.progress import Meter


@dataclass(frozen=True)
class Limits(Options):
    """Measure how fast every limit of the theory is approached, against the derived error.

    About a minute on one core. The exit code is 1 if a case misses its law.
    """

    cases: Annotated[tuple[str, ...], hint("all")] = ()
    """Cases; `python -m experiments list` names them."""

    out: Path = Path("results/limits")
    """Folder for the table, the figure and the rows."""

    def run(self, console: Console) -> int:
        """Measure, judge and report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, 1 if a case misses its law, or 130 when interrupted.
        """
        cases = read_cases(self.cases)
        self.begin()
        verdicts: list[Verdict] = []
        try:
            verdicts.extend(measure(cases, console))
            from experiments.limits.report import write_report

            write_report(verdicts, self.out, console)
        except KeyboardInterrupt:
            console.print(
                f"Interrupted: {len(verdicts)} of {len(cases)} cases are measured, and the report "
                "is not written; the whole study takes about a minute.",
                highlight=False,
            )
            return 130
        return 0 if all(verdict.passed for verdict in verdicts) else 1


def read_cases(words: Sequence[str]) -> list[Case]:
    """Look the cases up, each once.

    Args:
        words: Names, also comma-separated; none means all.

    Returns:
        The cases.

    Raises:
        UserError: If a name is unknown, or words hold no name.
    """
    return [CASES[name] for name in read_names("cases", "case", words or tuple(CASES), CASES)]


def measure(cases: Sequence[Case], console: Console) -> Iterator[Verdict]:
    """Run the cases on one thread, one after the other.

    Args:
        cases: The cases.
        console: Where progress is shown.

    Yields:
        What was found of each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Meter(console, len(cases), sum(case.seconds for case in cases)) as meter:
            for case in cases:
                yield judge(case, case.measure())
                meter.advance(case.seconds)
                meter.finish_run()
    finally:
        torch.set_num_threads(threads)
