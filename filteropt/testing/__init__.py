"""Laws that any part must obey, as checkers for your own dynamics, likelihoods and posteriors.

Each checker takes a part through its laws and raises :class:`LawViolation`, an ``AssertionError``
whose message states the law that broke.
"""

from filteropt.testing._laws import LawViolation
from filteropt.testing.catalogue import compositions, parts
from filteropt.testing.dynamics import check_dynamics, compose
from filteropt.testing.elementwise import check_elementwise
from filteropt.testing.estimators import check_unbiased
from filteropt.testing.likelihood import check_likelihood
from filteropt.testing.optimizer import check_scale_equivariance
from filteropt.testing.posterior import check_posterior

__all__ = [
    "LawViolation",
    "check_dynamics",
    "check_elementwise",
    "check_likelihood",
    "check_posterior",
    "check_scale_equivariance",
    "check_unbiased",
    "compose",
    "compositions",
    "parts",
]
