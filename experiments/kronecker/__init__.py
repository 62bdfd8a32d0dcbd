"""The study of Kronecker-factored filters: steps and seconds to a target loss."""

from experiments.kronecker.study import Kronecker

__all__ = ["Kronecker"]
