"""SOAP (Vyas et al. 2024, Algorithm 3) in NumPy, line by line, in bases that are given to it.

Momentum is kept in the weights' own coordinates and rotated in every step; the second moment is
kept entry by entry, whatever the basis does.
"""

from __future__ import annotations

import numpy as np


class SOAP:
    """One matrix' optimizer without epsilon, with Adam's bias corrections and decoupled decay."""

    def __init__(self, weights, lr, beta1, beta2, decay=0.0):
        self.w = np.array(weights, dtype=float)
        self.lr, self.beta1, self.beta2, self.decay = lr, beta1, beta2, decay
        self.m, self.v, self.t = np.zeros_like(self.w), np.zeros_like(self.w), 0

    def step(self, grad, left, right):
        """One step with the gradient G and the bases Q_L, Q_R that it is seen in."""
        self.t += 1
        rotated = left.T @ grad @ right
        self.m = self.beta1 * self.m + (1 - self.beta1) * grad
        self.v = self.beta2 * self.v + (1 - self.beta2) * rotated**2
        m = left.T @ (self.m / (1 - self.beta1**self.t)) @ right
        normalized = m / np.sqrt(self.v / (1 - self.beta2**self.t))
        self.w = self.w - self.lr * self.decay * self.w
        self.w = self.w - self.lr * (left @ normalized @ right.T)
