"""Compiling for sweeps: programs are kept, and where there can be none a warning says why."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from filteropt.execute import compiler_options

__all__ = ["attempt", "can_compile"]

BACKEND: Any = "inductor"
PROGRAMS = 64
"""How many shapes, models and losses one composition is compiled for."""
_COMPILED: dict[object, Callable[..., Any]] = {}
"""Everything compiled in this process, however many sweeps there are."""


def can_compile(device: torch.device) -> bool:
    """Whether there is what compiling takes: on a CPU a C++ compiler, on a GPU Triton."""
    if device.type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))
    return find_spec("triton") is not None


def attempt(what: str, key: object, function: Any, *given: Any, dynamic: bool) -> tuple[bool, Any]:
    """Call a function compiled, if that can be done; a warning says why not.

    Args:
        what: what to call it in the warning.
        key: what its program depends on besides what it is given.
        function: an object that is called.
        *given: what it is given.
        dynamic: whether one program serves all shapes.

    Returns:
        Whether it could be done, and the result.

    Raises:
        torch.OutOfMemoryError: a GPU has no room for it.
    """
    options = compiler_options() if BACKEND == "inductor" else None
    try:
        with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=PROGRAMS):
            warnings.simplefilter("ignore")  # of the compiler's, to nobody's use
            if key not in _COMPILED:
                _COMPILED[key] = torch.compile(
                    function.__call__,
                    dynamic=dynamic,
                    fullgraph=True,
                    backend=BACKEND,
                    options=options,
                )
            return True, _COMPILED[key](*given)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler may raise
        why = str(error).strip().split("\n")[0]
        warnings.warn(f"sweep: {what} are not compiled, since that fails: {why}", stacklevel=2)
        return False, None
