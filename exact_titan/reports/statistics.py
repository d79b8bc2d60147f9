"""Standard errors of mean cross-entropies, and of their differences between runs.

Targets of one document depend on each other. Documents are therefore the unit of all errors of one checkpoint. Errors
over pairs of runs are a different quantity: they contain the noise of training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of means.

    Attributes:
        value: the estimate in nats. NaN without targets.
        error: standard error, or half the width of an interval. None if a single document or pair gives no error.
    """

    value: float
    error: float | None


def mean_over_documents(values_T: np.ndarray, document_T: np.ndarray) -> Estimate:
    """Return the mean over targets, with its standard error over documents.

    The mean is a ratio of two sums over documents, ``theta = sum_d S_d / sum_d n_d``: ``S_d`` is the sum of the values
    of document d, and ``n_d`` is the number of its targets. The error is the linearisation of this ratio (Cochran,
    Sampling Techniques, 3rd edition, 1977, equation 6.13, for clusters of unequal size section 9A.2, without the
    correction for a finite population)::

        error^2 = D / (D - 1) * sum_d (S_d - theta n_d)^2 / (sum_d n_d)^2

    For the difference of two runs, ``values_T`` are the differences of the targets. The error is then the paired error.

    Args:
        values_T: value of each target, float ``[T]``.
        document_T: document of each target, integer ``[T]``.
    """
    if not len(values_T):
        return Estimate(math.nan, None)
    _, index_T = np.unique(document_T, return_inverse=True)
    sum_D = np.bincount(index_T, weights=values_T.astype(np.float64))
    count_D = np.bincount(index_T)
    total, documents = count_D.sum(), len(count_D)
    mean = sum_D.sum() / total
    if documents < 2:
        return Estimate(float(mean), None)
    residual_D = sum_D - mean * count_D
    variance = documents / (documents - 1) * (residual_D**2).sum() / total**2
    return Estimate(float(mean), float(np.sqrt(variance)))


def mean_over_pairs(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of one value a pair, with half the width of Student's t interval for the mean.

    Args:
        values: one value a pair of runs.
        confidence: probability that the interval covers the mean, for normally distributed values.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Estimate(mean, None)
    from scipy.special import stdtrit

    quantile = stdtrit(n - 1, (1 + confidence) / 2)
    return Estimate(mean, float(quantile * np.std(values, ddof=1) / math.sqrt(n)))
