"""Variational Newton methods in NumPy, written line by line from their papers.

Weights are one flat vector. A step is given the gradients of the mean loss at draws
``theta = mean + sigma() * eps``: one for every Monte Carlo sample, over which the estimates are
averaged. The symbols are the papers': N data, prior precision lam, lam_tilde = lam/N.
"""

from __future__ import annotations

import numpy as np


def average(values):
    """The mean over Monte Carlo samples."""
    return np.mean(np.stack(values), axis=0)


class Momentum:
    """m <- b m + (1 - b) g; returns m/(1 - b^t)."""

    def __init__(self, beta, debias=True):
        self.beta, self.debias, self.m, self.t = beta, debias, 0.0, 0

    def __call__(self, g):
        self.t += 1
        self.m = self.beta * self.m + (1 - self.beta) * g
        return self.m / (1 - self.beta**self.t) if self.debias else self.m


class VON:
    """Khan et al. (2018), Eq. 7-8, with Eq. 9 where it is given squares of single examples.

    ``beta1`` averages the gradient of the data alone; 0 is the paper's method. ``rate`` is the
    paper's beta_t for s; for the mean it may differ.
    """

    def __init__(self, mean, n, lam, s, rate, alpha, beta1=0.0):
        self.mean, self.n, self.lam = np.array(mean, dtype=float), n, lam
        self.s = np.full_like(self.mean, s)
        self.rate, self.alpha = rate, alpha
        self.momentum = Momentum(beta1)

    def sigma(self):
        """Draws are N(mu, 1/[N (s + lam_tilde)])."""
        return (self.n * (self.s + self.lam / self.n)) ** -0.5

    def step(self, thetas, gradients, squares=None):
        """Hessians by the reparameterisation trick, or sum_i g_i^2 / M of the examples."""
        lam_tilde = self.lam / self.n
        if squares is None:
            var = self.sigma() ** 2
            hessians = [
                g * (theta - self.mean) / var for theta, g in zip(thetas, gradients, strict=True)
            ]
        else:
            hessians = squares
        self.update(average(hessians))
        g = self.momentum(average(gradients))
        self.mean = self.mean - self.alpha * (g + lam_tilde * self.mean) / (self.s + lam_tilde)

    def update(self, hessian):
        """The law s <- (1 - beta) s + beta diag[H]."""
        self.s = (1 - self.rate) * self.s + self.rate * hessian


class RetractedVON(VON):
    """VON whose precision N s + lam moves along the geodesic of Lin et al. (2020),.

    P <- P + V + V^2/(2P), V the step that VON makes P take.
    """

    def update(self, hessian):
        """The retraction, in units of precision."""
        precision = self.n * self.s + self.lam
        velocity = self.n * self.rate * (hessian - self.s)
        precision = precision + velocity + velocity**2 / (2 * precision)
        self.s = (precision - self.lam) / self.n


class Vadam:
    """Khan et al. (2018), Fig. 1, right: Vadam, line by line."""

    def __init__(self, mean, n, lam, alpha, gamma1, gamma2):
        self.mean, self.n, self.lam = np.array(mean, dtype=float), n, lam
        self.alpha, self.gamma1, self.gamma2 = alpha, gamma1, gamma2
        self.m, self.s, self.t = np.zeros_like(self.mean), np.zeros_like(self.mean), 0

    def sigma(self):
        """Sigma <- 1/sqrt(N s + lam)."""
        return 1 / np.sqrt(self.n * self.s + self.lam)

    def step(self, thetas, gradients):
        """Lines 4 to 8."""
        self.t += 1
        g, squared = average(gradients), average([x * x for x in gradients])
        self.m = self.gamma1 * self.m + (1 - self.gamma1) * (g + self.lam * self.mean / self.n)
        self.s = self.gamma2 * self.s + (1 - self.gamma2) * squared
        m_hat = self.m / (1 - self.gamma1**self.t)
        s_hat = self.s / (1 - self.gamma2**self.t)
        self.mean = self.mean - self.alpha * m_hat / (np.sqrt(s_hat) + self.lam / self.n)


class IVON:
    """Shen et al. (2024), Algorithm 1; practical options as their Appendix describes.

    ``squared`` takes N g^2 for the Hessian estimate, ``clip`` bounds the preconditioned gradient,
    ``rescale`` multiplies alpha by h0 + delta.
    """

    def __init__(
        self, mean, alpha, ess, h0=1.0, beta1=0.9, beta2=0.99999, delta=1e-4,
        squared=False, clip=np.inf, debias=True, rescale=True,
    ):  # fmt: skip
        self.m, self.h = np.array(mean, dtype=float), np.full(np.shape(mean), float(h0))
        self.alpha = alpha * (h0 + delta) if rescale else alpha
        self.ess, self.beta2, self.delta = ess, beta2, delta
        self.squared, self.clip = squared, clip
        self.momentum = Momentum(beta1, debias)

    @property
    def mean(self):
        """The weights' mean, m there."""
        return self.m

    def sigma(self):
        """Line 1 and 9: 1/sqrt(ess (h + delta))."""
        return 1 / np.sqrt(self.ess * (self.h + self.delta))

    def step(self, thetas, gradients):
        """Lines 3 to 9 with several samples."""
        sigma2, h, rho = self.sigma() ** 2, self.h, 1 - self.beta2
        if self.squared:
            found = [self.ess * g**2 for g in gradients]
        else:
            found = [
                g * (theta - self.m) / sigma2 for theta, g in zip(thetas, gradients, strict=True)
            ]
        h_hat, g = average(found), self.momentum(average(gradients))
        self.h = self.beta2 * h + rho * h_hat + 0.5 * rho**2 * (h - h_hat) ** 2 / (h + self.delta)
        direction = (g + self.delta * self.m) / (self.h + self.delta)
        self.m = self.m - self.alpha * np.clip(direction, -self.clip, self.clip)
