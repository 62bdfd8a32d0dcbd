"""The last layer's Laplace approximation, with the full generalised Gauss–Newton matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 500


class LastLayer(NamedTuple):
    """A Gaussian about a linear map from features to logits.

    Attributes:
        vectors: eigenvectors of the Gauss–Newton matrix, ``(classes * width, classes * width)``;
            the weights are in order of class, then feature, the last of which is the constant.
        values: its eigenvalues, ``(classes * width,)``, not negative.
        classes: number of classes.
    """

    vectors: Tensor
    values: Tensor
    classes: int

    def logit_covariance(self, features: Tensor, prior_precision: float) -> Tensor:
        """Covariance of the logits, given independent priors of one precision for every weight.

        Args:
            features: what the last layer is given, ``(n, width - 1)``.
            prior_precision: inverse prior variance of a weight, above 0.

        Returns:
            Covariances, ``(n, classes, classes)``.
        """
        basis = self.vectors.reshape(self.classes, -1, len(self.values))
        scaled = basis * (self.values + prior_precision).rsqrt()
        parts = []
        for chunk in _with_constant(features.double()).split(_CHUNK):
            root = torch.einsum("nj,cjk->nck", chunk, scaled)
            parts.append(root @ root.mT)
        return torch.cat(parts)


def fit_last_layer(features: Tensor, logits: Tensor) -> LastLayer:
    r"""Gather the Gauss–Newton matrix of the summed cross-entropy over the training data.

    .. math:: H = \sum_n (\operatorname{diag} \pi_n - \pi_n \pi_n^\top) \otimes \phi_n \phi_n^\top

    Args:
        features: what the last layer is given, ``(n, width - 1)``.
        logits: what it returns, ``(n, classes)``.

    Returns:
        The approximation.
    """
    phi, classes = _with_constant(features.double()), logits.shape[1]
    p = logits.double().softmax(1)
    width = phi.shape[1]
    blocks = torch.empty(classes, width, classes, width, dtype=torch.float64)
    for c in range(classes):
        for d in range(c + 1):
            weight = p[:, c] * (float(c == d) - p[:, d])
            blocks[c, :, d] = blocks[d, :, c] = phi.mT @ (weight[:, None] * phi)
    total = blocks.reshape(classes * width, classes * width)
    values, vectors = torch.linalg.eigh(total)
    return LastLayer(vectors, values.clamp_min(0), classes)


def sample_logits(
    mean: Tensor, covariance: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    """Draw logits from a Gaussian for every example.

    Args:
        mean: means, ``(n, classes)``.
        covariance: covariances, ``(n, classes, classes)``.
        draws: how many.
        generator: source of randomness.

    Returns:
        Logits, ``(draws, n, classes)``.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]
    eps = torch.randn(draws, *mean.shape, generator=generator, dtype=covariance.dtype)
    return mean + torch.einsum("ncd,snd->snc", root, eps)


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)
