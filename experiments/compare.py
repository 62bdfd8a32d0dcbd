"""The comparison: every optimizer on every task, over several seeds, with a table at the end."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from experiments.config import Parallel, at_least, hint
from experiments.optimizers import OPTIMIZERS
from experiments.plan import (
    plan_runs,
    prepare_data,
    read_choices,
    read_device,
    read_seeds,
    read_tasks,
)
from experiments.progress import Meter
from experiments.store import Store, run_name
from experiments.tasks import OFFLINE_TASKS, Task
from experiments.train import Run
from experiments.workers import run_all

QUICK_SEEDS, FULL_SEEDS = 3, 10


@dataclass(frozen=True)
class Compare(Parallel):
    """Train every optimizer on every task and print a table of means over seeds.

    Without options this is the quick form: the offline tasks, 3 seeds, a few minutes on 2 cores.
    All optimizers share the split, and for each seed the initial weights and the order of the
    data. Finished runs are kept one by one: interrupted, the same command resumes; repeated, it
    reuses them.
    """

    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Optimizers, each optionally with settings, such as adabayes:lr_sgd=0.5,weight_decay=0."""

    tasks: tuple[str, ...] = OFFLINE_TASKS
    """Tasks; `python -m experiments list` describes them."""

    seeds: Annotated[tuple[int, ...], hint("3, or 10 in the full form")] = ()
    """How many seeds (3 means seeds 0, 1 and 2), or two or more seeds themselves."""

    epochs: Annotated[int | None, hint("each task's own number")] = None
    """Epochs of every task."""

    quick: bool = True
    """The quick form, or the full one: three or four times the epochs, and 10 seeds."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Every learning rate follows a cosine to 0 over the run, step by step, or is constant."""

    evaluate_on: Literal["test", "validation"] = "test"
    """The test images, or a held-out fifth of the training images to choose settings on."""

    device: str = "cpu"
    """Device for the tensors, such as cpu, cuda or cuda:1; on a GPU --workers is 1 by default."""

    data_dir: Annotated[Path | None, hint("a cache folder of the user")] = None
    """Folder of the files of MNIST, CIFAR-10 or CIFAR-100; missing ones are downloaded to it."""

    out: Path = Path("results/compare")
    """Folder for the finished runs, the table, the curves and the rows."""

    def run(self, console: Console) -> int:
        """Plan, train what is missing, report.

        Args:
            console: Where to write.

        Returns:
            The exit code: 0, or 130 when interrupted.
        """
        runs, data_dir = self._plan(console)
        store = Store(self.out / "runs")
        if self.fresh:
            for run in runs:
                store.discard(run)
        try:
            results = self._train(runs, data_dir, store, console)
        except KeyboardInterrupt:
            kept = sum(store.load(run) is not None for run in runs)
            return self.interrupted(f"{kept} of {len(runs)} runs", console)
        from experiments.report import write_report

        write_report(runs, results, self.out, console)
        return 0

    def _plan(self, console: Console) -> tuple[list[Run], Path]:
        tasks = read_tasks(self.tasks)
        choices = read_choices(self.optimizers)
        seeds = read_seeds(self.seeds or ((QUICK_SEEDS if self.quick else FULL_SEEDS),))
        epochs = {task.name: self._epochs(task) for task in tasks}
        device = read_device(self.device)
        self.processes(device)
        for choice in choices:
            choice.settings(tasks[0].batch_size)
        self.begin()
        data_dir = prepare_data(tasks, self.data_dir, console)
        runs = plan_runs(
            tasks,
            choices,
            seeds,
            epochs,
            schedule=self.schedule,
            device=device,
            evaluate_on=self.evaluate_on,
            data_dir=data_dir,
        )
        return runs, data_dir

    def _epochs(self, task: Task) -> int:
        own = task.quick_epochs if self.quick else task.full_epochs
        return at_least("epochs", self.epochs, own)

    def _train(
        self, runs: list[Run], data_dir: Path, store: Store, console: Console
    ) -> list[dict[str, Any]]:
        """Train the runs that have not finished, saving each as it does.

        Args:
            runs: All runs.
            data_dir: Where data files are.
            store: The finished ones.
            console: Where progress is shown.

        Returns:
            The results, in the order of the runs.
        """
        store.clean()
        wanted = {run_name(run): run for run in runs}
        results = {name: found for name in wanted if (found := store.load(wanted[name]))}
        missing = [wanted[name] for name in wanted if name not in results]
        console.print(
            f"{len(wanted)} runs, {len(results)} of them already finished, "
            f"{self.processes(self.device)} at a time",
            highlight=False,
        )
        if missing:
            work = sum(run.task.cost * run.epochs for run in missing)
            with (
                Meter(console, len(missing), work) as meter,
                closing(
                    run_all(
                        missing,
                        data_dir,
                        self.processes(self.device),
                        on_epoch=lambda run: meter.advance(run.task.cost),
                    )
                ) as finished,
            ):
                for run, result in finished:
                    store.save(run, result)
                    results[run_name(run)] = result
                    meter.finish_run()
        return [results[run_name(run)] for run in runs]
