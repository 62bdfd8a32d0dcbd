"""Ablations: what is compared, kept, told apart and refused."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.ablate import Ablate, study
from experiments.ablate.jobs import perform
from experiments.ablate.parts import Preset
from experiments.ablate.plan import make_plan
from experiments.ablate.tables import verdict
from experiments.config import read_config, write_config
from experiments.intervals import compare
from filteropt import approximations, models
from filteropt.engine import Filter
from tests.experiments_calls import PLUGIN, Console, call, forgetting, plugin, small

__all__ = ["plugin"]

ROOT = Path(__file__).parent.parent
REPORTED = (
    "report.md",
    "report.html",
    "arms.csv",
    "best-of-k.csv",
    "factors.csv",
    "blobs-results.svg",
)


def asked(plugin: Path, **options: object) -> Ablate:
    grid = {"dynamics": ("FixedNoise",), "likelihood": ("SquaredGradient",)}
    grid |= {"posterior": ("Diagonal",), "trials": 2, "rates": 3, "seeds": (2,)}
    return Ablate(**{"tasks": ("blobs",), "plugin": (plugin,), **grid, **options})  # type: ignore[arg-type]  # by name


def query(out: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(out / "runs.db") as file:
        return file.execute(sql).fetchall()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ablation that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "my_tasks.py").write_text(PLUGIN)
    with forgetting():
        assert call(*small(folder / "my_tasks.py", folder / "out", "--workers", "1"))[0] == 0
    return folder / "out"


def test_killed_and_repeated_gives_the_report_of_one_that_was_not(
    whole: Path, plugin: Path, tmp_path: Path
) -> None:
    words = small(whole.parent / "my_tasks.py", tmp_path / "out", "--workers", "2")
    run = subprocess.Popen([sys.executable, "-m", "experiments", *map(str, words)], cwd=ROOT)
    before, deadline = [], time.monotonic() + 300
    while not before and time.monotonic() < deadline:
        assert run.poll() is None, "it ended before it could be killed"
        if (tmp_path / "out" / "runs.db").exists():
            tables = query(tmp_path / "out", "SELECT 1 FROM sqlite_master WHERE name = 'timings'")
            before = tables and query(tmp_path / "out", "SELECT job, seconds FROM timings")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out" / "report.md").exists()
    assert call(*words[:-1], "1")[0] == 0
    after = dict(query(tmp_path / "out", "SELECT job, seconds FROM timings"))
    assert before
    assert {job: after[job] for job, _ in before} == dict(before)  # kept, not run again
    for name in REPORTED:
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name


def test_report_has_every_arm_with_equal_budgets_and_paired_seeds(whole: Path) -> None:
    arms = pd.read_csv(whole / "arms.csv")
    assert len(arms) == 4
    counts = "SELECT arm, purpose, count(*), count(DISTINCT seed) FROM runs GROUP BY arm, purpose"
    assert {row[1:] for row in query(whole, counts)} == {
        *(("tune", 3, 1), ("rate", 6, 2), ("test", 2, 2))
    }
    tried = query(whole, "SELECT arm, setting FROM runs WHERE purpose = 'tune'")
    rates: dict[object, list[float]] = {}
    for arm, setting in tried:
        rates.setdefault(arm, []).append(json.loads(str(setting))["lr"])
    assert len({tuple(one) for one in rates.values()}) == 1  # the same lr in every arm's trial k
    best = pd.read_csv(whole / "best-of-k.csv").groupby("arm")["nll"]
    assert best.size().tolist() == [3] * 4
    lowest = "SELECT arm, min(nll) FROM runs WHERE purpose = 'tune' GROUP BY arm"
    assert best.min().to_dict() == pytest.approx(dict(query(whole, lowest)))
    text = (whole / "report.md").read_text()
    assert "### What each factor does" in text
    assert "FixedPoint | Diagonal | 2" in text
    page = (whole / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    for name in ("nll", "error", "difference", "width", "epochs_to_target"):
        assert arms[name].notna().sum() >= 3, name


def test_repeated_command_trains_nothing(
    whole: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = (whole / "report.md").read_bytes()
    monkeypatch.setattr(study, "perform", lambda job: pytest.fail("a run was repeated"))
    assert call("ablate", "--config", whole / "config.yaml")[0] == 0
    assert (whole / "report.md").read_bytes() == report


def test_one_algorithm_under_two_names_is_not_told_apart(plugin: Path, tmp_path: Path) -> None:
    words = ["ablate", "--tasks", "blobs", "--plugin", plugin, "--dynamics", "--epochs", "2"]
    words += ["--compositions", "mine", "alias", "--trials", "3", "--rates", "0", "--workers", "1"]
    assert call(*words, "--out", tmp_path)[0] == 0
    arms = pd.read_csv(tmp_path / "arms.csv").set_index("arm")
    assert arms["nll"]["mine"] == arms["nll"]["alias"]
    assert arms["difference"]["alias"] == 0
    assert arms["verdict"]["alias"] == "not told apart"


def test_arms_that_differ_by_noise_alone_are_rarely_told_apart() -> None:
    """Seventeen arms of the reference's own distribution, seeds of different difficulty."""
    draw, told = np.random.default_rng(0), 0
    for _ in range(300):
        seeds = draw.normal(size=3)
        arms = {str(k): seeds + 0.3 * draw.normal(size=3) for k in range(18)}
        told += any(verdict(gap) != "not told apart" for gap in compare(arms, "0").values())
    assert told / 300 < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_settings_trained_at_once_are_those_trained_one_by_one(plugin: Path) -> None:
    plan = make_plan(asked(plugin, trials=3), Console())
    task, arm = plan.tasks[0], plan.arms[0]
    assert (task.name, arm) in plan.swept
    settings = tuple((("lr", lr), ("prior_variance", 0.1)) for lr in (1e-3, 3e-3, 1e-2))
    (job,) = plan.jobs_of("tune", task, arm, settings, 0)
    together = perform(job)["runs"]
    alone = [perform(replace(job, settings=(one,)))["runs"][0] for one in settings]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one["curves"]["nll"], other["curves"]["nll"], rtol=1e-4)
    assert len({run["nll"] for run in together}) == 3


def test_a_setting_whose_parts_do_not_fit_is_a_trial_that_failed(plugin: Path) -> None:
    plan = make_plan(asked(plugin), Console())
    settings = ((("lr", 0.1), ("prior_variance", 1e-4)), (("lr", 1e-3), ("prior_variance", 0.1)))
    (job,) = plan.jobs_of("tune", plan.tasks[0], plan.arms[0], settings, 0)
    refused, trained = perform(job)["runs"]
    assert refused["nll"] is None
    assert trained["nll"] > 0


@pytest.mark.parametrize("likelihood", ["SampledFisher", "PerExample", "SampledSquaredGradient"])
def test_likelihoods_that_look_into_the_model_train_one_by_one(
    likelihood: str, plugin: Path
) -> None:
    plan = make_plan(asked(plugin, likelihood=(likelihood,)), Console())
    assert not plan.swept
    jobs = plan.jobs_of("test", plan.tasks[0], plan.arms[0], [(("lr", 1e-2),)], 1)
    curve = perform(jobs[0])["runs"][0]["curves"]["nll"]
    assert curve[-1] < curve[0]


def test_parts_are_read_as_they_are_written() -> None:
    texts = ("FixedNoise(discretization='exact')", "Averaged(CentredGradient, beta2=0.9)")
    made = Preset((*texts, "OneStepAhead", "Identity"))(lr=0.1, scale=8, beta1=None)
    assert made == Filter(
        models.FixedNoise(0.1, discretization="exact"),
        approximations.Averaged(approximations.CentredGradient(8, None), 0.9),
        approximations.OneStepAhead(approximations.Diagonal()),
    )


def test_options_go_to_yaml_and_back(tmp_path: Path) -> None:
    given = Ablate(tasks=("blobs",), vary=("beta1=0|0.9",), trials=5, seeds=(1, 7), target=0.25)
    given = replace(given, plugin=(Path("a.py"), Path("b.py")), ray=True, out=Path("elsewhere"))
    for one in (Ablate(), given):
        write_config(one, tmp_path / "config.yaml")
        assert replace(read_config(tmp_path / "config.yaml", Ablate), config=None) == one
    assert set(yaml.safe_load((tmp_path / "config.yaml").read_text())) == {
        f.name for f in fields(Ablate)
    } - {"config"}


def test_words_of_the_command_line_go_before_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("trials: 5\nseeds: 4\nlikelihood: SquaredGradient\n")
    found = read_config(tmp_path / "grid.yaml", Ablate)
    assert (found.trials, found.seeds, found.likelihood) == (5, (4,), ("SquaredGradient",))
    code, text = _help("ablate", "--config", tmp_path / "grid.yaml", "--help")
    assert code == 0
    assert "(default: 4)" in text


def _help(*words: object) -> tuple[int, str]:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as screen:
        return call(*words)[0], screen.getvalue()


def test_help_tells_every_option() -> None:
    code, text = _help("ablate", "--help")
    assert code == 0
    for one in fields(Ablate):
        assert f"--{one.name.replace('_', '-')}" in text


def test_impossible_compositions_are_left_out_if_asked_and_listed(
    plugin: Path, tmp_path: Path
) -> None:
    words = small(plugin, tmp_path, "--workers", "1", "--epochs", "1", "--skip-impossible")
    words += ["--dynamics", "RandomWalk", "--posterior", "FixedPoint", "--trials", "1"]
    words += ["--rates", "0", "--likelihood", "SquaredGradient", "Averaged(SquaredGradient)"]
    code, screen = call(*words)
    assert code == 0
    why = "RandomWalk, SquaredGradient, FixedPoint: SquaredGradient does not fit FixedPoint: "
    assert f"Left out: {why}" in screen
    assert f"- {why}" in (tmp_path / "report.md").read_text()
    assert len(pd.read_csv(tmp_path / "arms.csv")) == 1
