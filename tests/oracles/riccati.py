"""The Riccati equation of two latents: scipy's solution, polished by doubled steps (NumPy)."""

from __future__ import annotations

import numpy as np
import scipy.linalg

WIDE = np.longdouble
"""Extended precision where the platform has it."""


def momentum_model(lr, lr_w, decay, sigma2):
    """F and the diagonal of Q of Aitchison (2018), Eq. 15 to 17, in extended precision."""
    lr, lr_w, decay = WIDE(lr), WIDE(lr_w), WIDE(decay)
    pull = (lr**2 + lr_w**2) / (2 * WIDE(sigma2))
    return np.array([[1 - pull, lr], [0.0, 1 - decay]]), np.array([lr_w**2, decay**2])


def scipys_prior(factor, noise, h):
    """The stationary covariance before conditioning, by scipy; NaN where it gives up."""
    factor, noise = factor.astype(float), np.diag(noise.astype(float))
    try:
        return scipy.linalg.solve_discrete_are(
            factor.T, np.array([[1.0], [0.0]]), noise, np.array([[1 / h]])
        )
    except np.linalg.LinAlgError:
        return np.full((2, 2), np.nan)


def _inverse(m):
    a, b, c, d = m[..., 0, 0], m[..., 0, 1], m[..., 1, 0], m[..., 1, 1]
    rows = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2)
    return rows / (a * d - b * c)[..., None, None]


def iterate(prior, factor, noise, h, doublings):
    """2**doublings steps of P <- F (P^-1 + h e0 e0')^-1 F' + Q from `prior`, many at a time.

    The step is P <- H + E P (1 + G P)^-1 E', and so is any number of steps: doubling composes it.
    """
    one = np.eye(2, dtype=WIDE)
    e = np.asarray(factor, dtype=WIDE)
    g, q = np.zeros_like(e), np.zeros_like(e)
    g[..., 0, 0] = h
    q[..., 0, 0], q[..., 1, 1] = noise[..., 0], noise[..., 1]

    def turned(x):
        return np.swapaxes(x, -1, -2)

    for _ in range(doublings):
        middle = _inverse(one + q @ g)
        e, g, q = (
            e @ middle @ e,
            g + turned(e) @ g @ middle @ e,
            q + e @ middle @ q @ turned(e),
        )
        g, q = (g + turned(g)) / 2, (q + turned(q)) / 2
    prior = np.asarray(prior, dtype=WIDE)
    return q + e @ prior @ _inverse(one + g @ prior) @ turned(e)


def conditioned(prior, h):
    """(P^-1 + h e0 e0')^-1, for a weight whose variance may all but vanish."""
    s, b, c = prior[..., 0, 0], prior[..., 0, 1], prior[..., 1, 1]
    rest = 1 + h * s
    rows = [[s / rest, b / rest], [b / rest, c - b * b * h / rest]]
    return np.stack([np.stack(row, -1) for row in rows], -2)
