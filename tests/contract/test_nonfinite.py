"""A gradient that is not finite never enters the belief."""

import math

import pytest
import torch
from torch import nn

from filteropt import AdaBayes, NonFiniteGradientError

from .problems import (
    assert_same,
    clones,
    drive,
    give_gradients,
    network,
    parameters,
    photograph,
)

BAD = {
    "nan": math.nan,
    "inf": math.inf,
    "minus_inf": -math.inf,
    "overflowing_square": 1e300,
}
TOO_LARGE = {torch.float32: 1e25, torch.float64: 1e200, torch.bfloat16: 1e25, torch.float16: None}


@pytest.fixture(params=BAD)
def bad(request):
    """Return each kind of bad gradient value."""
    return BAD[request.param]


def poison(params, t, value):
    """Give gradients, with one bad number in the last parameter's."""
    give_gradients(params, t)
    params[-1].grad.view(-1)[-1] = value


def test_bad_gradient_raises_and_changes_nothing_mid_run(library_subject, bad):
    """It is in the second of two groups; the first group must not have moved either."""
    params = parameters()
    opt = library_subject([{"params": [p]} for p in params])
    twin = library_subject([{"params": [p]} for p in clones(params)])
    drive(opt, 3)
    before = photograph(opt)
    poison(params, 3, bad)
    with pytest.raises(NonFiniteGradientError):
        opt.step()
    assert_same(photograph(opt), before)
    drive(opt, 2, start=3)
    drive(twin, 5)
    assert_same(photograph(opt), photograph(twin))


def test_bad_gradient_raises_and_changes_nothing_in_the_first_step(library_subject, bad):
    """Training after it is as if it had not been."""
    params = parameters()
    opt, twin = library_subject(params), library_subject(clones(params))
    before = clones(params)
    poison(params, 0, bad)
    with pytest.raises(NonFiniteGradientError):
        opt.step()
    assert_same(params, before)
    drive(opt, 2)
    drive(twin, 2)
    assert_same(photograph(opt), photograph(twin))


def test_bad_gradient_is_skipped_on_request(library_subject, bad):
    """`on_nonfinite="skip"` skips the whole step, every group of it, and returns the loss."""
    params = parameters()
    groups = [{"params": [p]} for p in params]
    opt = library_subject(groups, on_nonfinite="skip")
    twin = library_subject([{"params": [p]} for p in clones(params)])
    drive(opt, 3)
    before = photograph(opt)

    def closure():
        poison(params, 3, bad)
        return "loss"

    assert opt.step(closure) == "loss"
    assert_same(photograph(opt), before)
    drive(opt, 2, start=3)
    drive(twin, 5)
    assert_same(photograph(opt), photograph(twin))


def test_a_loop_that_has_looked_may_do_without(library_subject, bad):
    """`on_nonfinite="ignore"` looks at nothing: good steps are the same, bad ones go through."""
    params = parameters()
    opt = library_subject(params, on_nonfinite="ignore")
    twin = library_subject(clones(params))
    drive(opt, 3)
    drive(twin, 3)
    assert_same(photograph(opt), photograph(twin))
    poison(params, 0, bad)
    opt.step()
    assert not all(map(torch.equal, params, twin.param_groups[0]["params"]))


def test_sums_of_squares_do_not_judge():
    """Many large gradients, each of them fine, whose squares' sum is not finite."""
    p = torch.nn.Parameter(torch.zeros(10_000))
    opt = AdaBayes([p])
    p.grad = torch.full_like(p, 1e18)
    opt.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_square_is_judged_in_the_dtype_of_the_belief(library_subject, dtype):
    """A finite gradient whose square is not finite there would leave an infinite belief."""
    params = parameters(dtype=dtype)
    opt = library_subject(params)
    poison(params, 0, TOO_LARGE[dtype])
    assert all(p.grad.isfinite().all() for p in params)
    with pytest.raises(NonFiniteGradientError):
        opt.step()


def test_largest_half_precision_gradient_is_fine(library_subject):
    """float16 ends at 65504, whose square a float32 belief holds."""
    params = parameters(dtype=torch.float16)
    opt = library_subject(params)
    poison(params, 0, 65504.0)
    opt.step()
    assert all(x.isfinite().all() for entry in photograph(opt) for x in entry.values())


@pytest.mark.parametrize("exponent", range(8, 40, 3))
def test_large_gradients_raise_or_leave_everything_finite(library_subject, exponent):
    """Whatever factor is applied to the gradient before it is squared."""
    keywords = {"batch_size": 1024} if "batch_size" in library_subject.defaults() else {}
    params = parameters(dtype=torch.float32)
    opt = library_subject(params, **keywords)
    for t, sign in enumerate((1, 1, -1)):
        poison(params, t, sign * min(10.0**exponent, 3e38))
        try:
            opt.step()
        except NonFiniteGradientError:
            continue
    give_gradients(params, 9)
    opt.step()
    assert all(x.isfinite().all() for entry in photograph(opt) for x in entry.values())


def test_error_is_a_floating_point_error_and_names_the_parameter(library_subject):
    """The reader learns which layer to look at."""
    model = network()
    opt = library_subject(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[2].bias.grad[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"2\.bias"):
        opt.step()


def test_unnamed_parameter_is_located(library_subject):
    """Without names, the place in its group and the shape are given."""
    params = parameters((2, 2), (3,), (4, 7))
    opt = library_subject([{"params": params[:1]}, {"params": params[1:]}])
    poison(params, 0, math.nan)
    with pytest.raises(NonFiniteGradientError, match=r"parameter 1 .*\(4, 7\)"):
        opt.step()


def test_bad_gradient_stays_for_inspection(library_subject):
    """The step that refuses a gradient does not tidy it away."""
    params = parameters()
    opt = library_subject(params)
    poison(params, 0, math.inf)
    grads = [p.grad.clone() for p in params]
    with pytest.raises(NonFiniteGradientError):
        opt.step()
    assert_same([p.grad for p in params], grads)


@pytest.mark.parametrize("shape", [(), (1,), (5000,)])
def test_bad_gradient_is_found_in_any_shape(library_subject, shape):
    """In scalars, and at the end of a large tensor, beside an empty one."""
    params = [*parameters((0, 3)), *parameters(shape)]
    opt = library_subject(params)
    poison(params, 0, math.nan)
    with pytest.raises(NonFiniteGradientError):
        opt.step()


def test_sparse_gradient_is_refused_by_name(library_subject):
    """The dense parameters before it have not moved, and no state was made."""
    dense, table = nn.Linear(2, 2), nn.Embedding(4, 2, sparse=True)
    model = nn.ModuleDict({"dense": dense, "table": table})
    opt = library_subject(model.named_parameters())
    before = clones(model.parameters())
    dense(table(torch.tensor([1, 2]))).sum().backward()
    with pytest.raises((RuntimeError, TypeError, ValueError), match=r"table\.weight.*sparse"):
        opt.step()
    assert_same([*model.parameters()], before)
    assert not any(opt.state.values())


def test_sparse_gradient_moves_no_weight(subject):
    """The part of the law that AdamW keeps too."""
    dense, table = nn.Linear(2, 2), nn.Embedding(4, 2, sparse=True)
    params = [*dense.parameters(), *table.parameters()]
    opt = subject(params)
    before = clones(params)
    dense(table(torch.tensor([1, 2]))).sum().backward()
    with pytest.raises((RuntimeError, TypeError, ValueError), match="sparse"):
        opt.step()
    assert_same(params, before)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameter_is_refused(library_subject, dtype):
    """By a clear TypeError, at the latest when it would be stepped, wherever it comes in."""
    phase = nn.Parameter(torch.ones(2, dtype=dtype))
    (real,) = parameters((2,))
    opt = library_subject([real])

    def build_and_step():
        late = library_subject([("phase", phase)])
        phase.grad = torch.ones_like(phase)
        late.step()

    with pytest.raises(TypeError, match=r"phase.*complex"):
        build_and_step()
    with pytest.raises(TypeError, match="complex"):
        opt.add_param_group({"params": [phase]})
    assert len(opt.param_groups) == 1
    assert_same(phase.detach(), torch.ones(2, dtype=dtype))
