"""How much faster a sweep is than its runs one after the other, on the digits MLP.

Run with ``python -m benchmarks.sweep``. The same 64 learning rates are trained by torch's AdamW,
one run after the other, and by ``filteropt.sweep`` at once: the same initial weights, the same
minibatches of 64, the same number of steps, losses kept. Both take turns, so that each ratio
compares neighbouring moments; the table gives its median with the middle half of the rounds. What
compiling took, once, is told apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import filteropt
from filteropt import presets

BATCH = 64
COMPOSITIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (presets.adamw, {}),
    "AdaBayesFP": (filteropt.AdaBayesFP, {"batch_size": BATCH}),
    "AdaBayes": (filteropt.AdaBayes, {"batch_size": BATCH}),
    "MomentumFilter": (filteropt.MomentumFilter, {"batch_size": BATCH}),
}
ALONE: dict[str, dict[str, Any]] = {"AdamW": {}, "AdamW (fused)": {"fused": True}}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def minibatches(steps: int, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32, device=device)
    y = torch.tensor(labels, device=device)
    draw, found = torch.Generator().manual_seed(0), []
    while len(found) < steps:
        order = torch.randperm(len(y), generator=draw).to(device)
        found += [(x[rows], y[rows]) for rows in order.split(BATCH)[: len(y) // BATCH]]
    return found[:steps]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def one_after_the_other(
    rates: list[float], batches: list[Any], device: str, **keywords: Any
) -> Any:
    found = []
    for lr in rates:
        torch.manual_seed(0)
        model = network().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, **keywords)
        losses = torch.empty(len(batches), device=device)
        for step, batch in enumerate(batches):
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            losses[step] = value.detach()
        found.append(losses.tolist())
    return found


def timed(function: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=64, help="learning rates")
    parser.add_argument("--steps", type=int, default=220, help="steps of every run")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--chunk", type=int, default=None, help="members at once (default: all)")
    names = list(COMPOSITIONS)
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="compositions")
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=None, help="where to write the seconds")
    options = parser.parse_args()
    device, rates = options.device, np.geomspace(1e-5, 3e-2, options.settings).tolist()
    batches = minibatches(options.steps, device)

    def sweep(name: str, steps: int) -> Any:
        optimizer, fixed = COMPOSITIONS[name]
        return filteropt.sweep(
            network, optimizer, {"lr": rates, **fixed}, loss, batches[:steps],
            chunk=options.chunk or options.settings, compiled=not options.eager, device=device,
        )  # fmt: skip

    jobs: dict[str, Callable[[], Any]] = {
        name: lambda k=keywords: one_after_the_other(rates, batches, device, **k)
        for name, keywords in ALONE.items()
    }
    jobs |= {f"sweep of {n}": lambda n=n: sweep(n, options.steps) for n in options.only}
    first = {name: timed(lambda n=name: sweep(n, 3), device) for name in options.only}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            seconds[name].append(timed(job, device))
    reference = np.array(seconds["AdamW"])
    print(
        f"{options.settings} learning rates, {options.steps} steps, {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads, {device}"
    )
    print(f"{'':<24}{'seconds':>9}{'AdamW / it':>12}   middle half   {'compiling':>10}")
    for name, times in seconds.items():
        low, middle, high = np.quantile(reference / np.array(times), [0.25, 0.5, 0.75])
        compiling = first.get(name.removeprefix("sweep of "))
        once = "" if compiling is None or options.eager else f"{compiling:.1f} s"
        spread = f"{low:.1f} to {high:.1f}"
        print(f"{name:<24}{np.median(times):>9.2f}{middle:>12.1f}   {spread:<13} {once:>10}")
    if options.json is not None:
        text = {"options": {k: str(v) for k, v in vars(options).items()}, "seconds": seconds}
        options.json.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
