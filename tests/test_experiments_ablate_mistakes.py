"""Mistakes in what is asked of an ablation: one line and exit code 2, before any training."""

import errno
import os
from pathlib import Path

import pytest

from experiments.ablate import study
from experiments.ablate.plan import room
from experiments.ablate.rows import alone
from experiments.errors import UserError
from tests.experiments_calls import call, plugin, small

__all__ = ["plugin"]

MISTAKES = {
    "task": (["--tasks", "chess"], "unknown task 'chess'; the tasks are mnist5k-lenet, "),
    "optimizer": (["--optimizers", "adamx"], "unknown optimizer 'adamx'; the optimizers are "),
    "optimizer setting": (["--optimizers", "adamw:speed=1"], "AdamW (speed=1)"),
    "composition": (["--compositions", "adabays"], "unknown composition 'adabays'; there are "),
    "dynamics": (["--dynamics", "Brownian"], "unknown dynamics 'Brownian'; there are FixedNoise"),
    "wrong slot": (["--posterior", "RandomWalk"], "unknown posterior 'RandomWalk'; there are "),
    "argument": (["--dynamics", "FixedNoise(speed=1)"], "FixedNoise has no argument 'speed'; it"),
    "value": (
        ["--dynamics", "FixedNoise(lr=-1)"],
        "FixedNoise: lr=-1 must be a number in [0, inf)",
    ),
    "grammar": (["--likelihood", "Averaged("], "cannot read --likelihood 'Averaged('; write it "),
    "impossible": (["--likelihood", "SquaredGradient"], "2 of 4 compositions are impossible, such"),
    "impossible all": (
        ["--likelihood", "Price", "--posterior", "Diagonal", "--skip-impossible"],
        "no arm is left",
    ),
    "search": (["--search", "speed=1:2"], "--search speed: no arm has that hyperparameter; they"),
    "search grammar": (["--search", "lr=1"], "cannot read --search 'lr=1'; write it like lr="),
    "search ends": (["--search", "lr=1:0.1"], "needs 0 < low < high"),
    "search range": (["--search", "beta2=0.5:2"], "beta2=2.0 must be a number in [0, 1)"),
    "vary": (["--vary", "speed=1|2"], "--vary speed: no arm has that hyperparameter; they take "),
    "vary grammar": (["--vary", "beta1"], "cannot read --vary 'beta1'; write it like beta1=0|0.9"),
    "vary value": (["--vary", "beta1=2"], "beta1=2 must be a number in [0, 1)"),
    "trials": (["--trials", "0"], "--trials 0 is too few; it needs at least 1"),
    "rates": (["--rates", "1"], "--rates 1 tells no width"),
    "epochs": (["--epochs", "0"], "--epochs 0 is too few"),
    "seeds": (["--seeds", "0"], "--seeds needs"),
    "tuning seed": (["--seeds", "0", "1"], "--seeds 0 is the seed of tuning; give fresh ones"),
    "level": (["--level", "1"], "--level 1.0 must be between 0 and 1"),
    "reference": (["--reference", "SGD"], "--reference 'SGD' is no arm; the arms are "),
    "workers": (["--workers", "0"], "--workers needs at least 1"),
    "device": (["--device", "abacus"], "--device abacus cannot be used here"),
    "nothing": (["--dynamics"], "nothing to compare"),
    "tuner": (["--tuner", "grid"], "--tuner"),
    "option": (["--trails", "3"], "--trails"),
    "out": (["--out", "/dev/null/results"], "--out /dev/null/results cannot be created"),
    "plugin": (["--plugin", "/no/such/file.py"], "--plugin /no/such/file.py cannot be read"),
    "config": (["--config", "/no/such/file.yaml"], "--config /no/such/file.yaml cannot be read"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_and_exit_code_2_before_training(
    words: list[str],
    message: str,
    plugin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "perform", lambda job: pytest.fail("training started"))
    asked = small(plugin, tmp_path / "out", "--workers", "1")
    if words[0] == "--plugin":
        asked = [word for word in asked if word not in ("--plugin", plugin)]
    assert call(*asked, *words)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails: 3\n", "unknown option 'trails'; the options are out, fresh, workers, tasks"),
        ("trials: many\n", 'wrong value type for field "trials"'),
        ("tuner: grid\n", 'wrong value type for field "tuner"'),
        ("[1, 2]\n", "must hold options"),
        ("trials: [\n", "is no YAML"),
    ],
)
def test_mistake_in_a_file_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    assert call("ablate", "--config", tmp_path / "grid.yaml")[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_disk_is_one_line_before_training(
    plugin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "perform", lambda job: pytest.fail("training started"))
    (tmp_path / "config.yaml").symlink_to("/dev/full")
    assert call(*small(plugin, tmp_path))[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yaml cannot be written: No space left on device" in line


def test_disk_without_room_for_the_runs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="has no room for 2 MiB of results: No space left"):
        room(tmp_path, 128)
    assert not list(tmp_path.iterdir())


def test_two_ablations_do_not_share_a_folder(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(tmp_path):
        assert call(*small(plugin, tmp_path))[0] == 2
    assert "has another ablation at work; wait for it" in capsys.readouterr().err
