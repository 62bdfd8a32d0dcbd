"""From what the user asked for to the list of runs, with every mistake found before training."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

from experiments.errors import UserError
from experiments.fetch import default_data_dir, fetch, fingerprint
from experiments.optimizers import Choice, parse_choice, split_choices
from experiments.tasks import OFFLINE_TASKS, Task, find_task
from experiments.train import Run


def read_tasks(words: Sequence[str]) -> list[Task]:
    """Look the tasks up, each once.

    Args:
        words: Names, also comma-separated.

    Returns:
        The tasks.

    Raises:
        UserError: If a name is unknown or none is given.
    """
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks needs at least one task")
    return list({task.name: task for task in map(find_task, names)}.values())


def read_choices(words: Sequence[str]) -> list[Choice]:
    """Read the optimizers, each once.

    Args:
        words: Names with optional settings, also comma-separated.

    Returns:
        The optimizers.

    Raises:
        UserError: If one cannot be read or none is given.
    """
    choices = [parse_choice(text) for text in split_choices(words)]
    if not choices:
        raise UserError("--optimizers needs at least one optimizer")
    return list({choice.label: choice for choice in choices}.values())


def read_seeds(numbers: Sequence[int]) -> list[int]:
    """Read one number as how many seeds, several numbers as the seeds themselves.

    Args:
        numbers: What the user wrote.

    Returns:
        The seeds.

    Raises:
        UserError: If there are none, or one is negative or repeated.
    """
    seeds = list(range(numbers[0])) if len(numbers) == 1 else list(numbers)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds) or max(seeds) >= 2**63:
        raise UserError(
            "--seeds needs how many seeds (at least 1), or two or more different seeds from 0 up"
        )
    return seeds


def read_device(name: str) -> str:
    """Check that tensors can be made on a device.

    Args:
        name: The device.

    Returns:
        The same name.

    Raises:
        UserError: If it is unknown or absent here.
    """
    try:
        torch.zeros(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, NotImplementedError) as fault:
        reason = str(fault).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from fault
    return name


def prepare_data(tasks: Sequence[Task], data_dir: Path | None, console: Console) -> Path:
    """Fetch and check the files that the tasks need.

    Args:
        tasks: The tasks.
        data_dir: Where the user keeps the files; None is the cache folder.
        console: Where download bars are drawn.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: If a file is missing and cannot be downloaded, or is damaged.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder")
    folder = default_data_dir() if data_dir is None else data_dir
    for task in (task for task in tasks if not task.source.offline):
        try:
            fetch(task.source.files, folder, console)
        except UserError as fault:
            raise UserError(
                f"{task.name}: {fault}; give --data-dir a folder that has the files, or use the "
                f"tasks that need no network: {', '.join(OFFLINE_TASKS)}"
            ) from fault
        images = len(task.source.load(folder).train_labels)
        if images < task.batch_size:
            raise UserError(
                f"{task.name}: {images} training images in {folder} do not fill one batch of "
                f"{task.batch_size}"
            )
    return folder


def plan_runs(
    tasks: Sequence[Task],
    choices: Sequence[Choice],
    seeds: Sequence[int],
    epochs: dict[str, int],
    *,
    schedule: str,
    device: str,
    evaluate_on: str,
    data_dir: Path,
) -> list[Run]:
    """List every run, the costly tasks first so that workers finish together.

    Args:
        tasks: The tasks.
        choices: The optimizers.
        seeds: The seeds.
        epochs: Epochs of each task, by its name.
        schedule: The learning rate's schedule.
        device: Where tensors live.
        evaluate_on: Test or validation.
        data_dir: Where data files are.

    Returns:
        The runs.
    """
    versions = {"torch": torch.__version__, "filteropt": installed("filteropt")}
    data = {task.name: fingerprint(task.source.files, data_dir) for task in tasks}
    runs = [
        Run(
            task=task,
            choice=choice,
            seed=seed,
            epochs=epochs[task.name],
            schedule=schedule,
            device=device,
            evaluate_on=evaluate_on,
            data=data[task.name],
            settings=choice.settings(task.batch_size),
            versions=versions,
        )
        for task in tasks
        for seed in seeds
        for choice in choices
    ]
    return sorted(runs, key=lambda run: -run.task.cost * run.epochs)


def installed(package: str) -> str:
    """The version of a package, or that it is not installed.

    Args:
        package: Its name.

    Returns:
        The version.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
