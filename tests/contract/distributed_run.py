"""Runs the checks of two modules on two processes, all of them in one start."""

from __future__ import annotations

import datetime
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from . import distributed_checkpoints as checkpoints
from . import distributed_checks as checks
from . import distributed_draws as draws
from .subjects import ADAMW, SUBJECTS, Subject

WORLD = 2
PATIENCE = datetime.timedelta(seconds=20)  # a rank left alone in a collective gives up after this


Check = Callable[[Subject, DeviceMesh, Path], None]
CHECKS: list[Check] = [
    checks.ddp,
    checks.fsdp2,
    checks.fsdp2_with_swapped_parameters,
    checks.fsdp2_gradient_clipping,
    checks.tensor_parallel,
    checks.any_placement,
    checks.two_dimensional_mesh,
    checks.zero_redundancy,
    checkpoints.sharded_checkpoint,
    checkpoints.checkpoint_of_the_whole,
]
LIBRARY_CHECKS: list[Check] = [  # what AdamW does not promise
    checkpoints.fresh_sharded_state_dict_leaves_no_trace,
    checks.bad_gradient_on_one_rank_raises_on_both,
    checks.bad_gradient_on_one_rank_is_skipped_on_both,
    draws.draws_of_shards_come_and_go,
    draws.gradients_at_the_mean_as_draws,
]
WHOLE_CHECKS: list[Check] = [checks.ddp, checks.zero_redundancy, checks.shards_are_refused]
DRAWING_CHECKS: list[Check] = [  # about draws and IVON itself, whatever the subject
    draws.shards_draw_by_themselves,
    draws.each_rank_one_monte_carlo_sample,
    draws.lonely_draws_are_refused,
]


def checks_of(subject: Subject) -> dict[str, Check]:
    """Return the checks that a class has to pass, by name."""
    functions = CHECKS if subject is ADAMW else CHECKS + LIBRARY_CHECKS
    functions = WHOLE_CHECKS if subject.whole else functions
    functions = functions + (DRAWING_CHECKS if subject is SUBJECTS[1] else [])
    return {function.__name__: function for function in functions}


CASES = [(subject, name) for subject in SUBJECTS for name in checks_of(subject)]


def run_all(folder: Path) -> dict[str, str]:
    """Return for each case ``"subject/check"`` what went wrong on any rank, or nothing."""
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    return {
        case: "\n".join(f"rank {rank}: {r[case]}" for rank, r in enumerate(ranks) if r[case])
        for case in ranks[0]
    }


def work(rank: int, folder: str) -> None:
    """Run every case on this rank, each in a process group of its own."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    results = {}
    for subject, name in CASES:
        case = f"{subject}/{name}"
        place = Path(folder) / case
        place.mkdir(parents=True, exist_ok=True)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{place / 'meeting'}",
            rank=rank,
            world_size=WORLD,
            timeout=PATIENCE,
        )
        results[case] = outcome(subject, name, place / "checkpoint")
        dist.destroy_process_group()
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))


def outcome(subject: Subject, name: str, folder: Path) -> str:
    """Return the traceback of a failed check, or an empty string."""
    try:
        checks_of(subject)[name](subject, init_device_mesh("cpu", (WORLD,)), folder)
    except (
        Exception
    ):  # any failure is an outcome to report, so that the other process is not left waiting
        return traceback.format_exc()
    return ""
