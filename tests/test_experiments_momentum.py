"""The study of the momentum filter: its budget, its files and codes."""

import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments.cli import main
from experiments.momentum import runs, study
from experiments.momentum.arms import QUADRATIC_ARMS, TASK_ARMS
from experiments.optimizers import MORE_OPTIMIZERS, OPTIMIZERS, parse_choice
from experiments.plan import plan_runs
from experiments.tasks import find_task
from experiments.train import train


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["momentum", *map(str, words)], Console(file=screen, width=80))
    return code, screen.getvalue()


# The budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arms", [QUADRATIC_ARMS, TASK_ARMS])
def test_every_optimizer_is_tried_at_as_many_settings_within_its_ranges(arms) -> None:
    for arm in arms:
        points = arm.settings(16)
        assert len({tuple(point.values()) for point in points}) == 16
        for name, (low, high) in arm.knobs.items():
            tried = [point[name] for point in points]
            assert low * 0.99 <= min(tried) < max(tried) <= high * 1.01
            assert max(tried) / min(tried) > (high / low) ** 0.7
        assert points[:4] == arm.settings(4)
        assert arm.settings(0, about=points[0]) == []
        for best in points:
            for point in arm.settings(8, about=best):
                for name, (low, high) in arm.knobs.items():
                    assert low * 0.99 <= point[name] <= high * 1.01
                    width = (high / low) ** (1 / 3)
                    assert 1 / width <= point[name] / best[name] * 1.01 <= width * 1.02


@pytest.mark.parametrize("arm", TASK_ARMS, ids=lambda arm: arm.entry.name)
def test_settings_are_what_the_optimizer_ends_up_with(arm) -> None:
    for point in arm.settings(8):
        group = arm.choice(point, 64).settings(64)
        if "implied decay" in point:
            implied = 64 * group["lr"] ** 2 / (2 * group["lr_sgd"])
            assert implied == pytest.approx(point["implied decay"], rel=1e-9)
            assert group["batch_size"] == 64
        if "1 - beta1" in point:
            assert group["betas"] == [1 - point["1 - beta1"], 1 - point["1 - beta2"]]


def test_comparison_knows_the_studied_optimizers_by_name_and_leaves_its_default_alone() -> None:
    assert not set(MORE_OPTIMIZERS) & set(OPTIMIZERS)
    task = find_task("digits-mlp")
    options = {"schedule": "cosine", "device": "cpu", "evaluate_on": "test"}
    for name in MORE_OPTIMIZERS:
        choices = [parse_choice(name)]
        (run,) = plan_runs([task], choices, [0], {task.name: 2}, data_dir=Path(), **options)
        losses = train(run, Path())["curves"]["train_loss"]
        assert losses[1] < losses[0] < 2.4


# The command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("momentum")
    code, screen = call("--quick", "--workers", 1, "--out", out)
    assert code == 0
    return out, screen


def test_quick_study_writes_a_table_per_problem_and_both_figures(quick) -> None:
    out, screen = quick
    assert {path.name for path in out.iterdir()} == {
        *("quadratic.csv", "noisy-quadratic.csv", "digits-mlp.csv", "curves.csv", "split.csv"),
        *("curves.png", "curves.svg", "split.png", "split.svg", "table.md", "runs"),
        "config.yaml",
    }
    for name in ("curves", "split"):
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (out / "table.md").read_text(encoding="utf-8")
    for name, arms in (("quadratic", QUADRATIC_ARMS), ("digits-mlp", TASK_ARMS)):
        table = pd.read_csv(out / f"{name}.csv")
        assert list(table["optimizer"]) == [arm.entry.title for arm in arms]
        assert f"## {name}: 2 settings each, 2 fresh seeds" in text
        assert f"{name}: 2 settings each" in screen
        assert set(table["settings_tried"]) == {2}
        assert set(table["seeds"]) == {2}
    assert "86 of 86 runs finished" in screen
    assert "…" not in screen  # the tables fit 80 columns
    split = pd.read_csv(out / "split.csv")
    assert split["total"].between(0, 1).all()
    assert set(split["problem"]) == {"quadratic", "noisy-quadratic", "digits-mlp"}


def test_every_optimizer_gets_the_same_budget_and_the_best_setting(quick) -> None:
    out, _ = quick
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "runs").iterdir()]
    tried: Counter[tuple[str, str]] = Counter()
    for found in kept:
        run = found["run"]
        on_validation = run.get("evaluate_on", "validation") == "validation"
        if run["seed"] == 0 and on_validation and not run.get("traced"):
            tried[run["task"], run["optimizer"]] += 1
    assert len(tried) == 2 * len(QUADRATIC_ARMS) + len(TASK_ARMS)
    assert set(tried.values()) == {2}
    fresh = {run["seed"] for run in (f["run"] for f in kept) if run.get("evaluate_on") == "test"}
    assert fresh == {1, 2}
    adam = [
        (found["metrics"]["test_nll"], found["run"]["settings"]["lr"], found["run"]["evaluate_on"])
        for found in kept
        if (found["run"]["task"], found["run"]["optimizer"]) == ("digits-mlp", "adam")
    ]
    _, best, _ = min(run for run in adam if run[2] == "validation")
    assert {lr for _, lr, where in adam if where == "test"} == {best}


def test_finished_runs_are_reused(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = quick
    before = (out / "table.md").read_bytes()
    monkeypatch.setattr(runs, "perform", lambda _: pytest.fail("a run was repeated"))
    assert call("--quick", "--workers", 1, "--out", out)[0] == 0
    assert (out / "table.md").read_bytes() == before


def test_interrupt_keeps_finished_runs_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    performed, original = [], runs.perform

    def interrupted(job):
        if len(performed) == 3:
            raise KeyboardInterrupt
        performed.append(job)
        return original(job)

    words = ("--quick", "--problems", "quadratic", "--workers", 1, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "perform", interrupted)
        code, screen = call(*words)
    assert code == 130
    assert "Interrupted: 3 of 32 runs are kept" in screen
    assert "resumes" in screen
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert call(*words)[0] == 0


def test_processes_give_the_same_results(tmp_path: Path) -> None:
    words = ("--quick", "--problems", "quadratic", "--settings", 1, "--seeds", 1)
    for workers in (1, 2):
        assert call(*words, "--workers", workers, "--out", tmp_path / f"{workers}")[0] == 0
    a, b = ((tmp_path / name / "quadratic.csv").read_bytes() for name in "12")
    assert a == b


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problems", "rosenbrock"], "unknown problem 'rosenbrock'; the problems are quadratic,"),
        (["--problems", ","], "--problems needs at least one problem"),
        (["--settings", "0"], "--settings needs at least 1"),
        (["--seeds", "0"], "--seeds needs at least 1"),
        (["--workers", "0"], "--workers needs at least 1"),
        (["--out", "/dev/null/results"], "--out /dev/null/results cannot be created"),
        (["--setting"], "--setting"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "study", lambda *_: pytest.fail("a run began"))
    assert call(*words)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
