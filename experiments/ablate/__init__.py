"""Ablations: any grid of compositions, tuned alike, with statistics at the end."""

from experiments.ablate.study import Ablate

__all__ = ["Ablate"]
