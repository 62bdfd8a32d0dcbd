"""Presets: hyperparameters to compositions, and the named optimizers.

A preset is a function that returns a :class:`filteropt.engine.Filter`; an optimizer class is a
preset with a name. An ablation replaces a slot of what the function returns.
"""

from filteropt.presets.eigenbasis import EigenbasisFilter, eigenbasis_filter
from filteropt.presets.fixed_noise import AdaBayes, AdaBayesFP, adabayes, adabayes_fp
from filteropt.presets.kronecker import KroneckerFilter, kronecker_filter
from filteropt.presets.matrix_limits import (
    kronecker_natural_gradient,
    kronecker_whitening,
    soap,
)
from filteropt.presets.momentum import MomentumFilter, momentum_filter
from filteropt.presets.natural_gradient import (
    ExtendedKalmanFilter,
    OnlineNaturalGradient,
    extended_kalman_filter,
    online_natural_gradient,
)
from filteropt.presets.random_walk import BayesRMSprop, bayes_rmsprop
from filteropt.presets.special_cases import adam, adamw, rmsprop, sgd
from filteropt.presets.variational import VOGN, VON, vogn, von
from filteropt.presets.weight_perturbation import IVON, Vadam, ivon, vadam

__all__ = [
    "IVON",
    "VOGN",
    "VON",
    "AdaBayes",
    "AdaBayesFP",
    "BayesRMSprop",
    "EigenbasisFilter",
    "ExtendedKalmanFilter",
    "KroneckerFilter",
    "MomentumFilter",
    "OnlineNaturalGradient",
    "Vadam",
    "adabayes",
    "adabayes_fp",
    "adam",
    "adamw",
    "bayes_rmsprop",
    "eigenbasis_filter",
    "extended_kalman_filter",
    "ivon",
    "kronecker_filter",
    "kronecker_natural_gradient",
    "kronecker_whitening",
    "momentum_filter",
    "online_natural_gradient",
    "rmsprop",
    "sgd",
    "soap",
    "vadam",
    "vogn",
    "von",
]
