"""How good an energy model is, thin over the libraries that do the counting.

Density measures (KL and TV on a grid) and sampler measures (modes, MMD, precision and recall of
chains) rank methods differently: report one of each. Print the floor, the same measure between two
halves of real data, beside any distance.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastebm.app.data import need
from fastebm.energies.protocol import energy
from fastebm.energies.sampling_mode import sampling_mode


def grid(box: tuple[float, float], n: int = 200) -> tuple[Tensor, float]:
    """Cell centres of a 2-D box, (n*n, 2) with x varying slowest, and the area of a cell."""
    lo, hi = box
    side = lo + (hi - lo) * (torch.arange(n) + 0.5) / n
    return torch.cartesian_prod(side, side), ((hi - lo) / n) ** 2


@torch.no_grad()
def total_energy(model, x: Tensor) -> Tensor:
    """Energies (B,) float64 of the model in eval mode, scales summed, as chains see them."""
    with sampling_mode(model):
        e = energy(model, x).double()
    return e.sum(1) if e.dim() == 2 else e


def grid_log_density(model, box: tuple[float, float], n: int = 200, device="cpu") -> Tensor:
    """log p of p ~ exp(-E) normalised on the grid, (n*n,) float64; NaN where E is not finite."""
    points, area = grid(box, n)
    e = torch.cat([total_energy(model, part.to(device)).cpu() for part in points.split(10_000)])
    return -e - torch.logsumexp(-e, 0) - math.log(area)


def grid_divergences(log_q: Tensor, log_p: Tensor, area: float) -> dict[str, float]:
    """KL(p || q) and total variation of two log densities on the same grid cells.

    Args:
        log_q: model, (n*n,). log_p: data, (n*n,); both are normalised here over the grid.
        area: of a cell.

    Returns:
        {"kl": nats, "tv": in [0, 1]}; infinite and 1 when the model is not finite everywhere.
    """
    if not log_q.isfinite().all():
        return {"kl": math.inf, "tv": 1.0}
    log_cell = math.log(area)
    p, q = ((t - torch.logsumexp(t + log_cell, 0) + log_cell).double() for t in (log_p, log_q))
    # a cell where p underflows carries nothing, whatever q says there
    kl = torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum()
    return {"kl": kl.item(), "tv": 0.5 * (p.exp() - q.exp()).abs().sum().item()}


def modes_found(
    x: Tensor, centres: Tensor, std: float, share: float = 0.25, n_std: float = 3.0
) -> tuple[int, float]:
    """Number of modes found and share of samples on a mode.

    A sample is on a mode within `n_std` standard deviations of its centre; a mode is found when it
    holds at least `share` of its fair part len(x) / len(centres) of the samples.
    """
    distance, nearest = torch.cdist(x.double(), centres.double()).min(1)
    on_mode = distance <= n_std * std
    held = torch.bincount(nearest[on_mode], minlength=len(centres))
    return int((held >= share * len(x) / len(centres)).sum()), on_mode.double().mean().item()


def mmd2(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Unbiased MMD^2 with the kernel exp(-|a - b|^2 / (2 bandwidth^2)); negative values are noise.

    Args:
        x: model samples, (n, *event). y: real samples, (m, *event).
        bandwidth: None: the median distance between real samples, the same for every model.
    """
    rbf_kernel = need("sklearn.metrics.pairwise").rbf_kernel
    a, b = x.flatten(1).double(), y.flatten(1).double()
    if not a.isfinite().all():
        return math.inf
    if bandwidth is None:
        bandwidth = torch.pdist(b[:2000]).median().item()
    gamma = 1 / (2 * bandwidth**2)
    n, m = len(a), len(b)
    within_a = (rbf_kernel(a, a, gamma).sum() - n) / (n * (n - 1))
    within_b = (rbf_kernel(b, b, gamma).sum() - m) / (m * (m - 1))
    return float(within_a + within_b - 2 * rbf_kernel(a, b, gamma).mean())


def precision_recall(real, fake, nearest_k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage of samples, (n, *event) tensors or (n, F) arrays of
    features, by prdc (O(n^2) memory: <= 5 000)."""
    compute = need("prdc").compute_prdc
    real, fake = (np.asarray(v).reshape(len(v), -1) for v in (real, fake))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of samples
        out = compute(real, fake, nearest_k)
    return {name: float(value) for name, value in out.items()}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` of features (n, F) and (m, F).

    In float64, from the eigenvalues of a symmetric form of the product, so that it stays real where
    features are constant. Biased upwards for few samples: compare only at the same n and m.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if not np.isfinite(a).all():
        return math.inf
    cov_a, cov_b = (np.atleast_2d(np.cov(v, rowvar=False)) for v in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2 of features with KID's kernel ``(a.b / F + 1)^3``; about 0 for two sets of one
    law, and negative by chance.

    Source: Binkowski et al., Demystifying MMD GANs, 2018.
    """
    kernel = need("sklearn.metrics.pairwise").polynomial_kernel
    a, b = np.asarray(a, float), np.asarray(b, float)
    if not np.isfinite(a).all():
        return math.inf
    within = []
    for v in (a, b):
        k = kernel(v, degree=3, coef0=1)
        within.append((k.sum() - np.trace(k)) / (len(v) * (len(v) - 1)))
    return float(sum(within) - 2 * kernel(a, b, degree=3, coef0=1).mean())


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, n_projections: int = 200, seed: int = 0
) -> float:
    """Mean over random directions of the 1-Wasserstein distance of the projections."""
    wasserstein = need("scipy.stats").wasserstein_distance
    a, b = np.asarray(a, float), np.asarray(b, float)
    if not np.isfinite(a).all():
        return math.inf
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    pairs = zip((a @ directions).T, (b @ directions).T, strict=True)
    return float(np.mean([wasserstein(u, v) for u, v in pairs]))


def class_entropy(classes: np.ndarray, n_classes: int) -> float:
    """Entropy in nats of how often each class occurs; log(n_classes) when all do equally."""
    return float(need("scipy.stats").entropy(np.bincount(classes, minlength=n_classes)))


def floor(measure: Callable, real: Tensor, seed: int = 0):
    """`measure(half, other half)` of real samples: what a perfect model would score."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    half = len(real) // 2
    return measure(real[order[:half]], real[order[half:]])
