"""What Inductor is told, whatever it compiles, and how kernels wait less for memory."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

__all__ = ["compiler_options", "waiting_less"]

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
def waiting_less() -> Generator[None, None, None]:
    """Let C++ kernels that are compiled in this context wait less for memory.

    A step reads several vectors once, from end to end. While a processor works on what it has, the
    numbers that it will need next can be on their way; by itself it looks too few of them ahead.
    So it is asked for them. That may lie behind a vector's end, where asking is without effect.

    Vectors of floats whose bits are taken for whole numbers, and the other way round, stay in their
    register, which Inductor would write to memory and read number by number.
    """
    if os.name == "nt":  # Microsoft's compiler has another word for it
        yield
        return
    from torch._inductor.codegen.cpp import CppKernelProxy, CppVecKernel, CppVecOverrides
    from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP, cexpr_index
    from torch._inductor.virtualized import V  # which take a second

    written: Any = cexpr_index  # torch types neither this nor its settings
    settings: Any = torch.compiler.config

    class Kernel(CppVecKernel):
        def load(self, name: str, index: Any) -> Any:
            found = super().load(name, index)
            place = f"{self.args.input(name)} + {written(self.rename_indexing(index))}"
            ask = f"__builtin_prefetch((const char*)({place}) + {AHEAD}, 0, 2);"
            if found.is_vec and ask not in self.loads.getvalue():
                self.loads.writeline(ask)
            return found

    by_way_of_memory: Any = CppVecOverrides.to_dtype_bitcast

    def to_dtype_bitcast(x: Any, dtype: torch.dtype, source: torch.dtype) -> Any:
        if not dtype.itemsize == source.itemsize == 4:
            return by_way_of_memory(x, dtype, source)
        made, count = DTYPE_TO_CPP[dtype], V.kernel._get_num_vectors(source)
        cast = f"at::vec::cast<{made}, {DTYPE_TO_CPP[source]}>"
        if count == 1:
            return f"{cast}({x})"
        each = f"for (int i = 0; i < {count}; i++) y[i] = {cast}({x}[i])"
        return f"[&] {{ at::vec::VectorizedN<{made}, {count}> y; {each}; return y; }}()"

    # So that no other kernel is taken from a cache:
    tag = f"{settings.cache_key_tag} filteropt 2, {AHEAD} bytes ahead"
    with (
        patch.object(CppKernelProxy, "vec_kernel_cls", Kernel),
        patch.object(CppVecOverrides, "to_dtype_bitcast", staticmethod(to_dtype_bitcast)),
        settings.patch(cache_key_tag=tag),
    ):
        yield
