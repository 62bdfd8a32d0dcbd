"""The study: tune every arm alike, measure how much its rate matters, test it on fresh seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from experiments.ablate.jobs import perform
from experiments.ablate.outcomes import Outcome, tune_and_test
from experiments.ablate.plan import Plan, make_plan, room
from experiments.ablate.rows import Rows, alone
from experiments.ablate.tuning import rounds
from experiments.config import Parallel, hint, read_out, write_config
from experiments.errors import UserError
from experiments.keeper import Keeper, Spread
from experiments.progress import Meter

QUICK_EPOCHS, QUICK_TRIALS, QUICK_RATES = 2, 2, 3


@dataclass(frozen=True)
class Ablate(Parallel):
    """Compare any grid of compositions, every arm tuned by the same number of trials.

    The grid is dynamics x likelihood x posterior x basis x --vary, with named compositions and
    optimizers beside it. Every arm is tried at as many settings on held-out training examples; its
    best runs on fresh seeds, under which all arms share initial weights and minibatches, and is
    measured on the test examples. The report has confidence intervals, paired differences, what
    each factor does, expected-best-of-k curves, the width of good rates and the time to a target.
    Finished runs are kept one by one: killed and repeated, the same command goes on.
    """

    tasks: tuple[str, ...] = ("digits-mlp",)
    """Tasks; `python -m experiments list` describes them."""

    dynamics: tuple[str, ...] = ("FixedNoise", "RandomWalk", "ForgetToPrior")
    """Parts, such as FixedNoise or "FixedNoise(discretization='exact')"."""

    likelihood: tuple[str, ...] = (
        "Averaged(SquaredGradient)",
        "Averaged(CentredGradient)",
        "Averaged(PerExample)",
    )
    """Parts, such as SquaredGradient or "Averaged(CentredGradient, beta2=0.99)"."""

    posterior: tuple[str, ...] = ("Diagonal", "FixedPoint")
    """Parts, such as Diagonal or "FixedPoint('exact')"."""

    basis: tuple[str, ...] = ("Identity",)
    """Parts, such as Identity or KroneckerEigenbasis."""

    vary: tuple[str, ...] = ()
    """Hyperparameters that span the grid, such as "beta1=0|0.9", for the arms that take them."""

    compositions: tuple[str, ...] = ()
    """Compositions by name, filteropt's own or a plugin's, compared beside the grid."""

    optimizers: tuple[str, ...] = ()
    """Optimizers by name, such as adamw or sgd:momentum=0, compared beside the grid."""

    search: tuple[str, ...] = ()
    """What is tuned beside lr, forgetting, lr_sgd and prior_variance, or within other ends, such as
    lr=1e-3:1; the scale is logarithmic."""

    trials: Annotated[int | None, hint("8, quick 2")] = None
    """Settings that every arm is tried at on every task."""

    tuner: Literal["random", "optuna"] = "random"
    """Independent draws, or Optuna's TPE in four rounds."""

    rates: Annotated[int | None, hint("5, quick 3")] = None
    """Rates over which the best setting is run again, under every fresh seed; 0 leaves it out."""

    seeds: tuple[int, ...] = (3,)
    """How many fresh seeds (3 means 1, 2 and 3), or two or more seeds themselves."""

    epochs: Annotated[
        int | None, hint("20, or the task's own number if that is lower; quick 2")
    ] = None
    """Epochs of every task."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Steps follow a cosine to 0 over the run, or are constant."""

    reference: Annotated[str | None, hint("the first arm")] = None
    """The arm that the others are compared with, by its name in the tables."""

    target: Annotated[float | None, hint("what half of the arms end at")] = None
    """Test NLL to which time is measured."""

    level: float = 0.95
    """Level of the confidence intervals."""

    skip_impossible: bool = False
    """Leave out compositions whose parts do not fit, and list them."""

    quick: bool = False
    """A few trials and epochs: whether it works, not what is found."""

    plugin: tuple[Path, ...] = ()
    """Your own files, with tasks and compositions."""

    out: Path = Path("results/ablate")
    """Folder for the runs, the report and the figures."""

    data_dir: Annotated[Path | None, hint("a cache folder of the user")] = None
    """Folder of the files of MNIST, CIFAR-10 or CIFAR-100; missing ones are downloaded to it."""

    device: str = "cpu"
    """Device for the tensors, such as cpu or cuda; on a GPU --workers is 1 by default."""

    ray: bool = False
    """Run on Ray: on this machine, or on the cluster of --address."""

    address: str | None = None
    """Address of a Ray cluster, such as auto or 10.0.0.1:6379; means --ray."""

    tensorboard: bool = False
    """Write every run's curves for TensorBoard."""

    def run(self, console: Console) -> int:
        """Tune, test, report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.

        Raises:
            UserError: If anything that was asked for cannot be.
        """
        asked = self._filled()
        workers = self.processes(self.device)
        asked_rounds = rounds(asked.tuner, asked.trials or 0)
        plan = make_plan(asked, console)
        spread, store_of = self._spread(), self._store_of()
        read_out(self.out)
        room(self.out, plan.runs)
        with alone(self.out):
            write_config(self, self.out / f"{self.name}.yaml")
            store = store_of(self.out / "runs.db")
            keeper = Keeper(store, workers, perform, fresh=self.fresh, spread=spread)
            console.print(
                f"{len(plan.arms)} arms, {plan.runs} runs in {plan.jobs} jobs, {workers} at a time",
                highlight=False,
            )
            for why in plan.skipped:
                console.print(f"Left out: {why}", highlight=False, markup=False)
            try:
                with Meter(console, plan.jobs, plan.work) as meter:
                    outcomes = tune_and_test(plan, asked_rounds, keeper, meter)
            except KeyboardInterrupt:
                return self.interrupted(f"{keeper.finished} of {plan.jobs} jobs", console)
            self._report(plan, outcomes, console)
        return 0

    def _filled(self) -> "Ablate":
        """With numbers where there is a default for each form."""
        quick = (QUICK_TRIALS, QUICK_RATES, QUICK_EPOCHS) if self.quick else (8, 5, None)
        given = (self.trials, self.rates, self.epochs)
        trials, rates, epochs = (
            one if one is not None else other for one, other in zip(given, quick, strict=True)
        )
        for name, value, least in (("trials", trials, 1), ("epochs", epochs, 1)):
            if value is not None and value < least:
                raise UserError(f"--{name} {value} is too few; it needs at least {least}")
        if rates is None or rates < 0 or rates in (1, 2):
            raise UserError(f"--rates {rates} tells no width; it needs at least 3, or 0 for none")
        if not 0 < self.level < 1:
            raise UserError(f"--level {self.level} must be between 0 and 1")
        return replace(self, trials=trials, rates=rates, epochs=epochs)

    def _spread(self) -> Spread | None:
        if not (self.ray or self.address):
            return None
        from experiments.ablate.cluster import on_ray

        return on_ray(self.address)

    def _store_of(self) -> Any:
        if not self.tensorboard:
            return Rows
        from experiments.ablate.boards import logged_rows

        return partial(logged_rows, folder=self.out / "tensorboard")

    def _report(self, plan: Plan, outcomes: Sequence[Outcome], console: Console) -> None:
        from experiments.ablate.report import write_report

        write_report(plan, outcomes, self.out, console)
