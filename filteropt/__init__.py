"""Bayesian-filtering optimizers for PyTorch: one Kalman engine, exchangeable parts."""

from filteropt import approximations, engine, models, presets, testing
from filteropt.engine import IncompatibleComposition
from filteropt.flat import Flat
from filteropt.optimizer import FilterOptimizer
from filteropt.presets import (
    AdaBayes,
    AdaBayesFP,
    BayesRMSprop,
    ExtendedKalmanFilter,
    MomentumFilter,
    OnlineNaturalGradient,
)
from filteropt.recipe import variant
from filteropt.types import NonFiniteGradientError

__all__ = [
    "AdaBayes",
    "AdaBayesFP",
    "BayesRMSprop",
    "ExtendedKalmanFilter",
    "FilterOptimizer",
    "Flat",
    "IncompatibleComposition",
    "MomentumFilter",
    "NonFiniteGradientError",
    "OnlineNaturalGradient",
    "approximations",
    "engine",
    "models",
    "presets",
    "testing",
    "variant",
]

__version__ = "0.1.0"
