"""How good predicted probabilities are: on the test images, under shift, and bin by bin."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, nll_loss, one_hot

BINS = 15
METRICS = ("error", "nll", "ece", "brier", "auroc", "rotated_nll")


def measure(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score predictions whose labels are known.

    Args:
        log_probabilities: Logarithms of the predicted probabilities, ``(n, classes)``.
        labels: Labels, ``(n,)``.

    Returns:
        The error, as a fraction; the NLL, in nats; the ECE over 15 bins and the Brier score (the
        squared distance from the one-hot label), as fractions. NaN where a probability is.
    """
    from torchmetrics.functional import classification  # takes seconds; many never evaluate

    classes = log_probabilities.shape[1]
    if not bool(log_probabilities.isfinite().any(1).all()):
        return dict.fromkeys(("error", "nll", "ece", "brier"), math.nan)
    p = log_probabilities.exp()
    truth = one_hot(labels, classes).to(p)
    accuracy = classification.multiclass_accuracy(p, labels, classes, average="micro")
    return {
        "error": 1.0 - accuracy.item(),
        "nll": nll_loss(log_probabilities, labels).item(),
        "ece": classification.multiclass_calibration_error(p, labels, classes, n_bins=BINS).item(),
        "brier": mse_loss(p, truth, reduction="sum").item() / len(p),
    }


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of every prediction.

    Args:
        log_probabilities: Logarithms of the probabilities, ``(n, classes)``.

    Returns:
        Entropies, ``(n,)``, in nats.
    """
    return torch.special.entr(log_probabilities.exp()).sum(1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """How well a score tells inputs from elsewhere from those of the test set.

    Args:
        inside: Scores of test inputs, ``(n,)``.
        outside: Scores of inputs from elsewhere, ``(m,)``, which should be larger.

    Returns:
        Area under the receiver operating characteristic, 0.5 for chance; NaN where a score is.
    """
    from torchmetrics.functional import classification

    scores = torch.cat([inside, outside]).double()
    if not bool(scores.isfinite().all()):
        return math.nan
    scores = scores / scores.max().clamp_min(1e-300)  # torchmetrics takes others for logits
    target = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    return classification.binary_auroc(scores, target).item()


def reliability(log_probabilities: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Sum up confidences and hits in equal bins of confidence.

    Args:
        log_probabilities: Logarithms of the predicted probabilities, ``(n, classes)``.
        labels: Labels, ``(n,)``.

    Returns:
        Sums by bin: ``bin_count``, ``bin_confidence`` and ``bin_hits``.
    """
    confidence, predicted = log_probabilities.exp().double().max(1)
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    hits = (predicted == labels).double()
    sums = {"bin_count": torch.ones_like(hits), "bin_confidence": confidence, "bin_hits": hits}
    return {name: torch.bincount(place, what, BINS).tolist() for name, what in sums.items()}


def assess(
    test: Tensor, labels: Tensor, rotated: Tensor, digits: Tensor
) -> tuple[dict[str, float], dict[str, Any]]:
    """Score one predictive distribution on everything.

    Args:
        test: Log-probabilities on the test images, ``(n, classes)``.
        labels: Their labels, ``(n,)``.
        rotated: Log-probabilities of the first of them at every angle, ``(angles, m, classes)``;
            the first angle is 0.
        digits: Log-probabilities on digits from another source, ``(k, classes)``.

    Returns:
        The metrics, and the curves over angles with the reliability's bins.
    """
    metrics = measure(test, labels)
    upright = entropy(rotated[0])
    curves: dict[str, list[float]] = {}
    for turned in rotated:
        found = measure(turned, labels[: len(turned)])
        found["auroc"] = auroc(upright, entropy(turned))
        for name, value in found.items():
            curves.setdefault(name, []).append(value)
    metrics["auroc"] = auroc(entropy(test), entropy(digits))
    metrics["rotated_nll"] = math.fsum(curves["nll"][1:]) / len(curves["nll"][1:])
    return metrics, curves | reliability(test, labels)
