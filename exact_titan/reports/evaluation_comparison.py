"""Macro averages over the cells of an evaluation, with intervals: of every model, and of its paired difference.

An average is over the tasks of a length first, and then over the lengths. Every task of a length counts the same, and
every length counts the same.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exact_titan.evaluation.scores import Metric
from exact_titan.reports.evaluation_lengths import REGIMES, Lengths
from exact_titan.reports.evaluation_scores import Cell
from exact_titan.study.example_statistics import SCORE, SCORE_DIFFERENCE, CellSums, Interval, Scale, macro_average


@dataclass(frozen=True)
class Estimate:
    """A number of every model.

    Attributes:
        suite: name of the suite.
        metric: the metric.
        scope: ``macro`` (all tasks of the lengths of a regime), ``length`` (all tasks of a length), ``task`` (a task
            over the lengths of a regime), ``cell`` (a task at a length), or ``distance`` (all tasks of a length at a
            distance).
        regime: ``trained`` or ``extrapolated``. Empty: the suite has no lengths, or the length is in no regime.
        lengths: the lengths. Empty: the suite has no lengths.
        tasks: the tasks.
        distance: nominal distance in tokens. None: all distances.
        own: the average of every model.
        difference: the paired difference of every model from the first model. None: the first model.
    """

    suite: str
    metric: Metric
    scope: str
    regime: str
    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    distance: int | None
    own: tuple[Interval, ...]
    difference: tuple[Interval | None, ...]


class Comparison:
    """Estimates from cells. The resamples of a cell are drawn once, for all averages that contain the cell.

    Args:
        models: number of models.
    """

    def __init__(self, models: int) -> None:
        self._models = models
        self._sums: dict[tuple[object, ...], CellSums] = {}

    def estimate(self, cells: Sequence[Cell], metric: Metric, scope: str, regime: str = "") -> Estimate | None:
        """Return the macro average over cells of one suite. None: no question has the metric in all models."""
        cells = [cell for cell in cells if _known(cell, metric).any()]
        if not cells:
            return None
        weights = _weights(cells)
        own_scale, difference_scale = (SCORE, SCORE_DIFFERENCE) if metric.percent else (None, None)
        own = [self._average(cells, weights, metric, model, None, own_scale) for model in range(self._models)]
        differences = [
            self._average(cells, weights, metric, model, 0, difference_scale) for model in range(1, self._models)
        ]
        return Estimate(
            suite=cells[0].key[0],
            metric=metric,
            scope=scope,
            regime=regime,
            lengths=tuple(sorted({cell.key[2] for cell in cells if cell.key[2] is not None})),
            tasks=tuple(dict.fromkeys(cell.key[1] for cell in cells)),
            distance=cells[0].part,
            own=tuple(own),
            difference=(None, *differences),
        )

    def lift(self, cells: Sequence[Cell], metric: Metric, model: int) -> Interval | None:
        """Return the relative lift of a model over the first model: the ratio of their macro averages minus 1.

        The interval is that of the linearised ratio: the average of ``(b - ratio * a) / mean of a`` over the questions.

        Returns:
            None if the average of the first model is 0, or if no question has the metric.
        """
        cells = [cell for cell in cells if _known(cell, metric).any()]
        weights = _weights(cells)
        values = [cell.values[metric.name][:, _known(cell, metric)] for cell in cells]
        means_CM = np.array([one.mean(1) for one in values]).reshape(len(cells), self._models)
        base, other = (float(np.dot(weights, means_CM[:, place])) for place in (0, model))
        if not cells or base <= 0:
            return None
        ratio = other / base
        sums = [
            CellSums((one[model] - ratio * one[0]) / base, _seed(cell), cell.unit[_known(cell, metric)])
            for cell, one in zip(cells, values, strict=True)
        ]
        scale = Scale(-1 / base, 1 / base, SCORE_DIFFERENCE.pseudo) if metric.percent else None
        found = macro_average(sums, weights, scale)
        low, high = (None if end is None else ratio - 1 + end - found.value for end in (found.low, found.high))
        return Interval(ratio - 1, low, high, found.examples, found.cells)

    def _average(
        self,
        cells: Sequence[Cell],
        weights: Sequence[float],
        metric: Metric,
        model: int,
        base: int | None,
        scale: Scale | None,
    ) -> Interval:
        return macro_average([self._sums_of(cell, metric, model, base) for cell in cells], weights, scale)

    def _sums_of(self, cell: Cell, metric: Metric, model: int, base: int | None) -> CellSums:
        key = (cell.key, cell.part, metric.name, model, base)
        if key not in self._sums:
            known = _known(cell, metric)
            values = cell.values[metric.name][:, known]
            values_N = values[model] - (0 if base is None else values[base])
            self._sums[key] = CellSums(values_N, _seed(cell), cell.unit[known])
        return self._sums[key]


def suite_estimates(
    comparison: Comparison, cells: Sequence[Cell], metrics: Sequence[Metric], lengths: Lengths | None
) -> list[Estimate]:
    """Return the estimates of a suite: macro, by length, by task, by cell, for every metric.

    Args:
        comparison: makes the estimates.
        cells: the cells of the suite.
        metrics: the metrics of the suite.
        lengths: the regimes of the lengths. None: the suite has no lengths.
    """

    def regime(cell: Cell) -> str:
        return "" if lengths is None or cell.key[2] is None else lengths.regime(cell.key[2]) or ""

    found: list[Estimate | None] = []
    regimes = ("",) if lengths is None else REGIMES
    for metric in metrics:
        for name in regimes:
            inside = [cell for cell in cells if regime(cell) == name]
            found.append(comparison.estimate(inside, metric, "macro", name))
            for task in dict.fromkeys(cell.key[1] for cell in inside):
                found.append(comparison.estimate([one for one in inside if one.key[1] == task], metric, "task", name))
        if lengths is not None:
            for length in dict.fromkeys(cell.key[2] for cell in cells):
                at = [cell for cell in cells if cell.key[2] == length]
                found.append(comparison.estimate(at, metric, "length", regime(at[0])))
            found += [comparison.estimate([cell], metric, "cell", regime(cell)) for cell in cells]
    return [one for one in found if one is not None]


def distance_estimates(comparison: Comparison, cells: Sequence[Cell], metric: Metric) -> list[Estimate]:
    """Return the estimates of a suite by context length and evidence distance, over the tasks."""
    found = []
    for length in dict.fromkeys(cell.key[2] for cell in cells):
        parts = [cell.by_distance() for cell in cells if cell.key[2] == length]
        for distance in sorted({one for by_distance in parts for one in by_distance}):
            here = [by_distance[distance] for by_distance in parts if distance in by_distance]
            found.append(comparison.estimate(here, metric, "distance"))
    return [one for one in found if one is not None]


def without_metric(cells: Sequence[Cell], metric: Metric) -> int:
    """Return the number of questions that lack a metric which another question or model of their cell has.

    A task whose questions never have the metric does not count: the suite does not give this metric to the task.
    """
    return sum(int((~_known(cell, metric)).sum()) for cell in cells if not np.isnan(cell.values[metric.name]).all())


def _known(cell: Cell, metric: Metric) -> np.ndarray:
    """Return which questions have the metric in all models, bool ``[questions]``."""
    return ~np.isnan(cell.values[metric.name]).any(0)


def _weights(cells: Sequence[Cell]) -> list[float]:
    """Return the weight of every cell: the same for every length, and inside a length the same for every task."""
    per_length = Counter(cell.key[2] for cell in cells)
    return [1 / (len(per_length) * per_length[cell.key[2]]) for cell in cells]


def _seed(cell: Cell) -> int:
    return zlib.crc32(repr((cell.key, cell.part)).encode())
