"""Do these two models differ on these prompts? Statistics over the examples of an evaluation.

The unit is an example, or a group of examples that share their context. All intervals are conditional on the
checkpoints and on the tasks: another seed of the training is not in them. :mod:`exact_titan.study.statistics` answers
another question: is the rule better?

1. A cell has the examples of one task at one length. :class:`CellSums` resamples the examples within the cell once.
2. :func:`macro_average` averages the means of cells with fixed weights, and gives the 95 % interval of the average.

The interval is the symmetric bootstrap-t interval (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 3.5), as
in :mod:`exact_titan.study.checkpoint_difference`, with two additions for small cells of right and wrong answers:

- Pseudo-examples at both ends of the scale: four for a score (Agresti and Coull, The American Statistician 52, 1998),
  and two for a difference (Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012). All cells of
  an average share the pseudo-examples. The pseudo-examples change the interval, and never the value.
- The quantile of t is at least the quantile of the normal distribution.

Without the additions, cells in which all examples agree give an interval of width 0: the models agree on 20 examples,
and the interval calls this a proof. With the additions the half width is then about 2.8 divided by the number of
examples, close to the rule of three. ``tests/study/test_example_statistics.py`` simulates the coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exact_titan.study.checkpoint_difference import DRAWS, quantile_of_t

_NORMAL = 1.96
"""The 97.5 % quantile of the normal distribution."""

_BLOCK = 4_000_000
"""Numbers of a block of resamples in memory, at most, if a resample is smaller."""


@dataclass(frozen=True)
class Scale:
    """The ends of a bounded quantity, and the pseudo-examples of its intervals.

    Attributes:
        low, high: smallest and largest possible value.
        pseudo: number of pseudo-examples of an average, half of them at each end.
    """

    low: float
    high: float
    pseudo: int


SCORE = Scale(0.0, 1.0, 4)
"""A score from 0 to 1."""

SCORE_DIFFERENCE = Scale(-1.0, 1.0, 2)
"""The difference of two scores from 0 to 1."""


@dataclass(frozen=True)
class Interval:
    """A macro average and its 95 % interval.

    Attributes:
        value: the average.
        low, high: the interval. None if a cell has a single unit, or if an unbounded quantity has so few or so equal
            values that more than 5 % of the resamples have no spread.
        examples: number of examples.
        cells: number of cells.
    """

    value: float
    low: float | None
    high: float | None
    examples: int
    cells: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class CellSums:
    """The sums of a cell and of its resamples.

    Args:
        values_N: one value an example, float ``[N]``, at least one.
        seed: seed of the resamples. Different cells need different seeds, because their examples are independent.
        unit_N: unit of each example, integer ``[N]``. Examples of one unit depend on each other, and a resample draws
            units. None: every example is a unit.

    Attributes:
        examples: number of examples.
        size: number of units.
        total, squares: sums of the values and of their squares.
        total_R, squares_R: the same of every resample, float64 ``[R]``.
    """

    def __init__(self, values_N: np.ndarray, seed: int, unit_N: np.ndarray | None = None) -> None:
        self.examples = len(values_N)
        values_N = values_N.astype(np.float64)
        if unit_N is not None:
            values_N = _unit_values(values_N, unit_N)
        self.size = len(values_N)
        self.total, self.squares = float(values_N.sum()), float((values_N**2).sum())
        rng = np.random.default_rng(seed)
        rows = min(DRAWS, max(1, _BLOCK // self.size))
        totals, squares = [], []
        for first in range(0, DRAWS, rows):
            drawn_RN = values_N[rng.integers(0, self.size, (min(rows, DRAWS - first), self.size))]
            totals.append(drawn_RN.sum(1))
            squares.append((drawn_RN**2).sum(1))
        self.total_R, self.squares_R = np.concatenate(totals), np.concatenate(squares)


def macro_average(cells: Sequence[CellSums], weights: Sequence[float], scale: Scale | None) -> Interval:
    """Return the weighted average of the means of cells, with its 95 % interval.

    Args:
        cells: at least one cell.
        weights: one weight a cell. The sum of the weights is 1.
        scale: the ends of the quantity. None: an unbounded quantity, such as a cross-entropy.
    """
    weight_C = np.asarray(weights)
    size_C = np.array([one.size for one in cells], dtype=np.float64)
    total_C = np.array([one.total for one in cells])
    value = float(weight_C @ (total_C / size_C))
    examples = sum(one.examples for one in cells)
    if size_C.min() < 2:
        return Interval(value, None, None, examples, len(cells))
    squares_C = np.array([one.squares for one in cells])
    total_RC = np.stack([one.total_R for one in cells], axis=1)
    squares_RC = np.stack([one.squares_R for one in cells], axis=1)
    center, error = _estimate(total_C, squares_C, size_C, weight_C, scale)
    center_R, error_R = _estimate(total_RC, squares_RC, size_C, weight_C, scale)
    half = max(quantile_of_t(center_R - value, error_R), _NORMAL) * float(error)
    if not half or not np.isfinite(half):
        return Interval(value, None, None, examples, len(cells))
    low, high = min(value, float(center) - half), max(value, float(center) + half)
    if scale is not None:
        low, high = max(low, scale.low), min(high, scale.high)
    return Interval(value, low, high, examples, len(cells))


def _unit_values(values_N: np.ndarray, unit_N: np.ndarray) -> np.ndarray:
    """Return one value a unit, float64 ``[U]``, whose mean is the mean of the examples.

    With ``m`` the mean of all examples, ``s`` the sum and ``n`` the number of a unit's examples, and ``a`` the mean of
    ``n``, the value is ``m + (s - m n) / a``, the linearised ratio of :mod:`exact_titan.study.checkpoint_difference`.
    Units of equal size have the means of their examples.
    """
    _, unit_N = np.unique(unit_N, return_inverse=True)
    sums_U, counts_U = np.bincount(unit_N, values_N), np.bincount(unit_N)
    mean = values_N.mean()
    return mean + (sums_U - mean * counts_U) / counts_U.mean()


def _estimate(
    total: np.ndarray, squares: np.ndarray, size_C: np.ndarray, weight_C: np.ndarray, scale: Scale | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the averages with the pseudo-examples, and their standard errors.

    Args:
        total, squares: sums of each cell, float64 ``[C]``, or ``[R, C]`` for R averages.
    """
    pseudo = 0.0
    if scale is not None:
        pseudo = scale.pseudo / len(size_C)
        total = total + pseudo * (scale.low + scale.high) / 2
        squares = squares + pseudo * (scale.low**2 + scale.high**2) / 2
    count_C = size_C + pseudo
    mean = total / count_C
    # Rounding can make the variance of equal values negative, or of the size of the rounding.
    spread = np.maximum(squares / count_C - mean**2, 0)
    variance = np.where(spread > 1e-12 * squares / count_C, spread, 0) / (count_C - 1)
    return mean @ weight_C, np.sqrt(variance @ weight_C**2)
