"""Curves of every run for TensorBoard."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.ablate.jobs import Job
from experiments.ablate.rows import Rows
from experiments.errors import UserError


class LoggedRows(Rows):
    """Finished runs, each of which is written for TensorBoard when it is kept or first met."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Open the store.

        Args:
            path: The store's file.
            folder: Where TensorBoard looks.
        """
        super().__init__(path)
        self._folder = folder

    def save(self, job: Job, result: dict[str, Any]) -> None:
        """Keep a job's runs, and write their curves."""
        super().save(job, result)
        self._write(job, result)

    def load(self, job: Job) -> dict[str, Any] | None:
        """A finished job's result, with its curves written if they have not been."""
        result = super().load(job)
        if result is not None:
            self._write(job, result)
        return result

    def _write(self, job: Job, result: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        name = "".join(c if c.isalnum() else "_" for c in job.arm.label)
        for k, (setting, run) in enumerate(zip(job.settings, result["runs"], strict=True)):
            told = f"{job.purpose}-seed{job.seed}-{job.name[:6]}-{k}"
            folder = self._folder / job.task_name / name / told
            if folder.exists():
                continue
            with SummaryWriter(str(folder)) as writer:
                writer.add_text("setting", ", ".join(f"{n}={v}" for n, v in setting))
                for curve, values in run["curves"].items():
                    for epoch, value in enumerate(values, 1):
                        if value is not None:
                            writer.add_scalar(curve, value, epoch)


def logged_rows(path: Path, folder: Path) -> LoggedRows:
    """Open a store that logs.

    Args:
        path: The store's file.
        folder: Where TensorBoard looks.

    Returns:
        The store.

    Raises:
        UserError: If TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            '--tensorboard needs TensorBoard; install it with: pip install "tensorboard>=2.16"'
        )
    return LoggedRows(path, folder)
