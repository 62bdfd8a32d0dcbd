"""The study of Kronecker-factored filters: its target, its tables, its optimizers and its tasks."""

import hashlib
import math

import pytest
import torch

from experiments.kronecker import arms
from experiments.kronecker.arms import CONTENDERS, REFERENCE, read_contenders
from experiments.kronecker.models import CharacterTransformer, autoencoder
from experiments.kronecker.runs import _batches
from experiments.kronecker.study import Outcome
from experiments.kronecker.tables import AGAIN, rows, tabulate
from experiments.kronecker.targets import ratio, reach, score, target_of
from experiments.kronecker.tasks import CONTEXT, TASKS, TEXT_LENGTH

DIGITS, TEXT = TASKS["digits-mlp"], TASKS["text-transformer"]
USUAL = {"lr": 3e-3, "1 - beta1": 0.1, "1 - beta2": 0.01}


def run_of(losses: list[float], *, every: int = 10, diverged: bool = False) -> dict:
    """A result with these losses, at half a second per step."""
    steps = [every * k for k in range(len(losses))]
    curves = {"step": steps, "seconds": [s / 2 for s in steps], "loss": losses}
    last = None if diverged else losses[-1]
    metrics = {"loss": last, "held_loss": last, "seconds_per_step": None if diverged else 0.5}
    return {"metrics": metrics, "curves": curves | {"held_loss": losses}, "diverged": diverged}


def outcome_of(name: str, results: list[dict], target: float = 1.0) -> Outcome:
    values = {"lr": 0.001}
    return Outcome(DIGITS, CONTENDERS[name], values, target, 40, results, results)


# The target ---------------------------------------------------------------------------------


def test_target_is_what_every_run_has_seen_in_three_quarters_of_its_steps() -> None:
    assert target_of([run_of([5.0, 3.0, 2.0, 2.5, 1.0])]) == 2.0
    assert target_of([run_of([5.0, 3.0, 2.0, 1.5, 1.0])]) == 1.5
    assert target_of([run_of([5.0, 6.0, 7.0, 8.0, 9.0])]) == 5.0
    runs = [run_of([5.0, 3.0, 2.0, 1.5, 1.0]), run_of([5.0, 1.0, 2.0, 1.5, 9.0])]
    assert target_of(runs) == 1.5
    assert all(reach(result, target_of(runs)) for result in runs)


def test_target_is_reached_at_the_first_look_that_has_it() -> None:
    found = run_of([5.0, 3.0, 2.0, 2.5, 1.0])
    assert reach(found, 2.0) == (20, 10.0, 2.0)
    assert reach(found, 2.2) == (20, 10.0, 2.0)
    assert reach(found, 1.9) == (40, 20.0, 1.0)
    assert reach(found, 5.0) == (0, 0.0, 5.0)
    assert reach(found, 0.9) is None
    assert reach(run_of([5.0, 1.0], diverged=True), 2.0) is None


def test_runs_rank_by_steps_to_the_target_then_by_the_loss_there() -> None:
    ranked = [
        run_of([5.0, 1.0, 4.0]),
        run_of([5.0, 3.0, 1.0]),
        run_of([5.0, 3.0, 1.5]),
        run_of([5.0, 3.0, 2.5]),
        run_of([5.0, 1.0], diverged=True),
    ]
    scores = [score(result, 2.0) for result in ranked]
    assert scores == sorted(scores)
    assert scores[0] == (10, 1.0)
    assert scores[-1] == (math.inf, math.inf)
    assert score(ranked[1], None) == (math.inf, 1.0)
    cut = run_of([5.0, 3.0, 1.5])
    assert score(cut, 2.0) == score(run_of([5.0, 3.0, 1.5, 9.0]), 2.0)


def test_error_of_a_ratio_is_that_of_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    a = 30 + 0.6 * torch.randn(100_000, generator=generator)
    b = 12 + 0.3 * torch.randn(100_000, generator=generator)
    value, error = ratio((30.0, 0.6), (12.0, 0.3))
    assert value == 2.5
    assert error == pytest.approx((a / b).std().item(), rel=0.02)


# The table ----------------------------------------------------------------------------------


def test_table_says_what_was_reached_and_what_was_not() -> None:
    usual = [run_of([5.0, 4.0, 3.0, 1.0, 0.9]), run_of([5.0, 4.0, 3.0, 2.0, 1.0])]
    quick = [run_of([5.0, 1.0, 0.9, 0.8, 0.7]), run_of([5.0, 3.0, 1.0, 0.9, 0.8])]
    half = [run_of([5.0, 1.0, 2.0, 2.0, 2.0]), run_of([5.0, 3.0, 3.0, 3.0, 3.0])]
    gone = [run_of([5.0], diverged=True), run_of([5.0, 3.0, 3.0, 3.0, 3.0])]
    outcomes = [
        outcome_of(name, results)
        for name, results in zip(CONTENDERS, (usual, quick, half, gone), strict=False)
    ]
    table = tabulate(outcomes).set_index("optimizer")
    titles = [outcome.contender.title for outcome in outcomes]
    assert list(table.index) == titles
    assert list(table["steps to target"]) == ["35 ± 5", "15 ± 5", "> 40 (1 of 2)", "> 40"]
    assert list(table["seconds to target"]) == ["17.50 ± 2.50", "7.50 ± 2.50", "-", "-"]
    pace = 35 / 15
    error = pace * math.hypot(5 / 35, 5 / 15)
    assert list(table[AGAIN]) == ["-", f"{pace:.2f} ± {error:.2f}", "-", "-"]
    assert table["last loss"][titles[0]] == "0.9500 ± 0.0500"
    assert table["last loss"][titles[3]] == "diverged 1/2"
    assert list(table["settings that reach it"]) == ["2 of 2", "2 of 2", "1 of 2", "0 of 2"]
    kept = rows(outcomes)
    assert list(kept["steps_to_target"].dropna()) == [30, 40, 10, 20, 10]
    assert list(kept["seed"]) == [1, 2] * 4


# The optimizers -----------------------------------------------------------------------------


@pytest.mark.parametrize("contender", CONTENDERS.values(), ids=CONTENDERS)
def test_every_optimizer_lowers_the_loss_at_the_middle_of_its_ranges(contender) -> None:
    if contender.package is not None:
        pytest.importorskip(contender.package)
    values = {name: (low * high) ** 0.5 for name, (low, high) in contender.arm.knobs.items()}
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.LayerNorm(10))
    data = DIGITS.load()
    optimizer = contender.optimizer(model, DIGITS, values)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = DIGITS.loss(model(data.inputs[:256]), data.targets[:256])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    assert model[2].weight.detach().sub(1).abs().min() > 0  # also what a package does not support


@pytest.mark.parametrize("contender", CONTENDERS.values(), ids=CONTENDERS)
def test_every_optimizer_is_tried_at_as_many_different_settings(contender) -> None:
    assert len(contender.arm.knobs) == 3
    assert all(high / low >= 30 for low, high in contender.arm.knobs.values())
    points = contender.arm.settings(3)
    points += contender.arm.settings(3, about=points[0])
    assert len({tuple(point.values()) for point in points}) == 6


def test_settings_are_what_the_optimizer_ends_up_with() -> None:
    model = torch.nn.Linear(4, 3)
    group = CONTENDERS["adamw"].optimizer(model, DIGITS, USUAL).param_groups[0]
    assert group["lr"] == 3e-3
    assert group["betas"] == (0.9, 0.99)
    assert group["weight_decay"] == 0
    values = {"lr": 3e-3, "lr_sgd": 0.5, "1 - beta2": 0.01}
    for name in ("adabayes-fp", "eigenbasis"):
        for task, terms in ((DIGITS, 64), (TEXT, 16 * CONTEXT)):
            group = CONTENDERS[name].optimizer(model, task, values).param_groups[0]
            assert group["batch_size"] == terms
            assert (group["lr"], group["lr_sgd"], group["weight_decay"]) == (3e-3, 0.5, 0.0)
            assert tuple(group["betas"]) == (0.9, 0.99)
    group = CONTENDERS["eigenbasis-soap"].optimizer(model, DIGITS, USUAL).param_groups[0]
    assert group["lr_sgd"] == math.inf


def test_missing_package_leaves_its_optimizers_out_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arms, "find_spec", lambda _: None)
    found, notes = read_contenders(["soap,shampoo", "singd"])
    assert [contender.name for contender in found] == [REFERENCE]
    assert notes == [
        "Left out: SOAP and Shampoo, because pytorch_optimizer is not installed "
        '(pip install "filteropt[second-order]").',
        'Left out: SINGD, because singd is not installed (pip install "singd").',
    ]
    monkeypatch.setattr(arms, "find_spec", lambda _: True)
    assert len(read_contenders([])[0]) == len(CONTENDERS)
    assert read_contenders([])[1] == []


# The tasks ----------------------------------------------------------------------------------


def test_text_is_split_into_windows_and_what_follows_them() -> None:
    from pydoc_data.topics import topics

    data = TEXT.load()
    assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])
    assert torch.equal(data.inputs[1:100], data.targets[:99])
    assert data.inputs.shape[1] == CONTEXT
    assert data.inputs.max() < data.characters
    text = "\n".join(topics[name] for name in sorted(topics))[:TEXT_LENGTH]
    assert data.digest == hashlib.sha256(text.encode()).hexdigest()[:12]
    alphabet = sorted(set(text))
    end = "".join(alphabet[k] for k in data.targets[-1])
    held = "".join(alphabet[k] for k in data.held_inputs[0])
    assert text.startswith("".join(alphabet[k] for k in data.inputs[0]))
    assert text.index(end) + CONTEXT <= text.rindex(held)  # no character is in both


def test_transformer_sees_no_later_character() -> None:
    torch.manual_seed(0)
    model = CharacterTransformer(20, 8, 16, 2, 4)
    text = torch.randint(20, (3, 8))
    changed = text.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 20
    logits, others = model(text), model(changed)
    assert logits.shape == (3, 8, 20)
    assert torch.equal(logits[:, :5], others[:, :5])
    assert (logits[:, 5] != others[:, 5]).any()


def test_autoencoder_has_a_narrow_middle_and_a_loss_summed_over_pixels() -> None:
    model = autoencoder()
    widths = [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)]
    assert widths == [256, 64, 16, 64, 256, 784]
    images = torch.rand(3, 784)
    loss = TASKS["mnist5k-autoencoder"].loss(torch.zeros(3, 784), images)
    assert loss.item() == pytest.approx(784 * math.log(2), rel=1e-6)
    assert model(images).shape == (3, 784)


def test_every_pass_has_every_example_at_most_once() -> None:
    batches = _batches(10, 4, 0)
    drawn = [next(batches) for _ in range(4)]
    for k in (0, 2):
        assert len(set(torch.cat(drawn[k : k + 2]).tolist())) == 8
    assert not torch.equal(drawn[0], drawn[2])
    again = _batches(10, 4, 0)
    assert all(torch.equal(a, next(again)) for a in drawn)
