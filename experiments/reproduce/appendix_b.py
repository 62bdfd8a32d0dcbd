"""Appendix B: are minibatch gradients Gaussian?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import filteropt
from experiments.data import MNIST5K
from experiments.errors import UserError
from experiments.models import LeNet5
from experiments.optimizers import SHORT_RUN
from experiments.reproduce import report
from experiments.reproduce.appendix_a import gradients
from experiments.reproduce.part import Part
from experiments.reproduce.training import one_thread
from experiments.train import Standardise

BATCH = 128
SIZES = (1, 4, 16, 64, 128, 256, 512)
SHOWN = (1, 16, 128, 512)
LEVEL = 0.05
_COLOURS = (report.RED, report.ORANGE, report.BLUE, report.GREEN)


@dataclass(frozen=True)
class AppendixB(Part):
    """Appendix B: normality of minibatch gradients over the batch size.

    LeNet-5 on MNIST-5k, before, during and after training: skewness, excess kurtosis, the distance
    to a normal distribution and how often a test rejects it, over weights drawn at random, for
    minibatches of 1 to 512 images.
    """

    name: ClassVar[str] = "appendix-b"

    weights: int = 300
    """Weights looked at, drawn from those with a gradient."""

    batches: int = 1000
    """Minibatches of each size."""

    epochs: int = 10
    """Passes over the training images; the network is looked at after 0, 1 and all of them."""

    seed: int = 0
    """Fixes the initial weights, the minibatches and the weights looked at."""

    def run(self, console: Console) -> int:
        """Train, measure and report.

        Args:
            console: Where to print.

        Returns:
            The exit code, 0.

        Raises:
            UserError: If a number is too small.
        """
        for name, least in (("weights", 1), ("batches", 20), ("epochs", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        self.begin()
        with one_thread("cpu"):
            stages = measure(self.epochs, self.weights, self.batches, self.seed)
        rows = [
            {"epoch": epoch, "batch_size": size, **normality(values)}
            for epoch, sizes in stages.items()
            for size, values in sizes.items()
        ]
        self._draw(stages, rows)
        parts = [
            "![Quantiles, excess kurtosis and rejections over the batch size](appendix-b.png)",
            f"{self.weights} weights, {self.batches} minibatches of each size, seed {self.seed}. "
            "Medians over the weights; rejected: by D'Agostino and Pearson's test at 5 %, which "
            "rejects 5 % of normal distributions.",
            report.table(
                ("epochs", "batch size", "skewness (absolute)", "excess kurtosis",
                 "Kolmogorov-Smirnov distance", "rejected"),
                [
                    (
                        str(row["epoch"]), str(row["batch_size"]), f"{row['skewness']:.2f}",
                        f"{row['kurtosis']:.2f}", f"{row['distance']:.3f}",
                        f"{100 * row['rejected']:.0f} %",
                    )
                    for row in rows
                ],
            ),
            "The central limit theorem divides the excess kurtosis by the batch size, and the "
            "skewness by its root: what counts is how few examples carry the gradient.",
        ]  # fmt: skip
        title = "Appendix B: normality of minibatch gradients"
        report.write(self, title, parts, {"rows": rows}, console)
        return 0

    def _draw(self, stages: dict[int, dict[int, NDArray]], rows: list[dict[str, Any]]) -> None:
        from scipy import stats

        drawn, axes = report.figure(12.3, 7.2, 2, 3)
        grid = (np.arange(1, 200) - 0.5) / 199
        expected = stats.norm.ppf(grid)
        for column, (epoch, sizes) in enumerate(stages.items()):
            axis = axes[0, column]
            for size, colour in zip(SHOWN, _COLOURS, strict=True):
                seen = np.quantile(standardised(sizes[size]), grid, axis=0)
                low, middle, high = np.quantile(seen, [0.1, 0.5, 0.9], axis=1)
                axis.plot(expected, middle, color=colour, label=f"{size}", linewidth=1.6)
                axis.fill_between(expected, low, high, color=colour, alpha=0.13, linewidth=0)
            axis.plot([-3, 3], [-3, 3], color=report.BLACK, linewidth=0.9, dashes=(4, 2))
            axis.set(xlim=(-2.9, 2.9), ylim=(-4.5, 4.5), xlabel="normal quantile")
            axis.set_title(_after(epoch))
        axes[0, 0].set_ylabel("gradient's quantile")
        axes[0, 0].legend(title="batch size", frameon=False, loc="upper left")
        for axis in axes[0, len(stages) :]:
            axis.set_visible(False)
        shades = ("#9ECAE1", report.BLUE, "#08306B")
        for shade, epoch in zip(shades, stages, strict=False):
            own = [row for row in rows if row["epoch"] == epoch]
            style = {"color": shade, "marker": "o", "ms": 4, "label": _after(epoch)}
            for axis, name in zip(axes[1], ("kurtosis", "distance", "rejected"), strict=True):
                factor = 100 if name == "rejected" else 1
                # Medians near 0 have either sign by chance: a logarithmic axis leaves them out.
                seen = [row for row in own if name != "kurtosis" or row[name] > 0]
                sizes = [row["batch_size"] for row in seen]
                axis.plot(sizes, [factor * row[name] for row in seen], **style)
        first = max(row["kurtosis"] for row in rows if row["batch_size"] == 1)
        axes[1, 0].plot(SIZES, first / np.array(SIZES), color=report.GREY, label="1 / batch size")
        axes[1, 2].axhline(100 * LEVEL, color=report.GREY, linewidth=1, label="normal values")
        for axis, label in zip(
            axes[1],
            ("excess kurtosis", "distance to a normal distribution", "normality rejected (%)"),
            strict=True,
        ):
            axis.set(xscale="log", xlabel="batch size", ylabel=label)
            axis.legend(frameon=False)
        axes[1, 0].set(yscale="log", ylim=(0.02, 2 * first))
        axes[1, 1].set_ylim(bottom=0)
        axes[1, 2].set_ylim(0, 104)
        report.save(drawn, self)


def _after(epoch: int) -> str:
    return f"after {epoch} epoch{'' if epoch == 1 else 's'}"


def measure(epochs: int, weights: int, batches: int, seed: int) -> dict[int, dict[int, NDArray]]:
    """Train, and draw minibatch gradients along the way.

    Args:
        epochs: Passes over the training images.
        weights: Weights looked at.
        batches: Minibatches of each size.
        seed: Of everything random.

    Returns:
        By epoch and batch size, gradients ``(batches, weights)``.
    """
    mnist = MNIST5K.load(Path())
    x = Standardise(mnist.train_images)(mnist.train_images)
    y = mnist.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LeNet5(1, 28, 10)
    opt = filteropt.AdaBayes(model.parameters(), batch_size=BATCH, **SHORT_RUN)
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for epoch in range(epochs + 1):
        if epoch in (0, 1, epochs):
            each = chosen_gradients(model, x, y, weights, draw)
            found[epoch] = {size: sums(each, size, batches, draw) for size in SIZES}
        for batch in torch.randperm(len(y), generator=draw).split(BATCH):
            opt.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            opt.step()
    return found


def chosen_gradients(
    model: nn.Module, x: Tensor, y: Tensor, weights: int, draw: torch.Generator
) -> Tensor:
    """Every example's gradient of weights drawn at random.

    Args:
        model: The network.
        x: Images.
        y: Labels.
        weights: How many; weights whose gradient is zero for more than half of the examples are
            passed over.
        draw: Draws them.

    Returns:
        Gradients ``(n, weights)``.
    """
    params = {name: p.detach() for name, p in model.named_parameters()}
    order = torch.randperm(sum(p.numel() for p in params.values()), generator=draw)[: 8 * weights]
    parts = zip(x.split(200), y.split(200), strict=True)
    found = torch.cat([gradients(model, params, *part)[:, order] for part in parts])
    alive = (found != 0).float().mean(0) >= 0.5
    return found[:, alive][:, :weights].double()


def sums(each: Tensor, size: int, batches: int, draw: torch.Generator) -> NDArray:
    """Gradients of minibatches: sums over examples drawn without replacement.

    Args:
        each: Gradients of the examples ``(n, weights)``.
        size: Examples per minibatch.
        batches: Minibatches.
        draw: Draws them.

    Returns:
        Gradients ``(batches, weights)``.
    """
    rows = [torch.randperm(len(each), generator=draw)[:size] for _ in range(batches)]
    return torch.stack([each[row].sum(0) for row in rows]).numpy()


def standardised(values: NDArray) -> NDArray:
    """Columns with mean 0 and variance 1.

    Args:
        values: Rows of gradients.

    Returns:
        As many rows.
    """
    return (values - values.mean(0)) / values.std(0)


def normality(values: NDArray) -> dict[str, float]:
    """How far columns are from normal distributions.

    Args:
        values: Rows of gradients.

    Returns:
        Medians over the columns, and the fraction that the test rejects.
    """
    from scipy import stats

    z = np.sort(standardised(values), axis=0)
    n = len(z)
    rank = np.arange(1, n + 1)[:, None]
    chance = stats.norm.cdf(z)
    distance = np.maximum(rank / n - chance, chance - (rank - 1) / n).max(0)
    return {
        "skewness": float(np.median(abs(stats.skew(values)))),
        "kurtosis": float(np.median(stats.kurtosis(values))),
        "distance": float(np.median(distance)),
        "rejected": float(np.mean(stats.normaltest(values).pvalue <= LEVEL)),
    }
