"""A Sphinx extension: the build fails where a public name is undocumented.

Every module of the package whose path has no leading underscore must state ``__all__``, and every
name in it must be an object in the documentation's Python inventory (the module itself too).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOG = logging.getLogger(__name__)


def public_modules(package: str) -> Iterator[ModuleType]:
    """The package and its public submodules, imported."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, prefix=f"{package}."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def undocumented(package: str, documented: set[str]) -> list[str]:
    """Public names of ``package`` that are not in ``documented``, in order.

    A name counts as documented under any of the paths by which it is exported.
    """
    modules = list(public_modules(package))
    aliases: dict[tuple[str, int], set[str]] = {}
    for module in modules:
        for name in getattr(module, "__all__", ()):
            key = name, id(getattr(module, name))
            aliases.setdefault(key, set()).add(f"{module.__name__}.{name}")
    missing = []
    for module in modules:
        if not hasattr(module, "__all__"):
            missing.append(f"{module.__name__}.__all__ (every public module states it)")
            continue
        for name in module.__all__:
            path = f"{module.__name__}.{name}"
            obj = getattr(module, name)
            same = {obj.__name__} if isinstance(obj, ModuleType) else aliases[name, id(obj)]
            if not documented & {path, *same}:
                missing.append(path)
    return missing


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Fail the build for undocumented names, once every page has been read."""
    documented = {entry[0] for entry in env.get_domain("py").get_objects()}
    for name in undocumented(app.config.public_symbols_package, documented):
        LOG.error(
            "public name without documentation: %s (give it a docstring and an autosummary entry "
            "in docs/api.md, or take it out of __all__)",
            name,
            location="api",
        )
        app.statuscode = 1  # fails without -W too


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check."""
    app.add_config_value("public_symbols_package", app.config.project, "env", [str])
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
