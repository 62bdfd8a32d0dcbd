"""Dynamics priors: how the optimal weights move between two gradients. One file each."""

from filteropt.models.fixed_noise import FixedNoise
from filteropt.models.forget_to_prior import ForgetToPrior
from filteropt.models.kronecker_drift import KroneckerDrift
from filteropt.models.momentum_augmented import MomentumAugmented
from filteropt.models.proportional_noise import ProportionalNoise
from filteropt.models.random_walk import RandomWalk
from filteropt.models.static import Static

__all__ = [
    "FixedNoise",
    "ForgetToPrior",
    "KroneckerDrift",
    "MomentumAugmented",
    "ProportionalNoise",
    "RandomWalk",
    "Static",
]
