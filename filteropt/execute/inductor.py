"""What Inductor is told, whatever it compiles, and how kernels ask for memory ahead."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

__all__ = ["asking_ahead", "compiler_options"]

AHEAD = 2048
"""Bytes from what a kernel reads to what it asks for: as many as memory brings in the meantime."""


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


@contextmanager
def asking_ahead() -> Generator[None, None, None]:
    """Let C++ kernels that are compiled in this context ask for memory before they read it.

    A step reads several vectors once, from end to end. While a processor works on what it has, the
    numbers that it will need next can be on their way; by itself it looks too few of them ahead.
    What is asked for may lie behind a vector's end, where nothing is there to be read: asking
    is without effect then.
    """
    if os.name == "nt":  # Microsoft's compiler has another word for it
        yield
        return
    from torch._inductor.codegen.cpp import CppKernelProxy, CppVecKernel  # takes a second
    from torch._inductor.codegen.cpp_utils import cexpr_index

    written: Any = cexpr_index  # torch types neither this nor its settings
    settings: Any = torch.compiler.config

    class AskingKernel(CppVecKernel):
        def load(self, name: str, index: Any) -> Any:
            found = super().load(name, index)
            place = f"{self.args.input(name)} + {written(self.rename_indexing(index))}"
            ask = f"__builtin_prefetch((const char*)({place}) + {AHEAD}, 0, 2);"
            if found.is_vec and ask not in self.loads.getvalue():
                self.loads.writeline(ask)
            return found

    tag = f"filteropt asks {AHEAD} bytes ahead"  # so that no other kernel is taken from a cache
    with (
        patch.object(CppKernelProxy, "vec_kernel_cls", AskingKernel),
        settings.patch(cache_key_tag=tag),
    ):
        yield
