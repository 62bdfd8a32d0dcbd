"""Dense Kalman filters in the textbook's form (NumPy): of noisy states, and of gradients."""

from __future__ import annotations

import numpy as np


class DenseKalman:
    """Latent z' = F z + N(0, Q); an observation y = z + N(0, R)."""

    def __init__(self, mean, cov):
        self.mean, self.cov = np.array(mean, dtype=float), np.array(cov, dtype=float)

    def predict(self, factor, noise):
        """Age the belief by one step."""
        self.mean = factor @ self.mean
        self.cov = factor @ self.cov @ factor.T + noise

    def condition(self, y, r):
        """Condition on y by the Kalman gain."""
        gain = self.cov @ np.linalg.inv(self.cov + r)
        self.mean = self.mean + gain @ (y - self.mean)
        self.cov = (np.eye(len(self.mean)) - gain) @ self.cov


class JointKalman:
    """All the weights' k latents in one belief (weight by weight), of gradients of the weights.

    Each weight's latents move by `factor` and `noise`. Strict: the gradient is taken at the
    predicted mean, which includes the decay. Otherwise at the posterior mean, whose move by the
    other latents is predicted before the gradient is used, and whose decay stands apart.
    """

    def __init__(self, weights, variances, *, strict):
        n, self.k, self.strict, self.first = len(weights), len(variances), strict, True
        self.mean = np.kron(weights, np.eye(self.k)[0])
        self.cov = np.kron(np.eye(n), np.diag(variances))
        self.seen = np.kron(np.eye(n), np.eye(self.k)[:1])

    def weights(self):
        """What the optimizer's parameters hold."""
        return self.mean[:: self.k].copy()

    def blocks(self):
        """Every weight's own covariance."""
        n = len(self.seen)
        return np.einsum("iaib->iab", self.cov.reshape(n, self.k, n, self.k))

    def step(self, gradient, precision, factor, noise, *, gain=1.0, decay=None):
        """Age the covariance, condition, and move; the mean decays by 1 - F_00 unless told."""
        factor, n = np.asarray(factor, dtype=float), len(self.seen)
        decay = 1 - factor[0, 0] if decay is None else decay
        whole = np.kron(np.eye(n), factor)
        if not self.first:
            self.cov = whole @ self.cov @ whole.T + np.kron(np.eye(n), noise)
            weighs = np.tile(np.arange(self.k) == 0, n)
            self.mean = np.where(weighs, self.mean, whole @ self.mean)
        moved = np.zeros(n)
        if not self.strict and not self.first:
            moved = self.aside @ factor[0, 1:]
        rows = np.sqrt(precision)[:, None] * self.seen
        gain_ = self.cov @ rows.T @ np.linalg.inv(np.eye(n) + rows @ self.cov @ rows.T)
        self.cov = self.cov - gain_ @ rows @ self.cov
        change = -self.cov @ self.seen.T @ (gradient + precision * moved)
        old = self.weights()
        self.mean = self.mean + change
        displacement = change[:: self.k] + moved - (0 if self.strict else decay) * old
        weights = old + gain * displacement
        self.aside = self.mean.reshape(n, self.k)[:, 1:]
        self.posterior = weights.copy()
        if self.strict:
            weights = (1 - gain * decay) * weights + gain * self.aside @ factor[0, 1:]
        self.mean[:: self.k] = weights
        self.first = False
