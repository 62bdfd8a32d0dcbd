"""Sphinx configuration: ``sphinx-build -n -W -b html docs docs/_build/html``."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "filteropt"
author = "The filteropt developers"
project_copyright = f"2026, {author}"
release = version = installed_version("filteropt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "composition_matrix",
    "public_symbols",
]
exclude_patterns = ["_build", "_templates", "figures"]
templates_path = ["_templates"]
nitpicky = True

# Pages
html_theme = "furo"
html_title = f"filteropt {release}"
html_theme_options = {"navigation_with_keys": True}
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
math_eqref_format = "({number})"
numfig = True  # with the numbered toctree: equation (3.2) is the second one of the third page
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
bibtex_bibfiles = ["references.bib"]

# API reference
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Only `doctest` directives run here; the docstrings' examples run with the tests.
doctest_test_doctest_blocks = ""

# Links into other projects need the network, so they are made on request only.
if os.environ.get("FILTEROPT_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    nitpick_ignore_regex = []
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }
else:
    nitpick_ignore_regex = [("py:.*", r"(torch|numpy|collections|typing|abc|os)\..*")]
# Annotations that name no documented object: forward references inside NamedTuples, type variables,
# and the tuples in which a shipped part keeps its own state.
nitpick_ignore = [
    ("py:class", name) for name in ("Tensor", "P", "R", "Preset", "ParamsT", "nn.Module", "Batches")
]
nitpick_ignore_regex += [
    ("py:class", r"filteropt\.(hyperparameters|leading|execute\.once)\.[PRT]"),
    ("py:class", r"filteropt\.approximations\._\w+\.\w+"),
    ("py:class", r"filteropt\.approximations\.tempered\.PoweredLikelihood"),
    (
        "py:class",
        r"filteropt\.approximations\.\w+\.(Averages|Centre|FirstMoment|Moments|Root|Variance)",
    ),
]


def skip_tuple_fields(
    app: object, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of NamedTuples, which their docstrings describe."""
    return True if type(obj).__name__ == "_tuplegetter" else None


ANNOTATED = re.compile(
    r"~?(?:typing\.)?Annotated\[(.+?), ~?[\w.]*Interval\(text=[\[(][^\])]*[\])]\)(?:, <[^>]*>)?\]"
)


def plain_signature(
    app: object, what: str, name: str, obj: object, options: object, signature: str | None, ret: str
) -> tuple[str | None, str]:
    """Show ``Annotated[float, Interval(...)]`` as ``float``: ranges are in the docstrings."""
    if signature is not None:
        signature = re.sub(r"\b(Positive|Momentum)\b", "float", signature)  # inherited arguments
        signature = ANNOTATED.sub(r"\1", signature).replace("<factory>", "...")
    return signature, ret


def setup(app: Any) -> None:
    """Register the handlers above."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-signature", plain_signature)
