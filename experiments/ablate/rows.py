"""The store of an ablation: one SQLite file, a row per run, whole or not there.

Jobs are written in one transaction each, with the log written ahead (WAL) and synced: writers in
other processes wait for each other, and a process that is killed leaves whole jobs or nothing.
"""

import json
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from experiments.ablate.jobs import METRICS, Job
from experiments.errors import UserError

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    job TEXT, member INTEGER, purpose TEXT, task TEXT, arm TEXT, seed INTEGER, setting TEXT,
    epochs INTEGER, nll REAL, error REAL, diverged INTEGER, curves TEXT, identity TEXT,
    PRIMARY KEY (job, member)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS timings (job TEXT PRIMARY KEY, runs INTEGER, seconds REAL, finished TEXT)
"""
_SECONDS_TO_WAIT = 60.0


class Rows:
    """The finished runs of an ablation."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Args:
            path: The file.

        Raises:
            UserError: If it cannot be written, or is something else.
        """
        self._path = path
        with self._transaction() as file:
            for statement in _TABLES.split(";"):
                file.execute(statement)

    @staticmethod
    def name(job: Job) -> str:
        """What decides a job's numbers."""
        return job.name

    def save(self, job: Job, result: dict[str, Any]) -> None:
        """Write a job's runs in one indivisible step.

        Args:
            job: The job.
            result: What :func:`experiments.ablate.jobs.perform` returned.
        """
        identity = json.dumps(job.identity(), sort_keys=True)
        with self._transaction() as file:
            for k, (setting, run) in enumerate(zip(job.settings, result["runs"], strict=True)):
                values = (
                    *(job.name, k, job.purpose, job.task_name, job.arm.label, job.seed),
                    *(json.dumps(dict(setting)), job.epochs, *(run[name] for name in METRICS)),
                    *(run["nll"] is None, json.dumps(run["curves"]), identity),
                )
                marks = ", ".join("?" * len(values))
                file.execute(f"INSERT OR REPLACE INTO runs VALUES ({marks})", values)
            file.execute(
                "INSERT OR REPLACE INTO timings VALUES (?, ?, ?, datetime('now'))",
                (job.name, len(job.settings), result["seconds"]),
            )

    def load(self, job: Job) -> dict[str, Any] | None:
        """Read a finished job.

        Args:
            job: The job.

        Returns:
            Its result, or None if it has not finished.
        """
        query = "SELECT nll, error, curves FROM runs WHERE job = ? ORDER BY member"
        with self._transaction() as file:
            rows = file.execute(query, (job.name,)).fetchall()
            timing = file.execute("SELECT seconds FROM timings WHERE job = ?", (job.name,))
            seconds = timing.fetchone()
        if len(rows) != len(job.settings) or seconds is None:
            return None
        runs = [{**dict(zip(METRICS, r, strict=False)), "curves": json.loads(r[2])} for r in rows]
        return {"runs": runs, "seconds": seconds[0]}

    def clean(self) -> None:
        """Nothing: what a killed process left half-written was never there."""

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_SECONDS_TO_WAIT)) as file:
                file.execute("PRAGMA journal_mode = WAL")
                file.execute("PRAGMA synchronous = FULL")
                with file:  # commits, or rolls back
                    yield file
        except sqlite3.Error as fault:
            raise UserError(
                f"{self._path} cannot be used: {fault}; runs that had finished are kept"
            ) from fault


@contextmanager
def alone(folder: Path) -> Generator[None, None, None]:
    """Keep other ablations out of a folder while one is at work there.

    Args:
        folder: The folder.

    Yields:
        Nothing; the lock goes with the process, however that ends.

    Raises:
        UserError: If another one is at work.
    """
    with closing(sqlite3.connect(folder / "lock.db", timeout=0)) as file:
        try:
            file.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as fault:
            why = f"cannot be used: {fault}"
            if "locked" in str(fault):
                why = "has another ablation at work; wait for it, or give another --out"
            raise UserError(f"--out {folder} {why}") from fault
        yield
