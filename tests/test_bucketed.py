"""Equal blocks stepped together: the same results as one after the other, and when they are."""

from __future__ import annotations

import importlib
import itertools
import warnings
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

from filteropt import EigenbasisFilter, KroneckerFilter, engine, models
from filteropt.approximations import (
    Diagonal,
    Kronecker,
    KroneckerEigenbasis,
    LayerGradients,
    SquaredGradient,
)
from filteropt.blocks import Block
from filteropt.engine import Filter
from filteropt.execute import Item, loop
from filteropt.execute.bucketed import bucketed
from filteropt.matrix_normal import (
    Factors,
    Spread,
    condition_forward,
    condition_reverse,
    project_sum,
)
from filteropt.matrix_normal.flip_flop import jointly
from filteropt.testing import compositions
from filteropt.trees import leaves, restore, tree_map
from filteropt.types import LayerRows, Raw

SLOTS = ("dynamics", "likelihood", "posterior", "basis")
MODULE = importlib.import_module("filteropt.execute.bucketed")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DYNAMICS = {
    "noise": models.FixedNoise(1e-2, 0.1),
    "pull": models.ForgetToPrior(0.01, 0.1),
    "mixing": models.KroneckerDrift(1e-2, left=1e-3, right=1e-4),
}


def rotated(**settings):
    """A filter of the gradient's squares in an eigenbasis."""
    return Filter(
        models.FixedNoise(1e-2, 0.1), SquaredGradient(4.0), Diagonal(),
        KroneckerEigenbasis(**settings),
    )  # fmt: skip


def kronecker(projection, dynamics="noise"):
    family = Kronecker(projection, initial_variance=1e-3)
    return Filter(DYNAMICS[dynamics], LayerGradients(scale=4.0), family)


class Blocks:
    """Parameters of these shapes, biases among them as columns, and their gradients step by step.

    Args:
        filter: the composition.
        shapes: the weights'.
        rows: the rows of each weight's layer.
        joint: which of the weights have a bias that is filtered with them.
        dtype: the weights'.
    """

    def __init__(self, filter, shapes, rows, joint=(), dtype=torch.float64):
        self.filter, self.rows, self.t = filter, rows, 0
        self.generator = torch.Generator().manual_seed(0)
        made = [self.normal(s, dtype) / 10 for s in shapes]
        self.blocks = [
            Block(w, self.normal(w.shape[:1], dtype) / 10 if i in joint else None)
            for i, w in enumerate(made)
        ]
        for block in self.blocks[::2]:
            if block.bias is not None:
                block.bias.grad = torch.zeros_like(block.bias)  # it has one: what, rows tell
        self.sides = [
            [torch.eye(n) + self.normal((n, n)) / (2 * n**0.5) for n in self.matrix(b)]
            for b in self.blocks
        ]
        whole = [b.whole(*b.members) for b in self.blocks]
        self.kept = [leaves(engine.init(filter, p)) for p in whole]
        self.forms = [engine.template(filter, p.shape) for p in whole]

    def normal(self, shape, dtype=torch.float64):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def matrix(self, block):
        return block.shape[0], block.shape[1:].numel()

    def gathered(self, i):
        """Gradients and rows that see every direction, some more than others."""
        block = self.blocks[i]
        dtype = torch.promote_types(block.weight.dtype, torch.float32)
        (m, n), r = self.matrix(block), self.rows[i]
        y, x = (side.double() for side in self.sides[i])
        inputs, deltas = self.normal((r, n)) @ x, self.normal((r, m)) @ y / r
        if block.bias is not None and block.bias.grad is None:
            inputs[:, -1] = 0
        grad = (deltas.mT @ inputs).reshape(block.shape)
        needs = self.filter.likelihood.needs | self.filter.basis.needs
        seen = {
            "rows": self.normal((r, *block.shape), dtype) / 10,
            "squares": self.normal(block.shape, dtype).square(),
            "products": self.normal(block.shape, dtype),
            "layer": LayerRows(inputs.to(dtype), deltas.to(dtype)),
        }
        return Raw(grad.to(dtype), **{k: x for k, x in seen.items() if k in needs})

    def items(self):
        """What an executor is given, in the coordinates of the step before."""
        return [
            Item(block, self.gathered(i), restore(form, kept), kept)
            for i, (block, form, kept) in enumerate(
                zip(self.blocks, self.forms, self.kept, strict=True)
            )
        ]

    def step(self, executor):
        """A step, the first of which only teaches a basis."""
        self.t += 1
        scalars, filter, items = engine.scalars(self.filter, self.t), self.filter, self.items()
        if not all(filter.basis.ready(item.state.basis) for item in items):
            for item in items:
                learned, _ = filter.basis.refresh(item.state.basis, item.raw, self.t)
                state = item.state._replace(basis=learned)
                for place, leaf in zip(item.kept, leaves(state), strict=True):
                    place.copy_(leaf)
            return
        if executor is bucketed:
            bucketed(filter, scalars, iter(items), 0.5, t=self.t)
            return
        turned = (
            item._replace(state=engine.refresh(filter, self.t, item.state, item.raw))
            for item in items
        )
        executor(filter, scalars, turned, 0.5)

    def results(self):
        """Weights, and the variance of each: what no choice of eigenvectors' signs changes."""
        found, scalars = [], engine.scalars(self.filter, self.t)
        for block, form, kept in zip(self.blocks, self.forms, self.kept, strict=True):
            p = block.whole(*block.members).to(kept[0].dtype if kept else torch.float64)
            found += [*block.members, engine.variance(self.filter, scalars, restore(form, kept), p)]
        return found


def compare(make, steps=7, exact=None):
    """Step blocks by either executor; ``exact`` are the same blocks in float64."""
    one, other = make(), make()
    for _ in range(steps):
        one.step(loop)
        other.step(bucketed)
        if exact is not None:
            exact.step(loop)
    equal(one, other, exact)
    return other


def equal(one, other, exact=None):
    """Equal up to a tolerance, or to three times the loop's own error where that is larger."""
    found = one.results()
    truth = found if exact is None else exact.results()
    for a, b, c in zip(found, other.results(), truth, strict=True):
        rtol, error = TOLERANCE.get(a.dtype, 1e-2), float((a - c).abs().max())
        atol = max(rtol * float(a.abs().max()), 3 * error)
        torch.testing.assert_close(b, a, rtol=rtol, atol=atol)


@pytest.fixture
def pairs(monkeypatch):
    """Two blocks are enough for a stack."""
    monkeypatch.setattr(MODULE, "FEWEST", 2)


SHAPES = [(4, 3), (5, 5), (3, 2, 2, 2), (2, 3, 2), (1, 4), (6, 1)]


@given(
    counts=st.lists(st.integers(0, 3), min_size=len(SHAPES), max_size=len(SHAPES)),
    dtype=st.sampled_from(list(TOLERANCE)),
    factors=st.sampled_from(["gradients", "layers"]),
    refresh_by=st.sampled_from(["qr", "eigh"]),
    transport=st.sampled_from(["project", "keep"]),
    update_every=st.sampled_from([1, 3]),
    max_dim=st.sampled_from([2048, 4]),
)
@settings(max_examples=20, deadline=None)
def test_eigenbases_equal_the_loop(counts, dtype, **settings):
    """A basis that turns every step multiplies rounding, in float32 by up to a thousand."""
    shapes = [s for s, n in zip(SHAPES, counts, strict=True) for _ in range(n)]

    def make(dtype=dtype):
        return Blocks(rotated(**settings), shapes, [9] * len(shapes), dtype=dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "FEWEST", 2)
        compare(make, exact=make(torch.float64) if dtype is torch.float32 else None)


@given(
    counts=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    dtype=st.sampled_from(list(TOLERANCE)),
    projection=st.sampled_from(["first-order", "forward", "reverse"]),
    dynamics=st.sampled_from(list(DYNAMICS)),
    rows=st.lists(st.sampled_from([1, 2, 9]), min_size=12, max_size=12),
    joint=st.sets(st.integers(0, 11)),
)
@settings(max_examples=20, deadline=None)
def test_kronecker_posteriors_equal_the_loop(counts, dtype, projection, dynamics, rows, joint):
    shapes = [s for s, n in zip(SHAPES, counts, strict=False) for _ in range(n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "FEWEST", 2)
        filter = kronecker(projection, dynamics)
        compare(lambda: Blocks(filter, shapes, rows[: len(shapes)], joint, dtype), steps=4)


@pytest.mark.parametrize("refresh_by", ["qr", "eigh"])
def test_equal_blocks_share_factorisations(monkeypatch, refresh_by):
    """Four equal matrices and one other: every turn has two factorisations per shape."""
    calls, original = [], getattr(torch.linalg, refresh_by)
    monkeypatch.setattr(torch.linalg, refresh_by, lambda x: (calls.append(x.shape), original(x))[1])
    filter = rotated(refresh_by=refresh_by, update_every=1)
    blocks = Blocks(filter, [(4, 3)] * 4 + [(5, 3)], [9] * 5)
    blocks.step(bucketed)
    blocks.step(bucketed)
    calls.clear()
    blocks.step(bucketed)
    assert sorted(calls) == [(3, 3), (3, 3), (4, 4), (5, 5)]
    calls.clear()
    blocks.step(loop)
    assert len(calls) == 10


def stacks(filter, shapes, rows, **how):
    """How many blocks are stepped together."""
    blocks = Blocks(filter, shapes, rows, **how)
    return sorted(len(stack) for stack in MODULE._stacks(blocks.items()))


def test_only_blocks_of_equal_shapes_rows_and_dtypes_are_stacked():
    filter = kronecker("reverse")
    assert stacks(filter, [(4, 3)] * 9, [2] * 4 + [5] * 5) == [4, 5]
    assert stacks(filter, [(4, 3)] * 4 + [(3, 4)] * 4, [2] * 8) == [4, 4]
    assert stacks(filter, [(4, 3)] * 8, [2] * 8, joint={0, 1, 2, 3}) == [4, 4]
    assert stacks(rotated(), [(4, 3)] * 4 + [(3,)] * 4, [2] * 8) == [4, 4]


def test_what_does_not_pay_on_a_processor_is_stepped_by_itself():
    assert stacks(rotated(), [(4, 3)] * 3, [2] * 3) == [1, 1, 1]
    assert stacks(rotated(), [(128, 128)] * 4, [2] * 4) == [4]
    assert stacks(rotated(), [(130, 130)] * 4, [2] * 4) == [1] * 4


def test_stacks_are_no_larger_than_stated(monkeypatch):
    """A 4×3 matrix, its gradient, the average of it, its variance and its basis are 98 numbers."""
    monkeypatch.setitem(MODULE.TOGETHER, "cpu", 98 * 4)
    assert stacks(rotated(), [(4, 3)] * 10, [2] * 10) == [2, 4, 4]
    compare(lambda: Blocks(rotated(update_every=2), [(4, 3)] * 10, [9] * 10))


def test_blocks_that_share_memory_move_one_after_the_other():
    def tied():
        blocks = Blocks(rotated(), [(4, 3)] * 6, [9] * 6)
        first = blocks.blocks[0].weight
        blocks.blocks[1] = Block(first.view(4, 3))
        return blocks

    compare(tied)


@pytest.mark.parametrize("filter", [rotated(), kronecker("forward")], ids=["rotated", "kronecker"])
def test_half_precision_weights_keep_their_belief_in_single(filter):
    blocks = compare(lambda: Blocks(filter, [(4, 3)] * 4, [9] * 4, dtype=torch.bfloat16))
    assert all(block.weight.dtype == torch.bfloat16 for block in blocks.blocks)
    assert all(x.dtype == torch.float32 for kept in blocks.kept for x in kept)


@pytest.mark.parametrize("refresh_by", ["qr", "eigh"])
def test_a_basis_that_has_seen_nothing_stays_among_those_that_turn(refresh_by, pairs):
    """A matrix without gradients in its first step, beside one whose basis is known."""
    ends, filter = [], rotated(refresh_by=refresh_by)
    for t in (None, 1):
        blocks = Blocks(filter, [(4, 3)] * 2, [9] * 2)
        items = blocks.items()
        learned, _ = filter.basis.refresh(items[0].state.basis, items[0].raw, 1)
        items[0] = items[0]._replace(state=items[0].state._replace(basis=learned))
        items[1] = items[1]._replace(raw=Raw(0 * items[1].raw.grad))
        if t is None:
            items = [x._replace(state=engine.refresh(filter, 1, x.state, x.raw)) for x in items]
            loop(filter, engine.scalars(filter, 1), items, 1.0)
        else:
            bucketed(filter, engine.scalars(filter, 1), items, 1.0, t=t)
        blocks.t = 1
        ends.append(blocks)
    equal(*ends)
    eye = torch.eye(3, dtype=torch.float64)
    assert [torch.equal(kept[-1], eye) for kept in ends[1].kept] == [False, True]


def of_matrices():
    """Every composition of shipped parts that is not elementwise."""
    for filter in compositions():
        if filter.posterior.elementwise and filter.basis.elementwise:
            continue
        try:
            engine.check(filter)
        except engine.IncompatibleComposition:
            continue
        yield filter


def called(filter):
    return "-".join(type(getattr(filter, slot)).__name__ for slot in SLOTS)


@pytest.mark.parametrize("filter", list(of_matrices()), ids=called)
def test_every_composition_of_matrices_is_stacked(filter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(lambda: Blocks(filter, [(2, 3)] * 4, [7] * 4), steps=3)


class Looks:
    """A projection that looks at numbers, which an element program must not."""

    def __call__(self, disp, belief):
        return (disp / 2 if bool(disp.sum() > 0) else disp), belief


def test_a_part_that_looks_at_numbers_is_stepped_alone_with_a_warning():
    filter = replace(rotated(), projections=(Looks(),))
    with pytest.warns(RuntimeWarning, match="cannot be mapped over blocks.*stepped one by one"):
        compare(lambda: Blocks(filter, [(4, 3)] * 4, [9] * 4), steps=3)


class Breaks:
    def __call__(self, disp, belief):
        raise RuntimeError("of another kind")


def test_other_errors_are_raised_and_nothing_moves():
    blocks = Blocks(replace(rotated(), projections=(Breaks(),)), [(4, 3)] * 4, [9] * 4)
    blocks.step(bucketed)
    tensors = [*(block.weight for block in blocks.blocks), *itertools.chain(*blocks.kept)]
    before = [x.clone() for x in tensors]
    with pytest.raises(RuntimeError, match="of another kind"):
        blocks.step(bucketed)
    assert all(map(torch.equal, before, tensors))


@pytest.mark.parametrize("dynamics", ["noise", "mixing"])
@pytest.mark.parametrize("projection", ["first-order", "forward", "reverse"])
def test_kronecker_posteriors_can_be_swept(projection, dynamics):
    """A step mapped over hyperparameters equals a step for each of them."""
    made = {
        "noise": lambda lr: models.FixedNoise(lr, 0.1),
        "mixing": lambda lr: models.KroneckerDrift(lr, left=lr, right=lr / 10),
    }[dynamics]
    filter, rates = kronecker(projection), [1e-3, 1e-2, 0.1]
    numbers = [engine.scalars(replace(filter, dynamics=made(lr)), 2) for lr in rates]
    blocks = Blocks(filter, [(4, 3)], [5])
    state, raw = restore(blocks.forms[0], blocks.kept[0]), blocks.gathered(0)

    def step(*scalars):
        rest = iter(scalars)
        swept = tree_map(lambda x: next(rest) if torch.is_tensor(x) else x, numbers[0])
        return engine.step(filter, swept, state, raw, blocks.blocks[0].weight)

    flat = [[x for x in leaves(scalars) if torch.is_tensor(x)] for scalars in numbers]
    disp, new = vmap(step)(*map(torch.stack, zip(*flat, strict=True)))
    for i, scalars in enumerate(flat):
        expected, alone = step(*scalars)
        torch.testing.assert_close(disp[i], expected, rtol=1e-10, atol=0)
        for a, b in zip(alone.belief.cov, new.belief.cov, strict=True):
            torch.testing.assert_close(b[i] @ b[i].mT, a @ a.mT, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("strong", [1e2, 1e8])
@pytest.mark.parametrize("condition", [condition_forward, condition_reverse])
def test_members_whose_differences_fail_leave_the_others_alone(condition, strong):
    """The second member's rows are so strong that the forward projection takes them one by one."""
    generator = torch.Generator().manual_seed(0)
    x, y, inputs, deltas = (
        torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 4), (3, 3), (40, 4), (40, 3))
    )
    inputs[1] *= strong
    deltas[1] *= strong
    factors = Factors(torch.eye(4) + x / 5, torch.eye(3) + y / 5)
    _, failed = jointly(factors, inputs, deltas, 20, reverse=condition is condition_reverse)
    assert failed.tolist() == [False, condition is condition_forward, False]
    found = condition(factors, inputs, deltas)
    for i in range(3):
        alone = condition(Factors(*(root[i] for root in factors)), inputs[i], deltas[i])
        for a, b in zip(alone, found, strict=True):
            expected = a @ a.mT
            atol = 1e-10 * float(expected.abs().max())
            torch.testing.assert_close(b[i] @ b[i].mT, expected, rtol=1e-10, atol=atol)


def test_a_sum_that_has_no_cholesky_factor_leaves_the_others_alone():
    """The second member's covariance is singular to rounding: it alone is taken by QR."""
    sizes = torch.tensor([[1, 0.5, 0.2], [1, 1e-9, 1e-17], [0.3, 2, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)).Q
    root, eye = turned * sizes.unsqueeze(-2), torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    assert (torch.linalg.cholesky_ex(root @ root.mT).info > 0).tolist() == [False, True, False]
    weights = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    found = project_sum([Spread(0.9, root, eye), Spread(weights, root, None)])
    for i, weight in enumerate(weights.tolist()):
        alone = project_sum([Spread(0.9, root[i], eye[i]), Spread(weight, root[i], None)])
        for a, b in zip(alone, found, strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(b[i] @ b[i].mT, a @ a.mT, rtol=1e-10, atol=1e-14)


def trained(make, counted, fewest, monkeypatch):
    """Six equal layers in two groups, one of which rests for a while: trained, and how often."""
    monkeypatch.setattr(MODULE, "FEWEST", fewest)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(6))).double()
    halves = [p for layer in model[:4] for p in layer.parameters()], [*model[4:].parameters()]
    opt = make(model, [{"params": half} for half in halves])
    x, factored = (
        torch.randn(8, 20, 5, dtype=torch.float64),
        Mock(wraps=getattr(torch.linalg, counted)),
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, counted, factored)
        for t, batch in enumerate(x):
            model[1].requires_grad_(t not in {0, 3})
            opt.zero_grad()
            (model(batch) - batch).square().mean().backward()
            opt.step()
    return model, opt, factored.call_count


@pytest.mark.parametrize("factors", ["gradients", "layers"])
def test_an_optimizer_stacks_equal_layers_in_their_eigenbases(monkeypatch, factors):
    def make(model, groups):
        return EigenbasisFilter(
            groups, 1e-2, batch_size=4, update_every=2, factors=factors, model=model
        )

    (one, opt, alone), (other, opt_, stacked) = (
        trained(make, "qr", fewest, monkeypatch) for fewest in (10**9, 2)
    )
    assert 2 * stacked <= alone
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-10, atol=1e-12)
        a, b = opt.posterior_variance(p), opt_.posterior_variance(q)
        torch.testing.assert_close(b, a, rtol=1e-10, atol=0)
        assert opt.state[p]["step"] == opt_.state[q]["step"]


@pytest.mark.parametrize("projection", ["first-order", "forward", "reverse"])
def test_an_optimizer_stacks_equal_layers_of_kronecker_posteriors(monkeypatch, projection):
    def make(model, groups):
        return KroneckerFilter(model, lr=1e-2, batch_size=4, projection=projection)

    (one, opt, alone), (other, opt_, stacked) = (
        trained(make, "cholesky_ex", fewest, monkeypatch) for fewest in (10**9, 2)
    )
    assert 2 * stacked <= alone
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-10, atol=1e-12)
        a, b = opt.posterior_variance(p), opt_.posterior_variance(q)
        torch.testing.assert_close(b, a, rtol=1e-10, atol=0)
