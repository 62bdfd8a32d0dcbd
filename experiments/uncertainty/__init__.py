"""The study of weight uncertainty: posterior predictives of the filters against their rivals."""

from experiments.uncertainty.study import Uncertainty

__all__ = ["Uncertainty"]
