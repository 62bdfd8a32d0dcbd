"""How long a step takes, as a ratio to torch's AdamW (foreach) on the same tensors.

Run with ``make bench`` or ``python -m benchmarks.step_time --size 2e6``. The optimizers take turns
step by step, so that each ratio compares neighbouring moments; the table gives its median with the
middle half of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import filteropt

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW (foreach)": lambda params: torch.optim.AdamW(params, foreach=True),
    "AdamW (loop)": lambda params: torch.optim.AdamW(params, foreach=False),
    "AdaBayes": lambda params: filteropt.AdaBayes(params, batch_size=128),
    "AdaBayes (exact OU)": lambda params: filteropt.AdaBayes(
        params, batch_size=128, discretization="exact"
    ),
    "AdaBayes-FP": lambda params: filteropt.AdaBayesFP(params, batch_size=128),
    "AdaBayes-FP (exact)": lambda params: filteropt.AdaBayesFP(
        params, batch_size=128, fixed_point="exact"
    ),
}


def tensors(total: int, seed: int = 0) -> list[torch.nn.Parameter]:
    """A ResNet-like list: many small tensors, a few large ones, ``total`` weights in all."""
    generator = torch.Generator().manual_seed(seed)
    shares = np.array([2.0 ** (i % 12) for i in range(60)])
    sizes = np.maximum(1, shares / shares.sum() * total).astype(int)
    params = [torch.nn.Parameter(torch.randn(int(n), generator=generator)) for n in sizes]
    for p in params:
        p.grad = 1e-2 * torch.randn(p.shape, generator=generator)
    return params


def measure(total: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds per step of every optimizer, one row of neighbouring steps per round."""
    optimizers = {name: make(tensors(total)) for name, make in OPTIMIZERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for i in range(rounds + 2):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            if i >= 2:  # the first steps create the state
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=2e6, help="weights in all")
    parser.add_argument("--rounds", type=int, default=31, help="interleaved rounds")
    options = parser.parse_args()
    seconds = measure(int(options.size), options.rounds)
    reference = seconds["AdamW (foreach)"]
    print(f"{options.size:.0e} weights, {options.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'optimizer':<22}{'ms per step':>12}{'ratio':>8}   middle half")
    for name, times in seconds.items():
        low, middle, high = np.quantile(times / reference, [0.25, 0.5, 0.75])
        milliseconds = 1e3 * np.median(times)
        print(f"{name:<22}{milliseconds:>12.2f}{middle:>8.2f}   {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
