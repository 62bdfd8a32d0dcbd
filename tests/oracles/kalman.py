"""A dense Kalman filter in the textbook's form (NumPy), observing the state with noise."""

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
