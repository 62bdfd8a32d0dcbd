"""The study of the gap: who is uncertain where there are no data, on a regression in one dimension.

All methods share the network, the likelihood and, but for AdaBayes, the prior; the posterior is
sampled by Hamiltonian Monte Carlo for reference. Everything runs in float64 and is repeatable.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from experiments.config import Options
from experiments.errors import UserError
from experiments.progress import Meter
from filteropt import IVON, AdaBayes, FilterOptimizer, Flat, predict
from filteropt.approximations import Dense, GaussNewton, Tempered
from filteropt.engine import Filter
from filteropt.models import ForgetToPrior

EXAMPLES, BATCH, HIDDEN = 40, 10, 20
NOISE, PRIOR = 0.1, 1.0  # standard deviation of the labels, variance of every weight
FORGETTING = 0.02
EDGE, END = 0.75, 1.75  # inputs lie between, on either side
GRID = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64).unsqueeze(1)
CHAINS, LEAPS = 8, 30

Level = tuple[Tensor, Tensor]
"""Energies of the chains, and their gradients."""


class Data(NamedTuple):
    """Inputs and labels, with nothing around 0."""

    x: Tensor
    y: Tensor


class Band(NamedTuple):
    """The predictive mean on the grid, and its standard deviation due to the weights."""

    mean: Tensor
    sd: Tensor


def draw_data() -> Data:
    """The examples."""
    generator = torch.Generator().manual_seed(0)
    side = torch.rand(EXAMPLES // 2, 2, generator=generator, dtype=torch.float64)
    x = (side * (END - EDGE) + torch.tensor([-END, EDGE])).T.reshape(-1, 1)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return Data(x, torch.sin(2 * x) + 0.3 * x + NOISE * noise)


class Network(nn.Module):
    """One hidden layer, scaled so that every weight has the same prior."""

    def __init__(self) -> None:
        """Draw the weights from the prior."""
        super().__init__()
        self.hidden = nn.Linear(1, HIDDEN, dtype=torch.float64)
        self.out = nn.Linear(HIDDEN, 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():
            nn.init.normal_(p, std=math.sqrt(PRIOR), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """The function's value at every input."""
        return self.out(torch.tanh(2 * self.hidden(x))) * (2 / math.sqrt(HIDDEN))


# The filters ------------------------------------------------------------------------------------


def train(
    model: nn.Module, opt: FilterOptimizer, data: Data, steps: int, *, summed: bool, drawn: bool
) -> None:
    """Train by minibatches, with gradients at the mean or at draws, and steps that anneal."""
    generator = torch.Generator().manual_seed(2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps, eta_min=0.0)
    for step in range(steps):
        part = step % (EXAMPLES // BATCH)
        if not part:
            order = torch.randperm(EXAMPLES, generator=generator).split(BATCH)
        x, y = data.x[order[part]], data.y[order[part]]
        with opt.sampled_params(train=True) if drawn else nullcontext():
            opt.zero_grad()
            losses = (model(x) - y).square() / (2 * NOISE**2)
            (losses.sum() if summed else losses.mean()).backward()
        opt.step()
        scheduler.step()


def drawn_band(model: nn.Module, opt: FilterOptimizer, draws: int = 300) -> Band:
    """What the network predicts at weights drawn from the belief."""
    generator = torch.Generator().manual_seed(3)
    found = predict(
        model, opt, GRID, draws, kind="gaussian", noise_variance=NOISE**2, generator=generator
    )
    return Band(found.mean.flatten(), found.epistemic.flatten().sqrt())


def tangent_band(model: nn.Module, opt: FilterOptimizer) -> Band:
    """What the network's tangent at the mean predicts: exact for a Gaussian belief."""
    params = list(model.parameters())
    covariances = [opt.posterior_covariance(p) for p in params]
    outputs = model(GRID).flatten()
    variances = []
    for output in outputs:
        rows = torch.autograd.grad(output, params, retain_graph=True)
        pairs = zip(rows, covariances, strict=True)
        variances.append(sum(row.flatten() @ cov @ row.flatten() for row, cov in pairs))
    return Band(outputs.detach(), torch.stack(variances).sqrt())


def kalman(data: Data, effort: float, *, joint: bool) -> tuple[nn.Module, FilterOptimizer]:
    """The extended Kalman filter that counts the data once, jointly or per tensor."""

    def composition() -> Filter:
        once = Tempered(GaussNewton(noise_variance=NOISE**2), FORGETTING * EXAMPLES / BATCH)
        return Filter(ForgetToPrior(FORGETTING, PRIOR), once, Dense())

    model = Flat(Network()) if joint else Network()
    gain = 1.0 if joint else 0.3  # blocks that do not know of each other overshoot
    groups = [{"params": list(model.parameters()), "lr": gain}]
    opt = FilterOptimizer(groups, composition, model=model)
    train(model, opt, data, math.ceil(800 * effort), summed=True, drawn=False)
    return model, opt


def joint(data: Data, effort: float) -> dict[str, Band]:
    """The joint filter's belief, by the tangent and by drawn weights."""
    trained = kalman(data, effort, joint=True)
    return {"kalman-joint": tangent_band(*trained), "kalman-drawn": drawn_band(*trained)}


def blocks(data: Data, effort: float) -> dict[str, Band]:
    """One block per tensor."""
    return {"kalman-blocks": tangent_band(*kalman(data, effort, joint=False))}


def ivon(data: Data, effort: float) -> dict[str, Band]:
    """IVON, whose prior is the same."""
    model = Network()
    opt = IVON(
        model.parameters(), lr=1e-3, ess=EXAMPLES, hess_init=10.0, beta2=0.999,
        weight_decay=1 / (EXAMPLES * PRIOR),
    )  # fmt: skip
    train(model, opt, data, math.ceil(2400 * effort), summed=False, drawn=True)
    return {"ivon": drawn_band(model, opt)}


def adabayes(data: Data, effort: float) -> dict[str, Band]:
    """AdaBayes, whose variance is a learning rate."""
    model = Network()
    opt = AdaBayes(model.parameters(), lr=1e-3, lr_sgd=1e-3, batch_size=BATCH)
    train(model, opt, data, math.ceil(1200 * effort), summed=False, drawn=False)
    return {"adabayes": drawn_band(model, opt)}


# The reference ----------------------------------------------------------------------------------


def functions(weights: Tensor, x: Tensor) -> Tensor:
    """The networks' values, ``(chains, inputs)``; a row of weights is a network."""
    slopes, biases, outs, last = weights.split([HIDDEN, HIDDEN, HIDDEN, 1], 1)
    hidden = torch.tanh(2 * (x.T.unsqueeze(2) * slopes.unsqueeze(1) + biases.unsqueeze(1)))
    return ((hidden @ outs.unsqueeze(2)).squeeze(2) + last) * (2 / math.sqrt(HIDDEN))


def energy(weights: Tensor, data: Data) -> Level:
    """The negative log-posterior of every chain, and its gradient."""
    weights = weights.detach().requires_grad_()
    misfit = (functions(weights, data.x) - data.y.T).square().sum(1) / (2 * NOISE**2)
    total = misfit + weights.square().sum(1) / (2 * PRIOR)
    (gradient,) = torch.autograd.grad(total.sum(), weights)
    return total.detach(), gradient


def monte_carlo(data: Data, effort: float) -> dict[str, Band]:
    """Hamiltonian Monte Carlo with the step size adapted while the chains warm up."""
    generator = torch.Generator().manual_seed(4)
    warm, keep = math.ceil(250 * effort), math.ceil(400 * effort)
    weights = math.sqrt(PRIOR) * torch.randn(
        CHAINS, 3 * HIDDEN + 1, generator=generator, dtype=torch.float64
    )
    size = torch.full((CHAINS, 1), 5e-3, dtype=torch.float64)
    now, found = energy(weights, data), []
    for step in range(warm + keep):
        weights, now, accepted = leap(weights, now, size, data, generator)
        if step < warm:
            size = size * torch.exp(0.1 * (accepted.unsqueeze(1) - 0.8))
        else:
            found.append(functions(weights, GRID))
    drawn = torch.cat(found)
    return {"reference": Band(drawn.mean(0), drawn.std(0))}


def leap(
    weights: Tensor,
    now: tuple[Tensor, Tensor],
    size: Tensor,
    data: Data,
    generator: torch.Generator,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """One trajectory of every chain, accepted or not, and the chance of its being accepted."""
    momentum = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    before = now[0] + momentum.square().sum(1) / 2
    size = size * (0.8 + 0.4 * torch.rand(CHAINS, 1, generator=generator, dtype=torch.float64))
    place, (there, slope) = weights, now
    for _ in range(LEAPS):
        momentum = momentum - size / 2 * slope
        place = place + size * momentum
        there, slope = energy(place, data)
        momentum = momentum - size / 2 * slope
    after = there + momentum.square().sum(1) / 2
    chance = torch.exp(before - after).nan_to_num(0.0).clamp_max(1.0)
    taken = torch.rand(CHAINS, generator=generator, dtype=torch.float64) < chance
    kept = torch.where(taken, there, now[0]), torch.where(taken[:, None], slope, now[1])
    return torch.where(taken[:, None], place, weights), kept, chance


# The study --------------------------------------------------------------------------------------

METHODS: tuple[tuple[Callable[[Data, float], dict[str, Band]], float], ...] = (
    (monte_carlo, 15.0),
    (joint, 6.0),
    (blocks, 8.0),
    (ivon, 15.0),
    (adabayes, 2.0),
)
"""What is run, and for how many seconds."""

TITLES = {
    "reference": "Exact posterior\n(Hamiltonian Monte Carlo)",
    "kalman-joint": "Kalman filter, one covariance,\ntangent",
    "kalman-blocks": "Kalman filter, block per tensor,\ntangent",
    "kalman-drawn": "Kalman filter, one covariance,\ndrawn weights",
    "ivon": "IVON,\ndrawn weights",
    "adabayes": "AdaBayes,\ndrawn weights",
}
"""What the bands are, in the figure's order."""


@dataclass(frozen=True)
class Gap(Options):
    """Show which compositions are uncertain in a gap of the data, beside the exact posterior.

    Less than a minute on one core.
    """

    effort: Annotated[float, tyro.conf.arg(metavar="FRACTION")] = 1.0
    """Fraction of the steps of training and of the reference's chains."""

    out: Path = Path("results/gap")
    """Folder for the table and the figure."""

    def run(self, console: Console) -> int:
        """Train, predict, and save the table and the figure.

        Args:
            console: Where to write.

        Returns:
            The exit code, 0.

        Raises:
            UserError: If the effort is not a positive number.
        """
        if not (0 < self.effort < math.inf):
            raise UserError(f"--effort {self.effort:g} must be a positive number")
        self.begin()
        data, bands, threads = draw_data(), dict[str, Band](), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with Meter(console, len(METHODS), sum(work for _, work in METHODS)) as meter:
                for method, work in METHODS:
                    bands |= method(data, self.effort)
                    meter.advance(work)
                    meter.finish_run()
        finally:
            torch.set_num_threads(threads)
        from experiments.gap_report import write_report

        write_report(data, {name: bands[name] for name in TITLES}, self.out, console)
        return 0
