"""The study of weight uncertainty: its parts against oracles, its budget, its files and codes."""

import io
import json
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score
from torch import nn

import filteropt
from experiments import keeper
from experiments.cli import main
from experiments.tasks import TASKS
from experiments.uncertainty import report, study, training
from experiments.uncertainty.laplace import fit_last_layer, sample_logits
from experiments.uncertainty.methods import METHODS, steps_of
from experiments.uncertainty.metrics import METRICS, assess, auroc, measure, reliability
from experiments.uncertainty.models import with_dropout
from experiments.uncertainty.predictives import (
    TEMPERATURES,
    Trained,
    attach_last_layer,
    fit,
    mixture,
    predict,
)
from experiments.uncertainty.runs import perform
from experiments.uncertainty.shifts import ANGLES, foreign_digits, rotate, shifted
from experiments.uncertainty.tables import best_filters, differences
from experiments.uncertainty.trial import Trial


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["uncertainty", *map(str, words)], Console(file=screen, width=80))
    return code, screen.getvalue()


# The last layer's Laplace approximation -----------------------------------------------------


def test_logit_covariance_is_that_of_the_dense_laplace_approximation() -> None:
    n, width, classes, precision = 7, 3, 4, 0.3
    layer = nn.Linear(width, classes, dtype=torch.float64)
    features = torch.randn(n, width, generator=seeded(), dtype=torch.float64)
    weights = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().flatten()

    def outputs(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        w = w.reshape(classes, width + 1)
        return w[:, :-1] @ x + w[:, -1]

    def curvature(x: torch.Tensor) -> torch.Tensor:
        """The Hessian, which a model that is linear in its weights shares with Gauss–Newton."""
        return torch.autograd.functional.hessian(lambda w: outputs(w, x).logsumexp(0), weights)

    hessian = sum(curvature(x) for x in features) + precision * torch.eye(
        len(weights), dtype=torch.float64
    )
    found = fit_last_layer(features, layer(features).detach()).logit_covariance(features, precision)
    for x, covariance in zip(features, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(partial(outputs, x=x), weights)
        expected = jacobian @ torch.linalg.inv(hessian) @ jacobian.T
        torch.testing.assert_close(covariance, expected, rtol=1e-10, atol=1e-12)


def test_drawn_logits_have_the_mean_and_the_covariance() -> None:
    root = torch.randn(2, 3, 3, generator=seeded(), dtype=torch.float64)
    mean = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    drawn = sample_logits(mean, root @ root.mT, 200_000, seeded(2))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.02)
    for k in range(2):
        torch.testing.assert_close(drawn[:, k].T.cov(), root[k] @ root[k].T, rtol=0, atol=0.05)


# Metrics ------------------------------------------------------------------------------------


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    logits = 3 * torch.randn(400, 10, generator=seeded(), dtype=torch.float64)
    labels = torch.where(
        torch.rand(400, generator=seeded(1)) < 0.5,
        logits.argmax(1),
        torch.randint(10, (400,), generator=seeded(2)),
    )
    return logits.log_softmax(1), labels


def test_metrics_are_their_definitions(predictions) -> None:
    log_p, labels = predictions
    p, y = log_p.exp().numpy(), labels.numpy()
    found = measure(log_p, labels)
    assert found["error"] == pytest.approx(np.mean(p.argmax(1) != y), abs=1e-6)
    assert found["nll"] == pytest.approx(-np.mean(np.log(p[np.arange(400), y])), rel=1e-12)
    assert found["brier"] == pytest.approx(np.mean(np.sum((p - np.eye(10)[y]) ** 2, 1)), rel=1e-12)
    bins = reliability(log_p, labels)
    count, confidence, hits = (np.array(bins[name]) for name in bins)
    assert count.sum() == 400
    gaps = np.abs(confidence - hits).sum() / 400
    assert found["ece"] == pytest.approx(gaps, abs=1e-5)


def test_auroc_is_the_chance_that_an_outside_input_scores_higher() -> None:
    inside = torch.randn(50, generator=seeded()).abs()
    outside = torch.randn(70, generator=seeded(1)).abs() + 0.5
    expected = roc_auc_score([0] * 50 + [1] * 70, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-6)
    assert auroc(inside, inside) == pytest.approx(0.5)
    assert math.isnan(auroc(inside, outside * math.nan))


def test_predictions_that_are_not_numbers_have_no_metrics(predictions) -> None:
    log_p, labels = predictions
    log_p[3] = math.nan
    assert all(map(math.isnan, measure(log_p, labels).values()))


def test_assessment_covers_every_angle_and_metric(predictions) -> None:
    log_p, labels = predictions
    rotated = log_p[:30].expand(len(ANGLES), 30, 10)
    metrics, curves = assess(log_p, labels, rotated, log_p.flip(0))
    assert set(metrics) == set(METRICS)
    assert metrics["auroc"] == pytest.approx(0.5)
    assert metrics["rotated_nll"] == pytest.approx(measure(log_p[:30], labels[:30])["nll"])
    assert [len(curves[name]) for name in ("nll", "auroc", "error", "ece")] == [len(ANGLES)] * 4


# Shifts -------------------------------------------------------------------------------------


def test_right_angles_permute_the_pixels() -> None:
    images = torch.randint(256, (2, 1, 28, 28), generator=seeded(), dtype=torch.uint8)
    assert torch.equal(rotate(images, 0), images)
    assert torch.equal(rotate(images, 90), images.rot90(1, (2, 3)))
    assert torch.equal(rotate(images, 180), images.flip(2, 3))


def test_enlarged_digits_keep_their_ink() -> None:
    from sklearn.datasets import load_digits

    large = foreign_digits(28)
    assert large.shape == (1797, 1, 28, 28)
    assert large.max() == 255
    small = torch.from_numpy(load_digits().images) * (255 / 16)
    means = large.double().mean((1, 2, 3)) - small.mean((1, 2))
    assert means.abs().max() < 15
    tested = shifted(large[:9], torch.zeros(9), 4, 5)
    assert tested.rotated.shape == (len(ANGLES), 4, 1, 28, 28)
    assert torch.equal(tested.rotated[0], large[:4])
    assert torch.equal(tested.digits, large[[0, 449, 898, 1347, 1796]])


# Predictive distributions -------------------------------------------------------------------


def test_mixture_averages_probabilities() -> None:
    drawn = torch.randn(5, 7, 3, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(mixture(drawn).exp(), drawn.softmax(-1).mean(0))
    far = torch.tensor([[0.0, 2000.0]], dtype=torch.float64)
    assert mixture([far, far])[0, 0] == -2000.0


class Believer:
    """An optimizer whose draws add noise of a standard deviation to the first bias."""

    def __init__(self, network: nn.Linear, spread: float) -> None:
        self.network, self.spread = network, spread

    @contextmanager
    def sampled_params(
        self, *, generator: torch.Generator, temperature: float
    ) -> Generator[None, None, None]:
        kept = self.network.bias.detach().clone()
        eps = torch.randn(kept.shape, generator=generator, dtype=kept.dtype)
        try:
            self.network.bias.data += self.spread * temperature**0.5 * eps
            yield
        finally:
            self.network.bias.data.copy_(kept)


def overconfident() -> tuple[Trained, torch.Tensor, torch.Tensor]:
    """A linear classifier that is 8 times too sure, with a belief that is far too wide."""
    network = nn.Linear(2, 3, dtype=torch.float64)
    x = torch.randn(4000, 2, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        honest = network(x)
        labels = torch.multinomial(honest.softmax(1), 1, generator=seeded(1)).squeeze(1)
        network.weight *= 8
        network.bias *= 8
    believer = Believer(network, 30.0)
    return Trained(METHODS["adabayes-squared"], [network], believer, seeded(2)), x, labels


def test_fit_finds_the_scale_of_the_logits_and_a_temperature_that_helps() -> None:
    trained, x, labels = overconfident()
    fitted = fit(trained, x, labels, 20)
    assert fitted["scale"] == pytest.approx(1 / 8, rel=0.1)
    assert TEMPERATURES[0] < fitted["temperature"] < TEMPERATURES[-1]
    found = predict(trained, x, fitted, 20)
    nll = {name: measure(log_p, labels)["nll"] for name, log_p in found.items()}
    assert nll["scaled"] < nll["posterior"] < nll["point"]
    assert set(found) == {"point", "scaled", "posterior"}


def test_posterior_predictive_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    network = nn.Linear(2, 3)
    x, y = torch.randn(20, 2), torch.randint(3, (20,))
    optimizer = filteropt.AdaBayes(network.parameters(), lr_sgd=1.0)
    nn.functional.cross_entropy(network(x), y).backward()
    optimizer.step()
    trained = Trained(METHODS["adabayes-squared"], [network], optimizer, seeded(3))
    found = predict(trained, x, {"scale": 1.0, "temperature": 0.5}, 4)["posterior"]
    theirs = filteropt.predict(
        network, optimizer, x, 4, kind="categorical", generator=seeded(3), temperature=0.5
    )
    torch.testing.assert_close(found.exp().float(), theirs.probabilities)


def test_last_layer_is_fitted_to_what_the_network_hands_it() -> None:
    trained, x, labels = overconfident()
    trained = replace(trained, method=METHODS["adamw"])
    attach_last_layer(trained, x)
    fitted = fit(trained, x, labels, 20)
    found = predict(trained, x, fitted | {"prior_precision": 1e12}, 20)
    torch.testing.assert_close(found["laplace"], found["point"], rtol=0, atol=1e-3)
    assert "temperature" not in fitted


def test_dropout_changes_neither_the_initial_weights_nor_the_point_estimate() -> None:
    images = torch.randn(3, 1, 28, 28, generator=seeded())
    networks = []
    for probability in (0.0, 0.5):
        torch.manual_seed(0)
        networks.append(with_dropout(TASKS["mnist5k-lenet"].model(), probability))
    plain, dropped = networks
    torch.testing.assert_close(dropped.eval()(images), plain(images))
    assert sum(isinstance(layer, nn.Dropout) for layer in dropped.modules()) == 2
    assert not torch.allclose(dropped.train()(images), plain(images))


# Training -----------------------------------------------------------------------------------

FITTED = {"scale": 1.0, "temperature": 0.1, "prior_precision": 1.0}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_predicts(name) -> None:
    method = METHODS[name]
    (values,) = method.arm.settings(1)
    result = perform(Trial(name, values, 1, 0.03, "steps", FITTED, small=True))
    assert not result["diverged"]
    kinds = {"point": {"point", "scaled", "laplace"}, "ensemble": {"posterior"}}
    expected = kinds.get(method.asks, {"point", "scaled", "posterior"})
    assert set(result["metrics"]) == expected
    for metrics in result["metrics"].values():
        assert set(metrics) == set(METRICS)
    if "posterior" in expected and "point" in expected:
        assert result["metrics"]["posterior"]["nll"] != result["metrics"]["point"]["nll"]
    json.dumps(result, allow_nan=False)


def small_data(images: int) -> SimpleNamespace:
    return SimpleNamespace(
        images=torch.randn(images, 1, 28, 28, generator=seeded()),
        labels=torch.randint(10, (images,), generator=seeded(1)),
    )


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.passes < 5 and m.members == 1])
def test_passes_are_those_that_a_step_makes(name, monkeypatch) -> None:
    method, counted = METHODS[name], []

    def watched() -> nn.Module:
        network = TASKS["mnist5k-lenet"].model()

        def forward(module: nn.Module, args: object, out: torch.Tensor) -> None:
            counted.append(len(out))
            if out.requires_grad:
                out.register_hook(lambda grad: counted.append(len(grad)))

        network.register_forward_hook(forward)
        return network

    monkeypatch.setattr(training, "TASK", replace(training.TASK, model=watched))
    (values,) = method.arm.settings(1)
    training.train(Trial(name, values, 0, 2, "steps"), small_data(128))
    assert sum(counted) == pytest.approx(method.passes * 128 * 2, abs=2)  # one example may be tried


def test_budgets_are_equal_in_passes() -> None:
    for method in METHODS.values():
        steps = steps_of(method, 10, 4000, 64, equal="passes")
        assert steps * method.passes == pytest.approx(2 * 620, abs=method.passes)
        assert steps_of(method, 10, 4000, 64, equal="steps") == 620


def test_batches_are_the_same_whatever_the_method() -> None:
    batches = list(training._batches(200, 64, 7, seed=3))
    assert len(batches) == 7
    assert [len(batch) for batch in batches] == [64] * 7
    assert len(torch.cat(batches[:3]).unique()) == 192
    again = list(training._batches(200, 64, 4, seed=3))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=False))


def test_a_run_is_repeated_bit_for_bit() -> None:
    (values,) = METHODS["ivon"].arm.settings(1)
    trial = Trial("ivon", values, 2, 0.03, "passes", FITTED, small=True)
    torch.manual_seed(5)
    first = perform(trial)
    torch.manual_seed(6)
    assert perform(trial) == first


# The command --------------------------------------------------------------------------------

CHOSEN = "adabayes-squared,ivon,ensemble"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("uncertainty")
    code, screen = call("--quick", "--workers", 1, "--methods", CHOSEN, "--out", out)
    assert code == 0
    return out, screen


def test_quick_study_writes_tables_and_figures(quick) -> None:
    out, screen = quick
    figures = [
        f"{name}.{kind}" for name in ("overview", "reliability", "shift") for kind in ("png", "svg")
    ]
    assert {path.name for path in out.iterdir()} == {
        *("table.md", "runs.csv", "summary.csv", "paired.csv", "runs", "config.yaml"),
        *figures,
    }
    assert "…" not in screen
    assert "14 of 14 runs finished" in screen
    summary = pd.read_csv(out / "summary.csv")
    assert set(summary["method"]) == {*CHOSEN.split(","), "adamw"}  # whose settings are borrowed
    assert set(summary["seeds"]) == {2}
    text = (out / "table.md").read_text(encoding="utf-8")
    for method in set(summary["method"]):
        assert METHODS[method].title in text
    paired = pd.read_csv(out / "paired.csv").set_index(["method", "minus"]).sort_index()
    runs = (
        pd.read_csv(out / "runs.csv")
        .set_index(["method", "predictive", "seed"])["nll"]
        .sort_index()
    )
    gap = runs["adabayes-squared", "posterior"] - runs["ivon", "posterior"]
    mine = paired.loc["adabayes-squared", "IVON, posterior"]
    assert mine["nll"] == pytest.approx(gap.mean())
    assert mine["nll_se"] == pytest.approx(gap.sem())


def test_settings_are_selected_on_validation_images_and_fixed(quick) -> None:
    out, _ = quick
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "runs").iterdir()]
    runs = [found["run"] for found in kept]
    assert {run["seed"] for run in runs if run["evaluate_on"] == "validation"} == {0}
    assert {run["seed"] for run in runs if run["evaluate_on"] == "test"} == {1, 2}
    for name in ("ivon", "adamw"):
        kind = "posterior" if name == "ivon" else "point"
        tried = [k for k in kept if k["run"]["method"] == name]
        on_validation = [k for k in tried if k["run"]["evaluate_on"] == "validation"]
        assert len(on_validation) == 2
        best = min(on_validation, key=lambda k: k["metrics"][kind]["nll"])
        for other in tried:
            if other["run"]["evaluate_on"] == "test":
                assert other["run"]["values"] == best["run"]["values"]
                assert other["run"]["fitted"] == best["curves"]["fitted"]
    by_method = {run["method"]: run for run in runs if run["evaluate_on"] == "test"}
    assert by_method["ensemble"]["values"] == by_method["adamw"]["values"]


def test_finished_runs_are_not_repeated(quick, monkeypatch) -> None:
    out, screen = quick

    def none(perform, trials, workers):
        assert not trials
        yield from ()

    monkeypatch.setattr(keeper, "perform_all", none)
    for name in ("plot_overview", "plot_reliability", "plot_shift"):
        monkeypatch.setattr(report, name, lambda *arguments: None)
    code, again = call("--quick", "--workers", 1, "--methods", CHOSEN, "--out", out)
    assert code == 0
    table = screen[screen.index("LeNet-5") :]
    assert table in again


def test_an_interrupt_keeps_what_has_finished(tmp_path, monkeypatch) -> None:
    def stopped(perform, trials, workers):
        yield trials[0], perform(trials[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(keeper, "perform_all", stopped)
    code, screen = call("--quick", "--methods", "dropout", "--out", tmp_path)
    assert code == 130
    assert "1 of 4 runs are kept" in " ".join(screen.split())
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_mistakes_are_told_in_one_line(capsys, tmp_path) -> None:
    for words, message in (
        (("--methods", "nope"), "unknown method 'nope'"),
        (("--methods", ","), "--methods needs at least one method"),
        (("--seeds", "0"), "--seeds needs at least 1"),
        (("--settings", "0"), "--settings needs at least 1"),
        (("--epochs", "0"), "--epochs needs more than 0"),
        (("--workers", "0"), "--workers needs at least 1"),
    ):
        code, _ = call("--out", tmp_path, *words)
        assert code == 2
        assert message in capsys.readouterr().err


def outcome(name: str, nll: float, test_nll: float = 1.0) -> study.Outcome:
    metrics = {kind: dict.fromkeys(METRICS, test_nll) for kind in ("point", "scaled", "posterior")}
    result = {"metrics": metrics, "curves": {}, "diverged": False}
    return study.Outcome(METHODS[name], {}, {}, nll, [], [result, result])


def test_best_filters_are_chosen_by_validation_and_not_by_test() -> None:
    found = [
        outcome("adabayes-squared", 0.3, test_nll=0.1),
        outcome("adabayes-centred", 0.2, test_nll=0.9),
        outcome("adabayes-fp-squared", 0.1),
        outcome("ivon", 0.01),
    ]
    assert best_filters(found) == ["adabayes-fp-squared", "adabayes-centred"]


def test_a_diverged_run_has_no_mean_and_stops_nothing() -> None:
    from experiments.uncertainty.tables import rows, summarise

    good, bad = outcome("ivon", 0.1), outcome("vogn", 0.2)
    bad.results[1] = {"metrics": {}, "curves": {}, "diverged": True}
    plan = study.Plan([good.method, bad.method], 2, 2, 1.0, "passes")
    table = rows([good, bad], plan)
    summary = summarise(table).set_index(["method", "predictive"]).sort_index()
    assert math.isnan(summary.loc[("vogn", "posterior"), "nll"])
    assert summary.loc[("vogn", "posterior"), "diverged"] == 1
    assert summary.loc[("ivon", "posterior"), "nll"] == 1.0
    assert len(differences(table)) > 0


def test_a_method_that_always_diverges_is_named() -> None:
    trial = Trial("adamw", {"lr": 1e30, "weight_decay": 0.0}, 0, 0.1, "passes", small=True)
    result = perform(trial)
    assert result == {"metrics": {}, "curves": {}, "diverged": True}
    assert study.score(result) == math.inf
