"""The command line: what it says, what it refuses, what it keeps and what it reuses."""

import dataclasses
import gzip
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from rich.console import Console

from experiments import __main__ as entry
from experiments import compare, workers
from experiments.cli import main
from experiments.compare import Compare
from experiments.optimizers import OPTIMIZERS
from experiments.tasks import OFFLINE_TASKS, TASKS

ROOT = Path(__file__).parent.parent
SMALL = ("compare", "--tasks", "digits-mlp", "--workers", "1")


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main([str(word) for word in words], Console(file=screen, width=100))
    return code, screen.getvalue()


def numbers(out: Path) -> pd.DataFrame:
    """Read the rows without what depends on the clock."""
    return pd.read_csv(out / "runs.csv").drop(columns="seconds_per_step")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizers", "adamx"], "unknown optimizer 'adamx'; the optimizers are adabayes, "),
        (["--optimizers", ","], "at least one optimizer"),
        (["--optimizers", "adamw:lr"], "cannot read the settings"),
        (["--optimizers", "adamw:lr=-1"], "AdamW (lr=-1): "),
        (["--optimizers", "adamw:speed=1"], "AdamW (speed=1): "),
        (["--optimizers", "adabayes:lr_sgd=0"], "AdaBayes (lr_sgd=0): "),
        (["--tasks", "mnist"], "unknown task 'mnist'; the tasks are mnist5k-lenet, "),
        (["--tasks"], "at least one task"),
        (["--seeds", "0"], "--seeds needs"),
        (["--seeds", "1", "1"], "--seeds needs"),
        (["--seeds", "-2"], "--seeds"),
        (["--seeds", "three"], "--seeds"),
        (["--epochs", "0"], "--epochs needs at least 1"),
        (["--epochs", "1.5"], "--epochs"),
        (["--workers", "0"], "--workers needs at least 1"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--schedule", "linear"], "--schedule"),
        (["--data-dir", "/no/such/folder"], "--data-dir /no/such/folder is not a folder"),
        (["--out", "/dev/null/results"], "--out /dev/null/results cannot be created"),
        (["--sedes", "3"], "--sedes"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "run_all", lambda *_, **__: pytest.fail("training started"))
    code, _ = call("compare", *words)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize("words", [[], ["compere"]])
def test_missing_or_unknown_study_is_one_line_that_names_them(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "compare" in line or "compere" in line


@pytest.mark.parametrize("task", [name for name in TASKS if name not in OFFLINE_TASKS])
def test_missing_network_is_one_line_that_names_the_offline_tasks(
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", no_network)
    data = tmp_path / "data"
    data.mkdir()
    code, _ = call("compare", "--tasks", task, "--data-dir", data, "--out", tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "the network cannot be reached" in line
    assert all(name in line for name in OFFLINE_TASKS)


def test_data_dir_feeds_a_task_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(count: int) -> None:
        for name in ("train", "t10k"):
            shapes = {"images-idx3": (count, 28, 28), "labels-idx1": (count,)}
            for kind, shape in shapes.items():
                sizes = np.array(shape, ">u4").tobytes()
                values = np.random.default_rng(0).integers(0, 10, shape, dtype=np.uint8).tobytes()
                blob = bytes([0, 0, 8, len(shape)]) + sizes + values
                (tmp_path / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(blob))

    words = ["--tasks", "mnist-lenet", "--optimizers", "sgd", "--seeds", "1", "--epochs", "1"]
    words += ["--workers", "1", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    write(63)
    assert call("compare", *words)[0] == 2
    assert "63 training images" in capsys.readouterr().err
    write(64)
    assert call("compare", *words)[0] == 0
    assert len(numbers(tmp_path / "out")) == 1


def test_missing_packages_are_one_line_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = entry.find_spec
    monkeypatch.setattr(entry, "find_spec", lambda n: None if n == "mlxtend" else found(n))
    assert entry.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mlxtend" in line
    assert 'pip install "filteropt[experiments]"' in line


def test_help_lists_every_study_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help")[0] == 0
    text = capsys.readouterr().out
    assert "compare" in text
    assert "list" in text
    assert call("compare", "--help")[0] == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Compare):
        assert f"--{field.name.replace('_', '-')}" in text


def test_list_describes_every_task_and_optimizer() -> None:
    code, text = call("list")
    assert code == 0
    for name in (*TASKS, *OPTIMIZERS):
        assert name in text


def test_options_choose_the_runs(tmp_path: Path) -> None:
    words = ["--optimizers", "sgd,ADAM", "adamw:lr=0.01", "--seeds", "2", "5", "--epochs", "1"]
    code, screen = call(*SMALL, *words, "--out", tmp_path)
    table = numbers(tmp_path)
    assert code == 0
    assert set(table["optimizer"]) == {"SGD+momentum", "Adam", "AdamW (lr=0.01)"}
    assert set(table["seed"]) == {2, 5}
    assert set(table["epochs"]) == {1}
    assert "digits-mlp: 1 epoch, 2 seeds" in screen


def test_finished_runs_are_reused_unless_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    original = workers.train
    monkeypatch.setattr(
        workers, "train", lambda *args, **named: trained.append(1) or original(*args, **named)
    )

    def go(*more: object) -> tuple[int, str]:
        before = len(trained)
        words = ("--optimizers", "sgd", "--epochs", 1, "--out", tmp_path, *more)
        code, screen = call(*SMALL, *words)
        assert code == 0
        return len(trained) - before, screen

    assert go("--seeds", 2)[0] == 2
    first = numbers(tmp_path)
    count, screen = go("--seeds", 2)
    assert count == 0
    assert "2 of them already finished" in screen
    pd.testing.assert_frame_equal(numbers(tmp_path), first)
    assert go("--seeds", 3)[0] == 1
    assert go("--seeds", 2, "--fresh")[0] == 2
    pd.testing.assert_frame_equal(numbers(tmp_path), first)


def test_interrupt_keeps_finished_runs_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = workers.train

    def interrupted(run: object, *args: object, **named: object) -> object:
        if run.seed == 1:
            raise KeyboardInterrupt
        return original(run, *args, **named)

    words = (*SMALL, "--optimizers", "sgd", "--seeds", 2, "--epochs", 1, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "train", interrupted)
        code, screen = call(*words)
    assert code == 130
    assert "1 of 2 runs are kept" in screen
    assert "resumes" in screen
    code, screen = call(*words)
    assert code == 0
    assert "1 of them already finished" in screen


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    """Start a comparison of 2 x 4 short runs in two worker processes."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments", "compare", "--tasks", "digits-mlp"),
            *("--optimizers", "sgd", "adam", "--seeds", "4", "--epochs", "8"),
            *("--workers", "2", "--out", str(out), *words),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@needs_proc
def test_killed_comparison_resumes_to_the_same_table(tmp_path: Path) -> None:
    process = start(tmp_path / "killed")
    wait_until(lambda: len(list(tmp_path.glob("killed/runs/*.json"))) >= 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/runs/*.json")}
    assert 2 <= len(kept) < 8
    assert len(children.split()) >= 2
    wait_until(lambda: not any(alive(int(pid)) for pid in children.split()))
    words = (*SMALL, "--optimizers", "sgd", "adam", "--seeds", 4, "--epochs", 8, "--out")
    code, screen = call(*words, tmp_path / "killed")
    assert code == 0
    assert f"{len(kept)} of them already finished" in screen
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert call(*words, tmp_path / "whole")[0] == 0
    pd.testing.assert_frame_equal(numbers(tmp_path / "killed"), numbers(tmp_path / "whole"))


@needs_proc
def test_ctrl_c_ends_the_workers_and_says_how_to_resume(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("runs/*.json"))) >= 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resumes" in text
    assert "Traceback" not in text
    wait_until(lambda: not any(alive(int(pid)) for pid in children.split()))
    assert not list(tmp_path.glob("runs/*.partial"))
