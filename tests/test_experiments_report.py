"""Statistics over seeds and the report, on known numbers."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.optimizers import parse_choice
from experiments.plan import plan_runs
from experiments.report import write_report
from experiments.stats import best, mean_and_error, paired_differences, rows, summarise
from experiments.tasks import find_task
from experiments.train import Run


def make_runs(*optimizers: str, seeds: tuple[int, ...] = (0, 1, 2)) -> list[Run]:
    return plan_runs(
        [find_task("digits-mlp")],
        [parse_choice(name) for name in optimizers],
        seeds,
        {"digits-mlp": 2},
        schedule="cosine",
        device="cpu",
        evaluate_on="test",
        data_dir=Path(),
    )


def result(error: float | None, nll: float | None = 0.5) -> dict[str, Any]:
    curve = [1.0, 0.5] if error is not None else [1.0]
    return {
        "metrics": {
            "test_error": error,
            "test_nll": nll,
            "test_ece": error,
            "seconds_per_step": 0.002,
        },
        "curves": dict.fromkeys(("train_loss", "test_error", "test_nll", "test_ece"), curve),
        "diverged": error is None,
    }


def report(runs: list[Run], results: list[dict[str, Any]], out: Path) -> str:
    screen = io.StringIO()
    write_report(runs, results, out, Console(file=screen, width=100, force_terminal=True))
    return screen.getvalue()


def test_mean_and_error_of_known_numbers() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert mean_and_error([4.0, 4.0]) == (4.0, 0.0)
    mean, error = mean_and_error([7.0])
    assert mean == 7.0
    assert math.isnan(error)


def test_summary_and_pairs_of_known_numbers() -> None:
    runs = make_runs("adamw", "adabayes", seeds=(0, 1))
    errors = {("AdamW", 0): 0.10, ("AdamW", 1): 0.20, ("AdaBayes", 0): 0.11, ("AdaBayes", 1): 0.23}
    table = rows(runs, [result(errors[run.choice.label, run.seed]) for run in runs])
    summary = summarise(table).set_index("optimizer")
    assert summary.loc["AdamW", "test_error"] == pytest.approx(0.15)
    assert summary.loc["AdamW", "test_error_se"] == pytest.approx(0.05)
    (gap,) = paired_differences(table).to_dict("records")
    assert gap["optimizer"] == "AdaBayes"
    assert gap["test_error"] == pytest.approx(0.02)
    assert gap["test_error_se"] == pytest.approx(0.01)


def test_best_is_every_lowest_mean_and_never_a_diverged_one() -> None:
    runs = make_runs("adamw", "adam", "sgd", "rmsprop", seeds=(0,))
    summary = summarise(rows(runs, [result(e) for e in (0.2, 0.1, None, 0.1)]))
    assert best(summary, "test_error") == {1, 3}
    assert best(summarise(rows(runs, [result(None, None)] * 4)), "test_nll") == set()


def test_report_prints_and_saves_known_numbers(tmp_path: Path) -> None:
    runs = make_runs("adamw", "adabayes", "sgd:lr=0.5")
    errors = {"AdamW": (0.01, 0.02, 0.03), "AdaBayes": (0.02, 0.03, 0.07)}
    results = [result(errors.get(run.choice.label, (None,) * 3)[run.seed]) for run in runs]
    screen = report(runs, results, tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| AdamW | **2.00 ± 0.58** |" in text
    assert "| AdaBayes | 4.00 ± 1.53 |" in text
    assert "| SGD+momentum (lr=0.5) | diverged 3/3 |" in text
    assert "paired by seed: test error (%) +2.00 ± 1.00" in text
    assert "\x1b[1m2.00 ± 0.58\x1b[0m" in screen
    assert "lr=0.001" in text
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {
        *("digits-mlp.png", "digits-mlp.svg", "table.md"),
        *("runs.csv", "curves.csv", "summary.csv", "paired.csv"),
    }
    assert (tmp_path / "digits-mlp.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "runs.csv").read_text(encoding="utf-8").count("\n") == len(runs) + 1


def test_report_of_one_seed_has_no_error_and_is_repeatable(tmp_path: Path) -> None:
    runs = make_runs("adamw", seeds=(0,))
    report(runs, [result(0.0123)], tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "| AdamW | **1.23** |" in first["table.md"].decode()
    assert "1 seed\n" in first["table.md"].decode()
    report(runs, [result(0.0123)], tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_report_survives_runs_that_all_diverged(tmp_path: Path) -> None:
    runs = make_runs("sgd", seeds=(0, 1))
    empty = result(None, None)
    empty["curves"] = {name: [] for name in empty["curves"]}
    assert "diverged 2/2" in report(runs, [empty, empty], tmp_path)
