"""One training run: deterministic given its seed, paired across optimizers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.optimizers import OPTIMIZERS, parse_choice, split_choices
from experiments.plan import plan_runs
from experiments.tasks import find_task
from experiments.train import Run, train

TASK = find_task("digits-mlp")


def make_run(optimizer: str = "adamw", seed: int = 0, epochs: int = 1, **options: Any) -> Run:
    chosen = {"schedule": "cosine", "device": "cpu", "evaluate_on": "test"} | options
    (run,) = plan_runs(
        [TASK], [parse_choice(optimizer)], [seed], {TASK.name: epochs}, data_dir=Path(), **chosen
    )
    return run


def learned(run: Run) -> dict[str, Any]:
    """Train and keep what does not depend on the clock."""
    result = train(run, Path())
    assert result["metrics"].pop("seconds_per_step") > 0
    return result


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_run_is_deterministic_given_its_seed(optimizer: str) -> None:
    first = learned(make_run(optimizer))
    assert first == learned(make_run(optimizer))
    assert first["curves"] != learned(make_run(optimizer, seed=1))["curves"]
    assert not first["diverged"]


def test_runs_of_one_seed_share_weights_and_order() -> None:
    frozen = [
        learned(make_run(f"{name}:lr=0.0", seed=3))["curves"] for name in ("sgd", "adam", "rmsprop")
    ]
    assert frozen[0] == frozen[1] == frozen[2]


def test_run_leaves_the_global_generator_and_threads_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    learned(make_run())
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


@pytest.mark.parametrize("optimizer", ["adamw", "adabayes"])
def test_run_learns_and_reports_every_epoch(optimizer: str) -> None:
    calls: list[int] = []
    result = train(make_run(optimizer, epochs=8), Path(), on_epoch=lambda: calls.append(1))
    curves = result["curves"]
    assert len(calls) == 8
    assert {len(values) for values in curves.values()} == {8}
    assert curves["train_loss"][-1] < curves["train_loss"][0]
    assert result["metrics"]["test_error"] == curves["test_error"][-1] < 0.2
    assert 0.0 <= result["metrics"]["test_ece"] <= 1.0


def test_schedule_and_held_out_images_matter() -> None:
    usual = learned(make_run(epochs=2))["curves"]
    assert usual != learned(make_run(epochs=2, schedule="constant"))["curves"]
    assert usual != learned(make_run(epochs=2, evaluate_on="validation"))["curves"]


@pytest.mark.parametrize("optimizer", ["sgd:lr=1e9", "adabayes:lr_sgd=1e12,lr=1e5"])
def test_diverged_run_is_a_result_that_json_can_hold(optimizer: str) -> None:
    result = learned(make_run(optimizer, epochs=3))
    assert result["diverged"]
    assert set(result["metrics"].values()) == {None}
    json.dumps(result, allow_nan=False)


def test_choice_reads_settings_and_their_kinds() -> None:
    choice = parse_choice("AdamW:lr=0.01,betas=(0.8,0.9)")
    optimizer = choice.build([torch.nn.Parameter(torch.zeros(1))], 64)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert choice.label == "AdamW (lr=0.01, betas=(0.8, 0.9))"
    assert choice.settings(64)["lr"] == 0.01
    limit = parse_choice("adabayes-fp:lr_sgd=inf,fixed_point=exact").settings(64)
    assert (limit["lr_sgd"], limit["fixed_point"], limit["batch_size"]) == ("inf", "exact", 64)


def test_choices_are_split_at_commas_between_names_only() -> None:
    words = ["adabayes:lr_sgd=1,lr=0.01,adamw,adabayes-fp:betas=(0.9,0.99)", "sgd"]
    assert split_choices(words) == [
        "adabayes:lr_sgd=1,lr=0.01",
        "adamw",
        "adabayes-fp:betas=(0.9,0.99)",
        "sgd",
    ]


def test_filters_are_told_the_batch_size() -> None:
    for name in ("adabayes", "adabayes-fp"):
        assert parse_choice(name).settings(TASK.batch_size)["batch_size"] == TASK.batch_size
