"""Likelihoods, posteriors and bases. One file each."""

from filteropt.approximations.averaged_squared_gradient import AveragedSquaredGradient
from filteropt.approximations.diagonal import Diagonal
from filteropt.approximations.fixed_point import FixedPoint
from filteropt.approximations.identity import Identity
from filteropt.approximations.squared_gradient import SquaredGradient

__all__ = ["AveragedSquaredGradient", "Diagonal", "FixedPoint", "Identity", "SquaredGradient"]
