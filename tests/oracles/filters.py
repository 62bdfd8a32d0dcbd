"""Textbook filters in NumPy, written from the published equations and from nothing else.

Gradients are those of the summed loss, to be descended.
"""

from __future__ import annotations

import numpy as np


class BlogRMSprop:
    """The blog post's Bayesian RMSprop: averaged squares and a random walk."""

    def __init__(self, w, eta, beta2):
        self.w = np.array(w, dtype=float)
        self.eta, self.beta2 = eta, beta2
        self.s = np.zeros_like(self.w)
        self.predicted = np.full_like(self.w, eta**2)

    def step(self, g):
        """Average g^2, add it to the precision, drift, and descend by the predicted variance."""
        self.s = self.beta2 * self.s + (1 - self.beta2) * g**2
        self.predicted = 1 / (self.s + 1 / self.predicted) + self.eta**2
        self.w = self.w - self.predicted * g


class FadingNaturalGradient:
    """Natural gradient with fading memory: a precision that forgets, and steps by its inverse."""

    def __init__(self, w, forgetting, initial_variance):
        self.w = np.array(w, dtype=float)
        self.forgetting = forgetting
        self.precision = np.full_like(self.w, 1 / initial_variance)
        self.started = False

    def step(self, g):
        """J <- (1 - lambda) J + g^2 (no forgetting before the first gradient); w <- w - g/J."""
        if self.started:
            self.precision = (1 - self.forgetting) * self.precision
        self.started = True
        self.precision = self.precision + g**2
        self.w = self.w - g / self.precision


class ExtendedKalman:
    """The extended Kalman filter of z' = F z + N(0, Q), y = f(z) + N(0, r I), in Joseph's form."""

    def __init__(self, mean, cov):
        self.mean, self.cov = np.array(mean, dtype=float), np.array(cov, dtype=float)

    def predict(self, factor, noise):
        """Age by one step; ``factor`` and ``noise`` are numbers, the dynamics being isotropic."""
        self.mean = factor * self.mean
        self.cov = factor**2 * self.cov + noise * np.eye(len(self.mean))

    def update(self, predicted, jacobian, y, r):
        """Condition on the stacked outputs y; return the innovation's squared Mahalanobis norm."""
        innovation = y - predicted
        spread = jacobian @ self.cov @ jacobian.T + r * np.eye(len(y))
        gain = self.cov @ jacobian.T @ np.linalg.inv(spread)
        self.mean = self.mean + gain @ innovation
        kept = np.eye(len(self.mean)) - gain @ jacobian
        self.cov = kept @ self.cov @ kept.T + r * gain @ gain.T
        return innovation @ np.linalg.solve(spread, innovation)


class SoftmaxKalman:
    """Natural gradient of softmax regression, logits = X W' with W (classes, inputs), all dense."""

    def __init__(self, weights, cov):
        self.mean, self.cov = np.array(weights, dtype=float), np.array(cov, dtype=float)

    def predict(self, noise):
        """A random walk's step."""
        self.cov = self.cov + noise * np.eye(len(self.cov))

    def update(self, inputs, labels):
        """P+ = (P^-1 + F)^-1 with the Fisher matrix F, and W <- W + P+ (sum of the scores)."""
        fisher, score = np.zeros_like(self.cov), np.zeros(len(self.cov))
        for x, label in zip(inputs, labels, strict=True):
            exps = np.exp(self.mean @ x - np.max(self.mean @ x))
            pi = exps / exps.sum()
            fisher += np.kron(np.diag(pi) - np.outer(pi, pi), np.outer(x, x))
            score += np.kron(np.eye(len(pi))[label] - pi, x)
        self.cov = np.linalg.inv(np.linalg.inv(self.cov) + fisher)
        self.mean = self.mean + (self.cov @ score).reshape(self.mean.shape)


def bayesian_regression(inputs, targets, noise_variance, mean, prior_variance):
    """Posterior mean and covariance of y = X w + N(0, r) for w ~ N(mean, prior_variance I)."""
    precision = np.eye(len(mean)) / prior_variance + inputs.T @ inputs / noise_variance
    cov = np.linalg.inv(precision)
    return cov @ (mean / prior_variance + inputs.T @ targets / noise_variance), cov
