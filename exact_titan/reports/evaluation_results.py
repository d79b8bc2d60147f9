"""All estimates of an evaluation's report, by kind of suite."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exact_titan.evaluation.scores import Metric
from exact_titan.reports.evaluation_comparison import (
    Comparison,
    Estimate,
    distance_estimates,
    suite_estimates,
    without_metric,
)
from exact_titan.reports.evaluation_figures import Lift
from exact_titan.reports.evaluation_lengths import REGIMES, Lengths
from exact_titan.reports.evaluation_scores import Cell, SharedCells

MARGIN = "context_margin"
"""The metric of the evidence probe. A suite with this metric is shown by distance."""


CROSS_ENTROPY = "cross_entropy"
"""The metric that stands beside the main metric in every table. An engine without likelihoods does not give it."""


@dataclass(frozen=True)
class Results:
    """The estimates of a report.

    Attributes:
        shared: the models and their cells.
        lengths: the regimes of the lengths. None: no suite needs them.
        long: estimates of the suites with lengths.
        probe: estimates of the evidence probe by length and distance.
        short: estimates of the suites without lengths.
        lifts: relative lifts of the main metric, if the metric is a share.
        left_out: a sentence for everything that the estimates do not contain.
    """

    shared: SharedCells
    lengths: Lengths | None
    long: tuple[Estimate, ...]
    probe: tuple[Estimate, ...]
    short: tuple[Estimate, ...]
    lifts: tuple[Lift, ...]
    left_out: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the models. The first model is the baseline."""
        return [one.name for one in self.shared.models]


def results_of(shared: SharedCells, find: Callable[[], Lengths]) -> Results:
    """Return the estimates of all suites.

    Args:
        shared: the cells.
        find: returns the regimes of the lengths. The function calls it only if a suite needs regimes.
    """
    comparison = Comparison(len(shared.models))
    lengths: Lengths | None = None
    long: list[Estimate] = []
    probe: list[Estimate] = []
    short: list[Estimate] = []
    lifts: list[Lift] = []
    left_out = list(shared.left_out)
    for suite, metrics, cells in shared.suites():
        for metric in metrics:
            if count := without_metric(cells, metric):
                left_out.append(f"{suite}: {count} questions do not have {metric.name} in all models.")
            needed = metric == metrics[0] or metric.name == CROSS_ENTROPY
            if needed and all(np.isnan(cell.values[metric.name]).all() for cell in cells):
                left_out.append(f"{suite}: no question has {metric.name}.")
        margin = next((one for one in metrics if one.name == MARGIN), None)
        if margin is not None:
            probe += distance_estimates(comparison, cells, margin)
        elif all(cell.key[2] is None for cell in cells):
            short += suite_estimates(comparison, cells, metrics, None)
        else:
            lengths = lengths or find()
            long += suite_estimates(comparison, cells, metrics, lengths)
            lifts += _lifts(comparison, shared, suite, metrics[0], cells)
            left_out += _lengths_left_out(suite, cells, lengths)
    return Results(shared, lengths, tuple(long), tuple(probe), tuple(short), tuple(lifts), tuple(left_out))


def _lifts(comparison: Comparison, shared: SharedCells, suite: str, metric: Metric, cells: list[Cell]) -> list[Lift]:
    if not metric.percent:
        return []
    return [
        Lift(suite, model.name, length, comparison.lift([one for one in cells if one.key[2] == length], metric, place))
        for place, model in enumerate(shared.models)
        if place
        for length in dict.fromkeys(cell.key[2] for cell in cells)
        if length is not None
    ]


def _lengths_left_out(suite: str, cells: list[Cell], lengths: Lengths) -> list[str]:
    present = sorted({cell.key[2] for cell in cells if cell.key[2] is not None})
    notes = [f"{suite}: the length {one} has no scores." for one in lengths.absent(present)]
    notes += [f"{suite}: the length {one} is in no regime." for one in present if lengths.regime(one) is None]
    for regime in REGIMES:
        if not any(lengths.regime(one) == regime for one in present):
            notes.append(f"{suite}: no {regime} length has scores.")
    return notes
