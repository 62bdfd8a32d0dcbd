"""Bayesian-filtering optimizers for PyTorch: one Kalman engine, exchangeable parts."""

from filteropt import approximations, engine, models, presets, testing
from filteropt.engine import IncompatibleComposition
from filteropt.finite import NonFiniteGradientError
from filteropt.flat import Flat
from filteropt.labels import sample_labels
from filteropt.optimizer import FilterOptimizer
from filteropt.posterior_file import load_prior, read_posterior, save_posterior
from filteropt.predictive import Prediction, predict
from filteropt.presets import (
    IVON,
    VOGN,
    VON,
    AdaBayes,
    AdaBayesFP,
    BayesRMSprop,
    EigenbasisFilter,
    ExtendedKalmanFilter,
    KroneckerFilter,
    MomentumFilter,
    OnlineNaturalGradient,
    Vadam,
)
from filteropt.recipe import variant
from filteropt.sweeping import Sweep, sweep

__all__ = [
    "IVON",
    "VOGN",
    "VON",
    "AdaBayes",
    "AdaBayesFP",
    "BayesRMSprop",
    "EigenbasisFilter",
    "ExtendedKalmanFilter",
    "FilterOptimizer",
    "Flat",
    "IncompatibleComposition",
    "KroneckerFilter",
    "MomentumFilter",
    "NonFiniteGradientError",
    "OnlineNaturalGradient",
    "Prediction",
    "Sweep",
    "Vadam",
    "approximations",
    "engine",
    "load_prior",
    "models",
    "predict",
    "presets",
    "read_posterior",
    "sample_labels",
    "save_posterior",
    "sweep",
    "testing",
    "variant",
]

__version__ = "0.1.0"
