"""The paper's figures, its table and its two empirical appendices."""

from experiments.reproduce.study import Reproduce

__all__ = ["Reproduce"]
