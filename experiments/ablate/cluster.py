"""The same jobs on Ray: on this machine, or on a cluster.

Jobs are sent whole and results come back to the process that asked, which alone writes the store.
A worker that dies takes nothing with it but the job it was at, which Ray gives to another one.
"""

import re
import socket
from importlib.util import find_spec
from typing import Any

from experiments.errors import UserError
from experiments.keeper import Perform, Results, Spread

_RETRIES = 3
_SECONDS_TO_KNOCK = 5.0


def on_ray(address: str | None) -> Spread:
    """What carries jobs out on Ray.

    Args:
        address: Of a cluster; None starts Ray on this machine.

    Returns:
        A function like :func:`experiments.keeper.perform_all`.

    Raises:
        UserError: If Ray is not installed, or there is no cluster at the address.
    """
    if find_spec("ray") is None:
        raise UserError('--ray needs Ray; install it with: pip install "ray>=2.40"')
    import ray

    def connect(workers: int) -> None:
        if ray.is_initialized():
            return
        try:
            own = {} if address else {"num_cpus": workers, "include_dashboard": False}
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", **own}
            ray.init(address=address or "local", **quiet)
        except (ConnectionError, RuntimeError, ValueError) as fault:
            what = f"--address {address}" if address else "--ray"
            why = " ".join(str(fault).split())
            raise UserError(f"{what}: Ray cannot be reached: {why}") from fault

    def spread(perform: Perform, runs: Any, workers: int) -> Results:
        if not runs:
            return
        connect(workers)
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(perform)
        pending = {remote.remote(run): run for run in runs}
        try:
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                yield pending.pop(done), ray.get(done)
        except ray.exceptions.WorkerCrashedError as fault:
            raise UserError(
                "a job's worker died again and again (out of memory?); finished runs are kept, so "
                "the same command goes on"
            ) from fault
        finally:
            for job in pending:
                ray.cancel(job, force=True)

    if address:  # a wrong one is known before training, and at once: Ray itself waits for minutes
        _knock(address)
        connect(1)
    return spread


def _knock(address: str) -> None:
    place = re.fullmatch(r"(?:ray://)?\[?([^\[\]]+)\]?:(\d+)", address)
    if place is None:  # such as auto
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=_SECONDS_TO_KNOCK).close()
    except (OSError, OverflowError) as fault:
        raise UserError(f"--address {address}: Ray cannot be reached: {fault}") from fault
