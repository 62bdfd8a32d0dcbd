r"""Small algebra shared by parts and engine: scalars, and variances at rest."""

from __future__ import annotations

import torch
from torch import Tensor

from filteropt.dtypes import squarable
from filteropt.leading import leading
from filteropt.types import Packed, Scalar, Transition

__all__ = [
    "condition_root",
    "condition_seen",
    "factor_noise",
    "lost_variance",
    "overshoots",
    "predict_root",
    "predict_variance",
    "scalar",
    "stationary_covariance",
    "stationary_flow",
    "stationary_variance",
]


def scalar(x: Scalar, device: torch.device | None = None) -> Tensor:
    """``x`` as a 0-d float64 tensor: hyperparameter arithmetic is done in double precision."""
    if device is None or device.type == "cpu" or getattr(x, "device", None) == device:
        return torch.as_tensor(x, dtype=torch.float64, device=getattr(x, "device", "cpu"))
    return torch.full((), float(x), dtype=torch.float64, device=device)  # which can be captured


def predict_variance(variance: Tensor, transition: Transition) -> Tensor:
    r"""The prior variance of the next step, :math:`1/(1/(cF^2\Sigma + Q) + R)` for one latent.

    It stays positive, and growing dynamics without evidence are stopped where squares would
    overflow.

    Args:
        variance: Σ⁺, any shape, squared weight units.
        transition: the dynamics.

    Returns:
        Σ⁻, shaped like ``variance``.
    """
    ((factor,),), (noise,) = transition.F, transition.Q
    aged: Tensor = (transition.c * factor * factor) * variance
    aged = aged + noise if isinstance(noise, Tensor) else aged.add_(noise)
    if transition.pull is not None:
        aged = aged / (1 + transition.pull * aged)
    return aged.clamp(torch.finfo(aged.dtype).tiny, squarable(aged.dtype))


def lost_variance(transition: Transition) -> Scalar:
    """1 − cF², the fraction of a weight's variance lost per step, as exactly as it is known."""
    if transition.lost is not None:
        return transition.lost
    return 1 - transition.c * transition.F[0][0] ** 2


def overshoots(transition: Transition) -> str | None:
    """Why dynamics whose variance oscillates and grows fit no recursion; ``None`` for others."""
    factor = float(transition.F[0][0])
    if factor > -1:
        return None
    why = f"its transition factor F = {factor:.3g} is not above -1, so that the variance would"
    return f"{why} grow without bound; take a smaller lr or an exact discretization"


def predict_root(root: Tensor, transition: Transition) -> Tensor:
    r"""A square root of the prior covariance :math:`((c\,F LL^\top F^\top + Q)^{-1} + R)^{-1}`.

    F and Q act on every weight's latents. Noise is added by a QR factorisation of
    :math:`(\sqrt c F L,\ Q^{1/2})^\top`, so that the covariance is never formed and stays positive
    by form. Where dynamics let the variance of a weight without evidence grow without bound, it is
    stopped, for that weight alone, where fourth powers would overflow. Along directions that are no
    weight's own, rounding stops it earlier.

    Derived in :eq:`eq-square-root-predict`.

    Args:
        root: L with :math:`\Sigma = LL^\top`, ``(kn, kn)``, each weight's k latents side by side.
        transition: the dynamics.

    Returns:
        A square root of Σ⁻, ``(kn, kn)``; ``root`` itself, bit for bit, for static dynamics.
    """
    k, n = len(transition.F), len(root) // len(transition.F)
    grows = k == 1 and transition.c * transition.F[0][0] ** 2 > 1 and transition.pull is None
    if k > 1 or transition.c != 1 or transition.F[0][0] != 1:
        factor = root.new_tensor([[float(f) for f in row] for row in transition.F])
        root = _each_weight(factor * transition.c**0.5, root)
    if grows and n:
        spread = torch.linalg.vector_norm(root, dim=1, keepdim=True)
        root = root * (squarable(root.dtype) ** 0.5 / spread).clamp_max(1)
    if any(q > 0 for q in transition.Q):
        noise = _each_weight(_noise_root(transition.Q, k).to(root), root.new_ones(n * k).diag())
        root = torch.linalg.qr(torch.cat([root.mT, noise.mT]), mode="r").R.mT
    if transition.pull is not None and transition.pull > 0:
        root = condition_seen(root, root[::k] * transition.pull**0.5)
    return root


def _each_weight(factor: Tensor, root: Tensor) -> Tensor:
    """A k×k factor times each weight's k rows of a ``(kn, ·)`` matrix."""
    k = len(factor)
    if k == 1:
        return root * factor[0, 0]
    return (factor @ root.reshape(-1, k, root.shape[1])).flatten(0, 1)


def _noise_root(noise: Packed, k: int) -> Tensor:
    """G diag(q)^½, ``(k, k)``."""
    rows, q = factor_noise(noise, k)
    root = torch.eye(k, dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            root[i, j] = entry
    return root * torch.tensor([max(float(x), 0.0) ** 0.5 for x in q], dtype=torch.float64)


def factor_noise(noise: Packed, k: int) -> tuple[list[list[Scalar]], list[Scalar]]:
    """G's rows below the diagonal, and q, with Q = G diag(q) Gᵀ: a scalar program."""
    upper = iter(noise)
    full = {(i, j): next(upper) for i in range(k) for j in range(i, k)}
    rows: list[list[Scalar]] = [[] for _ in range(k)]
    q: list[Scalar] = []
    for j in range(k):
        left = full[j, j] - sum(rows[j][m] ** 2 * q[m] for m in range(j))
        q.append(left.clamp_min(0) if isinstance(left, Tensor) else max(left, 0.0))
        for i in range(j + 1, k):
            covered = sum(rows[i][m] * rows[j][m] * q[m] for m in range(j))
            rows[i].append(_ratio(full[j, i] - covered, q[j]))
    return rows, q


def _ratio(x: Scalar, y: Scalar) -> Scalar:
    """The ratio of x to y, 0 where y is 0."""
    if isinstance(y, Tensor):
        return torch.where(y > 0, x / torch.where(y > 0, y, 1.0), 0.0)
    return x / y if y > 0 else 0.0


def condition_root(root: Tensor, rows: Tensor) -> Tensor:
    r"""A square root of the posterior covariance :math:`((LL^\top)^{-1} + J^\top J)^{-1}`.

    In coordinates turned so that r < n rows see the first r of them alone,
    :math:`JLU = (T^\top, 0)`, those columns of :math:`LU` become :math:`(LU)_r S^{-1}` with
    :math:`S^\top S = I + TT^\top`, and the others stay: Woodbury's identity without a difference,
    for O(n²r). At least n rows take :math:`LS^{-1}` with :math:`S^\top S = I + (JL)^\top JL`. No
    covariance is formed, no row squared and nothing subtracted: positive by form.

    Derived in :eq:`eq-square-root-update`.

    Args:
        root: L with :math:`\Sigma^- = LL^\top`, ``(n, n)``, in weight units.
        rows: J, ``(r, n)``, in inverse weight units.

    Returns:
        A square root of Σ⁺, ``(n, n)``.

    Example:
        >>> L = torch.eye(2, dtype=torch.float64)
        >>> half = condition_root(L, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        >>> half @ half.T    # the first weight is seen with precision 1
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    return condition_seen(root, rows @ root)


def condition_seen(root: Tensor, seen: Tensor) -> Tensor:
    """The same as :func:`condition_root`, where ``seen`` is already JL, ``(r, n)``."""
    r, n = seen.shape
    if r >= n:
        return _whiten(root, seen)
    reflectors, scales = torch.geqrf(seen.mT)
    turned = _reflected(reflectors, scales, root)
    narrowed = _whiten(turned[:, :r], reflectors[:r].triu().mT)
    return torch.cat([narrowed, turned[:, r:]], dim=1)


@leading
def _reflected(reflectors: Tensor, scales: Tensor, root: Tensor) -> Tensor:
    """A root times the rotation that these reflections make."""
    return torch.ormqr(reflectors, scales, root, left=False)


def _whiten(columns: Tensor, seen: Tensor) -> Tensor:
    """``columns`` times S⁻¹, where SᵀS = I + AᵀA for A what is ``seen`` of them."""
    eye = torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
    factor = torch.linalg.qr(torch.cat([eye, seen]), mode="r").R
    whitened: Tensor = torch.linalg.solve_triangular(factor, columns, upper=True, left=False)
    return whitened


def stationary_variance(h: Tensor, a: Scalar, q: Scalar, lost: Scalar | None = None) -> Tensor:
    r"""The posterior variance at which predict and condition balance exactly.

    Solves :math:`1/\Sigma = 1/(a\Sigma + q) + h`. With :math:`b = 1 - a + hq` and
    :math:`r = \sqrt{b^2 + 4haq}`,

    .. math:: \Sigma = \frac{2q}{b + r} \quad (b \ge 0), \qquad
        \Sigma = \frac{r - b}{2ha} \quad (b < 0),

    two forms of one root, each where it does not cancel. At h = 0 it is :math:`q/(1-a)`, and
    infinite where nothing bounds the variance (a ≥ 1). The root is taken as a hypotenuse, so that
    no square overflows.

    Derived in :eq:`eq-fixed-point-exact` and :eq:`eq-fixed-point-growing`.

    Args:
        h: precision observed per step, any shape, inverse squared weight units, ≥ 0.
        a: factor on the carried variance, ≥ 0.
        q: process noise variance per step, squared weight units, ≥ 0, and > 0 unless a > 1.
        lost: 1 - a, where it is known better than by subtraction.

    Returns:
        The stationary posterior variance, shaped like ``h``.

    Example:
        >>> h = torch.tensor([0.0, 1e4], dtype=torch.float64)
        >>> v = stationary_variance(h, a=0.99, q=1e-6)
        >>> bool(torch.allclose(1 / v, 1 / (0.99 * v + 1e-6) + h))
        True
        >>> stationary_variance(h[1:], a=1 / 0.99, q=0.0)    # fading memory: 0.01 / h
        tensor([1.0000e-06], dtype=torch.float64)
    """
    b = (1 - a if lost is None else lost) + h * q
    r = b.abs() + torch.hypot(b, h.sqrt() * (2 * (a * q) ** 0.5))
    return torch.where(b < 0, r / (2 * a * h), 2 * q / r)


def stationary_flow(h: Tensor, rate: Scalar, noise: Scalar | None) -> Tensor:
    r"""The variance at which the Kalman–Bucy filter rests; to first order in the step, P Eq. 20.

    Solves :math:`0 = q - \rho\Sigma - h\Sigma^2`. For fixed noise (:math:`\rho = \eta^2/\sigma^2`,
    :math:`q = \eta^2`) this is :math:`1/\Sigma = 1/(2\sigma^2) + \sqrt{1/(4\sigma^4) + h/\eta^2}`,
    here as :math:`\sqrt q/(u + \sqrt{u^2 + h})` with :math:`u = \rho/(2\sqrt q)`, where nothing
    overflows unless h or u² does. Where the variance only grows by itself (:math:`\rho < 0`, and no
    noise) it is :math:`-\rho/h`.

    Derived in :eq:`eq-kalman-bucy`.

    Args:
        h: precision observed per step, any shape, inverse squared weight units, ≥ 0.
        rate: :math:`\rho`, fraction of variance forgotten per step.
        noise: :math:`q`, process noise variance per step, squared weight units, > 0; ``None``
            for no noise, which needs ρ < 0.

    Returns:
        The stationary variance, shaped like ``h``; infinite where h is 0 and ρ is not above 0.

    Example:
        >>> h = torch.tensor([0.0, 4.0], dtype=torch.float64)
        >>> stationary_flow(h, rate=0.0, noise=0.01)    # no prior: Adam's lr / sqrt(h)
        tensor([   inf, 0.0500], dtype=torch.float64)
        >>> stationary_flow(h, rate=-0.01, noise=None)    # fading memory: 0.01 / h
        tensor([   inf, 0.0025], dtype=torch.float64)
    """
    if noise is None:
        growing: Tensor = -rate / h
        return growing
    root = noise**0.5
    u = rate / (2 * root)
    return root / (u * u + h).sqrt_().add_(u)


def stationary_covariance(
    precision: Tensor, a: Scalar, q: Scalar, lost: Scalar | None = None
) -> Tensor:
    r"""The posterior covariance at which predict and condition balance exactly.

    Solves :math:`\Sigma^{-1} = (a\Sigma + qI)^{-1} + H`. Isotropic dynamics leave the eigenvectors
    of H alone, so that :func:`stationary_variance` holds along each of them.

    Derived in :eq:`eq-fixed-point-matrix`.

    Args:
        precision: H, the precision observed per step, ``(..., n, n)``, symmetric positive
            semi-definite.
        a: factor on the carried covariance, ≥ 0.
        q: process noise variance per step, squared weight units, ≥ 0, and > 0 unless a > 1.
        lost: 1 - a, where it is known better than by subtraction.

    Returns:
        The stationary posterior covariance, shaped like ``precision``.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> S = stationary_covariance(H, a=1.0, q=1e-4)    # nearly 0.01 H^(-1/2)
        >>> bool(torch.allclose(S @ S, 1e-4 * torch.linalg.inv(H), rtol=0.05))
        True
    """
    h, vectors = torch.linalg.eigh(precision)
    variances = stationary_variance(h.clamp_min(0), a, q, lost)
    covariance: Tensor = (vectors * variances.unsqueeze(-2)) @ vectors.mT
    return covariance
