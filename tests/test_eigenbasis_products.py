"""The eigenbasis' matrix products: in blocks, in any memory layout, with any sides left out."""

from __future__ import annotations

import pytest
import torch

from filteropt.approximations import KroneckerEigenbasis
from filteropt.types import Raw

LETTERS = "abc"


def turned(basis, shape):
    """A state whose basis has turned once, and the gradients that it was given."""
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)]
    state = basis.init(grads[0])
    for t, g in enumerate(grads, 1):
        state, _ = basis.refresh(state, Raw(g), t)
    return state, grads


@pytest.mark.parametrize("size", [127, 128, 129, 300])
def test_second_moments_in_blocks_are_the_whole(size):
    state, (first, second) = turned(KroneckerEigenbasis(beta=0.5), (size, 2))
    expected = 0.25 * first @ first.mT + 0.5 * second @ second.mT
    torch.testing.assert_close(state.factor_0, expected)


@pytest.mark.parametrize("max_dim", [7, 5, 4, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rotations_are_products_along_each_side_in_any_layout(max_dim, layout):
    """Sides of 5, 4 and 2·3 weights, of which the longer ones are left as they are."""
    shape = (5, 4, 2, 3)
    basis = KroneckerEigenbasis(max_dim=max_dim)
    state, (x, _) = turned(basis, shape)
    expected = x.reshape(5, 4, 6)
    for i in range(3):
        if hasattr(state, f"eigenvectors_{i}"):
            vectors = getattr(state, f"eigenvectors_{i}")
            product = f"abc,{LETTERS[i]}x->{LETTERS.replace(LETTERS[i], 'x')}"
            expected = torch.einsum(product, expected, vectors)
    found = basis.forward(state, x.contiguous(memory_format=layout))
    torch.testing.assert_close(found, expected.reshape(shape))
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(basis.backward(state, found), x)
