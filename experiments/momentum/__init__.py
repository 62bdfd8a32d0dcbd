"""The study of the momentum filter: tuned alike with the usual optimizers, and its step split."""

from experiments.momentum.study import Momentum

__all__ = ["Momentum"]
