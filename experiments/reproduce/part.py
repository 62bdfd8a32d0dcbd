"""What the options of every part of ``reproduce`` have."""

from dataclasses import dataclass
from pathlib import Path

from experiments.config import Options


@dataclass(frozen=True, kw_only=True)
class Part(Options):
    """A part: a figure, a table or an appendix of the paper.

    Parts share a folder, so that ``name`` is their subcommand and begins the names of their files.
    """

    out: Path = Path("results/reproduce")
    """Folder for the page, the figure, the numbers and what a killed run needs to go on."""
