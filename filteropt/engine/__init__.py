r"""The engine: a filter is a value with five slots, and there is one step.

.. math::
    \text{predict} \quad & \mu^- = F\mu^+, && \Sigma^- = c\,F\Sigma^+F^\top + Q \\
    \text{condition} \quad & \Sigma^+ = ((\Sigma^-)^{-1} + \Lambda)^{-1}, &&
    \mu^+ = \mu^- - \Sigma^+ \hat g \\
    \text{project} \quad & \Sigma^+ \leftarrow \text{the nearest member of the family}

The mean of the weights is the parameter itself: a step returns a displacement. Everything here is
pure; :class:`filteropt.FilterOptimizer` adds the displacement and keeps the state.
"""

from filteropt.engine.compatibility import IncompatibleComposition, check
from filteropt.engine.filter import (
    Filter,
    Scalars,
    covariance,
    init,
    initial_variance,
    refresh,
    sample,
    scalars,
    step,
    template,
    variance,
)
from filteropt.engine.steady import steady

__all__ = [
    "Filter",
    "IncompatibleComposition",
    "Scalars",
    "check",
    "covariance",
    "init",
    "initial_variance",
    "refresh",
    "sample",
    "scalars",
    "steady",
    "step",
    "template",
    "variance",
]
