"""Literal transcriptions of Aitchison (2020), Algorithms 1 and 2, for descent, in plain floats.

Also the order of the author's released code: predict the variance with the present learning rate,
condition, move, then decay the weights.
"""

from __future__ import annotations

import math


class Algorithm1:
    """AdaBayes for one weight; ``released`` uses the exact transition and decays last."""

    def __init__(self, mu, eta, sigma2, beta1, released=False):
        self.mu, self.m, self.t = mu, 0.0, 0
        self.beta1 = beta1
        self.released = released
        self.s2_post = None
        self.sigma2 = sigma2

    def step(self, g, eta, sigma2, lam):
        """One step with the summed loss' gradient g and this step's eta, sigma2 and lambda."""
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        mean_g = self.m / (1 - self.beta1**self.t)
        if self.s2_post is None:
            s2_prior = self.sigma2
        elif self.released:
            decay = math.exp(-(eta**2) / sigma2)
            s2_prior = decay * self.s2_post + sigma2 * (1 - decay)
        else:
            s2_prior = (1 - eta**2 / (2 * sigma2)) ** 2 * self.s2_post + eta**2
        self.s2_post = 1 / (1 / s2_prior + g**2)
        if self.released:
            self.mu = (1 - lam) * (self.mu - self.s2_post * mean_g)
        else:
            self.mu = (1 - lam) * self.mu - self.s2_post * mean_g
        return self.mu


class Algorithm2:
    """AdaBayes-FP for one weight."""

    def __init__(self, mu, beta1, beta2):
        self.mu, self.m, self.v, self.t = mu, 0.0, 0.0, 0
        self.beta1, self.beta2 = beta1, beta2

    def step(self, g, eta, sigma2, lam):
        """One step with the summed loss' gradient g and this step's eta, sigma2 and lambda."""
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        mean_g = self.m / (1 - self.beta1**self.t)
        mean_g2 = self.v / (1 - self.beta2**self.t)
        s2_post = 1 / (1 / (2 * sigma2) + math.sqrt(1 / (4 * sigma2**2) + mean_g2 / eta**2))
        self.mu = (1 - lam) * self.mu - s2_post * mean_g
        return self.mu
