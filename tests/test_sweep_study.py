"""The study of sensitivity: its grids, its files and its exit codes."""

import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments.cli import main
from experiments.sweep import runs
from experiments.sweep.arms import ARMS, RATES, read_arms
from experiments.sweep.report import HEADINGS, cells, decades
from experiments.sweep.runs import Trial, perform
from experiments.sweep.study import plan


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["sweep", *map(str, words)], Console(file=screen, width=100))
    return code, screen.getvalue()


def test_every_optimizer_has_a_curve_and_those_with_two_rates_a_map() -> None:
    trials = plan("digits-mlp", read_arms([]), 3, 1, 5)
    curves = [trial for trial in trials if not trial.priors]
    assert len(curves) == 3 * len(ARMS)
    assert {trial.arm_name for trial in trials if trial.priors} == {"adabayes", "adabayes-fp"}
    assert len({json.dumps(trial.identity(), sort_keys=True) for trial in trials}) == len(trials)
    for trial in curves:
        assert (min(trial.settings["lr"]), max(trial.settings["lr"])) == RATES


@pytest.mark.parametrize("name", ARMS)
def test_a_sweep_learns_at_its_best_rate(name: str) -> None:
    found = perform(Trial("digits-mlp", name, 0, 2, 5))
    assert found["curves"]["lr"] == [1e-5, 1e-4, 1e-3, 1e-2, 0.1]
    finite = [x for x in found["curves"]["train_loss"] if x is not None]
    assert min(finite) < math.log(10) - 0.02
    assert all(x is None or 0 <= x <= 1 for x in found["curves"]["error"])
    assert found["metrics"]["members"] == 5


def test_study_writes_tables_and_figures_and_resumes(tmp_path: Path, monkeypatch) -> None:
    words = ("--quick", "--points", 3, "--epochs", 1, "--out", tmp_path, "--arms", "adabayes,adamw")
    code, screen = call(*words)
    assert code == 0
    assert "AdaBayes" in screen
    for name in ("table.md", "runs.csv", "curves.png", "curves.svg", "maps.png", "maps.svg"):
        assert (tmp_path / name).stat().st_size > 100
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert len(rows) == 2 * 2 * 3 + 2 * 2 * 2
    first = (tmp_path / "table.md").read_text()

    def never(trial: Trial) -> dict:
        raise AssertionError(trial)

    monkeypatch.setattr(runs, "perform", never)
    assert call(*words)[0] == 0
    assert (tmp_path / "table.md").read_text() == first


def test_an_interrupt_keeps_finished_sweeps(tmp_path: Path, monkeypatch) -> None:
    seen = []

    def interrupted(trial: Trial) -> dict:
        seen.append(trial)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return perform(trial)

    monkeypatch.setattr(runs, "perform", interrupted)
    code, screen = call("--quick", "--points", 3, "--epochs", 1, "--out", tmp_path)
    assert code == 130
    assert "Interrupted: 2 of" in screen
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arms", "adam"), "unknown optimizer 'adam'"),
        (("--arms", ","), "at least one optimizer"),
        (("--task", "mnist-lenet"), "unknown task 'mnist-lenet'"),
        (("--seeds", 1), "--seeds needs at least 2"),
        (("--points", 2), "--points needs at least 3"),
        (("--epochs", 0), "--epochs needs at least 1"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys) -> None:
    assert call(*words, "--out", tmp_path)[0] == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_width_of_a_valley() -> None:
    rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert decades(pd.Series([9.0, 1.2, 1.0, 1.1, 5.0], rates)) == pytest.approx(2)
    assert decades(pd.Series([1.0, 3.0, 1.1, 1.1, math.nan], rates)) == 0
    assert decades(pd.Series([1.0] * 5, rates)) == pytest.approx(4)


def test_a_line_of_the_table_leaves_out_rates_at_which_a_seed_diverged() -> None:
    rows = pd.DataFrame(
        {
            "lr": [0.1, 0.1, 0.2, 0.2],
            "nll": [1.0, 3.0, 0.5, math.nan],
            "error": [0.1, 0.3, 0.2, math.nan],
            "train_loss": [1.0, 1.0, 1.0, math.nan],
        }
    )
    line = cells("X", rows)
    assert len(line) == len(HEADINGS)
    assert line == ("X", "0.1", "2.000 ± 1.000", "20.00 ± 10.00", "0.0", "1 of 4")
    assert cells("X", rows.assign(nll=math.nan))[1:5] == ("-",) * 4
