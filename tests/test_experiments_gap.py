"""The study of the gap: its reference against an exact posterior, its files and its exit codes."""

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments import gap
from experiments.cli import main
from experiments.gap import GRID, HIDDEN, NOISE, PRIOR, TITLES, Band, Data, Network
from experiments.gap_report import cells, spreads


def call(*words: object) -> tuple[int, str]:
    screen = io.StringIO()
    code = main(["gap", *map(str, words)], Console(file=screen, width=80))
    return code, screen.getvalue()


def test_data_leave_a_gap() -> None:
    data = gap.draw_data()
    away = data.x.abs()
    assert data.x.shape == data.y.shape == (gap.EXAMPLES, 1)
    assert bool(((away >= gap.EDGE) & (away <= gap.END)).all())
    assert int((data.x < 0).sum()) == gap.EXAMPLES // 2
    assert all(map(torch.equal, data, gap.draw_data()))


def test_batched_networks_are_the_network_and_their_energy_its_negative_log_posterior() -> None:
    data, model = gap.draw_data(), Network()
    weights = torch.cat([p.flatten() for p in model.parameters()]).detach()
    both = torch.stack([torch.zeros_like(weights), weights])
    torch.testing.assert_close(gap.functions(both, GRID)[1], model(GRID).detach().flatten())
    found, gradient = gap.energy(both, data)
    total = (model(data.x) - data.y).square().sum() / (2 * NOISE**2)
    total = total + sum(p.square().sum() for p in model.parameters()) / (2 * PRIOR)
    rows = torch.autograd.grad(total, list(model.parameters()))
    torch.testing.assert_close(found[1], total.detach())
    torch.testing.assert_close(gradient[1], torch.cat([row.flatten() for row in rows]))


def test_monte_carlo_finds_the_prior_where_there_are_no_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without data the function's variance follows from the weights' by hand: 4/H of a sum."""
    monkeypatch.setattr(gap, "LEAPS", 6)
    nothing = Data(torch.zeros(0, 1, dtype=torch.float64), torch.zeros(0, 1, dtype=torch.float64))
    band = gap.monte_carlo(nothing, 1.0)["reference"]
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200_000, generator=generator, dtype=torch.float64) * math.sqrt(PRIOR)
    for place in (20, 50, 90):
        hidden = torch.tanh(2 * (a * GRID[place] + b)).square().mean()
        variance = 4 / HIDDEN * PRIOR * (HIDDEN * hidden + 1)
        assert band.sd[place].item() == pytest.approx(variance.sqrt().item(), rel=0.08)
        assert abs(band.mean[place].item()) < 0.15 * variance.sqrt().item()


def test_table_compares_with_the_reference() -> None:
    away = GRID.flatten().abs()
    sd = torch.where(away < gap.EDGE, 0.5, 0.125).double()
    band, flat = Band(torch.zeros_like(sd), sd), Band(torch.ones_like(sd), 0 * sd + 0.25)
    assert spreads(band) == (0.125, 0.5)
    assert cells("x", band, band) == ["x", "0.125", "0.500", "4.0", "1.00", "0.000"]
    assert cells("y", flat, band) == ["y", "0.250", "0.250", "1.0", "0.50", "1.000"]


def test_study_writes_table_and_figure(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    code, screen = call("--effort", 0.01, "--out", tmp_path)
    assert code == 0
    assert torch.get_num_threads() == threads
    assert {path.name for path in tmp_path.iterdir()} == {
        *("gap.png", "gap.svg", "table.md", "config.yaml"),
    }
    assert (tmp_path / "gap.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "…" not in screen  # the table fits 80 columns
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2 : 2 + len(TITLES)]] == list(TITLES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--effort", "0"], "--effort 0 must be a positive number"),
        (["--effort", "inf"], "--effort inf must be a positive number"),
        (["--out", "/dev/null/results"], "--out /dev/null/results cannot be created"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gap, "METHODS", ())
    assert call(*words)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
