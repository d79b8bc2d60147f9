"""Do these two checkpoints differ? Statistics over the documents of a validation.

The unit is a document, because the targets of a document depend on each other. All numbers are conditional on the two
checkpoints: the errors do not contain the noise of training, and say nothing about another seed.

- :func:`mean_over_documents`: the mean over targets and its standard error, for one number of one or two runs.
- :func:`macro_difference`: the macro average over cells and its 95 % interval, for the report of a study.

:mod:`exact_titan.study.statistics` answers another question: is the rule better?
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from exact_titan.study.statistics import LEVEL, Estimate

DRAWS = 1000
"""Resamples of the bootstrap over documents."""

_BLOCK = 4_000_000
"""Numbers of a block of resamples in memory, at most, if a resample is smaller."""


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
    sum_DC, count_DC = _sums(values_T, document_T, np.zeros(len(values_T), dtype=np.int64))
    mean, error = _linearised(sum_DC, count_DC)
    return Estimate(float(mean), float(error) if len(sum_DC) > 1 else None)


@dataclass(frozen=True)
class MacroDifference:
    """Answer to "do these two checkpoints differ?", conditional on the two runs.

    Attributes:
        value: macro average of the differences, in nats: every cell has the same weight. NaN without targets.
        error: half the width of the 95 % interval over documents. None with one document, or if a cell has so few
            documents that more than 5 % of the resamples miss the cell.
        documents: number of documents.
        cells: number of cells.
    """

    value: float
    error: float | None
    documents: int
    cells: int


def macro_difference(values_T: np.ndarray, document_T: np.ndarray, cell_T: np.ndarray) -> MacroDifference:
    """Return the macro average over the cells of the mean difference in a cell, with a bootstrap over documents.

    A resample draws documents. A document brings its targets of all cells along, because the targets of a document
    depend on each other across cells. A mean is a ratio of sums over documents, because documents have unequal lengths.

    The interval is the symmetric bootstrap-t interval (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 3.5).
    The error of an estimate is that of :func:`mean_over_documents`, for the macro average. Simulated documents of
    lognormal length (sigma 1.2) in windows of 512 tokens, with effects of the document, give the coverage of nominal
    95 % intervals:

    ========== ============ ========== ====
    documents  this         percentile BCa
    ========== ============ ========== ====
    60         96 %         92 %       90 %
    100        96 %         93 %       91 %
    200        95 %         93 %       91 %
    400        95 %         94 %       93 %
    ========== ============ ========== ====

    Args:
        values_T: difference of each target between the two checkpoints, float ``[T]``.
        document_T: document of each target, integer ``[T]``.
        cell_T: cell of each target, such as its bucket, integer ``[T]``.
    """
    if not len(values_T):
        return MacroDifference(math.nan, None, 0, 0)
    sum_DC, count_DC = _sums(values_T, document_T, cell_T)
    documents, cells = sum_DC.shape
    value, error = map(float, _linearised(sum_DC, count_DC))
    half = _symmetric_t(sum_DC, count_DC, value) * error if error else 0.0
    known = documents > 1 and math.isfinite(half)
    return MacroDifference(value, half if known else None, documents, cells)


def _symmetric_t(sum_DC: np.ndarray, count_DC: np.ndarray, value: float) -> float:
    """Return the 95 % quantile of |t| over the resamples. Infinite if too many resamples miss a cell."""
    documents = len(sum_DC)
    size = min(DRAWS, max(1, _BLOCK // documents))
    t = []
    for first in range(0, DRAWS, size):
        weight_RD = _resamples(documents, min(size, DRAWS - first), first)
        value_R, error_R = _linearised(sum_DC, count_DC, weight_RD)
        t.append((value_R - value, error_R))
    return quantile_of_t(*(np.concatenate(column) for column in zip(*t, strict=True)))


def quantile_of_t(error_R: np.ndarray, standard_error_R: np.ndarray) -> float:
    """Return the 95 % quantile of |t| over the resamples, for the symmetric bootstrap-t interval.

    Args:
        error_R: estimate of each resample minus the estimate of the sample, float ``[R]``.
        standard_error_R: standard error of the estimate in each resample, float ``[R]``.

    Returns:
        The quantile. Infinite if more than 5 % of the resamples have no t, because their standard error is 0 or not
        known.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        t_R = np.abs(error_R) / standard_error_R
    return float(np.quantile(np.nan_to_num(t_R, nan=math.inf, posinf=math.inf), 1 - LEVEL, method="higher"))


@lru_cache(maxsize=1)
def _resamples(documents: int, draws: int, first: int) -> np.ndarray:
    """Return how often each resample draws each document, float64 ``[draws, documents]``. ``first`` is the seed."""
    rng = np.random.default_rng((documents, first))
    return rng.multinomial(documents, np.full(documents, 1 / documents), draws).astype(np.float64)


def _linearised(
    sum_DC: np.ndarray, count_DC: np.ndarray, weight_RD: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over the cells of the ratios ``sum_d S_dc / sum_d N_dc``, and its standard error over documents.

    Args:
        sum_DC, count_DC: sum of the values and number of targets of each document in each cell.
        weight_RD: weight of each document in each of R estimates. None: one estimate with the weights 1.

    Returns:
        Estimates and errors, float64 ``[R]``, or scalars without weights. NaN where a cell has no targets. The error is
        0 with one document.
    """
    documents, cells = sum_DC.shape
    weights = np.ones(documents) if weight_RD is None else weight_RD
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights @ count_DC
        ratio = weights @ sum_DC / total
        residual = (1 / total) @ sum_DC.T - (ratio / total) @ count_DC.T
        variance = (weights * (residual / cells) ** 2).sum(-1) * documents / max(1, documents - 1)
    return ratio.mean(-1), np.sqrt(variance)


def _sums(values_T: np.ndarray, document_T: np.ndarray, cell_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the values and the number of targets of each document in each cell, float64 ``[D, C]``."""
    documents, document_T = np.unique(document_T, return_inverse=True)
    cells, cell_T = np.unique(cell_T, return_inverse=True)
    shape = (len(documents), len(cells))
    index_T = document_T * shape[1] + cell_T
    size = shape[0] * shape[1]
    sums = np.bincount(index_T, values_T.astype(np.float64), minlength=size)
    return sums.reshape(shape), np.bincount(index_T, minlength=size).astype(np.float64).reshape(shape)
