"""Finished runs on disk: whole or absent, and found again only by the same request."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import store as store_module
from experiments.optimizers import parse_choice
from experiments.plan import plan_runs
from experiments.store import Store, run_name
from experiments.tasks import find_task
from experiments.train import Run

RESULT = {
    "metrics": {"test_error": 0.25, "seconds_per_step": None},
    "curves": {"train_loss": [1.0, 0.1]},
    "diverged": False,
}


@pytest.fixture(scope="module")
def run() -> Run:
    tasks, choices = [find_task("digits-mlp")], [parse_choice("adamw")]
    (run,) = plan_runs(
        tasks,
        choices,
        [0],
        {"digits-mlp": 2},
        schedule="cosine",
        device="cpu",
        evaluate_on="test",
        data_dir=Path(),
    )
    return run


def test_store_returns_what_was_saved_until_discarded(tmp_path: Path, run: Run) -> None:
    store = Store(tmp_path / "runs")
    assert store.load(run) is None
    store.save(run, RESULT)
    assert store.load(run) == RESULT
    store.discard(run)
    store.discard(run)
    assert store.load(run) is None


def test_store_key_covers_everything_that_changes_the_numbers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [
        replace(run, task=find_task("mnist5k-lenet")),
        replace(run, choice=parse_choice("adam")),
        replace(run, seed=1),
        replace(run, epochs=3),
        replace(run, schedule="constant"),
        replace(run, device="cuda"),
        replace(run, evaluate_on="validation"),
        replace(run, data="0123"),
        replace(run, settings=run.settings | {"lr": 0.5}),
        replace(run, versions={"torch": "0"}),
    ]
    names = {run_name(other) for other in [run, *others]}
    monkeypatch.setattr(store_module, "PROTOCOL", -1)
    names.add(run_name(run))
    assert len(names) == len(others) + 2


def test_store_reuses_a_run_whose_settings_equal_the_defaults(run: Run) -> None:
    spelled_out = parse_choice("adamw:lr=0.001")
    same = replace(run, choice=spelled_out, settings=spelled_out.settings(64))
    assert run_name(same) == run_name(run)


def test_store_leaves_nothing_behind_when_saving_fails(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).save(run, RESULT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"metrics": {', "[]", '{"metrics": {}}'])
def test_store_takes_a_damaged_file_for_an_unfinished_run(
    tmp_path: Path, run: Run, text: str
) -> None:
    store = Store(tmp_path)
    store.save(run, RESULT)
    (path,) = tmp_path.iterdir()
    path.write_text(text, encoding="utf-8")
    assert store.load(run) is None


def test_store_cleans_what_a_killed_process_left(tmp_path: Path, run: Run) -> None:
    store = Store(tmp_path)
    store.save(run, RESULT)
    (tmp_path / "half-written.partial").write_text("{", encoding="utf-8")
    store.clean()
    assert [path.name for path in tmp_path.iterdir()] == [f"{run_name(run)}.json"]
