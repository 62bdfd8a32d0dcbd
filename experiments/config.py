"""The options of a study: what many have, how they are checked, and all as YAML and back."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import dacite
import tyro
import yaml
from rich.console import Console

from experiments.errors import UserError


def hint(text: str) -> Any:
    """Annotate an option whose default is not a value.

    Args:
        text: What ``--help`` says that the default is.

    Returns:
        The annotation.
    """
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every study's options have.

    Attributes:
        name: The name of the file that the options are kept in, without its suffix.
    """

    name: ClassVar[str] = "config"

    config: Path | None = None
    """A YAML file with these options, such as the one among the results of a run."""

    out: Path
    """Folder for the results."""

    def begin(self) -> None:
        """Make the folder for results, and keep the options there before anything is computed.

        Raises:
            UserError: If the folder cannot be created or written to.
        """
        read_out(self.out)
        write_config(self, self.out / f"{self.name}.yaml")


@dataclass(frozen=True, kw_only=True)
class Resumable(Options):
    """What the options of a study have that keeps its runs one by one."""

    fresh: bool = False
    """Run again even where a finished run exists."""

    def interrupted(self, kept: str, console: Console) -> int:
        """Say what is there, and how to go on.

        Args:
            kept: What is kept, such as ``"3 of 9 runs"``.
            console: Where to write.

        Returns:
            The exit code, 130.
        """
        console.print(
            f"Interrupted: {kept} are kept in {self.out}; "
            "the same command (without --fresh) resumes.",
            highlight=False,
        )
        return 130


@dataclass(frozen=True, kw_only=True)
class Parallel(Resumable):
    """What the options of a study have that carries out several runs at a time."""

    workers: Annotated[int | None, hint("one per core, at most 8")] = None
    """Processes, each with one thread."""

    def processes(self, device: str = "cpu") -> int:
        """How many there are.

        Args:
            device: Where tensors live; on another than the CPU there is 1 by default.

        Returns:
            Their number.

        Raises:
            UserError: If it is less than 1.
        """
        alone = 1 if device != "cpu" else min(8, os.cpu_count() or 1)
        return at_least("workers", self.workers, alone)


def at_least(name: str, given: int | None, default: int, least: int = 1) -> int:
    """Check a number.

    Args:
        name: The option.
        given: What the user wrote, if anything.
        default: What else it is.
        least: The least that it may be.

    Returns:
        The number.

    Raises:
        UserError: If it is too small.
    """
    if given is not None and given < least:
        raise UserError(f"--{name} needs at least {least}")
    return default if given is None else given


def read_names(option: str, kind: str, words: Sequence[str], known: Iterable[str]) -> list[str]:
    """Read the names of what is known, each once.

    Args:
        option: Where they are given.
        kind: What each names, in the singular.
        words: Names, also comma-separated.
        known: All names.

    Returns:
        The names.

    Raises:
        UserError: If a name is unknown or none is given.
    """
    names = [name.strip().lower() for word in words for name in word.split(",") if name.strip()]
    if not names:
        raise UserError(f"--{option} needs at least one {kind}")
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"unknown {kind} {name!r}; the {kind}s are {', '.join(known)}")
    return list(dict.fromkeys(names))


def read_out(out: Path) -> None:
    """Make sure that results can be written.

    Args:
        out: The folder for results, which is created.

    Raises:
        UserError: If it cannot be created or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"--out {out} cannot be created: {fault.strerror}") from fault
    if not os.access(out, os.W_OK):
        raise UserError(f"--out {out} cannot be written to")


# As YAML ------------------------------------------------------------------------------------

Study = TypeVar("Study", bound=Options)


def write_config(study: Options, path: Path) -> None:
    """Write every option; ``--config`` reads them.

    Args:
        study: The options.
        path: Where to.

    Raises:
        UserError: If it cannot be written.
    """
    options = {f.name: _plain(getattr(study, f.name)) for f in fields(study) if f.name != "config"}
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=100)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise UserError(f"{path} cannot be written: {fault.strerror}") from fault


def read_config(path: Path, kind: type[Study]) -> Study:
    """Read options; those that are not there keep their defaults.

    Args:
        path: A YAML file.
        kind: Whose options they are.

    Returns:
        The options.

    Raises:
        UserError: If the file cannot be read, or has an unknown option or a value of another kind.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or "it is not text"
        raise UserError(f"--config {path} cannot be read: {reason}") from fault
    except yaml.YAMLError as fault:
        raise UserError(f"--config {path} is no YAML: {' '.join(str(fault).split())}") from fault
    if not isinstance(options, dict):
        raise UserError(f"--config {path} must hold options, such as 'out: results/mine'")
    names = [f.name for f in fields(kind) if f.name != "config"]
    for name in options:
        if name not in names:
            raise UserError(
                f"--config {path}: unknown option {name!r}; the options are {', '.join(names)}"
            )
    several = {f.name for f in fields(kind) if isinstance(f.default, tuple)}
    given = {k: _read(v, several=k in several) for k, v in options.items()}
    try:
        checked = dacite.Config(cast=[Path, tuple], check_types=True)
        return dacite.from_dict(kind, {**given, "config": path}, checked)
    except dacite.DaciteError as fault:
        raise UserError(f"--config {path}: {fault}") from fault


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read(value: Any, *, several: bool) -> Any:
    return [value] if several and not isinstance(value, list) else value
