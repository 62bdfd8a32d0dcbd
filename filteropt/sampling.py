"""Weights drawn from the belief, and gradients taken where they were drawn or of sampled labels."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from filteropt import engine
from filteropt.belief import BeliefOptimizer, hold_posterior, hold_prediction
from filteropt.draws import Draw, multiply, noise, write
from filteropt.dtypes import belief_dtype
from filteropt.gathering import Gathering
from filteropt.hyperparameters import Interval, Nonnegative, Positive, check_values
from filteropt.measure import is_dtensor, local, name_of
from filteropt.trees import tree_map

__all__ = ["SamplingOptimizer"]

HINTS = {
    "temperature": Nonnegative,
    "weight": Annotated[float, Interval("[0, inf)")],
    "scale": Positive,
}


class SamplingOptimizer(BeliefOptimizer):
    """An optimizer that draws weights from its belief."""

    model: nn.Module | None
    _gathering: Gathering
    _warned: bool = False

    @contextmanager
    def sampled_params(
        self,
        train: bool = False,
        *,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Generator[None, None, None]:
        r"""Let the parameters hold a draw from the belief, and their mean again afterwards.

        .. math:: w = \mu + \sqrt{T}\, L \epsilon, \qquad \Sigma = L L^\top, \quad
            \epsilon \sim N(0, I)

        Weights are drawn tensor by tensor (and a bias with its weight, where it is filtered with
        it): the covariance is that of each tensor's (or weight's) optimum given the others. In
        place, and restored bit for bit on the way out, whatever happens inside.

        With ``train=True`` the gradients computed inside are those of the next step: the minibatch
        is linearised about the draw instead of the mean. As ever, they add up in ``p.grad`` over
        backward passes (gradient accumulation). ``opt.zero_grad()`` *inside* starts another Monte
        Carlo sample, and ``p.grad`` becomes the average over samples; *outside* it forgets
        everything. Scalers and clipping act on ``p.grad`` before the step, as in plain training:
        the factor by which its norm has changed is taken for the loss' scale, so compute every
        gradient of a step inside.

        Args:
            train: whether gradients inside are the next step's. ``False``: to evaluate; under
                ``linearize_at="prediction"`` draws are then about the posterior mean.
            generator: source of randomness, on the parameters' device; ``None`` for the default.
            temperature: T, factor on the covariance; [0, inf). 0 is the mean itself.

        Yields:
            Nothing.

        Raises:
            RuntimeError: draws inside of draws, or of a fisher_pass.
            TypeError: an argument of the wrong kind, or a sharded parameter whose offset is needed.
            ValueError: a temperature outside its range, or a variance that is not finite.

        Example:
            >>> import torch, filteropt
            >>> w = torch.nn.Parameter(torch.zeros(2))
            >>> opt = filteropt.AdaBayes([w], lr_sgd=0.01)
            >>> g = torch.Generator().manual_seed(0)
            >>> with opt.sampled_params(generator=g): drawn = w.detach().clone()
            >>> drawn, w.data
            (tensor([ 0.1541, -0.0293]), tensor([0., 0.]))

        Source: Khan et al. (2018); see :eq:`eq-sampled-gradient`.
        """
        check_values("sampled_params", {"train": train}, {"train": bool})
        check_values("sampled_params", {"temperature": temperature}, HINTS)
        if self._drawn or self._gathering.ledger.paused:
            held = (
                "the parameters hold a draw already" if self._drawn else "leave fisher_pass first"
            )
            raise RuntimeError(f"sampled_params: {held}")
        turned = [] if train else self._hold_means()
        try:
            draws, ledger = self._draw(train, generator, float(temperature)), self._gathering.ledger
            hooks = [x for draw in draws for x in multiply(draw, ledger)]
            if train:
                ledger.begin(draw.p for draw in draws)
            self._drawn = "train" if train else "eval"
            complete = False
            try:
                write(draws, sampled=True)
                yield
                if train:
                    self._gathering.settle()
                complete = True
            finally:
                self._drawn = ""
                for hook in hooks:
                    hook.remove()
                write(draws, sampled=False)
                if complete and train:
                    ledger.end(draw.p for draw in draws)
                elif train:
                    self._gathering.clear()
        finally:
            self._hold_again(turned)

    @contextmanager
    def fisher_pass(self, weight: float = 1.0, scale: float = 1.0) -> Generator[None, None, None]:
        r"""Gradients computed inside feed :class:`~filteropt.approximations.SampledFisher`.

        The loss inside is that of labels drawn from the model's own prediction
        (:func:`filteropt.sample_labels`), reduced as the training loss is; with :math:`e` its
        gradient, the next step's curvature gains

        .. math:: w\,(e/s)^2 .

        ``p.grad`` is left alone. Passes add up, as gradients do; their expectation is the Fisher
        information of all the examples seen.

        Args:
            weight: w, what the pass counts; [0, inf). 1/S where S passes see the same examples.
            scale: s, a factor that this loss carries beyond the training loss' own; (0, inf). With
                a ``GradScaler``, its ``get_scale()``.

        Yields:
            Nothing.

        Raises:
            RuntimeError: passes inside of passes.
            TypeError: an argument of the wrong kind.
            ValueError: an argument outside its range.

        Example:
            >>> import torch, filteropt
            >>> from torch.nn.functional import cross_entropy
            >>> from filteropt.approximations import SampledFisher
            >>> model = torch.nn.Linear(3, 2)
            >>> fisher = filteropt.variant(
            ...     filteropt.presets.adabayes,
            ...     likelihood=lambda batch_size: SampledFisher(batch_size))
            >>> opt = filteropt.FilterOptimizer(model.parameters(), fisher, batch_size=5)
            >>> logits = model(torch.randn(5, 3))
            >>> cross_entropy(logits, torch.tensor([0, 1, 1, 0, 1])).backward(retain_graph=True)
            >>> with opt.fisher_pass():
            ...     cross_entropy(logits, filteropt.sample_labels(logits, "categorical")).backward()
            >>> opt.step()

        Source: U (Aitchison 2018) Sec. 2.1; derived in :eq:`eq-sampled-fisher`.
        """
        check_values("fisher_pass", {"weight": weight, "scale": scale}, HINTS)
        if self._gathering.ledger.paused:
            raise RuntimeError("fisher_pass: one pass is under way already")
        params = [p for group in self.param_groups for p in group["params"]]
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        kept = [p.grad.clone() if shared and p.grad is not None else p.grad for p in params]
        try:
            for p in params:
                self._gathering.ledger.refresh(p)
                self._gathering.ledger.mark([p])
            self._gathering.pause(True)
            for p in params:
                p.grad = None
            yield
            for p in params:
                if p.grad is not None:
                    gradient = local(p.grad).detach().to(belief_dtype(p)) / scale
                    squares = weight * gradient.square()
                    self._gathering.ledger.add(p, "label_squares", squares)
        finally:
            self._gathering.pause(False)
            for p, grad in zip(params, kept, strict=True):
                p.grad = grad

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and whatever was gathered with them.

        Inside of ``sampled_params(train=True)`` it starts another Monte Carlo sample instead.

        Args:
            set_to_none: whether gradients become ``None`` instead of zero.

        Raises:
            RuntimeError: inside of ``fisher_pass``.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        if self._gathering.ledger.paused:
            raise RuntimeError("zero_grad: leave fisher_pass first; its gradients go by themselves")
        if self._drawn == "train":
            self._gathering.restart(params)
        else:
            self._warn_of_loss(params)
            self._gathering.clear()
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep; not while the parameters hold a draw."""
        if self._drawn:
            raise RuntimeError(
                "copy, pickle: the parameters hold a draw; leave sampled_params first"
            )
        return super().__getstate__()

    def _warn_of_loss(self, params: list[Tensor]) -> None:
        """Say once that a sound gradient taken at a draw was forgotten."""
        if self._gathering.ledger.begun and not self._warned:
            grads = [p.grad for p in params if p.grad is not None]
            if all(bool(grad.isfinite().all()) for grad in grads):
                self._warned = True
                warnings.warn(
                    "zero_grad() outside of sampled_params forgot a gradient taken at a draw; call "
                    "it inside to average over several draws",
                    stacklevel=3,
                )

    # Draws ------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(
        self, train: bool, generator: torch.Generator | None, temperature: float
    ) -> list[Draw]:
        """A draw of every trained parameter, group by group; nothing is changed."""
        draws = []
        for index, group in enumerate(self.param_groups):
            if not (group["base_lr"] or group["lr"]):
                continue  # frozen from the start: nothing is believed yet
            bound, numbers = self._bind(group), dict[float, engine.Scalars]()
            filter, scored = bound.filter, train and "products" in bound.filter.likelihood.needs
            blocks = [(i, b) for i, b in self._blocks(group, bound) if self._believed(b.weight)]
            normal = iter(noise([p for _, b in blocks for p in b.members], generator))
            for i, block in blocks:
                p, name = block.weight, partial(name_of, self.param_groups, index, i, self.model)
                age, state = self._recall(group, bound, block)
                if age not in numbers:
                    numbers[age] = tree_map(float, engine.scalars(filter, age))
                weights, *bias = (local(q.detach()) for q in block.members)
                weights = block.whole(weights.to(belief_dtype(p)), *bias)
                about = numbers[age], tree_map(local, state), weights
                eps = block.whole(*(next(normal) for _ in block.members))
                offset = torch.zeros_like(eps)  # also where the variance is not finite
                if temperature:
                    offset = temperature**0.5 * engine.sample(filter, *about, eps)
                if not bool(offset.isfinite().all()):
                    raise ValueError(
                        f"sampled_params: the variance of {name()} is not finite (without a prior, "
                        f"that of weights no data have spoken of is not); give a finite lr_sgd"
                    )
                score = None
                if scored:
                    self._require_scored(name(), p, temperature)
                    score = offset / (temperature * engine.variance(filter, *about))
                for q, part in block.split(offset):
                    if q is p or self._believed(q):
                        draws.append(Draw(q, local(q.detach()).clone(), part, score))
        return draws

    def _believed(self, p: Tensor) -> bool:
        """Whether a parameter is trained, or was before it was frozen."""
        return p.requires_grad or bool(self.state.get(p))

    def _require_scored(self, name: str, p: Tensor, temperature: float) -> None:
        if is_dtensor(p):
            raise TypeError(
                f"sampled_params: {name} is sharded, and the products of draws and gradients that "
                f"Price needs are gathered on whole parameters; use IVON's hess_approx='gradsq'"
            )
        if not temperature:
            raise ValueError(
                "sampled_params: temperature=0.0 draws the mean itself, of which Price learns no "
                "curvature; use a positive one"
            )

    def _hold_means(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Let parameters that hold a prediction hold their posterior mean; those that did not."""
        turned = [
            (p, state)
            for p, state in self.state.items()
            if "evaluating" in state and not state["evaluating"]
        ]
        for p, state in turned:
            hold_posterior(p, state)
        return turned

    def _hold_again(self, turned: list[tuple[Tensor, dict[str, Any]]]) -> None:
        for p, state in turned:
            hold_prediction(p, state)
