"""What Inductor is told, whatever it compiles."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["compiler_options"]


def compiler_options() -> dict[str, Any]:
    """Options that spare Inductor finding out what is known.

    It would compile and run programs to learn whether a processor's vector instructions may be
    used, which takes five to ten seconds; torch has told already, and uses them itself.

    Returns:
        Options by name.

    Example:
        >>> set(compiler_options()) <= {"cpp.vec_isa_ok"}
        True
    """
    vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return {"cpp.vec_isa_ok": True} if vectors else {}
