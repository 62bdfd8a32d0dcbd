"""What theory says of an error, and how the measured one is judged against it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW = (1e-11, 1e-2)
"""Errors that a law is fitted to: below, rounding shows; above, the law's next order does."""

POINTS = 4
"""The fewest points that a fit needs."""

SLOPE_TOLERANCE = 0.01
CONSTANT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Power:
    """An error that falls as a power of the limit's parameter: ``constant * x**order``."""

    order: float
    constant: float

    @property
    def slope(self) -> float:
        """The slope of the error's logarithm along :meth:`coordinate`."""
        return self.order

    def coordinate(self, x: Tensor) -> Tensor:
        """Where the error's logarithm is a straight line: the parameter's logarithm.

        Args:
            x: The parameter.

        Returns:
            Its logarithm.
        """
        return x.log()

    def __call__(self, x: Tensor) -> Tensor:
        """The error at ``x``."""
        return self.constant * x**self.order


@dataclass(frozen=True)
class Decay:
    """An error that falls by one factor per step: ``constant * factor**t``."""

    factor: float
    constant: float

    @property
    def slope(self) -> float:
        """The slope of the error's logarithm along :meth:`coordinate`."""
        return math.log(self.factor)

    def coordinate(self, x: Tensor) -> Tensor:
        """Where the error's logarithm is a straight line: the step itself.

        Args:
            x: The step.

        Returns:
            The step.
        """
        return x

    def __call__(self, x: Tensor) -> Tensor:
        """The error at step ``x``."""
        return self.constant * self.factor**x


@dataclass(frozen=True)
class Identity:
    """No error but rounding."""

    tolerance: float


Law = Power | Decay | Identity


@dataclass(frozen=True)
class Curve:
    """Measured errors, with the law that they should follow.

    Attributes:
        x: The limit's parameter, or the step; of an identity, what the errors are counted by.
        error: Relative errors.
        law: The law.
        until: The largest parameter to fit, where the law asks for more than a small error.
    """

    x: Tensor
    error: Tensor
    law: Law
    until: float = math.inf


@dataclass(frozen=True)
class Case:
    """One limiting case.

    Attributes:
        name: Its name on the command line.
        panel: The title of the panel that it is drawn in.
        composition: What runs.
        limit: What it tends to, or is.
        parameter: The limit's parameter.
        seconds: About how long it takes.
        measure: Runs both and compares them.
        label: What tells it apart from another case of its panel.
    """

    name: str
    panel: str
    composition: str
    limit: str
    parameter: str
    seconds: float
    measure: Callable[[], Curve]
    label: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found of one case.

    Attributes:
        case: The case.
        curve: The errors and their law.
        fitted: Which of the errors lie in the window; of an identity, all.
        slope: Least-squares slope of the error's logarithm; NaN for an identity.
        constant: Median ratio of the error to the law without its constant; likewise.
        passed: Whether the law holds.
    """

    case: Case
    curve: Curve
    fitted: Tensor
    slope: float
    constant: float
    passed: bool


def judge(case: Case, curve: Curve) -> Verdict:
    """Fit a case's law to its errors.

    Args:
        case: The case.
        curve: Its errors and law.

    Returns:
        The verdict.
    """
    law, error = curve.law, curve.error
    if isinstance(law, Identity):
        held, every = bool((error <= law.tolerance).all()), torch.ones_like(error).bool()
        return Verdict(case, curve, every, math.nan, math.nan, held)
    fitted = (error > WINDOW[0]) & (error < WINDOW[1]) & (curve.x <= curve.until)
    if int(fitted.sum()) < POINTS:
        return Verdict(case, curve, fitted, math.nan, math.nan, passed=False)
    x, error = curve.x[fitted], error[fitted]
    slope = least_squares_slope(law.coordinate(x), error.log())
    constant = law.constant * float((error / law(x)).median())
    passed = (
        abs(slope / law.slope - 1) <= SLOPE_TOLERANCE
        and abs(constant / law.constant - 1) <= CONSTANT_TOLERANCE
    )
    return Verdict(case, curve, fitted, slope, constant, passed)


def least_squares_slope(x: Tensor, y: Tensor) -> float:
    """The slope of the straight line nearest to some points.

    Args:
        x: Abscissae.
        y: Ordinates.

    Returns:
        The slope.
    """
    centred = x - x.mean()
    return float((centred * y).sum() / centred.square().sum())


def rule() -> str:
    """Say how a case is judged.

    Returns:
        One paragraph.
    """
    low, high = WINDOW
    return (
        f"Fits use the errors between {low:g}, below which rounding shows, and {high:g}, above "
        f"which the law's next order does (Euler's walk, whose law also needs a small η²t/σ²: up "
        f"to η²t/σ² = 0.1); the slope is that of least squares between the "
        f"logarithms (for a decay, of the error's against the step), the constant the median ratio "
        f"of the error to the law. A case passes with its slope within {SLOPE_TOLERANCE:.0%} and "
        f"its constant within {CONSTANT_TOLERANCE:.0%}; an identity with all errors within its "
        f"tolerance. All in float64."
    )
