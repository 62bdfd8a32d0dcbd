"""Two gloo processes give the weights of unsharded training."""

import json

import pytest
import torch
from filelock import FileLock

from .distributed_run import CASES, run_all

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="needs torch.distributed with gloo"
)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """Return the outcome of every case, run once however many test workers ask."""
    mine = tmp_path_factory.mktemp("distributed")
    shared = mine.parents[1] if "popen" in mine.parent.name else mine.parent
    answer = shared / "distributed.json"
    with FileLock(f"{answer}.lock"):
        if not answer.exists():
            answer.write_text(json.dumps(run_all(mine)))
    return json.loads(answer.read_text())


@pytest.mark.parametrize(("subject", "check"), CASES, ids=str)
def test_two_processes_equal_one(outcomes, subject, check):
    """Each check is a function of `distributed_run.CHECKS`, whose docstring states its law."""
    wrong = outcomes[f"{subject}/{check}"]
    assert not wrong, wrong
