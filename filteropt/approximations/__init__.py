"""Likelihoods, posteriors and bases. One file each."""

from filteropt.approximations.averaged import Averaged
from filteropt.approximations.averaged_squared_gradient import AveragedSquaredGradient
from filteropt.approximations.centred_gradient import CentredGradient
from filteropt.approximations.dense import Dense
from filteropt.approximations.diagonal import Diagonal
from filteropt.approximations.fixed_point import FixedPoint
from filteropt.approximations.gauss_newton import GaussNewton, GaussNewtonDiagonal
from filteropt.approximations.identity import Identity
from filteropt.approximations.no_curvature import NoCurvature
from filteropt.approximations.one_step_ahead import OneStepAhead
from filteropt.approximations.squared_gradient import SquaredGradient

__all__ = [
    "Averaged",
    "AveragedSquaredGradient",
    "CentredGradient",
    "Dense",
    "Diagonal",
    "FixedPoint",
    "GaussNewton",
    "GaussNewtonDiagonal",
    "Identity",
    "NoCurvature",
    "OneStepAhead",
    "SquaredGradient",
]
