"""Users' own tasks and compositions: a decorated function in a file of their own."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from experiments.ablate import Ablate
from experiments.config import read_config
from experiments.data import Dataset, hold_out_validation
from experiments.errors import UserError
from experiments.registry import COMPOSITIONS, SLOTS, load_plugins, read_plugins
from experiments.tasks import TASKS
from filteropt import presets
from filteropt.engine import Filter
from filteropt.testing import parts
from tests.experiments_calls import call, plugin

__all__ = ["plugin"]


def test_list_shows_every_task_composition_and_part_with_one_line_each(plugin: Path) -> None:
    code, text = call("list", "--plugin", plugin)
    assert code == 0
    lines = {
        line.split()[0]: line.split(maxsplit=1)[1:] for line in text.splitlines() if line.split()
    }
    functions = [n for n in presets.__all__ if not isinstance(getattr(presets, n), type)]
    named = [*TASKS, *(name.replace("_", "-") for name in functions), "mine", "alias"]
    named += [name for slot in SLOTS for name in parts(slot)]
    assert {"blobs", "mine"} <= set(named)
    assert [name for name in named if not lines.get(name)] == []
    assert "Two clouds in three dimensions" in text


def test_shipped_compositions_are_filters_that_take_what_a_task_tells() -> None:
    told = {"batch_size": 8, "dataset_size": 80, "ess": 80, "lr": 1e-3}
    for made in COMPOSITIONS.values():
        takes = inspect.signature(made.build).parameters
        assert isinstance(made.build(**{k: v for k, v in told.items() if k in takes}), Filter)


def test_plugin_is_read_once_and_its_data_keep_their_type(plugin: Path) -> None:
    plugins = read_plugins([plugin])
    load_plugins(plugins)  # again: nothing is registered twice
    held = hold_out_validation(TASKS["blobs"].source.load(Path()))
    assert held.train_images.dtype == torch.float32
    assert [len(part) for part in held] == [64, 64, 16, 16]


def test_validation_rows_are_a_fixed_stratified_fifth_in_the_order_of_the_split() -> None:
    labels = torch.arange(100) % 4
    data = Dataset(torch.arange(100)[:, None], labels, torch.zeros(0, 1), torch.zeros(0))
    held = hold_out_validation(data)
    assert torch.equal(held.train_images[:, 0] % 4, held.train_labels)
    assert torch.bincount(held.test_labels).tolist() == [5] * 4
    both = torch.cat([held.train_images, held.test_images])[:, 0]
    assert torch.equal(both.sort().values, torch.arange(100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_to_be_found\n", "line 1: ModuleNotFoundError"),
        ("x = 1\ndef f(:\n", "line 2: SyntaxError"),
        (
            "from experiments.registry import task\n\n"
            "@task('digits-mlp', model=None, classes=2)\ndef twice():\n    'x'\n",
            "the name 'digits-mlp' is taken",
        ),
    ],
)
def test_broken_plugin_is_one_line_that_says_where(text: str, message: str, plugin: Path) -> None:
    plugin.write_text(text)
    with pytest.raises(UserError, match=r"--plugin .*my_tasks\.py, line") as refusal:
        read_plugins([plugin])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_plugin_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_plugins([tmp_path / "absent.py"])


def test_the_examples_of_the_guide_are_what_is_read(plugin: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "ablations.md").read_text()
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", text, re.DOTALL))
    plugin.write_text(blocks["python"])
    read_plugins([plugin])
    assert TASKS["blobs"].source.load(Path()).train_images.shape == (400, 3)
    assert isinstance(COMPOSITIONS["tempered"].build(power=0.3), Filter)
    (tmp_path / "grid.yaml").write_text(blocks["yaml"])
    assert read_config(tmp_path / "grid.yaml", Ablate).posterior == ("Diagonal", "FixedPoint")
