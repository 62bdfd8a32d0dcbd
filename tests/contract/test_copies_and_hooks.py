"""Copies (pickle, deepcopy) go on like the original; torch's hooks fire where they should."""

import copy
import pickle

import pytest

from .problems import (
    assert_same,
    clones,
    drive,
    give_gradients,
    network,
    parameters,
    photograph,
    train,
    weights,
)

COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}


@pytest.fixture(params=COPIES)
def duplicate(request):
    """Return each way of copying."""
    return COPIES[request.param]


@pytest.mark.parametrize("steps", [0, 3])
def test_copy_evolves_identically_and_independently(subject, duplicate, steps):
    """The copy has its own weights and state, before the first step and mid-run."""
    opt = subject(parameters(), lr=2e-3)
    drive(opt, steps)
    twin = duplicate(opt)
    assert type(twin) is type(opt)
    before = photograph(opt)
    drive(twin, 3, start=steps)
    assert_same(photograph(opt), before)
    drive(opt, 3, start=steps)
    assert_same(photograph(twin), photograph(opt))
    assert not {p.data_ptr() for p in weights(opt)} & {p.data_ptr() for p in weights(twin)}


def test_model_and_optimizer_copied_together_stay_together(subject, duplicate):
    """The copied optimizer trains the copied model."""
    model = network()
    opt = subject(model.parameters())
    train(model, opt, 2)
    other, twin = duplicate((model, opt))
    train(model, opt, 2, start=2)
    train(other, twin, 2, start=2)
    assert_same([*other.parameters()], [*model.parameters()])


def test_public_attributes_survive_copies(library_subject, duplicate):
    """What the user or a wrapper has hung on the optimizer, and the library's own options."""
    opt = library_subject(parameters(), on_nonfinite="skip")
    opt.run_name = "seed 3"
    public = {k for k in vars(opt) if not k.startswith("_")}
    twin = duplicate(opt)
    assert public <= vars(twin).keys()
    assert twin.run_name == "seed 3"
    give_gradients(weights(twin), 0)
    weights(twin)[0].grad.fill_(float("nan"))
    assert twin.step() is None


def test_copy_can_be_scheduled_saved_and_extended(subject, duplicate):
    """A copy is a whole optimizer."""
    opt = subject(parameters())
    drive(opt, 1)
    twin = duplicate(opt)
    twin.add_param_group({"params": parameters((2,))})
    twin.load_state_dict(twin.state_dict())
    twin.zero_grad()
    assert len(opt.param_groups) == 1
    drive(twin, 1)
    assert repr(twin)


def test_step_hooks_fire_around_the_step(subject):
    """The pre-hook may still change gradients; both can be removed."""
    params = parameters()
    halved = clones(params)
    opt, plain = subject(params), subject(halved)
    calls = []

    def halve(optimizer, args, kwargs):
        assert optimizer is opt
        calls.append("pre")
        for p in params:
            p.grad = p.grad / 2

    handles = [
        opt.register_step_pre_hook(halve),
        opt.register_step_post_hook(lambda o, args, kwargs: calls.append("post")),
    ]
    for t in range(2):
        give_gradients(params, t)
        opt.step()
        give_gradients(halved, t)
        for p in halved:
            p.grad = p.grad / 2
        plain.step()
    assert calls == ["pre", "post"] * 2
    assert_same(params, halved)
    for handle in handles:
        handle.remove()
    drive(opt, 1)
    assert len(calls) == 4


def test_state_dict_hooks_fire(subject):
    """Before, and after with the right to change what is saved."""
    opt = subject(parameters())
    drive(opt, 1)
    calls = []
    opt.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    opt.register_state_dict_post_hook(lambda o, state: {**state, "note": "saved"})
    assert opt.state_dict()["note"] == "saved"
    assert calls == ["pre"]


def test_load_state_dict_hooks_fire(subject):
    """The pre-hook may rewrite a checkpoint before anybody looks; the post-hook sees it loaded."""
    source = subject(parameters())
    drive(source, 2)
    opt = subject(clones(weights(source)))
    seen = []

    def unwrap(optimizer, state):
        return state["wrapped"]

    def note(optimizer):
        seen.append(photograph(optimizer))

    opt.register_load_state_dict_pre_hook(unwrap)
    opt.register_load_state_dict_post_hook(note)
    opt.load_state_dict({"wrapped": source.state_dict()})
    assert_same(seen, [photograph(source)])
    assert_same(photograph(opt), photograph(source))


def test_load_hooks_can_be_removed_and_do_not_pile_up(subject):
    """Loading twice runs a hook twice, and leaves no hook of its own behind."""
    opt = subject(parameters())
    drive(opt, 1)
    count = [0]

    def note(optimizer):
        count[0] += 1

    handle = opt.register_load_state_dict_post_hook(note)
    for _ in range(2):
        opt.load_state_dict(opt.state_dict())
    assert count == [2]
    assert len(opt._optimizer_load_state_dict_post_hooks) == 1
    handle.remove()
    opt.load_state_dict(opt.state_dict())
    assert count == [2]
