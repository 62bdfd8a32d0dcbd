"""Finished runs on disk: one JSON file per run, which is either whole or not there."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from experiments.train import Run

PROTOCOL = 1
"""Raise this when the way runs are trained or measured changes: older files are then not reused."""


def run_name(run: Run) -> str:
    """Name a run's file after what decides its numbers.

    Args:
        run: The run.

    Returns:
        A readable name that ends in a hash of everything else.
    """
    text = json.dumps({"protocol": PROTOCOL, **run.identity()}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{run.task.name}-{run.choice.entry.name}-seed{run.seed}-{digest}"


class Store:
    """A folder of finished runs."""

    def __init__(self, folder: Path) -> None:
        """Name the folder.

        Args:
            folder: The folder; created when the first run is saved.
        """
        self._folder = folder

    @staticmethod
    def name(run: Run) -> str:
        """What decides a run's numbers: the name of its file."""
        return run_name(run)

    def save(self, run: Run, result: dict[str, Any]) -> None:
        """Write a finished run in one indivisible step.

        Args:
            run: The run.
            result: What :func:`experiments.train.train` returned.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"run": run.identity(), **result}, indent=1, allow_nan=False)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self._path(run))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, run: Run) -> dict[str, Any] | None:
        """Read a finished run.

        Args:
            run: The run.

        Returns:
            Its result, or None if it has not finished (a damaged file counts as not finished).
        """
        try:
            stored = json.loads(self._path(run).read_text(encoding="utf-8"))
            return {name: stored[name] for name in ("metrics", "curves", "diverged")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def discard(self, run: Run) -> None:
        """Forget a finished run.

        Args:
            run: The run.
        """
        self._path(run).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        for leftover in self._folder.glob("*.partial"):
            leftover.unlink(missing_ok=True)

    def _path(self, run: Run) -> Path:
        return self._folder / f"{run_name(run)}.json"
