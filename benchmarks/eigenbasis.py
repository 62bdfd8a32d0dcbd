"""How long a step in the eigenbasis takes, as a ratio to two implementations of SOAP.

Run with ``python -m benchmarks.eigenbasis``, or with ``--width 16`` for a smaller network. The
parameters have the 110 shapes of a ResNet-34, the gradients are random. The optimizers take turns
step by step; what is compared is the time of a whole period of ``update_every`` steps, with its one
turn of the basis in it, so that the cost of the turn is spread over the period. The table gives the
median over the periods, with the middle half of them, and what each optimizer keeps per weight.

All settings that they share are equal, and no sides are merged: the two rotate a convolution's
O×I×h×w kernel along four sides, ``EigenbasisFilter`` along three, O, I and h·w. The packages,
``heavyball`` and ``pytorch_optimizer``, are no dependencies of this one: install them to compare.
``heavyball`` compiles its kernels, in the steps that are not counted and for many minutes;
``TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS=ATEN`` spares it a search for matrix products that
torch's own serve, and ``TORCHINDUCTOR_CACHE_DIR`` keeps what it compiled for the next run.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import filteropt
from benchmarks.measure import bytes_in
from benchmarks.shapes import resnet34

RATES = {"lr": 1e-3, "betas": (0.95, 0.95), "weight_decay": 0.01}
MAX_DIM = 2048

Make = Callable[[list[torch.nn.Parameter], int], torch.optim.Optimizer]


def eigenbasis(params: list[torch.nn.Parameter], every: int) -> torch.optim.Optimizer:
    return filteropt.EigenbasisFilter(
        params, batch_size=128, update_every=every, max_dim=MAX_DIM, **RATES
    )


def of_pytorch_optimizer(params: list[torch.nn.Parameter], every: int) -> torch.optim.Optimizer:
    soap: Any = importlib.import_module("pytorch_optimizer").SOAP
    settings = {"precondition_frequency": every, "max_precondition_dim": MAX_DIM}
    return soap(params, merge_dims=False, **settings, **RATES)  # type: ignore[no-any-return]


def of_heavyball(params: list[torch.nn.Parameter], every: int) -> torch.optim.Optimizer:
    soap: Any = importlib.import_module("heavyball").SOAP
    settings = {"precondition_frequency": every, "max_precond_dim": MAX_DIM}
    return soap(params, merge_dims=False, **settings, **RATES)  # type: ignore[no-any-return]


OPTIMIZERS: dict[str, Make] = {
    "EigenbasisFilter": eigenbasis,
    "SOAP (pytorch_optimizer)": of_pytorch_optimizer,
    "SOAP (heavyball)": of_heavyball,
}


def parameters(width: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(0.05 * torch.randn(shape, generator=generator))
        for shape in resnet34(width)
    ]


def installed() -> dict[str, Make]:
    """The optimizers that can be made here; names what cannot."""
    found = {}
    for name, make in OPTIMIZERS.items():
        try:
            make([torch.nn.Parameter(torch.zeros(2, 2))], 10)
        except ImportError as error:
            print(f"{name} is left out: {error}")
        else:
            found[name] = make
    return found


def measure(
    width: int, rounds: int, every: int, warmup: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Seconds per step of every optimizer, averaged over each period, and bytes per weight."""
    optimizers = {name: make(parameters(width), every) for name, make in installed().items()}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    shapes, generator = list(resnet34(width)), torch.Generator().manual_seed(1)
    for i in range((warmup + rounds) * every):
        grads = [1e-2 * torch.randn(shape, generator=generator) for shape in shapes]
        for name, optimizer in optimizers.items():
            for p, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
                p.grad = grad.clone()
            start = time.perf_counter()
            optimizer.step()
            if i >= warmup * every:  # the first periods create the state, compile and turn
                seconds[name].append(time.perf_counter() - start)
            optimizer.zero_grad(set_to_none=True)
    weights = sum(p.numel() for p in parameters(width))
    means = {k: np.array(times).reshape(rounds, every).mean(1) for k, times in seconds.items()}
    return means, {
        name: bytes_in(dict(optimizer.state)) / weights for name, optimizer in optimizers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved periods")
    parser.add_argument("--warmup", type=int, default=2, help="periods that are not counted")
    parser.add_argument("--every", type=int, default=10, help="steps between turns of the basis")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds, memory = measure(options.width, options.rounds, options.every, options.warmup)
    print(
        f"ResNet-34's shapes at width {options.width}, {options.rounds} periods of "
        f"{options.every} steps, {options.threads} threads"
    )
    soaps = [name for name in seconds if name.startswith("SOAP")]
    fastest = min(soaps or seconds, key=lambda name: float(np.median(seconds[name])))
    print(f"ratios are to {fastest}")
    print(f"{'optimizer':<26}{'ms per step':>12}{'ratio':>8}   {'middle half':<14}bytes/weight")
    for name, times in seconds.items():
        low, middle, high = np.quantile(times / seconds[fastest], [0.25, 0.5, 0.75])
        milliseconds = 1e3 * np.median(times)
        spread = f"{low:.2f} to {high:.2f}"
        print(f"{name:<26}{milliseconds:>12.1f}{middle:>8.2f}   {spread:<14}{memory[name]:>12.1f}")


if __name__ == "__main__":
    main()
