"""The optimizer classes under contract: `torch.optim.AdamW` as reference, then every preset.

A class listed in `filteropt.presets.__all__` joins by being listed there. `SPECIAL` is for a class
whose defaults are not enough: keywords that a test problem needs, or further variants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import filteropt
from filteropt import presets
from filteropt.approximations import SquaredGradient, Tempered
from filteropt.hyperparameters import Decay, LearningRate, Nonnegative, Positive, checked

PROBE = torch.zeros(2, dtype=torch.float64)
WORDS = {
    "schedule": ("model",),
    "linearize_at": ("prediction", "posterior"),
    "discretization": ("exact",),
    "fixed_point": ("exact",),
    "refresh": ("eigh",),
    "transport": ("keep",),
}
OF_BASES = {"update_every", "max_dim", "refresh", "transport", "factor_beta"}
OF_LAYERS = {"rows"}  # of parts that look into the model, which these problems do not give
BOOKKEEPING = {"base_lr"}  # keys of a group that are no constructor keywords


@dataclass(frozen=True)
class Subject:
    """An optimizer class and what the tests need to know about it.

    Attributes:
        cls: the class.
        keywords: constructor keywords used in every test beside the class' own defaults.
        numbers_per_weight: how many state numbers a weight may cost.
        cancels: hyperparameters that scale the belief but provably cancel in the weights.
        predicts: whether gradients may be taken at the prediction.
        numbers_per_side: how many a matrix of M×N weights may cost beside, per M² + N².
        whole: whether tensors must be whole; then rounding is told apart by its basis, which a
            matrix' first gradient makes without a step, and what is said of which matters to
            matrices alone.
    """

    cls: type[torch.optim.Optimizer]
    keywords: dict[str, Any] = field(default_factory=dict)
    numbers_per_weight: int = 2
    cancels: frozenset[str] = frozenset()
    predicts: bool = True
    numbers_per_side: int = 0
    whole: bool = False

    def __str__(self) -> str:
        """Return the name used in test ids."""
        return "-".join([self.cls.__name__, *(str(v) for v in self.keywords.values())])

    def __call__(self, params: Iterable[Any], **changes: Any) -> torch.optim.Optimizer:
        """Return an optimizer of these parameters."""
        if not self.predicts and changes.get("linearize_at") == "prediction":
            del changes["linearize_at"]
        return self.cls(params, **{**self.keywords, **changes})

    def defaults(self) -> dict[str, Any]:
        """Return the hyperparameters and the values used in the tests."""
        opt = self([torch.nn.Parameter(PROBE.clone())])
        return {k: v for k, v in opt.defaults.items() if k not in BOOKKEEPING}

    def concerned(self, name: str, params: list[Any]) -> list[Any]:
        """Return the parameters that a hyperparameter acts on."""
        return [p for p in params if p.ndim > 1] if self.whole and name in OF_BASES else params

    def decay(self, value: float) -> dict[str, float]:
        """Return weight decay as a keyword, or nothing for a class that has none."""
        names = self.defaults().keys() & {"weight_decay", "delta"}
        return dict.fromkeys(names, value)

    def numeric(self) -> dict[str, Any]:
        """Return the hyperparameters that are a number or a tuple of numbers."""
        return {k: v for k, v in self.defaults().items() if is_number(v) or isinstance(v, tuple)}

    def variations(self) -> list[tuple[str, Any]]:
        """Return each numeric hyperparameter with another legal value, tuples entry by entry."""
        found = []
        for name, value in self.numeric().items():
            if name in OF_LAYERS:
                continue
            if isinstance(value, tuple):
                for i, entry in enumerate(value):
                    found.append((name, (*value[:i], another(entry), *value[i + 1 :])))
            else:
                found.append((name, another(value)))
        return found

    def rewordings(self) -> list[tuple[str, str]]:
        """Return each hyperparameter that is a word with another legal word."""
        defaults = self.defaults()
        words = [k for k, value in defaults.items() if isinstance(value, str)]
        words = [k for k in words if self.predicts or k != "linearize_at"]
        return [(k, w) for k in words for w in WORDS.get(k, ()) if w != defaults[k]]


def is_number(value: object) -> bool:
    """Return whether it is a number, where True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def another(value: float) -> float:
    """Return a legal value that is clearly different."""
    if isinstance(value, int):
        return value + 1
    return value / 2 if 0 < value < math.inf else 0.03


# With variance lr_sgd / B and gradient B g, Taylor's fixed point is proportional to 1 / B; and
# that of r lr and r lr_sgd is r times that of lr and lr_sgd, whichever way r comes in.
TAYLOR = {"cancels": frozenset({"batch_size", "schedule"})}

# Class name to the fields of one `Subject` or more: {"VON": [{"keywords": {"dataset_size": 8}}]}.
SPECIAL: dict[str, list[dict[str, Any]]] = {
    "AdaBayes": [{}, {"keywords": {"linearize_at": "prediction"}}],
    "AdaBayesFP": [TAYLOR, {"keywords": {"schedule": "model"}, **TAYLOR}],
    "BayesRMSprop": [
        {"keywords": {"weight_decay": 0.05}},
        {"keywords": {"weight_decay": 0.05, "fixed_point": True}, "numbers_per_weight": 1},
    ],
    "EigenbasisFilter": [
        {
            "keywords": {"update_every": 1, "max_dim": 3},
            "numbers_per_side": 2,
            "whole": True,
            **TAYLOR,
        }
    ],
    "MomentumFilter": [
        {"keywords": {"weight_decay": 0.05}, "numbers_per_weight": 4},
        {
            "keywords": {"weight_decay": 0.05, "stationary": True},
            "numbers_per_weight": 2,
        },
    ],
    "OnlineNaturalGradient": [
        {
            "keywords": {"forgetting": 0.1},
            "numbers_per_weight": 1,
            "cancels": frozenset({"schedule", "linearize_at"}),  # a plain gain, and no decay
        }
    ],
}
# Their likelihoods gather more than gradients, which these problems do not give:
# test_dense_kalman.py, test_variational.py, test_ivon.py, test_sampled_params.py and
# test_kronecker_filter.py instead.
GATHERING = {"ExtendedKalmanFilter", "IVON", "KroneckerFilter", "VOGN", "VON", "Vadam"}


@checked
def _newton(
    lr: LearningRate = 0.01,
    batch_size: Positive = 50.0,
    beta2: Decay = 0.9,
    delta: Nonnegative = 0.1,
) -> filteropt.engine.Filter:
    """IVON's filter, taught by squared gradients at the mean."""
    squares = Tempered(SquaredGradient(batch_size), 1 - beta2)
    return replace(presets.ivon(lr, batch_size, 1.0, 0.9, beta2, delta), likelihood=squares)


class PlainIVON(filteropt.FilterOptimizer):
    """Forgetting, tempering, retraction and projections, under contract."""

    preset = staticmethod(_newton)


ADAMW = Subject(torch.optim.AdamW)
FILTERS = [
    Subject(getattr(presets, name), **fields)
    for name in presets.__all__
    if isinstance(getattr(presets, name), type) and name not in GATHERING
    for fields in SPECIAL.get(name, [{}])
]
FILTERS.append(Subject(PlainIVON, cancels=frozenset({"schedule", "linearize_at"}), predicts=False))
SUBJECTS = [ADAMW, *FILTERS]
DECAYING = [subject for subject in SUBJECTS if "weight_decay" in subject.defaults()]
VARIATIONS = [(subject, *case) for subject in SUBJECTS for case in subject.variations()]
REWORDINGS = [(subject, *case) for subject in FILTERS for case in subject.rewordings()]
STARTS = {"initial_variance", "max_dim"}  # read before the first step only
LATER_VARIATIONS = [case for case in VARIATIONS if case[1] not in STARTS]
