"""Dynamics priors: how the optimal weights move between two gradients. One file each."""

from filteropt.models.fixed_noise import FixedNoise

__all__ = ["FixedNoise"]
