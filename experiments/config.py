"""The options of a study as YAML, and back."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from experiments.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every study's options have."""

    config: Path | None = None
    """A YAML file with these options, such as the config.yaml among the results of a run."""


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
