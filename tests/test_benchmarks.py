"""The benchmark of steps: its lists, its counts of bytes, its arithmetic and its command line."""

from __future__ import annotations

import importlib
import inspect
import io
import json

import pytest
import torch
from rich.console import Console

import filteropt
from benchmarks import contenders as catalogue
from benchmarks.__main__ import main
from benchmarks.alone import measure_alone, step_by_the_loop
from benchmarks.contenders import NEED_MORE, PRESETS, contenders, objection, presets_left_out
from benchmarks.measure import Effort, Runner, TooSlowError, Weights, _warm_up, measure, peak
from benchmarks.optimizers import GPU_SIZES, read_contenders
from benchmarks.report import cells, overview, summarise
from benchmarks.shapes import LISTS, shapes_of, weights
from experiments.errors import UserError

CPU = torch.device("cpu")
QUICK = Effort(seconds=0.0, patience=60.0)
SHAPES = [(5, 3), (7,), (2, 3, 4)]  # 46 weights in 3 tensors
STEPS = 4 * len(SHAPES)  # a tensor's steps are counted in 4 bytes


# The lists ------------------------------------------------------------------------------------


def test_resnet_is_the_real_one():
    shapes = shapes_of("resnet34", 2e7)
    assert (len(shapes), weights(shapes)) == (110, 21_797_672)


def test_transformer_has_the_tensors_of_gpt2():
    shapes = list(LISTS["transformer"](768))
    vocabulary, places = 64 * 768, 768
    layers = 12 * (12 * 768**2 + 13 * 768)
    assert (len(shapes), weights(shapes)) == (148, (vocabulary + places + 2) * 768 + layers)


@pytest.mark.parametrize("size", GPU_SIZES)
@pytest.mark.parametrize("name", LISTS)
def test_lists_have_about_the_size_asked_for(name, size):
    assert 0.75 < weights(shapes_of(name, size)) / size < 1.35


# What is counted ------------------------------------------------------------------------------


def runner_of(name):
    runner = Runner(contenders()[name], Weights(SHAPES, CPU))
    runner.step()
    return runner


@pytest.mark.parametrize(
    ("name", "per_weight", "per_tensor"),
    [
        ("adamw-fused", 8, 4),
        ("adamw-foreach", 8, 4),
        ("adabayes-eager", 8, 4),
        ("adabayesfp-eager", 8, 4),
        ("bayesrmsprop-eager", 8, 4),
        ("onlinenaturalgradient-eager", 4, 4),
        (
            "momentumfilter-eager",
            16,
            4 + 8 + 8 + 1,
        ),  # predicted ahead: decay, drift and where it is
        ("von-eager", 8, 4),
        ("vadam-eager", 8, 4 + 4),  # what its average of squares has gathered
        ("ivon-eager", 8, 4),
    ],
)
def test_state_is_counted_to_the_byte(name, per_weight, per_tensor):
    assert runner_of(name).kept() == 46 * per_weight + len(SHAPES) * per_tensor


def test_momentum_of_sgd_is_all_that_it_keeps():
    assert runner_of("sgd-fused").kept() == 4 * 46


def test_memory_that_tensors_share_is_counted_once():
    runner = runner_of("sgd-fused")
    state = runner.optimizer.state[runner.params[0]]
    state["again"] = state["momentum_buffer"][1:]
    assert runner.kept() == 4 * 46


def test_peak_is_the_most_at_a_time():
    def run():
        first = torch.empty(1000)
        del first
        second, third = torch.empty(500), torch.empty(700)
        del second, third

    assert peak(run, CPU) == 4 * 1200


def test_peak_sees_what_is_freed_of_earlier_runs():
    held = [torch.empty(1000)]

    def run():
        held.clear()
        held.append(torch.empty(1000))

    assert peak(run, CPU) == 0


def test_least_bytes_read_and_write_everything_once():
    found = measure(contenders()["adabayes-eager"], Weights(SHAPES, CPU), QUICK)
    assert found.kept == 8 * 46 + STEPS
    assert found.least == 28 * 46 + 2 * STEPS
    assert len(found.seconds) == len(found.reference) >= 9
    assert min(found.seconds + found.reference) > 0
    copied = measure(contenders()["copy"], Weights(SHAPES, CPU), QUICK)
    assert copied.least == 8 * 46


def test_temporaries_are_those_of_a_step():
    """Fused AdamW makes none but for the counts of steps, foreach at least one list of weights."""
    fused = measure(contenders()["adamw-fused"], Weights(SHAPES, CPU), QUICK).temporary
    foreach = measure(contenders()["adamw-foreach"], Weights(SHAPES, CPU), QUICK).temporary
    assert fused <= STEPS
    assert foreach >= 4 * 46


def test_contenders_change_the_weights_and_leave_the_gradients():
    for name in ("adamw-foreach", "adabayes-eager", "ivon-eager"):
        held = Weights(SHAPES, CPU)
        before = [x.clone() for x in held.values], [x.clone() for x in held.grads]
        Runner(contenders()[name], held).step()
        assert not any(torch.equal(x, y) for x, y in zip(held.values, before[0], strict=True))
        assert all(torch.equal(x, y) for x, y in zip(held.grads, before[1], strict=True))


def test_slow_ones_are_given_up_before_their_patience_is_over():
    runner = runner_of("eigenbasisfilter-eager")
    runner.step = lambda: 1.0
    with pytest.raises(TooSlowError, match=r"1\.0 s per step"):
        _warm_up(runner, Effort(patience=39.0))
    _warm_up(runner, Effort(patience=40.0))


# Who takes part -------------------------------------------------------------------------------


def test_every_preset_is_timed_or_says_why_not():
    classes = {n for n in filteropt.presets.__all__ if inspect.isclass(getattr(filteropt, n, None))}
    assert classes == PRESETS.keys() | NEED_MORE.keys()
    assert presets_left_out() == NEED_MORE


def test_eager_presets_and_torch_are_there():
    for name, contender in contenders().items():
        if name.endswith(("-eager", "-loop")) or contender.title.startswith("torch"):
            assert contender.captured == (objection(contender, CPU) is not None), name


def test_what_is_not_installed_is_left_out(monkeypatch, tmp_path, capsys):
    absent = catalogue.Contender("absent", "Absent", catalogue._of("not_there", "SOAP"))
    monkeypatch.setattr(catalogue, "OTHERS", (*catalogue.OTHERS, absent))
    code, text = call(tmp_path, "--optimizers", "absent")
    assert code == 0
    assert "Left out: Absent: No module named 'not_there'" in text


def test_the_loop_can_be_forced(monkeypatch):
    update = importlib.import_module("filteropt.execute.update")
    filter, names = filteropt.presets.fixed_noise.adabayes(), ("adabayes", "eigenbasisfilter")
    chosen = [stepped(f"{name}-eager", 3) for name in names]
    assert update.choose(filter, 10, False) is not filteropt.execute.loop
    for name in ("choose", "bucketed"):  # to be put back
        monkeypatch.setattr(update, name, getattr(update, name, None), raising=False)
    step_by_the_loop()
    assert update.choose(filter, 10, False) is filteropt.execute.loop
    torch.testing.assert_close([stepped(f"{name}-loop", 3) for name in names], chosen)


def stepped(name, steps):
    runner = runner_of(name)
    for _ in range(steps - 1):
        runner.step()
    return [p.detach().clone() for p in runner.params]


# Ratios ---------------------------------------------------------------------------------------


def row(name, seconds, reference, least, **others):
    return {
        "shapes": "resnet34",
        "size": 1e5,
        "optimizer": name,
        "title": name,
        "ours": False,
        "seconds": seconds,
        "reference": reference,
        "first": 0.5,
        "warnings": [],
        "weights": 10,
        "tensors": 2,
        "least": least,
        "kept": 80,
        "temporary": 40,
        **others,
    }


def test_ratios_are_medians_of_neighbours():
    """The machine slows down tenfold for a while; neighbours do so together."""
    noise = [1.0, 10.0, 1.0, 10.0, 1.0]
    reference = [0.002 * n for n in noise]
    rows = [
        row("adamw-fused", reference, reference, 280),
        row("copy", [0.25 * r for r in reference], reference, 80),
        row(
            "twice",
            [f * r for f, r in zip([2, 3, 1, 2, 4], reference, strict=True)],
            reference,
            350,
        ),
    ]
    found = summarise(rows)[2]
    assert (found["ratio_low"], found["ratio"], found["ratio_high"]) == pytest.approx((2, 2, 3))
    assert found["floor"] == pytest.approx(1.25)
    assert found["over_floor"] == pytest.approx(2 / 1.25)
    # 35 bytes in 2 units of time, where a copy moves 8 in a quarter
    assert found["of_copy"] == pytest.approx((35 / 2) / (8 / 0.25))
    assert found["peak_bytes"] == pytest.approx(12)
    assert cells(found)[1] == "2.00 (2.00–3.00)"
    larger = [{**r, "size": 1e6, "weights": 20} for r in rows[:2]]
    lines = overview([*summarise(rows), *summarise(larger)], {"torch": "2"}).splitlines()
    assert lines[2] == "**resnet34**: 2 tensors, 10, 20 weights"
    assert "| twice | 2.00 (2.00–3.00) | - | 1.60 |" in lines[-1]
    assert "| copy | 0.25 (0.25–0.25) | 0.25 (0.25–0.25) | - | 100% |" in lines[-2]


# The command ----------------------------------------------------------------------------------


def call(out, *words):
    screen = io.StringIO()
    known = ("--sizes", "1e3", "--shapes", "resnet34", "--seconds", "0.01", "--threads", "1")
    code = main([*known, "--out", str(out), *words], Console(file=screen, width=200))
    return code, " ".join(screen.getvalue().split())


def test_the_command_measures_writes_and_resumes(tmp_path):
    code, text = call(tmp_path, "--optimizers", "adabayes-eager,adabayes-loop")
    assert code == 0
    assert "AdaBayes, eager" in text
    assert "GPUs are unmeasured" in text
    saved = json.loads((tmp_path / "bench.json").read_text())
    names = [found["optimizer"] for found in saved["rows"]]
    assert names == ["adamw-fused", "copy", "adabayes-eager", "adabayes-loop"]
    least = [found["least_bytes"] for found in saved["rows"]]
    n = saved["rows"][0]["weights"]
    assert least == pytest.approx([28 + 8 * 110 / n, 8, 28 + 8 * 110 / n, 28 + 8 * 110 / n])
    assert str(tmp_path) not in json.dumps(saved)
    assert {"processor", "threads", "torch"} <= saved["machine"].keys()
    assert (tmp_path / "steps.png").stat().st_size > 1000
    assert "AdaBayes, loop" in (tmp_path / "table.md").read_text()
    code, _ = call(tmp_path, "--optimizers", "adabayes-eager,adabayes-loop")
    assert code == 0
    assert json.loads((tmp_path / "bench.json").read_text()) == saved


def test_impatience_leaves_out():
    found = measure_alone("adabayes-eager", "resnet34", 1e3, "cpu", Effort(patience=1e-3))
    assert "not done after 0 s" in found["left_out"]


@pytest.mark.parametrize(
    "words",
    [
        ("--optimizers", "adam"),
        ("--shapes", "vgg"),
        ("--sizes", "0"),
        ("--threads", "0"),
        ("--seconds", "-1"),
        ("--nothing",),
    ],
)
def test_mistakes_are_one_line(words, tmp_path, capsys):
    assert call(tmp_path, *words)[0] == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_names_are_looked_up_once():
    names = [c.name for c in read_contenders(["copy,adabayes-eager", "adabayes-eager"])]
    assert names == ["adamw-fused", "copy", "adabayes-eager"]
    with pytest.raises(UserError, match="unknown name 'adam'"):
        read_contenders(["adam"])
