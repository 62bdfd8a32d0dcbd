"""Lists of tensors like those of two kinds of network, as wide as a number of weights asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

Shape = tuple[int, ...]

WIDTHS = (1, 2, 4, *range(8, 4096, 8))
TRANSFORMER_LAYERS = 12


def resnet34(width: int) -> Iterator[Shape]:
    """The shapes of a ResNet-34's 110 parameters; 64 is the width of the real one."""
    yield from ((width, 3, 7, 7), (width,), (width,))
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        outputs = width * 2**stage
        for _ in range(blocks):
            kernels = [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]
            if inputs != outputs:
                kernels.append((outputs, inputs, 1, 1))
            for kernel in kernels:
                yield from (kernel, (outputs,), (outputs,))
            inputs = outputs
    yield from ((1000, inputs), (1000,))


def transformer(width: int) -> Iterator[Shape]:
    """The shapes of GPT-2's 148 parameters, with 64 words of the vocabulary per unit of width.

    768 is the width of the smallest GPT-2, whose vocabulary is 65 times as large.
    """
    yield from ((64 * width, width), (width, width))  # words and places
    for _ in range(TRANSFORMER_LAYERS):
        yield from ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
        yield from ((width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width))
        yield (width,)
    yield from ((width,), (width,))


LISTS: dict[str, Callable[[int], Iterator[Shape]]] = {
    "resnet34": resnet34,
    "transformer": transformer,
}


def weights(shapes: list[Shape]) -> int:
    """How many numbers they hold."""
    return sum(map(math.prod, shapes))


def shapes_of(name: str, size: float) -> list[Shape]:
    """The list of that name with the width whose number of weights is nearest to ``size``."""

    def off(width: int) -> float:
        return abs(math.log(weights(list(LISTS[name](width))) / size))

    return list(LISTS[name](min(WIDTHS, key=off)))
