"""Likelihoods, posteriors, bases and projections. One file each."""

from filteropt.approximations.averaged import Averaged
from filteropt.approximations.averaged_pull import AveragedPull
from filteropt.approximations.averaged_squared_gradient import AveragedSquaredGradient
from filteropt.approximations.centred_gradient import CentredGradient
from filteropt.approximations.dense import Dense
from filteropt.approximations.diagonal import Diagonal
from filteropt.approximations.fixed_point import FixedPoint
from filteropt.approximations.gauss_newton import GaussNewton, GaussNewtonDiagonal
from filteropt.approximations.identity import Identity
from filteropt.approximations.kronecker import Kronecker, KroneckerCovariance
from filteropt.approximations.kronecker_eigenbasis import KroneckerEigenbasis
from filteropt.approximations.layer_gradients import LayerGradients
from filteropt.approximations.no_curvature import NoCurvature
from filteropt.approximations.one_step_ahead import OneStepAhead
from filteropt.approximations.per_example import PerExample
from filteropt.approximations.price import Price
from filteropt.approximations.projections import Clipped, Scaled
from filteropt.approximations.retracted import Retracted
from filteropt.approximations.sampled_fisher import SampledFisher
from filteropt.approximations.sampled_squared_gradient import SampledSquaredGradient
from filteropt.approximations.square_rooted import SquareRooted
from filteropt.approximations.squared_gradient import SquaredGradient
from filteropt.approximations.tempered import Repeated, Tempered

__all__ = [
    "Averaged",
    "AveragedPull",
    "AveragedSquaredGradient",
    "CentredGradient",
    "Clipped",
    "Dense",
    "Diagonal",
    "FixedPoint",
    "GaussNewton",
    "GaussNewtonDiagonal",
    "Identity",
    "Kronecker",
    "KroneckerCovariance",
    "KroneckerEigenbasis",
    "LayerGradients",
    "NoCurvature",
    "OneStepAhead",
    "PerExample",
    "Price",
    "Repeated",
    "Retracted",
    "SampledFisher",
    "SampledSquaredGradient",
    "Scaled",
    "SquareRooted",
    "SquaredGradient",
    "Tempered",
]
