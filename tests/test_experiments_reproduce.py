"""Reproducing the paper: networks, optimizers, resumption, several processes, exit codes."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from rich.console import Console

from experiments import data
from experiments.cli import main
from experiments.config import read_config
from experiments.data import crop_and_flip
from experiments.models import densenet, mlp, resnet
from experiments.reproduce import training
from experiments.reproduce.benchmark import Table1
from experiments.reproduce.protocol import LENET, OPTIMIZERS, PROBLEMS, SCALES, choice, published
from experiments.reproduce.training import Trial, perform


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["reproduce", *map(str, words)], Console(file=screen, width=200))
    return code, screen.getvalue()


def trial(folder: Path, problem: str, optimizer: str, epochs: int) -> Trial:
    return Trial(problem, optimizer, 0, epochs, "cpu", "", Path(), folder)


@pytest.mark.parametrize(
    ("build", "classes", "count"),
    [(resnet, 10, 21_282_122), (densenet, 10, 6_956_298), (resnet, 100, 21_328_292)],
)
def test_networks_have_the_published_number_of_parameters(build, classes, count) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(3, classes).parameters()) == count


@pytest.mark.parametrize("problem", SCALES["small"], ids=lambda problem: problem.name)
def test_small_networks_map_images_to_logits(problem) -> None:
    side = 28 if problem.name.startswith("mnist") else 8
    assert problem.model()(torch.randn(2, 1, side, side)).shape == (2, problem.classes)


def test_table_1_has_a_row_for_every_optimizer_and_a_pair_for_every_problem() -> None:
    problems = [problem.name for problem in SCALES["paper"]]
    found = [published(name, problem) for name in OPTIMIZERS for problem in problems]
    assert len(found) == 9 * 4
    assert published("sgd", "cifar10-resnet") == (5.170, 0.174)
    assert published("adabayes", "cifar100-densenet") == (22.090, 1.079)
    assert {problem.place for problem in SCALES["small"]} == set(problems)


def needs_adabound() -> None:
    pytest.importorskip("pytorch_optimizer", reason="AdaBound comes with the second-order extra")


def test_hyperparameters_are_the_papers() -> None:
    needs_adabound()
    groups = {name: choice(name, "resnet").settings(128) for name in OPTIMIZERS}
    assert (groups["sgd"]["lr"], groups["sgd"]["momentum"]) == (0.1, 0.9)
    assert groups["adam"]["betas"] == groups["amsgrad"]["betas"] == [0.99, 0.999]
    assert choice("adam", "densenet").settings(128)["betas"] == [0.9, 0.999]
    assert groups["adagrad"]["lr"] == 0.01
    for name in ("sgd", "adam", "adagrad", "amsgrad", "adabound", "amsbound"):
        assert groups[name]["weight_decay"] == 5e-4
    for name in ("adamw", "adabayes-fp", "adabayes"):  # decoupled: lambda = 5e-5 per step
        assert groups[name]["lr"] * groups[name]["weight_decay"] == pytest.approx(5e-5)
    for name in ("adabayes-fp", "adabayes"):
        assert (groups[name]["lr_sgd"], groups[name]["batch_size"]) == (0.1, 128)


@pytest.mark.parametrize("name", ["adabound", "amsbound"])
def test_adabound_follows_the_published_rule(name: str) -> None:
    """Luo et al. (2019), Algorithms 2 and 3, with the debiasing and decay of their experiments."""
    needs_adabound()
    draw = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(60, generator=draw, dtype=torch.float64))
    w, scale = p.detach().clone(), torch.logspace(-3, 1, 60, dtype=torch.float64)
    opt = choice(name, "resnet").build([p], 128)
    schedule = torch.optim.lr_scheduler.MultiStepLR(opt, [150], 0.1)
    m, v, largest = (torch.zeros_like(w) for _ in range(3))
    clipped = 0
    for t in range(1, 301):
        noise = torch.randn(60, generator=draw, dtype=torch.float64) * (3 if t < 20 else 0.3)
        p.grad = scale * p.detach() + noise
        opt.step()
        schedule.step()
        fall = 1.0 if t <= 150 else 0.1
        g = scale * w + noise + 5e-4 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = torch.maximum(largest, v)
        root = (largest if name == "amsbound" else v).sqrt() + 1e-8
        rate = fall * 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) / root
        low = fall * 0.1 * (1 - 1 / (1e-3 * t + 1))
        high = fall * 0.1 * (1 + 1 / (1e-3 * t))
        clipped += int(((rate < low) | (rate > high)).sum())
        w = w - rate.clamp(low, high) * m
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-10)
    assert 0 < clipped < 300 * 60


def test_augmentation_cuts_out_shifted_and_mirrored_images() -> None:
    images = (
        torch.arange(1, 2 * 3 * 5 * 5 + 1).reshape(2, 3, 5, 5).to(torch.uint8).repeat(40, 1, 1, 1)
    )
    found = crop_and_flip(images, 2, torch.Generator().manual_seed(0), flip=True)
    wide = torch.nn.functional.pad(images, (2,) * 4)
    seen = set()
    shifts = [(row, column, flip) for row in range(5) for column in range(5) for flip in (0, 1)]
    for k, cut in enumerate(found):
        parts = {(r, c, f): wide[k, :, r : r + 5, c : c + 5] for r, c, f in shifts}
        fits = {s for s, part in parts.items() if torch.equal(cut, part.flip(2) if s[2] else part)}
        assert len(fits) == 1
        seen |= fits
    assert len(seen) > 30  # of 50
    plain = crop_and_flip(images, 0, torch.Generator(), flip=False)
    assert torch.equal(plain, images)


@pytest.mark.parametrize("name", ["adabayes", "amsbound"])
def test_a_killed_run_goes_on_to_the_same_numbers(name: str, tmp_path: Path, monkeypatch) -> None:
    if name == "amsbound":
        needs_adabound()
    whole = perform(trial(tmp_path / "whole", "digits-resnet", name, 2))
    keep, kept = training._keep, []

    def keep_then_die(*arguments) -> None:
        keep(*arguments)
        kept.append(arguments)
        if len(kept) == 1:
            raise KeyboardInterrupt

    cut = trial(tmp_path / "cut", "digits-resnet", name, 2)
    monkeypatch.setattr(training, "_keep", keep_then_die)
    with pytest.raises(KeyboardInterrupt):
        perform(cut)
    assert perform(cut) == whole
    assert len(kept) == 2  # the second epoch alone was trained again


SHARED = """
import sys
from dataclasses import replace
from functools import partial

from experiments import data, models
from experiments.cli import main
from experiments.reproduce.protocol import LENET, PROBLEMS, SCALES

perceptron = partial(models.mlp, 64, 32, 10)
problem = replace(LENET, name="digits-mlp", source=data.DIGITS, model=perceptron, padding=1)
PROBLEMS[problem.name] = problem
SCALES["small"].append(problem)
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch) -> None:
    """The same minibatches, shared; a perceptron normalizes nothing over the minibatch."""
    (tmp_path / "shared.py").write_text(SHARED)
    words = ["reproduce", "table1", "--scale", "small", "--problems", "digits-mlp"]
    words += ["--optimizers", "adabayes", "--epochs", "2", "--seeds", "1", "--out", "."]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "shared.py", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# Table 1") == 1
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert read_config(tmp_path / "table1.yaml", Table1).epochs == 2
    shared = json.loads(next((tmp_path / "runs").glob("*.json")).read_text())["curves"]
    model = partial(mlp, 64, 32, 10)
    problem = replace(LENET, name="digits-mlp", source=data.DIGITS, model=model, padding=1)
    monkeypatch.setitem(PROBLEMS, problem.name, problem)
    alone = perform(trial(tmp_path, problem.name, "adabayes", 2))["curves"]
    for key in ("train_loss", "test_loss"):
        assert shared[key] == pytest.approx(alone[key], rel=1e-4)


def test_the_papers_protocol_runs_on_files_of_cifar(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (3, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    words = ["--data-dir", tmp_path, "--problems", "cifar10-resnet", "--optimizers", "sgd"]
    code, text = call("table1", *words, "--epochs", 1, "--out", tmp_path / "out")
    assert code == 0
    numbers = json.loads((tmp_path / "out" / "table1.json").read_text())
    assert numbers["command"].startswith("python -m experiments reproduce table1 --out ")
    assert "--optimizers sgd" in numbers["command"]
    assert "| 5.17 |" in text
    assert (tmp_path / "out" / "table1.png").stat().st_size > 10_000


def test_fig4_reads_what_table1_has_trained(tmp_path: Path, monkeypatch) -> None:
    words = ["--scale", "small", "--problems", "digits-resnet", "--optimizers", "sgd,adamw"]
    words += ["--epochs", "1", "--seeds", "2", "--out", str(tmp_path)]
    assert call("table1", *words)[0] == 0
    monkeypatch.setattr(
        "experiments.reproduce.benchmark.perform", lambda _: pytest.fail("trained again")
    )
    assert call("fig4", *words)[0] == 0
    curves = json.loads((tmp_path / "fig4.json").read_text())["curves"]["digits-resnet"]
    table = json.loads((tmp_path / "table1.json").read_text())["problems"]["digits-resnet"]
    for name in ("sgd", "adamw"):
        assert curves[name]["test_loss"][0] == pytest.approx(table[name]["last_loss"]["mean"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("table1", "--scale", "tiny"), "'tiny'"),
        (("table1", "--scale", "small", "--optimizers", "lion"), "unknown optimizer 'lion'"),
        (("fig4", "--scale", "small", "--problems", "cifar10-resnet"), "unknown problem"),
        (("table1", "--scale", "small", "--seeds", "0"), "--seeds is 0"),
        (("fig3", "--scale", "small", "--epochs", "0"), "--epochs is 0"),
        (("fig1", "--correlation", "1.5"), "--correlation is 1.5"),
        (("appendix-a", "--batches", "1"), "--batches is 1"),
        (("appendix-b", "--weights", "0"), "--weights is 0"),
        (("fig1", "--out", "FILE"), "cannot be created"),
        (("table1", "--data-dir", "FILE"), "is not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, told, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "file") if word == "FILE" else word for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    assert call(*words, *out)[0] == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert told in errors
    assert errors.count("\n") == 1


def test_without_cifar_the_small_scale_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    def refuse(*_, **__) -> None:
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    for name in ("table1", "fig3"):
        assert call(name, "--data-dir", tmp_path, "--out", tmp_path / "out")[0] == 2
        assert "--scale small, which needs none" in capsys.readouterr().err
