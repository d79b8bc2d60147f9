"""Bucket counts to bucket weights: the allocation rule of EXACT.

Source: EXACT (arXiv 2605.10544). With tail ``T`` = buckets whose lower bound is at least the threshold and ``c_b`` the
supervised targets of bucket ``b``::

    q_b    = c_b / sum_T c                      share of the tail
    r_b    = (q_b + eps) ** -gamma              inverse frequency
    r_mean = sum_T q_b r_b
    w_b    = 1 + alpha r_b / r_mean  in T,  1 elsewhere

so that ``sum_T q_b (w_b - 1) = alpha`` exactly (equation 5): the extra mass of the tail is fixed, and only its division
among the tail's buckets follows the counts.
"""

from typing import Literal, get_args

import torch

from exact_titan.exposure.context import Buckets

Rule = Literal["standard", "exact"]
"""How targets are weighted: ``standard``, all 1; ``exact``, as above. The paper's other rules (Table 3) belong here."""

ALPHA = 0.15
GAMMA = 0.5
EPS = 1e-6
# In training: a bucket that was never counted would get the largest weight of all from eps alone.
MIN_COUNT = 1


def default_threshold(window: int) -> int:
    """Where the tail begins unless an option says so: a quarter of the window, as in the paper's stages (1K in 4K, …).

    In windows too short for that, the last bucket's lower bound, so that the tail is never empty.
    """
    return min(window // 4, int(Buckets(window).lower_bounds[-1]))


def check_allocation(*, alpha: float, gamma: float, eps: float, threshold: int, min_count: int = 0) -> None:
    """Raise ``ValueError``, naming the option, for values that the rule is not defined for."""
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}: the tail's extra weight must be 0 or more")
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma}: the exponent must be 0 or more")
    if not eps > 0:
        raise ValueError(f"eps is {eps}: it keeps an empty bucket's weight finite and must be more than 0")
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
    min_count: int = 0,
) -> torch.Tensor:
    """Weight of a target in each bucket under ``exact``.

    A tail bucket counted fewer than ``min_count`` times keeps the tail's mean weight ``1 + alpha``, and the other tail
    buckets meet equation 5 among themselves. A tail without any count keeps ``1 + alpha`` throughout.

    Args:
        counts: supervised targets per bucket, integer ``[n]``.
        lower_bounds: lower bound of each bucket, int64 ``[n]`` (:attr:`Buckets.lower_bounds`).
        threshold: first context length of the tail (the paper's tau), in tokens.
        alpha: mean extra weight of the tail's targets.
        gamma: exponent of the inverse frequency; 0 weights the whole tail alike.
        eps: added to each share before it is inverted.
        min_count: fewest targets for a bucket to get a weight of its own.

    Returns:
        float32 ``[n]`` on the device of ``counts``, computed in float64 there without waiting for the device.

    Raises:
        ValueError: for a negative ``alpha``, ``gamma``, ``threshold`` or ``min_count``, an ``eps`` that is not
            positive, or counts and bounds of different lengths.
    """
    check_allocation(alpha=alpha, gamma=gamma, eps=eps, threshold=threshold, min_count=min_count)
    if counts.shape != lower_bounds.shape or counts.ndim != 1:
        raise ValueError(
            f"counts {tuple(counts.shape)} and lower_bounds {tuple(lower_bounds.shape)} must be one [n] each"
        )
    tail_n = lower_bounds.to(counts.device) >= threshold
    counted_n = tail_n & (counts >= min_count)
    count_n = torch.where(counted_n, counts, 0).to(torch.float64)
    share_n = count_n / count_n.sum().clamp(min=1)
    inverse_n = (share_n + eps) ** -gamma
    mean = (share_n * inverse_n).sum()
    # The mean is 0 only when nothing in the tail was counted.
    relative_n = torch.where(counted_n & (mean > 0), inverse_n / torch.where(mean > 0, mean, 1.0), 1.0)
    return torch.where(tail_n, 1 + alpha * relative_n, 1.0).to(torch.float32)


def rule_weights(rule: Rule, counts: torch.Tensor, lower_bounds: torch.Tensor, **options: float | int) -> torch.Tensor:
    """Bucket weights float32 ``[n]`` under ``rule``; arguments as for :func:`bucket_weights`.

    Raises:
        ValueError: for an unknown rule, or as :func:`bucket_weights` does.
    """
    if rule == "standard":
        return torch.ones_like(counts, dtype=torch.float32)
    if rule == "exact":
        return bucket_weights(counts, lower_bounds, **options)  # type: ignore[arg-type]
    raise ValueError(f"rule is {rule!r}: choose one of {', '.join(get_args(Rule))}")


def tail_mass(counts: torch.Tensor, weights: torch.Tensor, lower_bounds: torch.Tensor, *, threshold: int) -> float:
    """Share of the loss mass ``sum c_b w_b`` that lies in the tail, between 0 and 1 (0 without any count)."""
    mass = counts.to(torch.float64) * weights.to(torch.float64)
    total = mass.sum().item()
    return mass[lower_bounds.to(mass.device) >= threshold].sum().item() / total if total else 0.0
