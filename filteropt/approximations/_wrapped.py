"""What likelihoods share that wrap another one."""

from __future__ import annotations

import torch

from filteropt.types import Likelihood

__all__ = ["WrappedLikelihood"]


class WrappedLikelihood(Likelihood):
    """A likelihood that changes what another one reports."""

    likelihood: Likelihood

    @property
    def core(self) -> Likelihood:
        """The wrapped likelihood's."""
        return self.likelihood.core

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # a ClassVar elsewhere
        """What the wrapped likelihood needs."""
        return self.likelihood.needs

    @property
    def gives(self) -> type:  # type: ignore[override]  # a ClassVar elsewhere
        """What the wrapped likelihood gives."""
        return self.likelihood.gives

    @property
    def signed(self) -> bool:  # type: ignore[override]  # a ClassVar elsewhere
        """Whether the wrapped likelihood is."""
        return self.likelihood.signed

    @property
    def averages(self) -> bool:  # type: ignore[override]  # a ClassVar elsewhere
        """Whether the wrapped likelihood does."""
        return self.likelihood.averages

    @property
    def informative(self) -> bool:  # type: ignore[override]  # a ClassVar elsewhere
        """Whether the wrapped likelihood is."""
        return self.likelihood.informative

    @property
    def delay(self) -> int:  # type: ignore[override]  # a ClassVar elsewhere
        """The wrapped likelihood's."""
        return self.likelihood.delay

    def gradient_limit(self, dtype: torch.dtype) -> float:
        """The wrapped likelihood's."""
        return self.likelihood.gradient_limit(dtype)
