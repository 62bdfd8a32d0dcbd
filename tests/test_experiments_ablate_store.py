"""The store of an ablation under parallel writers and kills, and what else carries runs out."""

import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.ablate import Ablate
from experiments.ablate.arms import Arm
from experiments.ablate.jobs import METRICS, Job
from experiments.ablate.rows import Rows
from experiments.ablate.tuning import OptunaSearch, RandomSearch, rounds, tuner
from experiments.errors import UserError
from experiments.keeper import Results
from tests.experiments_calls import call, plugin

__all__ = ["plugin"]

ARM = Arm("composition", ("adamw",), ranges=(("lr", 1e-4, 1e-1),))


def job(seed: int, settings: int = 3) -> Job:
    values = tuple((("lr", 0.1 / (k + 1)),) for k in range(settings))
    plain = ("cosine", "cpu", Path(), "", (), (("torch", "2"),))
    return Job("tune", "digits-mlp", ARM, values, seed, 2, *plain)


def result(one: Job) -> dict[str, Any]:
    runs = [
        {
            **dict.fromkeys(METRICS, one.seed + k / 10),
            "curves": {"nll": [2.0, one.seed + k / 10]},
        }
        for k in range(len(one.settings))
    ]
    return {"runs": runs, "seconds": 1.5}


def write(path: Path, seeds: range) -> None:
    rows = Rows(path)
    for seed in seeds:
        rows.save(job(seed), result(job(seed)))


def write_for_ever(path: Path) -> None:
    write(path, range(10**9))


def counts(path: Path) -> list[tuple[int, ...]]:
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return file.execute("SELECT count(*) FROM runs GROUP BY job").fetchall()


def test_a_job_is_read_as_it_was_written_and_decided_by_all_that_changes_its_numbers(
    tmp_path: Path,
) -> None:
    rows, one = Rows(tmp_path / "runs.db"), job(3)
    rows.save(one, result(one))
    assert rows.load(one) == result(one)
    for change in (
        {"seed": 4},
        {"settings": one.settings[:2]},
        {"epochs": 3},
        {"purpose": "test"},
        {"schedule": "constant"},
        {"versions": (("torch", "3"),)},
        {"arm": replace(ARM, fixed=(("weight_decay", 0.1),))},
    ):
        assert rows.load(replace(one, **change)) is None, change
    with sqlite3.connect(tmp_path / "runs.db") as file:  # one row is lost: the job is run again
        file.execute("DELETE FROM runs WHERE member = 1")
    assert rows.load(one) is None


def test_writers_side_by_side_lose_and_repeat_nothing(tmp_path: Path) -> None:
    path, ranges = tmp_path / "runs.db", [range(20), range(20), range(10, 30)]  # the same, too
    with ThreadPoolExecutor(3) as pool:  # a connection each, which is what SQLite tells apart
        list(pool.map(write, [path] * 3, ranges))
    assert counts(path) == [(3,)] * 30


def test_a_writer_that_is_killed_leaves_whole_jobs(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    Rows(path)
    writer = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(path,))
    writer.start()
    deadline = time.monotonic() + 100
    while len(counts(path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    found = counts(path)
    assert len(found) >= 5
    assert found == [(3,)] * len(found)


def test_a_file_that_is_no_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_text("no database at all, but text" * 100)
    with pytest.raises(UserError, match=r"runs\.db cannot be used: file is not a database"):
        Rows(tmp_path / "runs.db")


def test_random_search_is_paired_within_its_ends_and_goes_on_where_it_was() -> None:
    wide = Arm("composition", ("adabayes",), ranges=(("lr", 1e-4, 1e-1), ("lr_sgd", 0.1, 1.0)))
    narrow, whole = RandomSearch(ARM, 0).ask(200), RandomSearch(wide, 0).ask(200)
    assert [one[0] for one in narrow] == [one[0] for one in whole]
    rates = pd.Series([dict(one)["lr"] for one in whole])
    assert rates.between(1e-4, 1e-1).all()
    for end in (1e-3, 1e-2):  # each decade has a third, within 4 standard errors
        assert abs((rates < end).mean() - (1 / 3 if end == 1e-3 else 2 / 3)) < 4 / 30
    search = RandomSearch(wide, 0)
    assert [*search.ask(3), *search.ask(5)] == whole[:8]


def test_optuna_learns_from_what_it_is_told_and_is_repeatable() -> None:
    pytest.importorskip("optuna", reason="the extra filteropt[optuna] is not installed")

    def tried() -> list[float]:
        search, found = tuner("optuna", ARM, 0), []
        assert isinstance(search, OptunaSearch)
        for count in rounds("optuna", 40):
            rates = [dict(one)["lr"] for one in search.ask(count)]
            search.tell([None if rate > 0.05 else abs(rate - 0.003) for rate in rates])
            found += rates
        return found

    once = tried()
    assert once == tried()
    assert len(once) == 40
    last = pd.Series(once[30:])
    assert last.between(3e-4, 3e-2).mean() > 0.8  # a random draw is there in 67 of 100 cases


def test_curves_are_written_for_tensorboard_also_of_runs_that_were_kept(
    plugin: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra filteropt[tensorboard] is not installed")
    words = ["ablate", "--tasks", "blobs", "--plugin", plugin, "--out", tmp_path, "--dynamics"]
    words += ["--compositions", "mine", "--trials", "2", "--rates", "0", "--epochs", "2"]
    words += ["--seeds", "2", "--workers", "1"]
    assert call(*words)[0] == 0
    assert not (tmp_path / "tensorboard").exists()
    assert call(*words, "--tensorboard")[0] == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted((tmp_path / "tensorboard" / "blobs" / "mine").iterdir())
    assert len(folders) == 4
    events = EventAccumulator(str(folders[0]))
    events.Reload()
    with sqlite3.connect(tmp_path / "runs.db") as file:
        query = "SELECT nll FROM runs WHERE purpose = 'test' AND seed = 1"
        (nll,) = file.execute(query).fetchone()
    assert [point.step for point in events.Scalars("nll")] == [1, 2]
    assert events.Scalars("nll")[-1].value == pytest.approx(nll, rel=1e-6)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="the extra filteropt[ray] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        yield ray
        ray.shutdown()


def carry_out(one: dict[str, Any]) -> dict[str, Any]:
    """A run that tells when it starts, and that waits where it is to be killed."""
    with open(one["log"], "a") as log:
        log.write(f"{one['name']} {os.getpid()}\n")
    if one["name"] == 2 and not os.path.exists(one["killed"]):
        time.sleep(120)
    time.sleep(0.2)
    return {"name": one["name"]}


def test_ray_gives_the_job_of_a_killed_worker_to_another_and_repeats_no_other(
    cluster: Any, tmp_path: Path
) -> None:
    from experiments.ablate.cluster import on_ray

    log, killed = tmp_path / "log", tmp_path / "killed"
    jobs = [{"name": k, "log": str(log), "killed": str(killed)} for k in range(6)]
    found, results = [], on_ray(None)(carry_out, jobs, 2)
    for job, outcome in _killing(results, log, killed):
        assert job["name"] == outcome["name"]
        found.append(outcome["name"])
    assert sorted(found) == list(range(6))
    starts = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert sorted(starts) == [0, 1, 2, 2, 3, 4, 5]  # the killed one twice, every other one once
    assert len({line.split()[1] for line in log.read_text().splitlines()}) >= 2


def _killing(results: Results, log: Path, killed: Path) -> Iterator[tuple[Any, Any]]:
    """The results; once three are there, the worker that waits is killed."""
    for k, pair in enumerate(results):
        yield pair
        if k == 2:
            started = dict(line.split() for line in log.read_text().splitlines())
            killed.touch()
            os.kill(int(started["2"]), signal.SIGKILL)


def test_an_ablation_on_ray_gives_the_report_of_one_in_this_process(
    cluster: Any, plugin: Path, tmp_path: Path
) -> None:
    words = ["ablate", "--tasks", "blobs", "--plugin", plugin, "--dynamics", "--epochs", "2"]
    words += ["--compositions", "mine", "--trials", "2", "--rates", "0", "--seeds", "2"]
    for where, workers in (
        (["--ray", "--out", tmp_path / "ray"], 2),
        (["--out", tmp_path / "here"], 1),
    ):
        assert call(*words, *where, "--workers", workers)[0] == 0
    for name in ("report.md", "arms.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_cluster_that_is_not_there_is_one_line_before_training(
    cluster: Any, plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--tasks", "blobs", "--plugin", plugin, "--dynamics", "--out", tmp_path]
    assert call(*words, "--compositions", "mine", "--address", "127.0.0.1:1")[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--address 127.0.0.1:1: Ray cannot be reached" in line


def test_extras_that_are_not_installed_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.ablate import boards, cluster, tuning

    for place in (boards, cluster, tuning):
        monkeypatch.setattr(place, "find_spec", lambda _: None)
    for ask in (
        lambda: cluster.on_ray(None),
        lambda: boards.logged_rows(Path(), Path()),
        lambda: tuning.rounds("optuna", 3),
    ):
        with pytest.raises(UserError, match="install it with: pip install"):
            ask()
    assert Ablate().tuner == "random"
