"""`torch.compile(opt.step)` gives the same numbers and stops compiling."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import LambdaLR

from .problems import assert_same, give_gradients, parameters, photograph


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Count compilations of this test only."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(opt, step, scheduler, steps):
    """Take scheduled steps with a step function, and yield after each."""
    for t in range(steps):
        give_gradients(opt.param_groups[0]["params"], t)
        step()
        scheduler.step()
        yield t


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
def test_compiled_step_equals_eager_and_stops_compiling(subject):
    """A scheduler changes the rate every step; after the fourth nothing is compiled again."""
    compiled, eager = subject(parameters(), lr=0.01), subject(parameters(), lr=0.01)
    schedules = [LambdaLR(opt, lambda t: 1 / (1 + t)) for opt in (compiled, eager)]
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(compiled.step, backend=counter)
    counts = []
    runs = zip(
        run(compiled, step, schedules[0], 10),
        run(eager, eager.step, schedules[1], 10),
        strict=True,
    )
    for _ in runs:
        counts.append(counter.frame_count)
    assert counts[4:] == counts[4:5] * 6
    for a, b in zip(photograph(compiled), photograph(eager), strict=True):
        for x, y in zip(a.values(), b.values(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)  # AdamW's step is float32


def test_step_works_in_a_compiled_training_step(subject):
    """The usual way is to compile the model and leave the step in the loop."""
    params, twin = parameters(), parameters()
    opt, plain = subject(params), subject(twin)

    @torch.compile(backend="eager")
    def loss():
        return sum(p.square().sum() for p in params)

    for _ in range(3):
        opt.zero_grad()
        loss().backward()
        opt.step()
        plain.zero_grad()
        sum(p.square().sum() for p in twin).backward()
        plain.step()
    assert_same(params, twin)
