r"""The vocabulary: what flows between the five slots of a filter, and what each slot must offer.

A filter tracks, for every weight, a Gaussian belief :math:`N(\mu, \Sigma)` about its optimum. Its
mean :math:`\mu` *is* the parameter; the types below carry everything else.

Two kinds of code meet here. *Scalar programs* (``transition``, ``scalars``) do arithmetic on
hyperparameters, once per group and step. *Element programs* (``propagate``, ``observe``,
``condition``) do arithmetic on tensors: they branch on no values (families of matrices may), read
only the scalars handed to them, and change none of their inputs.
"""

from filteropt.types.slots import Basis, Dynamics, Likelihood, Posterior, Projection
from filteropt.types.values import (
    Belief,
    Diag,
    Flow,
    LayerRows,
    Leaves,
    LowRank,
    Memory,
    Observation,
    Outer,
    Packed,
    Raw,
    Rows,
    Scalar,
    State,
    Transition,
    Turn,
)

__all__ = [
    "Basis",
    "Belief",
    "Diag",
    "Dynamics",
    "Flow",
    "LayerRows",
    "Leaves",
    "Likelihood",
    "LowRank",
    "Memory",
    "Observation",
    "Outer",
    "Packed",
    "Posterior",
    "Projection",
    "Raw",
    "Rows",
    "Scalar",
    "State",
    "Transition",
    "Turn",
]
