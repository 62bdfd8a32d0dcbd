"""Draw the figures of the mathematical pages: ``python docs/figures/make.py``.

Every curve and point is computed here by the library itself; the SVG files next to this script are
its committed output. ``--png DIR`` also writes PNG copies for a quick look.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from filteropt import FilterOptimizer, OnlineNaturalGradient
from filteropt.approximations import Diagonal, SquaredGradient
from filteropt.engine import Filter, init, scalars, step
from filteropt.linalg import predict_variance, stationary_flow, stationary_variance
from filteropt.models import (
    FixedNoise,
    ForgetToPrior,
    MomentumAugmented,
    ProportionalNoise,
    RandomWalk,
    Static,
)
from filteropt.stationary_pair import stationary_pair
from filteropt.types import Dynamics, Raw

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
    ax.loglog(gain, gain / 2, color="#BBBBBB", lw=4.5, solid_capstyle="butt")
    ax.loglog(gain, half_gain, color="#BBBBBB", lw=4.5, solid_capstyle="butt")
    for sign, style in ((1, "-"), (-1, (0, (3, 1.5)))):
        ax.loglog(
            gain, torch.where(sign * euler > 0, sign * euler, torch.nan),
            color=ORANGE, lw=1.8, ls=style,
        )  # fmt: skip
    ax.loglog(gain, exact, color=GREEN, lw=1.8)
    ax.loglog(gain, walk, color=BLUE, lw=1.2)
    ax.set(
        xlim=(1e-6, 10), ylim=(1e-10, 30),
        xlabel=r"$\eta\sqrt{h}$     (little data $\leftarrow\,\rightarrow$ much)",
        ylabel=r"$|\Sigma_{\rm Taylor}/\Sigma_{\rm exact}-1|$",
    )  # fmt: skip
    ax.text(1.6e-6, 8e-4, "Euler (too small)", color=ORANGE)
    ax.text(1.5e-3, 8e-6, "Euler\n(too large)", color=ORANGE, va="center")
    ax.text(2.2e-6, 5e-6, "no prior", color=BLUE, rotation=24)
    ax.text(8e-6, 4e-9, "exact discretization", color=GREEN)
    ax.text(0.35, 4e-3, r"$\eta\sqrt{h}/2$", color=GREY)
    ax.annotate("", (0.15, 7e-2), (0.34, 1.2e-2), arrowprops={"arrowstyle": "-", "color": GREY})
    ax.text(3e-4, 2e-8, r"$h\,\Sigma_{\rm T}/2$", color=GREY)
    ax.annotate("", (5.5e-5, 1.4e-6), (2.7e-4, 5e-8), arrowprops={"arrowstyle": "-", "color": GREY})


def three_regimes(figure: Figure) -> None:
    """A random walk's variances at rest, before and after a gradient, in units of the noise."""
    ax = figure.subplots()
    gain = torch.logspace(-3, 3, 601, dtype=torch.float64)  # eta sqrt(s), at eta = 1
    transition = RandomWalk(lr=1.0).transition(1)
    after = stationary_variance(gain.square(), 1.0, 1.0, transition.lost)
    before = predict_variance(after, transition)
    for law, color in ((1 / gain, PURPLE), (torch.ones_like(gain), ORANGE), (gain**-2, GREY)):
        ax.loglog(gain, law, color=color, lw=1.1, ls="--")
    ax.loglog(gain, after, color=GREEN, lw=2.2)
    ax.loglog(gain, before, color=BLUE, lw=2.2)
    ax.axvline(2 / 3**0.5, color=GREY, lw=0.9, ls=(0, (1, 2)))
    ax.set(
        xlim=(1e-3, 1e3), ylim=(3e-6, 3e3),
        xlabel=r"$\eta\sqrt{s}$     (much memory $\leftarrow\,\rightarrow$ little)",
        ylabel=r"variance / $\eta^2$",
    )  # fmt: skip
    ax.text(8, 1.7, r"Bayesian RMSprop, $\Sigma^-$", color=BLUE)
    ax.text(0.9, 2e-3, r"the filter proper, $\Sigma^+$", color=GREEN, ha="right")
    ax.text(1.3e-3, 20, r"RMSprop, $\eta/\sqrt{s}$", color=PURPLE)
    ax.text(2e-3, 0.3, r"SGD, $\eta^2$", color=ORANGE)
    ax.text(0.05, 1.4e3, r"Newton, $1/s$", color=GREY)
    ax.text(1.35, 6e-6, r"$2/\sqrt{3}$", color=GREY)


def variances(dynamics: Dynamics, prior: float, evidence: torch.Tensor) -> list[float]:
    """The filter's variance of one weight, before the first gradient and after every one."""
    filter = Filter(dynamics, SquaredGradient(beta1=None), Diagonal(prior))
    weight = torch.zeros(1, dtype=torch.float64)
    state = init(filter, weight)
    path = [prior]
    for t, h in enumerate(evidence, 1):
        _, state = step(filter, scalars(filter, t), state, Raw(h.sqrt().reshape(1)), weight)
        path.append(state.belief.cov[0].item())
    return path


def forgetting(figure: Figure) -> None:
    """Five dynamics through evidence, silence and evidence again."""
    ax = figure.subplots()
    evidence = torch.ones(1300, dtype=torch.float64)
    evidence[300:1000] = 0
    rows = (
        ("fading memory", ProportionalNoise(0.01), PURPLE, (840, 8)),
        ("forgetting to the prior", ForgetToPrior(0.01, 0.1), GREEN, (985, 0.15)),
        ("random walk", RandomWalk(0.01), BLUE, (1225, 0.085)),
        ("fixed noise", FixedNoise(0.01, 0.1), ORANGE, (985, 0.0205)),
        ("static", Static(), GREY, (985, 1.6e-3)),
    )
    ax.axvspan(300, 1000, color="#EEEEEE", lw=0)
    for name, dynamics, color, at in rows:
        ax.semilogy(variances(dynamics, 0.1, evidence), color=color, lw=1.8)
        ax.text(*at, name, color=color, ha="right")
    ax.set(xlim=(0, 1300), ylim=(5e-4, 100), xlabel="step", ylabel=r"posterior variance $\Sigma^+$")
    ax.text(150, 50, "observed", color=GREY, ha="center")
    ax.text(650, 50, "not observed", color=GREY, ha="center")
    ax.text(1150, 50, "observed", color=GREY, ha="center")


def reddi(figure: Figure) -> None:
    """Trajectories on Reddi et al.'s counterexample, one point per period."""
    ax = figure.subplots()

    def walking(lr: float = 1.0) -> Filter:
        return Filter(RandomWalk(lr), SquaredGradient(beta1=None), Diagonal(1.0))

    def play(make: Callable[..., torch.optim.Optimizer], periods: int = 3000) -> list[float]:
        x = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer, path = make([x]), [0.0]
        for t in range(3 * periods):
            x.grad = torch.tensor(3.0 if t % 3 == 0 else -1.0, dtype=torch.float64)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
            if t % 3 == 2:
                path.append(x.item())
        return path

    def adam(p: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(p, 0.01, betas=(0.0, 0.1), eps=0)

    def walk(lr: float) -> Callable[..., torch.optim.Optimizer]:
        return lambda p: FilterOptimizer(p, walking, lr=lr)

    def static(p: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return OnlineNaturalGradient(p, initial_variance=1.0)

    rows = (
        ("Adam", adam, ORANGE, (32, 0.55)),
        (r"random walk, $\eta = 1$", walk(1.0), BLUE, (3.3, 0.8)),
        (r"$\eta = 0.03$", walk(0.03), PURPLE, (75, -0.92)),
        ("static", static, GREEN, (300, -0.45)),
    )
    for name, make, color, at in rows:
        ax.plot(play(make), color=color, lw=1.8)
        ax.text(*at, name, color=color)
    ax.set(xlim=(1, 3000), ylim=(-1.16, 1.16), xlabel="periods of three steps", ylabel="$x$")
    ax.set_xscale("log")
    ax.text(2800, 1.03, "worst", color=GREY, ha="right", va="bottom")
    ax.text(2800, -1.03, "best", color=GREY, ha="right", va="top")


def gains(k: torch.Tensor, decay: float, own: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """S_ww sqrt(h) / eta and S_wp sqrt(h) / eta_p at rest, where eta_w is ``own`` times eta."""
    dynamics = MomentumAugmented(1.0, float("inf"), own, decay)  # eta = 1
    h = (k * decay).square()
    weight, slope, _ = stationary_pair(h, dynamics.transition(1))
    return weight * h.sqrt(), slope * weight * h.sqrt() / decay


def momentum_map(figure: Figure) -> None:
    """The momentum's gain in units of Adam's, over gradient scale and memory."""
    ax = figure.subplots()
    k = torch.logspace(-6, 10, 161, dtype=torch.float64)
    decay = torch.logspace(-7, -0.02, 91, dtype=torch.float64)
    ratio = torch.stack([gains(k, d)[1] for d in decay.tolist()])
    levels = [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 1]
    blues = ("#ffffff", "#eef4fa", "#d6e6f3", "#abcfe5", "#6aaed6", "#3483bf", "#0f4d92")
    ax.contourf(k, decay, ratio, levels, colors=blues)
    lines = ax.contour(k, decay, ratio, levels[1:-1], colors="#222222", linewidths=0.7)
    ax.plot(k, 1 / (2 * k).sqrt(), color=ORANGE, lw=1.4, ls=(0, (1, 1.5)))
    ax.set(
        xscale="log", yscale="log", xlim=(1e-6, 1e10), ylim=(1e-7, decay[-1].item()),
        xlabel=r"$k = \eta\sqrt{h}/\eta_p$     (little data $\leftarrow\,\rightarrow$ much)",
        ylabel=r"momentum decay $\eta_p$",
    )  # fmt: skip
    spots = [(2e-3, 2e-4), (2e-2, 2e-4), (0.22, 2e-4), (4.1, 2e-4), (180, 2e-4), (4e4, 2.3e-5)]
    ax.clabel(lines, fmt="%g", fontsize=8.5, manual=spots, colors=["#222222"] * 4 + ["white"] * 2)
    ax.plot(0.01, 0.1, "o", color="white", mec="#222222", ms=7, mew=1.4)
    ax.text(2.2e-2, 0.1, "0.0047", va="center")
    ax.plot(1e4, 1e-6, "s", color="white", mec="#222222", ms=6.5, mew=1.4)
    ax.text(5e3, 1e-6, "0.986", color="white", va="center", ha="right")
    ax.text(1.2e6, 1.5e-6, "Adam", color="white", fontsize=12, ha="center")
    ax.text(4e-5, 1.5e-6, "RMSprop", color="#222222", fontsize=12, ha="center")
    ax.text(1e8, 0.04, "Newton", color="#222222", fontsize=12, ha="center")


def momentum_share(figure: Figure) -> None:
    """How a step divides into the weight's own and the momentum's, with and without eta_w."""
    ax = figure.subplots()
    k = torch.logspace(-3, 5, 401, dtype=torch.float64)
    rows = ((0.0, BLUE, 2.2, 0.2), (0.1, GREEN, 2.5e3, 0.155), (0.5, ORANGE, 1e3, 0.50))
    for own, color, x, y in rows:
        weight, momentum = gains(k, 1e-4, own)  # eta S_wp / eta_p in the same units
        ax.semilogx(k, weight / (weight + momentum), color=color, lw=2.2)
        limit = own / (1 + own * own) ** 0.5
        ax.axhline(limit, color=color, lw=1, ls="--")
        ax.text(x, y, rf"$\eta_w/\eta={own:g}$", color=color)
    ax.plot(4, 0.5, "o", color="white", mec=BLUE, ms=6, mew=1.4)
    ax.set(
        xlim=(1e-3, 1e5), ylim=(-0.02, 1.03), ylabel="share of the weight's own step",
        xlabel=r"$k = \eta\sqrt{h}/\eta_p$     (little data $\leftarrow\,\rightarrow$ much)",
    )  # fmt: skip
    ax.text(2e-3, 0.9, "RMSprop", color=GREY)
    ax.text(7e4, 0.025, "Adam", color=GREY, ha="right")


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
    figures = {
        "stationary_variance": stationary_variances,
        "taylor_error": taylor_errors,
        "three_regimes": three_regimes,
        "forgetting": forgetting,
        "reddi": reddi,
        "momentum_map": momentum_map,
        "momentum_share": momentum_share,
    }
    for name, draw in figures.items():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        draw(figure)
        save(figure, name, args.png)


if __name__ == "__main__":
    main()
