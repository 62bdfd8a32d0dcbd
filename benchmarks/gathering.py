"""What it costs to gather curvature, as a ratio to a plain forward and backward pass.

Run with ``python -m benchmarks.gathering``. The ways take turns minibatch by minibatch, so that
each ratio compares neighbouring moments; the table gives its median with the middle half of the
rounds. ``PerExample`` gathers squared gradients of single examples, ``SampledFisher`` takes another
backward pass, for the loss of sampled labels.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from filteropt.approximations import PerExample
from filteropt.gathering.example_squares import ExampleSquares
from filteropt.gathering.ledger import Ledger
from filteropt.labels import sample_labels

Minibatch = Callable[[Tensor, Tensor], None]


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def mlp(width: int) -> nn.Module:
    hidden = nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


MODELS = {
    "LeNet-5": lenet,
    "MLP 784-400-400-10": lambda: mlp(400),
    "MLP 784-1200-1200-10": lambda: mlp(1200),  # of the literature on weight uncertainty
}


def plain(model: nn.Module) -> Minibatch:
    def run(x: Tensor, y: Tensor) -> None:
        cross_entropy(model(x), y).backward()
        model.zero_grad()

    return run


def per_example(model: nn.Module) -> Minibatch:
    ledger, params, likelihood = Ledger(), list(model.parameters()), PerExample()
    squares = ExampleSquares(model, ledger)
    squares.require(params, likelihood)

    def run(x: Tensor, y: Tensor) -> None:
        cross_entropy(model(x), y).backward()
        squares.look(params, likelihood)
        squares.clear()
        ledger.clear()
        model.zero_grad()

    return run


def sampled_fisher(model: nn.Module) -> Minibatch:
    ledger, params = Ledger(), list(model.parameters())

    def run(x: Tensor, y: Tensor) -> None:
        logits = model(x)
        cross_entropy(logits, y).backward(retain_graph=True)
        grads = [p.grad for p in params]
        model.zero_grad()
        cross_entropy(logits, sample_labels(logits, "categorical")).backward()
        for p, grad in zip(params, grads, strict=True):
            ledger.add(p, "squares", p.grad.square())
            p.grad = grad
        ledger.clear()
        model.zero_grad()

    return run


WAYS = {"plain": plain, "PerExample": per_example, "SampledFisher": sampled_fisher}


def measure(make: Callable[[], nn.Module], batch: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds per minibatch of every way, one row of neighbouring minibatches per round."""
    torch.manual_seed(0)
    model = make()
    ways = {name: way(copy.deepcopy(model)) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    for i in range(rounds + 3):
        for name, run in ways.items():
            start = time.perf_counter()
            run(x, y)
            if i >= 3:  # the first gatherings are checked
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128, help="examples per minibatch")
    parser.add_argument("--rounds", type=int, default=101, help="interleaved rounds")
    options = parser.parse_args()
    print(f"batch {options.batch}, {options.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'model':<22}{'way':<15}{'ms':>8}{'ratio':>8}   middle half")
    for model, make in MODELS.items():
        seconds = measure(make, options.batch, options.rounds)
        for name, times in seconds.items():
            low, middle, high = np.quantile(times / seconds["plain"], [0.25, 0.5, 0.75])
            milliseconds = 1e3 * np.median(times)
            spread = f"{low:.2f} to {high:.2f}"
            print(f"{model:<22}{name:<15}{milliseconds:>8.2f}{middle:>8.2f}   {spread}")


if __name__ == "__main__":
    main()
