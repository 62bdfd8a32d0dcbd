"""Draw the figures of the derivation page: ``python docs/figures/make.py``.

Every curve and point is computed here by the library itself; the SVG files next to this script are
its committed output. ``--png DIR`` also writes PNG copies for a quick look.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from filteropt.approximations import Diagonal, SquaredGradient
from filteropt.engine import Filter, init, scalars, step
from filteropt.linalg import stationary_flow, stationary_variance
from filteropt.models import FixedNoise
from filteropt.types import Raw

HERE = Path(__file__).parent
LR, LR_SGD, BATCH = 1e-3, 0.1, 128
PRIOR = LR_SGD / BATCH
WEIGHTS = 200
QUANTILES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#8856A7", "#555555"

mpl.rcParams.update(
    {
        "svg.hashsalt": "filteropt",  # same bytes every time
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "mathtext.fontset": "dejavusans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.labelcolor": "#222222",
        "xtick.color": GREY,
        "ytick.color": GREY,
        "legend.frameon": False,
    }
)


def filtered_variance(square: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """The filter's variance after ``steps`` gradients drawn from N(0, square), one per weight."""
    filter = Filter(FixedNoise(LR, PRIOR), SquaredGradient(beta1=0.0), Diagonal())
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros_like(square)
    state = init(filter, weight)
    for t in range(1, steps + 1):
        noise = torch.randn(square.shape, generator=generator, dtype=square.dtype)
        _, state = step(filter, scalars(filter, t), state, Raw(square.sqrt() * noise), weight)
    return state.belief.cov[0]


def stationary_variances(figure: Figure) -> None:
    """Posterior variance against Adam's step size, as in Figure 3 of the paper."""
    ax = figure.subplots()
    adam = torch.logspace(-5.6, -0.6, 400, dtype=torch.float64)
    square = (LR / adam) ** 2
    flow = FixedNoise(LR, PRIOR).transition(1).flow
    ax.axvline(PRIOR, color=PURPLE, lw=1, ls=(0, (1, 2)))
    ax.loglog(adam, adam, color=BLUE, lw=1.2, ls="--")
    ax.axhline(PRIOR, color=ORANGE, lw=1.2, ls="--")
    ax.loglog(adam, stationary_flow(square, *flow), color=GREEN, lw=2.2)

    sampled = torch.logspace(-5.4, -0.8, 24, dtype=torch.float64)
    for steps, marker, face in ((100, "s", "white"), (10_000, "o", "#222222")):
        variance = filtered_variance((LR / sampled).square().expand(WEIGHTS, -1), steps, seed=steps)
        low, middle, high = torch.quantile(variance, QUANTILES, dim=0)
        ax.errorbar(
            sampled, middle, (middle - low, high - middle), fmt=marker, ms=4.2, mfc=face,
            color="#222222", mew=0.9, elinewidth=0.8, label=f"filtered for {steps:,} steps",
        )  # fmt: skip
    ax.set(
        xlim=(2e-6, 3e-1), ylim=(2e-6, 5e-3),
        xlabel=r"Adam's step size $\eta/\sqrt{h}$     (much data $\leftarrow\,\rightarrow$ little)",
        ylabel=r"posterior variance $\Sigma^+$ = learning rate",
    )  # fmt: skip
    ax.text(1.1e-2, PRIOR * 1.25, r"SGD: $\sigma^2$", color=ORANGE)
    ax.text(3.9e-3, 2.5e-3, r"Adam: $\eta/\sqrt{h}$", color=BLUE)
    ax.text(4.2e-5, 1.3e-5, "fixed point (Taylor)", color=GREEN)
    ax.text(PRIOR * 1.15, 3e-6, r"$\eta/\sqrt{h}=\sigma^2$", color=PURPLE)
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.2), handletextpad=0.2)


def taylor_errors(figure: Figure) -> None:
    """Relative error of Taylor's fixed point against the exact ones, and its first-order law."""
    ax = figure.subplots()
    gain = torch.logspace(-6, 1, 1401, dtype=torch.float64)
    square = (gain / LR) ** 2

    def errors(prior: float, discretization: str) -> tuple[torch.Tensor, torch.Tensor]:
        tr = FixedNoise(LR, prior, discretization=discretization).transition(1)
        taylor = stationary_flow(square, *tr.flow)
        factor = tr.F[0][0]
        return taylor / stationary_variance(
            square, factor * factor, tr.Q[0]
        ) - 1, square * taylor / 2

    walk, _ = errors(float("inf"), "euler")
    euler, _ = errors(PRIOR, "euler")
    exact, half_gain = errors(PRIOR, "exact")
    ax.loglog(gain, gain / 2, color=GREY, lw=1, ls="--", label=r"$\eta\sqrt{h}/2$")
    ax.loglog(gain, walk, color=BLUE, lw=1.8, label=r"no prior, $\sigma^2=\infty$")
    ax.loglog(gain, exact, color=GREEN, lw=1.8, label="exact discretization")
    ax.loglog(gain, half_gain, color="#222222", lw=1.2, ls=":", label=r"$h\,\Sigma_{\rm T}/2$")
    for sign, style in ((1, "-"), (-1, (0, (3, 1.5)))):
        part = torch.where(sign * euler > 0, sign * euler, torch.nan)
        label = "Euler's discretization" if sign > 0 else "Euler's, where negative"
        ax.loglog(gain, part, color=ORANGE, lw=1.8, ls=style, label=label)
    ax.set(
        xlim=(1e-6, 10), ylim=(1e-10, 30),
        xlabel=r"$\eta\sqrt{h}$",
        ylabel=r"$|\Sigma_{\rm Taylor}/\Sigma_{\rm exact}-1|$",
    )  # fmt: skip
    ax.legend(loc="lower right", fontsize=8.5)


def save(figure: Figure, name: str, png: Path | None) -> None:
    """Write ``name``.svg here, and a PNG where asked."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    if png:
        figure.savefig(png / f"{name}.png", dpi=130, facecolor="white")


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--png", type=Path, help="also write PNG files into this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"stationary_variance": stationary_variances, "taylor_error": taylor_errors}
    for name, draw in figures.items():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        draw(figure)
        save(figure, name, args.png)


if __name__ == "__main__":
    main()
