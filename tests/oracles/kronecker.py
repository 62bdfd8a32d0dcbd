"""Kronecker-factored Gaussians the long way round: dense matrices and a general optimizer."""

from __future__ import annotations

import numpy as np
import scipy.optimize


def divergence(p, q):
    """KL(N(0, P) || N(0, Q))."""
    ratio = np.linalg.solve(q, p)
    return 0.5 * (np.trace(ratio) - len(p) - np.linalg.slogdet(ratio)[1])


def cholesky_of(parameters, n):
    """A lower triangle with a positive diagonal, from n(n + 1)/2 numbers."""
    lower = np.zeros((n, n))
    lower[np.tril_indices(n)] = parameters
    np.fill_diagonal(lower, np.exp(np.diagonal(lower)))
    return lower


def parameters_of(covariance):
    lower = np.linalg.cholesky(covariance)
    np.fill_diagonal(lower, np.log(np.diagonal(lower)))
    return lower[np.tril_indices(len(lower))]


def best_product(covariance, n, m, *, reverse=False, start=None):
    """The Kronecker product of least KL(P || Q), or KL(Q || P), by BFGS over Cholesky factors.

    The gradient is that of the dense divergence with respect to both triangles.
    """
    precision = np.linalg.inv(covariance)
    split = n * (n + 1) // 2

    def factors(parameters):
        return cholesky_of(parameters[:split], n), cholesky_of(parameters[split:], m)

    def objective(parameters):
        left, right = factors(parameters)
        x, y = left @ left.T, right @ right.T
        product = np.kron(x, y)
        inverse = np.linalg.inv(product)
        if reverse:
            value, slope = divergence(product, covariance), 0.5 * (precision - inverse)
        else:
            value = divergence(covariance, product)
            slope = 0.5 * (inverse - inverse @ covariance @ inverse)
        blocks = slope.reshape(n, m, n, m)
        slopes = np.einsum("iajb,ab->ij", blocks, y), np.einsum("iajb,ij->ab", blocks, x)
        gradients = []
        for lower, along in zip((left, right), slopes, strict=True):
            full = (along + along.T) @ lower
            np.fill_diagonal(full, np.diagonal(full) * np.diagonal(lower))
            gradients.append(full[np.tril_indices(len(lower))])
        return value, np.concatenate(gradients)

    if start is None:
        start = np.eye(n), np.eye(m) * np.trace(covariance) / (n * m)
    guess = np.concatenate([parameters_of(factor) for factor in start])
    for _ in range(3):
        guess = scipy.optimize.minimize(
            objective, guess, jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 5000}
        ).x
    left, right = factors(guess)
    return np.kron(left @ left.T, right @ right.T), objective(guess)[0]


def posterior(covariance, inputs, deltas):
    """The dense posterior after rows x kron delta."""
    rows = np.stack([np.kron(x, d) for x, d in zip(inputs, deltas, strict=True)])
    gain = covariance @ rows.T @ np.linalg.inv(np.eye(len(rows)) + rows @ covariance @ rows.T)
    updated = covariance - gain @ rows @ covariance
    return (updated + updated.T) / 2


def eq24(sx, sd, x, delta, *, normalised=True, corrected=True):
    """U Eq. 24; as printed, X and Delta are not normalised and 24b has Delta where X belongs."""
    n, m = len(x), len(delta)
    big_x, big_d = x @ sx @ x, delta @ sd @ delta
    if normalised:
        big_x, big_d = big_x / n, big_d / m
    scale = 1 + m * big_d * n * big_x
    along = big_x if corrected else big_d
    new_x = sx + (0.5 * big_d * big_x * sx - big_d * np.outer(sx @ x, sx @ x)) / scale
    new_d = sd + (0.5 * big_d * big_x * sd - along * np.outer(sd @ delta, sd @ delta)) / scale
    return new_x, new_d


def eq28(sx, sd, eta, sigma2):
    """U Eq. 28."""
    n, m = len(sx), len(sd)
    lx, ld = np.trace(np.linalg.inv(sx)) / n, np.trace(np.linalg.inv(sd)) / m
    f = 1 - eta**2 / (2 * sigma2) - 0.5 * eta**2 * lx * ld
    return f * sx + eta**2 * ld * np.eye(n), f * sd + eta**2 * lx * np.eye(m)


def whitening(covariance):
    """The inverse square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(values)) @ vectors.T


class DenseKalman:
    """All weights of a small layer, W flattened column by column, so that a row is x kron delta."""

    def __init__(self, mean, variance):
        self.mean = np.array(mean, dtype=float)
        self.covariance = variance * np.eye(len(self.mean))

    def drift(self, factor, noise):
        self.mean = factor * self.mean
        self.covariance = factor**2 * self.covariance + noise * np.eye(len(self.mean))

    def observe(self, inputs, deltas, gradient):
        self.covariance = posterior(self.covariance, inputs, deltas)
        self.mean = self.mean - self.covariance @ gradient


def flip_flop(covariance, n, m, rounds=400):
    """The Kronecker product of least KL(P || Q) from partial traces of the dense P."""
    blocks = covariance.reshape(n, m, n, m)
    right = np.eye(m)
    for _ in range(rounds):
        left = np.einsum("iajb,ba->ij", blocks, np.linalg.inv(right)) / m
        right = np.einsum("iajb,ji->ab", blocks, np.linalg.inv(left)) / n
    return np.kron(left, right)
