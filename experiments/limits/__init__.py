"""The study of limits: every error that theory predicts, measured."""

from experiments.limits.study import Limits

__all__ = ["Limits"]
