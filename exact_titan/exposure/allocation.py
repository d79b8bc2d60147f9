"""The allocation rule of EXACT: the weight of every bucket from the counts of all buckets.

Source: EXACT (arXiv 2605.10544). The tail ``T`` is the set of buckets with a lower bound of at least the threshold.
``c_b`` is the number of supervised targets in bucket ``b``::

    q_b    = c_b / sum_T c                      share of the tail
    r_b    = (q_b + eps) ** -gamma              inverse frequency
    r_mean = sum_T q_b r_b
    w_b    = 1 + alpha r_b / r_mean  in T,  1 elsewhere

Hence ``sum_T q_b (w_b - 1) = alpha`` exactly (equation 5). The extra mass of the tail is fixed. The counts decide only
how the tail's buckets share the extra mass.
"""

import math

import torch

from exact_titan.exposure.context import Buckets

ALPHA = 0.15
GAMMA = 0.5
EPS = 1e-6
# Without a minimum, eps alone would give a bucket without counts the largest weight of all.
MIN_COUNT = 1


def default_threshold(window: int) -> int:
    """Return the default threshold of the tail: a quarter of the window, as in the paper's stages (1K in 4K, …).

    If no bucket begins at or after a quarter of the window, the threshold is the lower bound of the last bucket.
    The tail is therefore never empty.
    """
    return min(window // 4, int(Buckets(window).lower_bounds[-1]))


def check_allocation(*, alpha: float, gamma: float, eps: float, threshold: int, min_count: int = MIN_COUNT) -> None:
    """Raise a ``ValueError`` that names the option if the rule is not defined for a value."""
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: the tail's extra weight must be 0 or more and finite")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}: the exponent must be 0 or more and finite")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps is {eps}: eps keeps the weight of an empty bucket finite and must be more than 0")
    if threshold < 0:
        raise ValueError(f"threshold is {threshold}: a context length is 0 or more")
    if min_count < 0:
        raise ValueError(f"min_count is {min_count}: a count is 0 or more")


def bucket_weights(
    counts: torch.Tensor,
    lower_bounds: torch.Tensor,
    *,
    threshold: int,
    alpha: float = ALPHA,
    gamma: float = GAMMA,
    eps: float = EPS,
    min_count: int = MIN_COUNT,
) -> torch.Tensor:
    """Return the weight of a target in each bucket under ``exact``.

    A tail bucket with fewer than ``min_count`` targets keeps the tail's mean weight ``1 + alpha``. Equation 5 then
    holds over the other tail buckets. If the tail has no counts, all tail buckets keep ``1 + alpha``.

    Args:
        counts: supervised targets per bucket, integer or float64 ``[n]``.
        lower_bounds: lower bound of each bucket, int64 ``[n]`` (:attr:`Buckets.lower_bounds`).
        threshold: first context length of the tail (the paper's tau), in tokens.
        alpha: mean extra weight of the tail's targets.
        gamma: exponent of the inverse frequency. With 0 all tail buckets have the same weight.
        eps: number added to each share before the inversion.
        min_count: minimum number of targets in a bucket for a weight from the bucket's count.

    Returns:
        float32 ``[n]`` on the device of ``counts``. The device computes in float64. The host does not wait for the
        device.

    Raises:
        ValueError: if ``alpha``, ``gamma``, ``threshold`` or ``min_count`` is negative, ``eps`` is not positive, or
            counts and bounds have different lengths.
    """
    check_allocation(alpha=alpha, gamma=gamma, eps=eps, threshold=threshold, min_count=min_count)
    if counts.shape != lower_bounds.shape or counts.ndim != 1:
        raise ValueError(
            f"counts {tuple(counts.shape)} and lower_bounds {tuple(lower_bounds.shape)} must have the same shape [n]"
        )
    tail_n = lower_bounds.to(counts.device) >= threshold
    counted_n = tail_n & (counts >= min_count)
    count_n = torch.where(counted_n, counts, 0).to(torch.float64)
    share_n = count_n / count_n.sum().clamp(min=1)
    inverse_n = (share_n + eps) ** -gamma
    # Without counts the share is 0, and a large gamma gives 0 times infinity.
    mean = torch.where(counted_n, share_n * inverse_n, 0.0).sum()
    # The mean is 0 only if the tail has no counts.
    relative_n = torch.where(counted_n & (mean > 0), inverse_n / torch.where(mean > 0, mean, 1.0), 1.0)
    return torch.where(tail_n, 1 + alpha * relative_n, 1.0).to(torch.float32)


def tail_mass(counts: torch.Tensor, weights: torch.Tensor, lower_bounds: torch.Tensor, *, threshold: int) -> float:
    """Return the tail's share of the loss mass ``sum c_b w_b``, between 0 and 1. Without counts the share is 0."""
    mass = counts.to(torch.float64) * weights.to(torch.float64)
    total = mass.sum().item()
    return mass[lower_bounds.to(mass.device) >= threshold].sum().item() / total if total else 0.0
