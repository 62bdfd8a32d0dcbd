"""Appendix A: is a squared gradient, or the Fisher information, a good estimate of the Hessian?"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import filteropt
from experiments import data
from experiments.errors import UserError
from experiments.models import mlp
from experiments.optimizers import SHORT_RUN
from experiments.reproduce import report
from experiments.reproduce.part import Part
from experiments.reproduce.training import one_thread
from experiments.train import Standardise

BATCH, DRAWS, HIDDEN = 128, 20, 32
STAGES = (0, 1, 5, 30)
ESTIMATES = {
    "squared": "g²",
    "centred": "(g − ⟨g⟩)²",
    "sampled": "sampled Fisher",
    "per_example": "Σᵢ gᵢ²",
}


@dataclass(frozen=True)
class AppendixA(Part):
    """Appendix A: exact Hessian diagonals against what optimizers use in their place.

    A perceptron (64-32-32-10) on scikit-learn's digits, looked at before, during and after
    training: the squared minibatch gradient, the centred one, the Fisher information by sampled
    labels, and the sum of squared per-example gradients.
    """

    name: ClassVar[str] = "appendix-a"

    batches: int = 400
    """Minibatches that estimates are averaged over."""

    epochs: int = 30
    """Passes over the training images; the network is looked at after 0, 1, 5 and all of them."""

    seed: int = 0
    """Fixes the initial weights, the minibatches and the drawn labels."""

    def run(self, console: Console) -> int:
        """Train, measure and report.

        Args:
            console: Where to print.

        Returns:
            The exit code, 0.

        Raises:
            UserError: If a number is too small.
        """
        for name, value, least in (("batches", self.batches, DRAWS), ("epochs", self.epochs, 1)):
            if value < least:
                raise UserError(f"--{name} is {value}; it must be at least {least}")
        self.begin()
        with one_thread("cpu"):
            stages = measure(self.epochs, self.batches, self.seed)
        rows = [
            {"epoch": epoch, "estimate": name, **compare_to_hessian(found, name)}
            for epoch, found in stages.items()
            for name in ESTIMATES
        ]
        self._draw(stages)
        lines = [
            (
                ESTIMATES[row["estimate"]], str(row["epoch"]), f"{row['rank']:.3f}",
                f"{row['median']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}",
                f"{row['rank_of_one']:.3f}",
            )
            for row in rows
        ]  # fmt: skip
        last = stages[self.epochs]
        parts = [
            "![Estimates against the exact Hessian diagonal](appendix-a.png)",
            f"Minibatches of {BATCH} with summed losses, as everywhere; estimates are averaged "
            f"over {self.batches} of them. H is the exact diagonal of the Hessian of the loss "
            f"summed over the training set, times {BATCH}/{last['examples']}, by one "
            "Hessian-vector product per weight in float64. Weights with H = 0, as those of pixels "
            f"that are always black, are left out ({last['zero']} of {last['weights']}). Seed "
            f"{self.seed}.",
            report.table(
                ("estimate", "epoch", "rank correlation with H", "median ratio to H",
                 "5 to 95 % of weights", "rank correlation of one minibatch"),
                lines,
            ),
            "With rectified linear units the loss is a convex function of any one weight, wherever "
            "no unit switches: H is the diagonal of the Gauss-Newton matrix, so the Fisher "
            "information under the model's own labels, and the sampled Fisher is unbiased for it.",
        ]  # fmt: skip
        title = "Appendix A: squared gradients against the Hessian"
        report.write(self, title, parts, {"rows": rows}, console)
        return 0

    def _draw(self, stages: dict[int, dict[str, Any]]) -> None:
        shown = sorted({min(1, self.epochs), self.epochs})
        drawn, axes = report.figure(13.0, 3.4 * len(shown) + 0.3, len(shown), len(ESTIMATES))
        for row, epoch in enumerate(shown):
            found = stages[epoch]
            h = found["hessian"]
            ends = np.array([np.quantile(h[h > 0], 0.002) / 3, h.max() * 3])
            for column, (name, label) in enumerate(ESTIMATES.items()):
                axis = axes[row, column]
                axis.plot(
                    h[h > 0], found[name][h > 0], ".", ms=2.2, alpha=0.35, mew=0, color=report.BLUE
                )
                axis.plot(ends, ends, color=report.RED, linewidth=1.2)
                report.log_axes(axis, "exact H" if row + 1 == len(shown) else "", "")
                axis.set(xlim=ends, ylim=ends)
                if not row:
                    axis.set_title(label)
            plural = "epoch" if epoch == 1 else "epochs"
            axes[row, 0].set_ylabel(f"estimate, after {epoch} {plural}")
        report.save(drawn, self)


def measure(epochs: int, batches: int, seed: int) -> dict[int, dict[str, Any]]:
    """Train, and compute Hessian and estimates along the way.

    Args:
        epochs: Passes over the training images.
        batches: Minibatches that estimates are averaged over.
        seed: Of everything random.

    Returns:
        By epoch: the ``hessian``, each estimate, and each of one minibatch as ``<name>_once``.
    """
    digits = data.DIGITS.load(Path())
    x = Standardise(digits.train_images)(digits.train_images).double()
    y = digits.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(64, HIDDEN, 10).double()
    opt = filteropt.AdaBayes(model.parameters(), batch_size=BATCH, **SHORT_RUN)
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for epoch in range(epochs + 1):
        if epoch in STAGES or epoch == epochs:
            found[epoch] = look(model, x, y, batches, draw)
        for batch in torch.randperm(len(y), generator=draw).split(BATCH):
            opt.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            opt.step()
    return found


def look(
    model: nn.Module, x: Tensor, y: Tensor, batches: int, draw: torch.Generator
) -> dict[str, Any]:
    """Compute the Hessian's diagonal and every estimate of it at the network's weights.

    Args:
        model: The network.
        x: All images.
        y: Their labels.
        batches: Minibatches.
        draw: Draws minibatches and labels.

    Returns:
        What :func:`measure` describes, for one epoch.
    """
    params = {name: p.detach() for name, p in model.named_parameters()}
    share = BATCH / len(y)
    g = gradients(model, params, x, y)
    mean = share * g.sum(0)
    rows = [torch.randperm(len(y), generator=draw)[:BATCH] for _ in range(batches)]
    sums = torch.stack([g[row].sum(0) for row in rows])
    with torch.no_grad():
        chances = model(x).softmax(-1)
    own = []
    for k in range(DRAWS):
        drawn = gradients(model, params, x, chances.multinomial(1, generator=draw).squeeze(1))
        own += [drawn[row].sum(0) for row in rows[k::DRAWS]]
    each = {
        "squared": sums.square(),
        "centred": (sums - mean).square(),
        "sampled": torch.stack(own).square(),
        "per_example": torch.stack([g[row].square().sum(0) for row in rows]),
    }
    h = share * hessian_diagonal(model, params, x, y)
    found: dict[str, Any] = {"hessian": h.numpy(), "examples": len(y), "weights": len(h)}
    found["zero"] = int((h <= 0).sum())
    for name, values in each.items():
        found[name], found[f"{name}_once"] = values.mean(0).numpy(), values[0].numpy()
    return found


def gradients(model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Every example's gradient.

    Args:
        model: The network.
        params: Its parameters.
        x: Images.
        y: Labels.

    Returns:
        Gradients ``(n, d)``.
    """

    def loss(p: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, p, (image[None],)), label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
    return torch.cat([found[name].flatten(1) for name in params], dim=1).detach()


def hessian_diagonal(
    model: nn.Module, params: dict[str, Tensor], x: Tensor, y: Tensor, chunk: int = 32
) -> Tensor:
    """The exact diagonal of the summed loss's Hessian, a product with every unit vector.

    Args:
        model: The network.
        params: Its parameters.
        x: Images.
        y: Labels.
        chunk: Products at a time.

    Returns:
        The diagonal ``(d,)``.
    """

    def loss(p: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, p, (x,)), y, reduction="sum")

    def entry(name: str, k: Tensor) -> Tensor:
        p = params[name]
        unit = torch.nn.functional.one_hot(k, p.numel()).to(p).reshape(p.shape)
        own = grad(lambda q: loss({**params, name: q}))
        return (grad(lambda q: (own(q) * unit).sum())(p) * unit).sum()

    return torch.cat(
        [
            vmap(partial(entry, name), chunk_size=chunk)(torch.arange(p.numel()))
            for name, p in params.items()
        ]
    ).detach()


def compare_to_hessian(found: dict[str, Any], name: str) -> dict[str, float]:
    """How good one estimate is.

    Args:
        found: What :func:`look` returned.
        name: The estimate.

    Returns:
        The rank correlation with H, the median ratio to H and its spread, and the rank correlation
        of a single minibatch.
    """
    from scipy.stats import spearmanr

    h: NDArray = found["hessian"]
    some = h > 0
    low, median, high = np.quantile(found[name][some] / h[some], [0.05, 0.5, 0.95])
    return {
        "rank": float(spearmanr(h[some], found[name][some]).statistic),
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "rank_of_one": float(spearmanr(h[some], found[f"{name}_once"][some]).statistic),
    }
