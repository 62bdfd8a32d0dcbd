"""A Sphinx directive: which parts fit which, asked of the code itself."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from filteropt.engine import Filter, IncompatibleComposition, check
from filteropt.testing import parts


class CompositionMatrix(SphinxDirective):
    """One table for every posterior: likelihoods by dynamics, and the reasons of the refusals."""

    def run(self) -> list[nodes.Node]:
        """Make every composition of the shipped parts and say whether it fits."""
        reasons: dict[str, int] = {}
        lines: list[str] = []
        for posterior, family in parts("posterior").items():
            lines += [f"**{link('approximations', posterior)}**", ""]
            lines += [row(["", *(link("models", name) for name in parts("dynamics"))])]
            lines += ["|:---|" + ":---:|" * len(parts("dynamics"))]
            for likelihood, approximation in parts("likelihood").items():
                cells = [
                    cell(Filter(prior(), approximation(), family()), reasons)
                    for prior in parts("dynamics").values()
                ]
                lines += [row([link("approximations", likelihood), *cells])]
            lines += [""]
        lines += ["● fits. A number is the reason why not, as the error begins:", ""]
        lines += [f"{number}. {reason}" for reason, number in reasons.items()]
        return self.parse_text_to_nodes("\n".join(lines) + "\n")


def link(room: str, name: str) -> str:
    """A reference to a part's page."""
    return f"{{class}}`~filteropt.{room}.{name}`"


def row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def cell(filter: Filter, reasons: dict[str, int]) -> str:
    """A mark for a composition that fits, else the number of the reason why not."""
    try:
        check(filter)
    except IncompatibleComposition as refusal:
        reason = str(refusal).split(" Would fit: ")[0]
        return str(reasons.setdefault(reason, len(reasons) + 1))
    return "●"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("composition-matrix", CompositionMatrix)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
