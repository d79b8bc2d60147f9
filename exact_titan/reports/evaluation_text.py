"""Numbers, intervals and rows of the tables of an evaluation's report."""

from collections.abc import Iterator, Sequence
from typing import Any

from exact_titan.evaluation.scores import Metric
from exact_titan.reports.evaluation_comparison import Estimate
from exact_titan.reports.pages import Table
from exact_titan.study.example_statistics import Interval


def shown_value(one: Interval, metric: Metric) -> str:
    """Return a value without its interval: percent with one decimal, or three decimals."""
    return f"{100 * one.value:.1f}" if metric.percent else f"{one.value:.3f}"


def shown_own(one: Interval, metric: Metric) -> str:
    """Return a value with its interval: ``54.3 [49.8, 58.7]``. Without an interval: the value alone."""
    return _with_interval(one, metric, "")


def shown_difference(one: Interval, metric: Metric) -> str:
    """Return a difference with its sign and interval: ``+3.1 [+1.2, +5.0]``, in points or in the metric's unit."""
    return _with_interval(one, metric, "+")


def estimate_table(estimates: Sequence[Estimate], names: Sequence[str], labels: dict[str, Any]) -> Table:
    """Return a table with one estimate a row.

    Args:
        estimates: the estimates.
        names: names of the models. The first model is the baseline.
        labels: for every label column, its name and a function from an estimate to its text.
    """
    alone = len(names) == 1
    header = [*labels, "n", f"{names[0]} [95 %]" if alone else names[0]]
    for name in names[1:]:
        header += [name, f"{name} - {names[0]} [95 %]"]
    rows = []
    for one in estimates:
        row = [label(one) for label in labels.values()]
        row.append(f"{one.own[0].examples:,}")
        row.append(shown_own(one.own[0], one.metric) if alone else shown_value(one.own[0], one.metric))
        for own, difference in zip(one.own[1:], one.difference[1:], strict=True):
            assert difference is not None  # only the baseline has none
            row += [shown_value(own, one.metric), shown_difference(difference, one.metric)]
        rows.append(row)
    return Table(header, rows, labels=len(labels))


def shown_lengths(lengths: Sequence[int]) -> str:
    """Return lengths in tokens: ``4,096 8,192``."""
    return " ".join(f"{one:,}" for one in lengths) or "-"


def estimate_rows(estimates: Sequence[Estimate], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row of a CSV for every model of every estimate, with all digits. Shares are from 0 to 1."""
    for one in estimates:
        for place, name in enumerate(names):
            own, difference = one.own[place], one.difference[place]
            yield {
                "suite": one.suite,
                "metric": one.metric.name,
                "scope": one.scope,
                "regime": one.regime,
                "lengths": " ".join(map(str, one.lengths)),
                "tasks": " ".join(one.tasks),
                "distance": one.distance,
                "model": name,
                "n": own.examples,
                "cells": own.cells,
                "value": own.value,
                "low": own.low,
                "high": own.high,
                "difference": None if difference is None else difference.value,
                "difference_low": None if difference is None else difference.low,
                "difference_high": None if difference is None else difference.high,
            }


def _with_interval(one: Interval, metric: Metric, sign: str) -> str:
    factor, places = (100, 1) if metric.percent else (1, 3)

    def shown(value: float) -> str:
        return f"{round(factor * value, places) + 0.0:{sign}.{places}f}"  # the sum has no negative 0

    if one.low is None or one.high is None:
        return shown(one.value)
    return f"{shown(one.value)} [{shown(one.low)}, {shown(one.high)}]"
