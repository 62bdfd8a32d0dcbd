"""A dynamics prior of one's own: fifteen lines here, and no edit in the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from filteropt import FilterOptimizer, variant
from filteropt.presets import adabayes
from filteropt.testing import check_dynamics
from filteropt.types import Dynamics, Transition


@dataclass(frozen=True)
class CoolingWalk(Dynamics):
    """A random walk whose steps shrink like 1/t: w' = w + (lr/t) eps."""

    k: ClassVar[int] = 1
    initial_variance: ClassVar[float] = 0.05
    lr: float

    def transition(self, t):
        return Transition(F=((1.0,),), Q=((self.lr / t) ** 2,))


cooling_adabayes = variant(adabayes, dynamics=lambda lr: CoolingWalk(lr))


def test_new_dynamics_obey_the_laws():
    check_dynamics(CoolingWalk(0.1))


def test_new_dynamics_run_in_the_optimizer_beside_adabayes_other_slots():
    lr, beta1 = 0.2, 0.5
    p = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    opt = FilterOptimizer([p], cooling_adabayes, lr=lr, beta1=beta1)
    mean, variance, average = 3.0, 0.05, 0.0
    for t in range(1, 30):
        p.grad = p.detach() - 1.0
        opt.step()
        gradient = mean - 1.0  # the scalar filter, written out
        variance += (lr / t) ** 2 if t > 1 else 0.0
        variance = 1 / (1 / variance + gradient**2)
        average = beta1 * average + (1 - beta1) * gradient
        mean -= variance * average / (1 - beta1**t)
        assert p.item() == pytest.approx(mean, rel=1e-12)
        assert opt.posterior_variance(p).item() == pytest.approx(variance, rel=1e-12)
