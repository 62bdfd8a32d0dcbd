"""Figure 3: the learning rates that AdaBayes has learned, against their predicted fixed point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from experiments.errors import UserError
from experiments.fetch import fingerprint
from experiments.plan import read_device
from experiments.reproduce import report
from experiments.reproduce.benchmark import find_data
from experiments.reproduce.part import Part
from experiments.reproduce.protocol import BATCH, LENET, PROBLEMS
from experiments.reproduce.training import Trial, perform

LR, PRIOR = 1e-3, 0.1 / BATCH
DECAY = 0.999
NEAR = 0.05
LOOKS = (0.05, 0.3, 1.0)  # of the training


class SecondMoment:
    """The debiased running average of every weight's squared gradient, as Adam keeps it."""

    def __init__(self, model: nn.Module, optimizer: Any, looks: Sequence[int] = ()) -> None:
        """Watch an optimizer's steps.

        Args:
            model: The network.
            optimizer: Its AdaBayes.
            looks: Steps after which every weight's numbers are kept.
        """
        self.looks = looks
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.optimizer = optimizer
        self.params = list(model.parameters())
        self.sums = [torch.zeros_like(p) for p in self.params]
        self.steps = 0
        optimizer.register_step_post_hook(lambda *_: self._see())

    def _see(self) -> None:
        self.steps += 1
        for total, p in zip(self.sums, self.params, strict=True):
            total.mul_(DECAY).add_((BATCH * p.grad).square(), alpha=1 - DECAY)
        if self.steps in self.looks:
            self.seen[self.steps] = self.points()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self.sums, "steps": self.steps, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state.

        Args:
            state: What :meth:`state_dict` returned.
        """
        self.sums, self.steps, self.seen = state["sums"], state["steps"], state["seen"]

    def points(self) -> tuple[Tensor, Tensor]:
        """The mean squared gradient and the belief's variance of every weight."""
        moments = torch.cat([total.flatten() for total in self.sums]) / (1 - DECAY**self.steps)
        variances = [self.optimizer.posterior_variance(p).flatten() for p in self.params]
        return moments.double().cpu(), torch.cat(variances).double().cpu()


@dataclass(frozen=True)
class Fig3(Part):
    """Figure 3: every weight's learned rate against the fixed point, SGD's and Adam's.

    A network is trained with AdaBayes at the paper's settings. The page says how many weights are
    within 5 % of the fixed point, after 5 % and 30 % of the training and at its end.
    """

    name: ClassVar[str] = "fig3"

    scale: Literal["paper", "small"] = "paper"
    """paper: ResNet-34 on CIFAR-10, 200 epochs. small: LeNet-5 on MNIST-5k, 100 epochs."""

    epochs: int | None = None
    """Passes over the training images, if not the scale's."""

    seed: int = 0
    """Fixes the initial weights and the order of the images."""

    device: str = "cpu"
    """Where tensors live: cpu or cuda."""

    data_dir: Path | None = None
    """Folder that has CIFAR's files; by default they are downloaded to the cache."""

    def run(self, console: Console) -> int:
        """Train and draw; killed, the same command goes on from the last epoch.

        Args:
            console: Where to print.

        Returns:
            The exit code, 0.

        Raises:
            UserError: If an option is out of its range, or the training diverged.
        """
        problem = PROBLEMS["cifar10-resnet" if self.scale == "paper" else LENET.name]
        epochs = problem.epochs if self.epochs is None else self.epochs
        if epochs < 1:
            raise UserError(f"--epochs is {epochs}; it must be at least 1")
        read_device(self.device)
        self.begin()
        folder = find_data([problem], self.data_dir, console)
        trial = Trial(
            problem.name, "adabayes", self.seed, epochs, self.device,
            fingerprint(problem.source.files, folder), folder, self.out / self.name,
        )  # fmt: skip
        steps = epochs * math.ceil(len(problem.source.load(folder).train_labels) / BATCH)
        watches: list[SecondMoment] = []

        def watch(model: nn.Module, optimizer: Any) -> SecondMoment:
            looks = [max(1, round(part * steps)) for part in LOOKS]
            watches.append(SecondMoment(model, optimizer, looks))
            return watches[0]

        result = perform(trial, watch)
        if result["diverged"]:
            raise UserError(f"the training diverged in epoch {len(result['curves']['test_loss'])}")
        seen = {step: (m.numpy(), v.numpy()) for step, (m, v) in watches[0].seen.items()}
        numbers = {step: compare_rates(*points) for step, points in seen.items()}
        self._draw(seen, problem.title)
        end = numbers[steps]
        parts = [
            "![The learned rates against the Adam learning rate](fig3.png)",
            f"{problem.title}, {epochs} epochs ({steps} steps) of AdaBayes with lr {LR}, "
            f"lr_sgd 0.1, batch {BATCH}, seed {self.seed}; test error at the end "
            f"{100 * result['metrics']['last_error']:.2f} %.",
            f"At the end **{100 * end['near']:.1f} %** of the {end['weights']:,} weights are "
            f"within {100 * NEAR:.0f} % of the fixed point of Eq. 20, "
            f"{100 * end['near_exact']:.1f} % of the recursion's exact one. The ratio of rate to "
            f"fixed point is {end['ratio_05']:.3f}, {end['ratio_50']:.3f} and "
            f"{end['ratio_95']:.3f} at the 5th, 50th and 95th percentile.",
            report.table(
                ("weights", "steps", "share", "near the fixed point", "near SGD's", "near Adam's"),
                [
                    (
                        row["name"], f"{step}", f"{100 * row['share']:.1f} %",
                        *(_percent(row[line]) for line in ("near", "sgd", "adam")),
                    )
                    for step, found in numbers.items()
                    for row in found["regimes"]
                ],
            ),
        ]  # fmt: skip
        title = "Figure 3: learned rates and their fixed point"
        told = {"epochs": epochs, **result["metrics"], "steps": numbers}
        report.write(self, title, parts, told, console)
        trial.checkpoint.unlink(missing_ok=True)
        return 0

    def _draw(self, seen: dict[int, tuple[NDArray, NDArray]], title: str) -> None:
        drawn, axes = report.figure(1.0 + 4.2 * len(seen), 4.4, 1, len(seen))
        line = np.geomspace(PRIOR / 30, PRIOR * 1e3, 300)
        for axis, (step, (moments, variances)) in zip(axes[0], seen.items(), strict=True):
            some = moments > 0
            x = np.minimum(LR / np.sqrt(moments[some]), line[-1])
            axis.plot(x, variances[some], ".", ms=2.5, alpha=0.3, color="#444444", mew=0, zorder=2)
            axis.plot([], [], "o", ms=4, color="#444444", label="AdaBayes, every weight")
            report.log_axes(axis, r"$\eta\,/\sqrt{\langle g^2\rangle}$", "")
            fixed = taylor((LR / line) ** 2)
            axis.plot(line, fixed, color=report.GREEN, label="fixed point", zorder=5)
            axis.axhline(PRIOR, color=report.ORANGE, label="SGD", dashes=(5, 2), zorder=4)
            axis.plot(line, line, color=report.BLUE, label="Adam", dashes=(5, 2), zorder=4)
            axis.axvline(PRIOR, color=report.PURPLE, label=r"$\sigma^2$", dashes=(1, 1.5), zorder=3)
            axis.set(xlim=(line[0], line[-1]), ylim=(line[0], PRIOR * 3))
            axis.set_title(f"after {step} step{'' if step == 1 else 's'}")
        axes[0, 0].set_ylabel(r"$\sigma^2_\mathrm{post}$")
        axes[0, -1].legend(loc="lower right", frameon=False)
        drawn.suptitle(title)
        report.save(drawn, self)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def taylor(moments: NDArray) -> NDArray:
    """The paper's fixed point (Eq. 20).

    Args:
        moments: Mean squared gradients.

    Returns:
        Variances.
    """
    return 1 / (1 / (2 * PRIOR) + np.sqrt(1 / (4 * PRIOR**2) + moments / LR**2))


def exact(moments: NDArray) -> NDArray:
    """The fixed point of the recursion itself, at a constant squared gradient.

    Args:
        moments: Squared gradients.

    Returns:
        Variances.
    """
    a, q = (1 - LR**2 / (2 * PRIOR)) ** 2, LR**2
    b = 1 - a + moments * q
    return 2 * q / (b + np.sqrt(b * b + 4 * moments * a * q))


def compare_rates(moments: NDArray, variances: NDArray) -> dict[str, Any]:
    """How near the learned rates are to the three lines.

    Args:
        moments: Every weight's mean squared gradient.
        variances: Every weight's learned rate.

    Returns:
        The numbers of the page.
    """
    with np.errstate(divide="ignore"):
        adam = LR / np.sqrt(moments)

    def near(line: NDArray | float, chosen: NDArray) -> float | None:
        found = abs(variances / line - 1)[chosen] <= NEAR
        return float(found.mean()) if chosen.any() else None

    ratio = variances / taylor(moments)
    every = np.ones(len(moments), bool)
    regimes = {
        "all": every,
        "little data (Adam's rate above 3 σ²)": adam > 3 * PRIOR,
        "between": (adam <= 3 * PRIOR) & (adam >= PRIOR / 3),
        "much data (Adam's rate below σ²/3)": adam < PRIOR / 3,
    }
    quantiles = np.quantile(ratio, [0.05, 0.5, 0.95])
    return {
        "weights": len(moments),
        "near": near(taylor(moments), every),
        "near_exact": near(exact(moments), every),
        **{f"ratio_{q}": float(v) for q, v in zip(("05", "50", "95"), quantiles, strict=True)},
        "without_gradient": float(np.mean(moments == 0)),
        "regimes": [
            {
                "name": name, "share": float(chosen.mean()),
                "near": near(taylor(moments), chosen), "sgd": near(PRIOR, chosen),
                "adam": near(adam, chosen),
            }
            for name, chosen in regimes.items()
        ],
    }  # fmt: skip
