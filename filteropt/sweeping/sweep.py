"""Training many settings of one composition at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from filteropt.engine import Filter
from filteropt.optimizer import FilterOptimizer
from filteropt.sweeping.feed import Minibatches, again, length
from filteropt.sweeping.memory import together
from filteropt.sweeping.numbers import Tables
from filteropt.sweeping.plan import Plan, Record
from filteropt.sweeping.progress import Report, progress
from filteropt.sweeping.result import Sweep
from filteropt.sweeping.settings import Setting, Settings, composition, prepare
from filteropt.sweeping.training import Chunk

__all__ = ["sweep"]


def sweep(
    model: Callable[[], nn.Module],
    optimizer: type[FilterOptimizer] | Callable[..., Filter],
    settings: Settings,
    loss: Callable[..., Tensor],
    batches: Minibatches,
    *,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    lr_lambda: Callable[[int], float] | None = None,
    schedule: Literal["gain", "model"] = "gain",
    linearize_at: Literal["posterior", "prediction"] | None = None,
    maximize: bool = False,
    evaluate: Callable[[nn.Module], Any] | None = None,
    evaluate_every: int | None = None,
    randomness: Literal["different", "same"] = "different",
    chunk: int | None = None,
    memory: float | None = None,
    compiled: bool | None = None,
    keep: bool = True,
    progress_bar: bool | Report | None = None,
    device: torch.device | str = "cpu",
) -> Sweep:
    r"""Train every setting of a composition, under every seed, all at once.

    The models are stacked, one forward and one backward pass serve all of them, and so does the
    engine's one step, :math:`(\mu_k, \Sigma_k) \leftarrow` ``step`` :math:`(\mu_k, \Sigma_k, g_k,
    \theta_k)` for members k with hyperparameters :math:`\theta_k`. Nothing is approximated: a
    member is what a run of its own is, up to the order of additions. It starts from the model that
    the factory makes after ``torch.manual_seed(seed)``, sees the same minibatches, has running
    statistics of its own, and stops where its gradient is not finite, without disturbing others.

    Args:
        model: makes a model, of one architecture whatever the seed.
        optimizer: a class, such as :class:`filteropt.AdaBayes`, or a preset, such as
            :func:`filteropt.presets.adamw`, that looks at gradients alone.
        settings: hyperparameters by name, a grid: lists, ranges and arrays are swept, any other
            value (a tuple, too) is the same for all. Or the settings themselves, a list of
            dictionaries. They may differ in numbers, not in the composition.
        loss: from a model and a minibatch to the loss, one number, as in a training loop:
            ``lambda model, batch: cross_entropy(model(batch[0]), batch[1])``.
        batches: minibatches, a list or a ``DataLoader``, that all members share and which are read
            again where there are more steps; or from a seed to its own ones.
        steps: steps of every member; ≥ 1. ``None`` is one pass over ``batches``.
        seeds: every setting is trained under each of them.
        lr_lambda: the factor on ``lr`` in every step, 0 for the first, as for
            ``torch.optim.lr_scheduler.LambdaLR``.
        schedule: what that means, ``"gain"`` or ``"model"``; see
            :class:`filteropt.FilterOptimizer`.
        linearize_at: where gradients are taken; ``None`` takes the optimizer's own default.
        maximize: maximise instead of minimise.
        evaluate: from a model, in evaluation mode and at its posterior mean, to a tensor or a
            dictionary of them; ``torch.func.vmap`` runs it.
        evaluate_every: steps between two evaluations; ≥ 1. ``None`` evaluates at the end alone.
        randomness: where a model draws (dropout), ``"different"``: members draw on their own,
            which equals runs of their own in law. ``"same"``: members of one seed draw the same,
            which is what a run of that seed would draw; seeds then pass one after the other.
        chunk: members that are trained together; ``None`` takes as many as ``memory`` has room for.
        memory: bytes that training may take; ``None`` for 2 GiB, or half of what a GPU has free.
        compiled: whether the step is compiled (``torch.compile``); ``None`` where it saves time.
        keep: whether the members' parameters are kept.
        progress_bar: whether to show one (with the extra ``filteropt[progress]``, else as lines);
            ``None`` on a terminal. Or a function of the member steps done and of all.
        device: where to train.

    Returns:
        A :class:`filteropt.Sweep`: table, curves, parameters and models. After an interrupt
        (Ctrl-C), what there is.

    Raises:
        TypeError: an argument or a hyperparameter of the wrong kind.
        ValueError: one outside its range, a setting that makes another composition than the first,
            one that needs more than gradients, or minibatches that are used up.
        RuntimeError: ``torch.func.vmap`` does not run the model.

    Example:
        >>> import torch, filteropt
        >>> x = torch.linspace(-1, 1, 16)[:, None]
        >>> filteropt.sweep(
        ...     lambda: torch.nn.Linear(1, 1),
        ...     filteropt.AdaBayesFP,
        ...     {"lr": [1e-2, 1e-1], "lr_sgd": [0.1, float("inf")], "batch_size": 16},
        ...     lambda model, x: (model(x) - 2 * x).square().mean(),
        ...     [x],
        ...     steps=100,
        ... )    # doctest: +ELLIPSIS
          lr  lr_sgd  batch_size  seed       loss    status  steps
        0.01     0.1          16     0     0.50...  finished    100
        0.01     inf          16     0     0.48...  finished    100
         0.1     0.1          16     0   0.00...  finished    100
         0.1     inf          16     0  0.000...  finished    100
        4 members of 100 steps: 4 finished
    """
    _among("randomness", randomness, "different", "same")
    _among("schedule", schedule, "gain", "model")
    for name, value in {"steps": steps, "chunk": chunk, "evaluate_every": evaluate_every}.items():
        fine = value is None or (isinstance(value, int) and value >= 1)
        _require(fine, f"{name}={value!r}", "a whole number ≥ 1")
    seeds = list(dict.fromkeys(seeds))
    _require(seeds, f"seeds={seeds!r}", "at least one seed")
    where = linearize_at or composition(optimizer)[1].get("linearize_at", "posterior")
    _among("linearize_at", where, "posterior", "prediction")
    made = prepare(settings, optimizer, schedule=schedule, strict=where == "prediction")
    count = length(batches, seeds[0]) if steps is None else steps
    plan = Plan(
        factory=model,
        loss=loss,
        batches=again(batches, count),
        steps=count,
        factors=_factors(lr_lambda, count),
        evaluate=evaluate,
        every=evaluate_every or count,
        strict=where == "prediction",
        maximize=maximize,
        randomness=randomness,
        compiled=compiled,
        keep=keep,
        device=torch.device(device),
    )
    records = [Record() for _ in made for _ in seeds]
    size = min(len(records), chunk or together(plan, made[0], len(records), memory))
    with progress(progress_bar, count * len(records), len(records)) as report:
        size = _train(plan, made, seeds, records, size, report)
    given, evaluated = [s.given for s in made], plan.evaluated() if evaluate else []
    return Sweep(given, seeds, count, evaluated, size, records, model)


def _train(
    plan: Plan,
    settings: list[Setting],
    seeds: list[int],
    records: list[Record],
    size: int,
    report: Report,
) -> int:
    """Train chunk after chunk, of at most so many members; the size that memory had room for."""
    members = [(i, seed) for seed in seeds for i in range(len(settings))]
    places = [i * len(seeds) + seeds.index(seed) for i, seed in members]
    start, total = 0, plan.steps * len(members)
    tables = Tables(settings, plan.factors, strict=plan.strict, device=plan.device)
    while start < len(members):
        stop = min(len(members), start + size)
        chosen, chunk = places[start:stop], None
        try:
            kept = [records[k] for k in chosen]
            chunk = Chunk(plan, settings, members[start:stop], kept, tables)
            for step, _ in enumerate(chunk.train(), 1):
                report(plan.steps * start + step * (stop - start), total)
        except KeyboardInterrupt:
            if chunk is not None:
                chunk.close()
            warnings.warn("sweep: interrupted; what has finished is kept", stacklevel=3)
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (stop - start + 1) // 2
            for k in chosen:
                records[k] = Record()
            continue
        chunk.close()
        start = stop
        report(plan.steps * start, total)
    return size


def _factors(lr_lambda: Callable[[int], float] | None, steps: int) -> list[float]:
    """What the learning rate is multiplied by in every step."""
    factors = [1.0] * steps if lr_lambda is None else [float(lr_lambda(s)) for s in range(steps)]
    for step, factor in enumerate(factors):
        _require(0 <= factor < math.inf, f"lr_lambda({step})={factor!r}", "in [0, inf)")
    return factors


def _among(name: str, given: str, *allowed: str) -> None:
    _require(given in allowed, f"{name}={given!r}", " or ".join(map(repr, allowed)))


def _require(fine: Any, given: str, what: str) -> None:
    if not fine:
        raise ValueError(f"sweep: {given} must be {what}")
