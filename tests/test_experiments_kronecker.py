"""The study of Kronecker-factored filters: its runs, its budget, its files and codes."""

import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments.cli import main
from experiments.kronecker import runs
from experiments.kronecker.arms import CONTENDERS
from experiments.kronecker.runs import Trial, perform
from experiments.kronecker.study import Plan
from experiments.kronecker.targets import score, target_of
from experiments.kronecker.tasks import TASKS
from experiments.store import run_name

DIGITS = TASKS["digits-mlp"]
USUAL = {"lr": 3e-3, "1 - beta1": 0.1, "1 - beta2": 0.01}


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["kronecker", *map(str, words)], Console(file=screen, width=80))
    return code, screen.getvalue()


# The runs -----------------------------------------------------------------------------------


def test_run_is_repeatable_and_looks_at_its_first_and_last_step() -> None:
    trial = Trial("digits-mlp", "adamw", USUAL, 1, 12)
    a, b = perform(trial), perform(trial)
    assert a["curves"]["step"] == [0, 5, 10, 12]
    assert a["curves"]["loss"] == b["curves"]["loss"]
    assert a["metrics"]["loss"] == a["curves"]["loss"][-1] < a["curves"]["loss"][0]
    assert a["curves"]["seconds"] == sorted(a["curves"]["seconds"])
    assert a["curves"]["seconds"][0] == 0 < a["metrics"]["seconds_per_step"]
    other = perform(Trial("digits-mlp", "adamw", USUAL, 2, 12))
    assert other["curves"]["loss"][0] != a["curves"]["loss"][0]


def test_run_that_has_a_loss_to_reach_ends_there_and_is_the_same_up_to_it() -> None:
    whole = perform(Trial("digits-mlp", "adamw", USUAL, 1, 12))["curves"]["loss"]
    cut = perform(Trial("digits-mlp", "adamw", USUAL, 1, 12, whole[1]))
    assert cut["curves"]["loss"] == whole[:2]
    assert cut["curves"]["step"] == [0, 5]
    assert not cut["diverged"]
    assert cut["metrics"]["loss"] == whole[1]
    assert perform(Trial("digits-mlp", "adamw", USUAL, 1, 12, 0.0))["curves"]["loss"] == whole


@pytest.mark.filterwarnings("ignore")
def test_run_that_is_no_longer_finite_has_diverged_and_can_be_kept() -> None:
    found = perform(Trial("digits-mlp", "adamw", USUAL | {"lr": 1e30}, 1, 12))
    assert found["diverged"]
    assert set(found["metrics"].values()) == {None}
    assert found["curves"]["step"] == [0]
    json.dumps(found, allow_nan=False)


def test_kept_run_is_named_after_all_that_decides_its_numbers() -> None:
    first = ("digits-mlp", "adamw", USUAL, 1, 12)
    others = [
        ("mnist5k-lenet", *first[1:]),
        (first[0], "eigenbasis-soap", *first[2:]),
        (*first[:2], USUAL | {"lr": 0.1}, 1, 12),
        (*first[:3], 2, 12),
        (*first[:4], 13),
        (*first, 1.5),
    ]
    names = {run_name(Trial(*given)) for given in [first, *others]}
    assert len(names) == 7


# The plan -----------------------------------------------------------------------------------


class _Recorder:
    """Stands for the keeper and the meter: the larger its lr, the faster a made-up run."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def results(self, wanted, _) -> list[dict]:
        self.trials += [trial for trial, _ in wanted]
        return self.made_up([trial for trial, _ in wanted])

    def made_up(self, trials: list[Trial]) -> list[dict]:
        return [self._result(trial.values["lr"] * (1 + trial.seed)) for trial in trials]

    def _result(self, lr: float) -> dict:
        curves = {"step": list(range(5)), "seconds": list(range(5))}
        losses = [max(5.0 - 100 * lr * k, 1e-3) for k in range(5)]
        metrics = {"loss": losses[-1]}
        return {"metrics": metrics, "curves": curves | {"loss": losses}, "diverged": False}


def test_every_optimizer_gets_the_same_budget_and_the_reference_sets_the_target() -> None:
    contenders = [CONTENDERS[name] for name in ("adamw", "eigenbasis-soap", "adabayes-fp")]
    plan, recorder = Plan([DIGITS], contenders, 5, 2), _Recorder()
    outcomes = plan.carry_out(recorder, None)
    tried = Counter(trial.arm for trial in recorder.trials if trial.seed == 0)
    assert tried == {"adamw": 5, "eigenbasis-soap": 5, "adabayes-fp": 5}
    assert {trial.arm for trial in recorder.trials[:7]} == {"adamw"}
    assert {trial.steps for trial in recorder.trials} == {DIGITS.steps}
    assert plan.work()[0] == len(recorder.trials) == 21
    target = target_of(recorder.made_up(recorder.trials[5:7]))
    assert {outcome.target for outcome in outcomes} == {target}
    ends = {trial.until for trial in recorder.trials if trial.seed == 0 and trial.arm != "adamw"}
    assert ends == {target}
    assert {t.until for t in recorder.trials if t.seed > 0 or t.arm == "adamw"} == {None}
    for outcome in outcomes:
        mine = [t for t in recorder.trials if t.arm == outcome.contender.name]
        aim = None if outcome.contender.name == "adamw" else target
        scores = [score(result, aim) for result in outcome.trials]
        assert outcome.values == mine[scores.index(min(scores))].values
        assert [(t.seed, t.values) for t in mine[5:]] == [(s, outcome.values) for s in (1, 2)]
        assert outcome.results == recorder.made_up(mine[5:])


# The command --------------------------------------------------------------------------------

QUICK = ("--quick", "--tasks", "digits-mlp", "--arms", "eigenbasis-soap", "--workers", 1)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("kronecker")
    code, screen = call(*QUICK, "--out", out)
    assert code == 0
    return out, screen


def test_quick_study_writes_tables_rows_and_figures(quick) -> None:
    out, screen = quick
    assert {path.name for path in out.iterdir()} == {
        *("digits-mlp.png", "digits-mlp.svg", "overview.png", "overview.svg"),
        *("table.md", "runs.csv", "curves.csv", "runs", "config.yaml"),
    }
    for name in ("digits-mlp", "overview"):
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (out / "table.md").read_text(encoding="utf-8")
    for title in ("AdamW", "Eigenbasis"):
        assert f"| {title}" in text
        assert title in screen
    assert "2 settings of 10 steps each, 2 fresh seeds" in " ".join(screen.split())
    assert "8 of 8 runs finished" in screen
    assert "…" not in screen  # the tables fit 80 columns
    kept = pd.read_csv(out / "runs.csv")
    assert list(kept["seed"]) == [1, 2, 1, 2]
    assert set(pd.read_csv(out / "curves.csv")["step"]) == {0, 5, 10}


def test_finished_runs_are_reused(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = quick
    before = (out / "table.md").read_bytes()
    monkeypatch.setattr(runs, "perform", lambda _: pytest.fail("a run was repeated"))
    assert call(*QUICK, "--out", out)[0] == 0
    assert (out / "table.md").read_bytes() == before


def test_interrupt_keeps_finished_runs_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    performed, original = [], runs.perform

    def interrupted(trial):
        if len(performed) == 2:
            raise KeyboardInterrupt
        performed.append(trial)
        return original(trial)

    words = (*QUICK, "--settings", 1, "--seeds", 1, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "perform", interrupted)
        code, screen = call(*words)
    assert code == 130
    assert "Interrupted: 2 of 4 runs are kept" in screen
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert call(*words)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "rosenbrock"], "unknown task 'rosenbrock'; the tasks are mnist5k-lenet,"),
        (["--tasks", ","], "--tasks needs at least one task"),
        (["--arms", "lbfgs"], "unknown optimizer 'lbfgs'; the optimizers are adamw,"),
        (["--arms", ","], "--arms needs at least one optimizer"),
        (["--settings", "0"], "--settings needs at least 1"),
        (["--seeds", "0"], "--seeds needs at least 1"),
        (["--workers", "0"], "--workers needs at least 1"),
        (["--out", "/dev/null/results"], "--out /dev/null/results cannot be created"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "carry_out", lambda *_: pytest.fail("a run began"))
    assert call(*words)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
