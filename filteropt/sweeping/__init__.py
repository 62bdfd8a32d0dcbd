"""Sweeps: many settings of one composition, trained at once over stacked models."""

from filteropt.sweeping.result import Sweep
from filteropt.sweeping.sweep import sweep

__all__ = ["Sweep", "sweep"]
