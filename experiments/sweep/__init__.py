"""The study of sensitivity: how much the learning rates matter, by whole sweeps."""

from experiments.sweep.study import Sensitivity

__all__ = ["Sensitivity"]
