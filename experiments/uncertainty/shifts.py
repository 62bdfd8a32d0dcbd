"""Images unlike the training images: rotated ones, and digits from another source."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

ANGLES = tuple(range(0, 181, 15))
_WHITE, _WHITE_OF_DIGITS = 255.0, 16.0


class Shifted(NamedTuple):
    """What a trained network is tested on, as ``uint8`` images.

    Attributes:
        images: in-distribution images, ``(n, 1, side, side)``.
        labels: their labels, ``(n,)``.
        rotated: the first of these images at every angle, ``(angles, m, 1, side, side)``.
        digits: digits from another source, ``(k, 1, side, side)``.
    """

    images: Tensor
    labels: Tensor
    rotated: Tensor
    digits: Tensor


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images about their centre, counter-clockwise, by bilinear interpolation.

    Args:
        images: Images, ``(n, channels, side, side)``, as ``uint8``.
        degrees: The angle.

    Returns:
        The rotated images, ``uint8``, black where nothing was.
    """
    angle = torch.deg2rad(torch.tensor(float(degrees), dtype=torch.float64))
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    turn = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
    grid = affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    turned = grid_sample(images.double(), grid, align_corners=False)
    return turned.round().clamp(0, _WHITE).to(torch.uint8)


def foreign_digits(side: int) -> Tensor:
    """Enlarge scikit-learn's 8 x 8 digits.

    Args:
        side: Height and width that they shall have.

    Returns:
        All 1,797 images, ``(1797, 1, side, side)`` as ``uint8``.
    """
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images)[:, None] * (_WHITE / _WHITE_OF_DIGITS)
    large = interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
    return large.round().clamp(0, _WHITE).to(torch.uint8)


def shifted(images: Tensor, labels: Tensor, rotated: int, digits: int) -> Shifted:
    """Make everything that a network is tested on from the test images.

    Args:
        images: Test images.
        labels: Their labels.
        rotated: How many of them are rotated.
        digits: How many foreign digits are taken, spread evenly.

    Returns:
        The images.
    """
    some = images[:rotated]
    others = foreign_digits(images.shape[-1])
    places = torch.linspace(0, len(others) - 1, min(digits, len(others))).long()
    return Shifted(
        images, labels, torch.stack([rotate(some, angle) for angle in ANGLES]), others[places]
    )
