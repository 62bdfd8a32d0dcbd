"""Entry point of ``python -m benchmarks``: optimizers' steps against torch's fused AdamW."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str], console: Console | None = None) -> int:
    """Run the command line; 0 done, 2 a mistake in the request, 130 interrupted."""
    missing = [name for name in ("matplotlib", "pandas", "rich", "tyro") if not find_spec(name)]
    if missing:
        print(
            f"error: the benchmark needs {', '.join(missing)}; install them with: "
            'pip install "filteropt[experiments]"',
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler's hints for its developers
    import tyro
    from rich.console import Console

    from benchmarks.optimizers import Bench
    from experiments.cli import one_line
    from experiments.errors import UserError

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            bench = tyro.cli(Bench, prog="python -m benchmarks", args=list(arguments))
    except SystemExit as end:
        if end.code:
            text = one_line(errors.getvalue()).replace(
                "python -m experiments", "python -m benchmarks"
            )
            print(f"error: {text}", file=sys.stderr)
        return int(end.code or 0)
    try:
        return bench.run(console or Console())
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
