"""The study of limits: its fits on known numbers, its cases, its files and its exit codes."""

import dataclasses
import io
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

from experiments.cli import main
from experiments.limits import catalogue, study
from experiments.limits.catalogue import CASES
from experiments.limits.laws import (
    WINDOW,
    Case,
    Curve,
    Decay,
    Identity,
    Power,
    judge,
    least_squares_slope,
)
from experiments.limits.report import HEADINGS

SLOW = {"adabayes-adamw", "dense-root"}  # seconds each; the others take a second or less
X = torch.logspace(-8, -1, 22, dtype=torch.float64)


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["limits", *map(str, words)], Console(file=screen, width=80))
    return code, screen.getvalue()


def known(curve: Curve) -> Case:
    return Case("known", "panel", "composition", "limit", "x", 0.1, lambda: curve)


def verdict(curve: Curve):
    return judge(known(curve), curve)


# The fit ------------------------------------------------------------------------------------


def test_slope_of_a_known_line() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    assert least_squares_slope(x, 3 - 2 * x) == pytest.approx(-2, rel=1e-14)


@pytest.mark.parametrize(("order", "constant"), [(1, 0.5), (2, 7.0), (0.5, 0.01)])
def test_power_law_with_a_next_order_passes_and_is_measured(order: float, constant: float) -> None:
    law = Power(order, constant)
    found = verdict(Curve(X, law(X) * (1 + law(X)), law))
    assert found.passed
    assert found.slope == pytest.approx(order, rel=5e-3)
    assert found.constant == pytest.approx(constant, rel=1e-3)


def test_decay_is_measured_per_step() -> None:
    t, law = torch.arange(1.0, 200, dtype=torch.float64), Decay(0.9, 2.0)
    found = verdict(Curve(t, law(t), law))
    assert found.passed
    assert math.exp(found.slope) == pytest.approx(0.9, rel=1e-12)
    assert found.constant == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize(
    "claimed", [Power(2, 0.5), Power(1.05, 0.5), Power(1, 0.55), Power(1, 0.25), Power(0.97, 0.5)]
)
def test_wrong_order_or_constant_is_caught(claimed: Power) -> None:
    assert not verdict(Curve(X, Power(1, 0.5)(X), claimed)).passed


@pytest.mark.parametrize("claimed", [Decay(0.91, 2.0), Decay(0.9, 2.1), Decay(0.81, 2.0)])
def test_wrong_rate_is_caught(claimed: Decay) -> None:
    t = torch.arange(1.0, 200, dtype=torch.float64)
    assert not verdict(Curve(t, Decay(0.9, 2.0)(t), claimed)).passed


def test_rounding_and_large_parameters_are_left_out() -> None:
    law = Power(1, 1)
    x = torch.logspace(-16, 1, 35, dtype=torch.float64)
    noise = 1e-13 * torch.randn(35, generator=torch.Generator().manual_seed(0)).abs()
    found = verdict(Curve(x, x / (1 + x) + noise, law))
    assert found.passed
    assert torch.equal(
        found.fitted, (found.curve.error > WINDOW[0]) & (found.curve.error < WINDOW[1])
    )
    bent = Curve(x, x * (1 + 1e5 * x), law)
    assert not verdict(bent).passed
    assert verdict(dataclasses.replace(bent, until=1e-8)).passed


@pytest.mark.parametrize("error", [X * 0, X * 0 + math.nan, X * 0 + 1, X[:3]])
def test_errors_that_cannot_be_fitted_fail(error: torch.Tensor) -> None:
    assert not verdict(Curve(X[: len(error)], error, Power(1, 1))).passed


@pytest.mark.parametrize(("error", "passed"), [(9e-13, True), (2e-12, False), (math.nan, False)])
def test_identity_is_held_to_its_tolerance(error: float, passed: bool) -> None:
    errors = torch.tensor([0.0, error], dtype=torch.float64)
    assert verdict(Curve(torch.arange(2.0), errors, Identity(1e-12))).passed == passed


# The cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_case_follows_its_law(name: str) -> None:
    found = judge(CASES[name], CASES[name].measure())
    assert found.passed, (found.slope, found.constant, found.curve.law)
    if not isinstance(found.curve.law, Identity):
        used = found.curve.error[found.fitted]
        assert used.max() / used.min() > 5
        if name not in SLOW:
            assert used.max() / used.min() > 1e5


def test_cases_of_one_panel_stand_together_with_labels() -> None:
    panels = [case.panel for case in CASES.values()]
    runs = [p for k, p in enumerate(panels) if k == 0 or panels[k - 1] != p]
    assert len(runs) == len(set(panels))
    for panel in set(panels) - {catalogue.IDENTITIES}:
        cases = [case for case in CASES.values() if case.panel == panel]
        assert len(cases) == 1 or all(case.label for case in cases)
        assert len({case.parameter for case in cases}) == 1


# The command --------------------------------------------------------------------------------

FEW = ("taylor-exact", "prior-epsilon", "prior-no-epsilon", "recursion-rich", "identity-sgd")


def test_study_writes_table_figure_and_rows(tmp_path: Path) -> None:
    code, screen = call("--cases", *FEW, "--out", tmp_path)
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("limits.png", "limits.svg", "table.md", "table.csv", "points.csv", "config.yaml")
    }
    assert (tmp_path / "limits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "5 of 5 cases pass" in screen
    assert "5 of 5 runs finished" in screen
    assert "…" not in screen  # the table fits 80 columns
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"| {' | '.join(HEADINGS)} |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:7]] == list(FEW)
    assert "| 2 | 1.99" in lines[3]
    assert all(line.endswith("| pass |") for line in lines[2:7])
    table = pd.read_csv(tmp_path / "table.csv").set_index("case")
    assert table["passed"].all()
    assert table.loc["prior-epsilon", "order_measured"] == pytest.approx(2, rel=0.01)
    assert table.loc["taylor-exact", "constant_measured"] == pytest.approx(0.5, rel=0.01)
    assert table.loc["recursion-rich", "factor_measured"] == pytest.approx(math.exp(-0.2), rel=1e-3)
    assert table.loc["identity-sgd", "largest_error"] < 1e-12
    points = pd.read_csv(tmp_path / "points.csv")
    assert set(points["case"]) == set(FEW)
    fitted = points[points["fitted"] & (points["case"] == "taylor-exact")]
    assert (fitted["error"] / fitted["theory"]).between(0.98, 1.02).all()


def test_figure_is_repeatable(tmp_path: Path) -> None:
    for name in "ab":
        assert call("--cases", "taylor-exact,identity-sgd", "--out", tmp_path / name)[0] == 0
    a, b = ((tmp_path / name / "limits.svg").read_bytes() for name in "ab")
    assert a == b


def test_case_that_misses_its_law_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CASES["taylor-exact"]
    wrong = dataclasses.replace(
        honest, measure=lambda: dataclasses.replace(honest.measure(), law=Power(2, 0.5))
    )
    monkeypatch.setitem(CASES, "taylor-exact", wrong)
    code, screen = call("--cases", "taylor-exact", "identity-sgd", "--out", tmp_path)
    assert code == 1
    assert "1 of 2 cases pass" in screen
    assert "FAIL" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_case_without_any_fit_is_drawn_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k, error in enumerate((X * 0, X * math.nan)):
        case = dataclasses.replace(known(Curve(X, error, Power(1, 1))), name=f"hopeless-{k}")
        monkeypatch.setitem(CASES, case.name, dataclasses.replace(case, panel=case.name))
    assert call("--cases", "hopeless-0", "hopeless-1", "--out", tmp_path)[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "adam"], "unknown case 'adam'; the cases are adabayes-sgd, "),
        (["--cases", ","], "--cases needs at least one case"),
        (["--out", "/dev/null/results"], "--out /dev/null/results cannot be created"),
        (["--case"], "--case"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("a case ran"))
    assert call(*words)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_interrupt_leaves_the_options_alone_and_restores_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Curve:
        raise KeyboardInterrupt

    case = dataclasses.replace(CASES["identity-sgd"], measure=interrupted)
    monkeypatch.setitem(CASES, "identity-sgd", case)
    threads = torch.get_num_threads()
    code, screen = call("--cases", "taylor-exact", "identity-sgd", "--out", tmp_path)
    assert code == 130
    assert "Interrupted: 1 of 2 cases are measured" in screen
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert torch.get_num_threads() == threads


def test_help_and_list_name_the_study_and_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "limits" in capsys.readouterr().out
    assert call("--help")[0] == 0
    text = capsys.readouterr().out
    assert "--cases" in text
    assert "--out" in text
    screen = io.StringIO()
    assert main(["list"], Console(file=screen, width=100)) == 0
    assert all(name in screen.getvalue() for name in CASES)
