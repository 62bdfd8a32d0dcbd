"""Which tensors a step may touch, and how."""

import pytest
import torch
from torch import nn

from .problems import (
    assert_close,
    assert_same,
    clones,
    drive,
    give_gradients,
    moved,
    noise,
    parameters,
    photograph,
)


def test_gradients_are_never_written(subject):
    """A step reads gradients: the same tensor, version and bits afterwards."""
    params = parameters()
    opt = subject(params)
    for t in range(3):
        give_gradients(params, t)
        grads = [p.grad for p in params]
        before = [(g.clone(), g._version, g.data_ptr()) for g in grads]
        opt.step()
        for p, g, (values, version, address) in zip(params, grads, before, strict=True):
            assert p.grad is g
            assert g._version == version
            assert g.data_ptr() == address
            assert_same(g, values)


def test_weights_are_never_rebound(subject):
    """A view taken before training sees every step (sharding, tying and EMA rely on it)."""
    flat = noise(20, seed=3)
    params = [nn.Parameter(flat[:12].view(3, 4)), nn.Parameter(flat[12:17])]
    before, rest = flat.clone(), flat[17:].clone()
    addresses = [p.data_ptr() for p in params]
    drive(subject(params), 2)
    assert [p.data_ptr() for p in params] == addresses
    assert_same(flat, torch.cat([*(p.detach().flatten() for p in params), rest]))
    assert not torch.equal(flat[:17], before[:17])


def test_autograd_notices_the_step(subject):
    """A graph that saved the old weights refuses to run backward through the new ones."""
    params = parameters()
    losses = [p.square().sum() for p in params]
    drive(subject(params), 1 + subject.whole)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


LAYOUTS = {
    "transposed": lambda x: x.permute(3, 2, 1, 0),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every_other": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "inner_slice": lambda x: nn.functional.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_number_and_is_kept(subject, layout):
    """A parameter of any strides trains like a contiguous one and keeps its strides."""
    odd = nn.Parameter(LAYOUTS[layout](noise(2, 3, 4, 5, seed=0)))
    plain = nn.Parameter(odd.detach().clone(memory_format=torch.contiguous_format))
    strides, address = odd.stride(), odd.data_ptr()
    assert not odd.is_contiguous()
    drive(subject([odd]), 3)
    drive(subject([plain]), 3)
    assert (odd.stride(), odd.data_ptr()) == (strides, address)
    assert_close([odd], [plain])


def test_neighbours_in_the_same_storage_stay(subject):
    """The gaps of a strided parameter belong to somebody else."""
    base = noise(6, 8, seed=0)
    gaps = base[:, 1::2].clone()
    p = nn.Parameter(base[:, ::2])
    drive(subject([p]), 2)
    assert_same(base[:, 1::2], gaps)
    assert_same(base[:, ::2], p.detach())


def test_gradient_of_other_strides_gives_the_same_step(subject):
    """Gradients may be transposed or expanded while the parameter is contiguous."""
    (a,), (b,) = parameters((4, 4)), parameters((4, 4))
    one, two = subject([a]), subject([b])
    for g in (noise(4, 4, seed=1).t(), noise(1, 4, seed=2).expand(4, 4), torch.ones(()).double()):
        a.grad, b.grad = g.expand(4, 4), g.expand(4, 4).contiguous()
        one.step()
        two.step()
    assert_close([a], [b])


def test_parameter_without_gradient_is_left_alone(subject):
    """An unused parameter keeps its bits, costs no state and disturbs nobody."""
    used, unused = parameters()
    alone, untouched = clones([used, unused])
    opt, single = subject([unused, used]), subject([alone])
    for t in range(3):
        give_gradients([used], t)
        give_gradients([alone], t)
        opt.step()
        single.step()
    assert_same(unused, untouched)
    assert not opt.state.get(unused)
    assert_close([used], [alone])


def test_late_gradient_starts_a_fresh_belief(subject):
    """A parameter that joins at step 4 trains like one that starts then."""
    early, late = parameters()
    (alone,) = clones([late])
    opt, single = subject([early, late]), subject([alone])
    for t in range(6):
        give_gradients([early], t)
        if t >= 3:
            give_gradients([late], t)
            give_gradients([alone], t)
            single.step()
        opt.step()
    assert_close([late], [alone])


def test_skipped_gradient_pauses_one_parameter(subject):
    """A parameter without gradient for a step goes on later as if that step had not been."""
    a, b = parameters()
    (alone,) = clones([a])
    opt, single = subject([a, b]), subject([alone])
    for t in range(5):
        give_gradients([a, b], t)
        give_gradients([alone], t)
        if t == 2:
            a.grad = None
        else:
            single.step()
        opt.step()
    assert_close([a], [alone])


def test_frozen_parameter_stays(subject):
    """`requires_grad=False` in the list is legal and inert."""
    live, frozen = parameters()
    frozen.requires_grad_(False)
    before = clones([frozen])
    opt = subject([frozen, live])
    for t in range(2):
        give_gradients([live], t)
        opt.step()
    assert_same([frozen], before)
    assert not opt.state.get(frozen)


def test_empty_parameter_is_legal(subject):
    """A tensor of no elements trains to a tensor of no elements; the others are unaffected."""
    params = parameters((0, 3), (3, 4), (0,))
    alone = clones(params[1:2])
    opt, single = subject(params), subject(alone)
    for t in range(3):
        give_gradients(params, t)
        alone[0].grad = params[1].grad.clone()
        opt.step()
        single.step()
    assert [p.shape for p in params] == [(0, 3), (3, 4), (0,)]
    assert_close(params[1:2], alone)


def test_only_empty_parameters_are_legal(subject):
    """A rank of a sharded job may own nothing."""
    opt = subject(parameters((0, 3)))
    drive(opt, 2)
    opt.load_state_dict(opt.state_dict())
    drive(opt, 1)


def test_scalar_parameter_trains_like_a_vector(subject):
    """A 0-d parameter is one weight."""
    scalar, vector = parameters((), (1,))
    vector.data.fill_(scalar.item())
    one, two = subject([scalar]), subject([vector])
    for t in range(3):
        scalar.grad = noise(1, seed=t)[0]
        vector.grad = noise(1, seed=t)
        one.step()
        two.step()
    assert scalar.shape == ()
    assert_close([scalar], [vector[0]])


def test_large_parameter_trains_like_its_pieces(subject):
    """The rule is elementwise whatever the size of the tensor."""
    (whole,) = parameters((3000,))
    pieces = [nn.Parameter(x.clone()) for x in whole.detach().split([1, 7, 1500, 1492])]
    one, many = subject([whole]), subject(pieces)
    for t in range(3):
        give_gradients([whole], t)
        for p, g in zip(pieces, whole.grad.split([1, 7, 1500, 1492]), strict=True):
            p.grad = g.clone()
        one.step()
        many.step()
    assert_close([whole.detach()], [torch.cat([p.detach() for p in pieces])])


def test_parameters_swapped_before_the_first_step_are_the_ones_trained(subject):
    """Nothing is captured at construction: Accelerate and FSDP2 replace parameters afterwards."""
    old = parameters()
    new, fresh, before = clones(old), clones(old), clones(old)
    opt = subject(old)
    opt.param_groups[0]["params"] = new
    drive(opt, 3)
    drive(subject(fresh), 3)
    assert_same(new, fresh)
    assert_same(old, before)
    assert set(opt.state) == set(new)


def test_two_optimizers_on_the_same_parameters_are_independent(subject):
    """Each keeps its own state."""
    params = parameters()
    one, two = subject(params), subject(params)
    drive(one, 2)
    assert not two.state
    before = photograph(one)
    drive(two, 1 + subject.whole)
    for was, now in zip(before, photograph(one), strict=True):
        assert_same({**was, "weight": None}, {**now, "weight": None})
        assert moved([was["weight"]], [now["weight"]])


def test_state_costs_what_it_promises(subject):
    """State is the promised count of numbers per weight, plus 0-d tensors, and hidden nowhere."""
    params = parameters((7, 11), (13,))
    opt = subject(params)
    drive(opt, 2)
    hidden = {k: v for k, v in vars(opt).items() if k not in {"state", "param_groups"}}
    assert not list(tensors_in(hidden))
    for p in params:
        entries = [v for v in opt.state[p].values() if isinstance(v, torch.Tensor) and v.ndim]
        sides = (
            [n for n in p.shape if n <= subject.keywords.get("max_dim", n)] if p.dim() > 1 else []
        )
        extra = subject.numbers_per_side * sum(n * n for n in sides)
        assert sum(v.numel() for v in entries) == subject.numbers_per_weight * p.numel() + extra


def tensors_in(value):
    """Yield the tensors with a dimension inside dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        if value.ndim:
            yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)
