"""Figure 1: why the best value of a weight moves while the others are trained."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console

import filteropt
from experiments.errors import UserError
from experiments.reproduce import report
from experiments.reproduce.part import Part
from experiments.reproduce.training import one_thread

CURVATURE, START = 25.0, (-1.8, 2.0)
LR, LR_SGD = 0.02, 0.05


@dataclass(frozen=True)
class Fig1(Part):
    """Figure 1: the moving goalposts of a correlated quadratic in two weights.

    AdaBayes minimises it from noisy gradients, whose variance is the curvature. The optimum of the
    first weight given the second moves, and the filter tracks it.
    """

    name: ClassVar[str] = "fig1"

    correlation: float = 0.9
    """Between the gradients of the two weights, in (-1, 1); 0 has goalposts that stand still."""

    steps: int = 400
    """Steps of the optimizer."""

    seed: int = 0
    """Fixes the noise of the gradients."""

    def run(self, console: Console) -> int:
        """Draw the figure.

        Args:
            console: Where to print.

        Returns:
            The exit code, 0.

        Raises:
            UserError: If an option is out of its range.
        """
        if not -1 < self.correlation < 1:
            raise UserError(f"--correlation is {self.correlation}; it must lie in (-1, 1)")
        if self.steps < 2:
            raise UserError(f"--steps is {self.steps}; it must be at least 2")
        self.begin()
        with one_thread("cpu"):
            path = descend(self.correlation, self.steps, self.seed)
        self._draw(path)
        numbers = summarise(path, self.correlation)
        parts = [
            "![Contours, path and goalposts](fig1.png)",
            f"L(w) = ½ wᵀHw with H_ii = {CURVATURE:g} and correlation {self.correlation:g}; the "
            f"path is AdaBayes' (lr {LR}, lr_sgd {LR_SGD}, no momentum, no decay) with gradient "
            f"noise of covariance H, seed {self.seed}.",
            f"The goalpost w₁* = −(H₁₂/H₁₁) w₂ (Eq. 9) travels {numbers['travelled']:.2f} while w₂ "
            f"is trained, by {numbers['drift']:.4f} (root mean square) per step. Eq. 10, "
            f"∂L/∂w₁ = H₁₁ (w₁ − w₁*), holds to {numbers['identity_error']:.0e}. In "
            f"{100 * numbers['covered']:.0f} % of the steps the goalpost lies within two standard "
            "deviations of the belief.",
        ]
        report.write(self, "Figure 1: moving goalposts", parts, numbers, console)
        return 0

    def _draw(self, path: dict[str, np.ndarray]) -> None:
        drawn, axes = report.figure(10.5, 4.4, 1, 2)
        w, goal, sd = path["w"], path["goal"], np.sqrt(path["variance"][:, 0])
        left, right = axes[0]
        x, y = np.meshgrid(np.linspace(-2.6, 2.6, 200), np.linspace(-2.6, 2.6, 200))
        loss = x**2 + y**2 + 2 * self.correlation * x * y
        left.contour(
            y, x, loss, levels=np.geomspace(0.02, 20, 12), colors="#BBBBBB", linewidths=0.8
        )
        ends = np.array([-2.6, 2.6])
        left.plot(ends, -self.correlation * ends, color=report.RED, label="best w₁ given w₂")
        left.plot(w[:, 1], w[:, 0], color=report.BLUE, linewidth=1.2, label="AdaBayes")
        left.plot(w[0, 1], w[0, 0], "o", color=report.BLUE, markersize=5)
        left.set(xlabel="w₂", ylabel="w₁", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
        left.set_title("A  The objective correlates the weights")
        left.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="white")
        steps = np.arange(len(w))
        right.plot(steps, goal, color=report.RED, label="best w₁ given w₂ at that step")
        right.plot(steps, w[:, 0], color=report.BLUE, linewidth=1.2, label="w₁")
        band = {"color": report.BLUE, "alpha": 0.18, "linewidth": 0}
        right.fill_between(steps, w[:, 0] - 2 * sd, w[:, 0] + 2 * sd, **band, label="± 2 sd")
        right.set(xlabel="step", ylabel="w₁")
        right.set_title("B  So the goalpost of w₁ moves while w₂ is trained")
        right.legend(loc="lower right", frameon=False)
        report.save(drawn, self)


def descend(correlation: float, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Minimise the quadratic.

    Args:
        correlation: Between the weights' gradients.
        steps: Steps.
        seed: Of the noise.

    Returns:
        Before every step: ``w``, its belief's ``variance``, the exact ``gradient`` and the first
        weight's ``goal``.
    """
    hessian = CURVATURE * torch.tensor([[1, correlation], [correlation, 1]], dtype=torch.float64)
    root = torch.linalg.cholesky(hessian)
    draw = torch.Generator().manual_seed(seed)
    w = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    opt = filteropt.AdaBayes([w], lr=LR, lr_sgd=LR_SGD, beta1=0.0, weight_decay=0.0)
    kept: dict[str, list[Any]] = {"w": [], "variance": [], "gradient": [], "goal": []}
    for step in range(steps):
        gradient = hessian @ w.detach()
        variance = opt.posterior_variance(w) if step else torch.full_like(w, LR_SGD)
        kept["w"].append(w.detach().numpy().copy())
        kept["variance"].append(variance.detach().numpy().copy())
        kept["gradient"].append(gradient.numpy())
        kept["goal"].append(-(hessian[0, 1] / hessian[0, 0] * w[1]).item())
        w.grad = gradient + root @ torch.randn(2, dtype=torch.float64, generator=draw)
        opt.step()
    return {name: np.array(values) for name, values in kept.items()}


def summarise(path: dict[str, np.ndarray], correlation: float) -> dict[str, float]:
    """The numbers of the page.

    Args:
        path: What :func:`descend` returned.
        correlation: Between the weights' gradients.

    Returns:
        How far the goalpost went, how fast, the error of Eq. 10, and how often the belief covers.
    """
    gap = path["w"][:, 0] - path["goal"]
    return {
        "correlation": correlation,
        "travelled": float(abs(path["goal"][-1] - path["goal"][0])),
        "drift": float(np.sqrt(np.mean(np.diff(path["goal"]) ** 2))),
        "identity_error": float(abs(path["gradient"][:, 0] - CURVATURE * gap).max()),
        "covered": float(np.mean(abs(gap) < 2 * np.sqrt(path["variance"][:, 0]))),
    }
