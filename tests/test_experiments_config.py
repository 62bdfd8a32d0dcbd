"""The options of a study as YAML: what is kept of a run, and what repeats it."""

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from experiments import cli
from experiments.cli import main
from experiments.config import Options, read_config, write_config
from experiments.reproduce.appendix_a import AppendixA
from experiments.reproduce.fig1 import Fig1


def call(*words: object) -> int:
    return main([str(word) for word in words], Console(file=io.StringIO(), width=100))


STUDIES = [kind for kind in cli.subcommands(cli.Study).values() if issubclass(kind, Options)]
PARTS = list(cli.subcommands(cli.What).values())


@pytest.mark.parametrize("kind", [*STUDIES, *PARTS], ids=lambda kind: kind.__name__)
def test_options_of_every_study_go_to_yaml_and_back(kind: type, tmp_path: Path) -> None:
    given = kind(out=tmp_path / "elsewhere")
    write_config(given, tmp_path / "config.yaml")
    found = read_config(tmp_path / "config.yaml", kind)
    assert dataclasses.replace(found, config=None) == given


def test_a_run_leaves_options_that_repeat_it(tmp_path: Path) -> None:
    code = call("reproduce", "fig1", "--correlation", 0.5, "--steps", 20, "--out", tmp_path / "one")
    assert code == 0
    kept = tmp_path / "one" / "fig1.yaml"
    assert "correlation: 0.5" in kept.read_text()
    code = call("reproduce", "fig1", "--config", kept, "--out", tmp_path / "two")
    assert code == 0
    assert "correlation: 0.5" in (tmp_path / "two" / "fig1.yaml").read_text()
    told = json.loads((tmp_path / "two" / "fig1.json").read_text())["command"]
    assert told.split()[4:] == [
        "fig1",
        "--out",
        str(tmp_path / "two"),
        "--correlation",
        "0.5",
        "--steps",
        "20",
    ]


def test_parts_of_reproduce_share_a_folder_and_keep_their_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.reproduce.appendix_a.measure", killed)
    assert call("reproduce", "fig1", "--steps", 7, "--out", tmp_path) == 0
    assert call("reproduce", "appendix-a", "--epochs", 3, "--out", tmp_path) == 130
    assert read_config(tmp_path / "fig1.yaml", Fig1).steps == 7
    assert read_config(tmp_path / "appendix-a.yaml", AppendixA).epochs == 3
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_options_that_cannot_be_kept_are_one_line_before_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.limits.study.measure", lambda *_: pytest.fail("a case ran"))
    (tmp_path / "config.yaml").symlink_to("/dev/full")
    assert call("limits", "--out", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yaml cannot be written: No space left on device" in line


@pytest.mark.parametrize("study", ["ablate", "compare", "kronecker", "limits", "sweep"])
def test_unknown_options_of_a_file_are_one_line(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("sead: 3\n")
    assert call(study, "--config", tmp_path / "mine.yaml") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "unknown option 'sead'; the options are " in message
