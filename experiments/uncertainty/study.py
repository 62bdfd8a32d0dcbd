"""The study: tune every method alike, fix what was found, test on fresh seeds and under shift."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from experiments.config import Parallel, at_least, hint, read_names
from experiments.errors import UserError
from experiments.keeper import Keeper
from experiments.momentum.arms import Values
from experiments.progress import Meter
from experiments.store import Store
from experiments.uncertainty import runs
from experiments.uncertainty.methods import METHODS, Method
from experiments.uncertainty.predictives import Fitted
from experiments.uncertainty.trial import SELECTION_SEED, Trial

QUICK_EPOCHS = 0.1


@dataclass
class Outcome:
    """What was found of one method.

    Attributes:
        method: The method.
        values: Its settings, selected on validation images.
        fitted: What its predictive distributions left free, fitted on validation images.
        validation_nll: The NLL on validation images that selected them.
        trials: Result of every setting that was tried.
        results: Results of the selected setting on the test images, one for each fresh seed.
    """

    method: Method
    values: Values
    fitted: Fitted
    validation_nll: float
    trials: list[dict[str, Any]]
    results: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Uncertainty(Parallel):
    """Compare the filters' posterior predictives with IVON, VOGN and the usual baselines.

    LeNet-5 on 5,000 MNIST images, tested on test images, rotated ones and digits from another
    source. Every method makes as many passes and is tried at as many settings; the best, with the
    temperature that suits it, is selected by the NLL on validation images and trained on fresh
    seeds. Finished runs are kept one by one: interrupted, the same command resumes.
    """

    methods: Annotated[tuple[str, ...], hint("all")] = ()
    """Methods; `python -m experiments list` names them."""

    settings: Annotated[int | None, hint("6, quick 2")] = None
    """Settings that every method is tried at."""

    seeds: Annotated[int | None, hint("5, quick 2")] = None
    """Fresh seeds that the selected setting is tested on."""

    epochs: Annotated[float | None, hint("10, quick a few steps")] = None
    """Passes over the training images, at one forward and one backward pass per example."""

    equal: Literal["passes", "steps"] = "passes"
    """What all methods have equally many of; a step may take more than these two passes."""

    quick: bool = False
    """Two settings, a few steps, a few images: whether it works, not what is found."""

    out: Path = Path("results/uncertainty")
    """Folder for the finished runs, the tables, the figures and the rows."""

    def run(self, console: Console) -> int:
        """Tune, test, report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.

        Raises:
            UserError: If a name is unknown, or a number too small.
        """
        methods = read_methods(self.methods)
        count = at_least("settings", self.settings, 2 if self.quick else 6)
        seeds = at_least("seeds", self.seeds, 2 if self.quick else 5)
        if self.epochs is not None and not self.epochs > 0:
            raise UserError("--epochs needs more than 0")
        epochs = self.epochs or (QUICK_EPOCHS if self.quick else 10.0)
        workers = self.processes()
        self.begin()
        plan = Plan(methods, count, seeds, epochs, self.equal, small=self.quick)
        keeper = Keeper(Store(self.out / "runs"), workers, runs.perform, fresh=self.fresh)
        try:
            with Meter(console, *plan.work()) as meter:
                outcomes = plan.carry_out(keeper, meter)
        except KeyboardInterrupt:
            return self.interrupted(f"{keeper.finished} of {plan.work()[0]} runs", console)
        from experiments.uncertainty.report import write_report

        write_report(outcomes, plan, self.out, console)
        return 0


def read_methods(words: Sequence[str]) -> list[Method]:
    """Look the methods up, each once, and those whose settings they borrow.

    Args:
        words: Names, also comma-separated; none means all.

    Returns:
        The methods.

    Raises:
        UserError: If a name is unknown, or words hold no name.
    """
    names = read_names("methods", "method", words or tuple(METHODS), METHODS)
    lenders = {METHODS[name].borrows for name in names} & METHODS.keys()
    return [method for name, method in METHODS.items() if name in {*names, *lenders}]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        methods: The methods.
        count: Settings that every method is tried at.
        seeds: Number of fresh seeds.
        epochs: The budget.
        equal: What it is a budget of.
        small: Whether few images are tested on.
    """

    methods: Sequence[Method]
    count: int
    seeds: int
    epochs: float
    equal: str
    small: bool = False

    def work(self) -> tuple[int, float]:
        """Number of runs, and their cost.

        Returns:
            Both.
        """
        tuned = [method for method in self.methods if method.borrows is None]
        cost = self.count * sum(self._trial(m, {}, SELECTION_SEED).cost for m in tuned)
        cost += self.seeds * sum(self._trial(m, {}, 1, {}).cost for m in self.methods)
        return self.count * len(tuned) + self.seeds * len(self.methods), cost

    def carry_out(self, keeper: Keeper, meter: Meter) -> list[Outcome]:
        """Try settings, more of them about the best, then test the best on fresh seeds.

        Args:
            keeper: Carries runs out.
            meter: Counts them.

        Returns:
            What was found of every method.

        Raises:
            UserError: If a method diverged at every setting.
        """
        tried: dict[str, list[tuple[Values, dict[str, Any]]]] = {}
        tuned = [method for method in self.methods if method.borrows is None]
        points = {m.name: m.arm.settings((self.count + 1) // 2) for m in tuned}
        for _ in range(2):
            trials = [self._trial(m, v, SELECTION_SEED) for m in tuned for v in points[m.name]]
            results = keeper.results([(t, t.cost) for t in trials], meter)
            for trial, result in zip(trials, results, strict=True):
                tried.setdefault(trial.name, []).append((trial.values, result))
            best = {name: min(runs, key=lambda run: score(run[1])) for name, runs in tried.items()}
            more = self.count // 2
            points = {m.name: m.arm.settings(more, about=best[m.name][0]) for m in tuned}
        outcomes = [self._outcome(method, tried, best) for method in self.methods]
        seeds = range(1, self.seeds + 1)
        final = [self._trial(o.method, o.values, s, o.fitted) for s in seeds for o in outcomes]
        tested = iter(keeper.results([(t, t.cost) for t in final], meter))
        for _ in seeds:
            for outcome in outcomes:
                outcome.results.append(next(tested))
        return outcomes

    def _outcome(self, method: Method, tried: dict[str, Any], best: dict[str, Any]) -> Outcome:
        name = method.borrows or method.name
        values, result = best[name]
        if result["diverged"]:
            raise UserError(f"{name} diverged at every setting that was tried")
        runs = [run for _, run in tried[name]]
        return Outcome(method, values, result["curves"]["fitted"], score(result), runs)

    def _trial(
        self, method: Method, values: Values, seed: int, fitted: Fitted | None = None
    ) -> Trial:
        return Trial(method.name, values, seed, self.epochs, self.equal, fitted, self.small)


def score(result: dict[str, Any]) -> float:
    """Rank a run on validation images.

    Args:
        result: What the run returned.

    Returns:
        The NLL of the posterior predictive, or of the point estimate where that is all there is;
        infinity for a run that diverged.
    """
    if result["diverged"]:
        return float("inf")
    found = result["metrics"]
    nll: float = found.get("posterior", found.get("point"))["nll"]
    return nll
