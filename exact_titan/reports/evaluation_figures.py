"""The figures of an evaluation's report.

- :func:`lengths_figure`: the scores by context length.
- :func:`lift_figure`: the relative lift over the baseline by context length (Figure 4 of the paper).
- :func:`margin_map_figure`: the context margin over evidence distance and context length (Figure 3).
- :func:`margin_distance_figure`: the context margin by evidence distance (Figure 5).

matplotlib is imported when a figure is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exact_titan.reports.evaluation_comparison import Estimate
from exact_titan.reports.evaluation_lengths import Lengths
from exact_titan.reports.figures import TAIL_COLOR
from exact_titan.reports.point_figures import Points, draw_points, finish, new_panels
from exact_titan.study.example_statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Lift:
    """The relative lift of a model at a length. None: the baseline has the score 0."""

    suite: str
    model: str
    length: int
    lift: Interval | None


def lengths_figure(estimates: Sequence[Estimate], names: Sequence[str], lengths: Lengths) -> "Figure":
    """Draw every metric of every suite by context length, one line a model, with the 95 % intervals of the model.

    Args:
        estimates: estimates of the scope ``length``.
        names: names of the models.
        lengths: the regimes. The extrapolated lengths are shaded.
    """
    panels = list(dict.fromkeys((one.suite, one.metric) for one in estimates))
    figure, all_axes = new_panels(len(panels), columns=2)
    for (suite, metric), axes in zip(panels, all_axes, strict=True):
        here = [one for one in estimates if (one.suite, one.metric) == (suite, metric)]
        places = _length_axis(axes, [one.lengths[0] for one in here], lengths)
        factor = 100 if metric.percent else 1
        series = [
            _points(name, [(places[one.lengths[0]], one.own[place]) for one in here], factor)
            for place, name in enumerate(names)
        ]
        draw_points(axes, series, spread=min(0.1, 0.4 / len(series)), joined=True, baseline=True)
        axes.set_title(f"{suite}: {metric.title}", fontsize=9)
    finish(figure, all_axes, "Scores by context length (shaded: extrapolated lengths)")
    return figure


def lift_figure(lifts: Sequence[Lift], baseline: str, lengths: Lengths) -> "Figure":
    """Draw the relative lift of the accuracy over the baseline by context length, one panel a suite."""
    suites = list(dict.fromkeys(one.suite for one in lifts))
    names = list(dict.fromkeys(one.model for one in lifts))
    figure, all_axes = new_panels(len(suites), columns=2)
    for suite, axes in zip(suites, all_axes, strict=True):
        here = [one for one in lifts if one.suite == suite]
        places = _length_axis(axes, [one.length for one in here], lengths)
        series = [
            _points(name, [(places[one.length], one.lift) for one in here if one.model == name and one.lift], 100)
            for name in names
        ]
        draw_points(axes, series, spread=min(0.1, 0.4 / len(series)), joined=True)
        axes.set_title(suite, fontsize=9)
        axes.set_ylabel("relative lift of the accuracy, %", fontsize=8)
    finish(figure, all_axes, f"Relative lift over {baseline} by context length (shaded: extrapolated lengths)")
    return figure


def margin_map_figure(estimates: Sequence[Estimate], names: Sequence[str]) -> "Figure":
    """Draw the context margin over evidence distance and context length, one panel a model, then the differences.

    The panels of the models share their shades, and the panels of the differences share theirs. The number in a cell is
    its margin in nats, so that the map is readable without its shades.
    """
    rows = [*names, *(f"{name} - {names[0]}" for name in names[1:])]
    values = [[one.own[place] for one in estimates] for place in range(len(names))]
    values += [[_known(one.difference[place]) for one in estimates] for place in range(1, len(names))]
    lengths = sorted({one.lengths[0] for one in estimates})
    distances = sorted({_distance(one) for one in estimates})
    width = 0.62 * len(distances) + 1.6
    figure, all_axes = new_panels(len(rows), columns=2, width=max(7.0, 2 * width), height=0.42 * len(lengths) + 1.2)
    for place, (title, row, axes) in enumerate(zip(rows, values, all_axes, strict=True)):
        grid = [[math.nan] * len(distances) for _ in lengths]
        for one, found in zip(estimates, row, strict=True):
            grid[lengths.index(one.lengths[0])][distances.index(_distance(one))] = found.value
        signed = place >= len(names)
        group = [one.value for same in (values[len(names) :] if signed else values[: len(names)]) for one in same]
        _draw_map(axes, grid, min(group), max(group), "+.2f" if signed else ".2f")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(distances)), [_short(one) for one in distances], fontsize=8)
        axes.set_yticks(range(len(lengths)), [_short(one) for one in lengths], fontsize=8)
        axes.set_xlabel("evidence distance, tokens", fontsize=8)
        axes.set_ylabel("context length, tokens", fontsize=8)
    figure.suptitle("Context margin, nats (dark: high)", fontsize=10)
    return figure


def margin_distance_figure(estimates: Sequence[Estimate], names: Sequence[str]) -> "Figure":
    """Draw the context margin by evidence distance, one panel a context length, with 95 % intervals."""
    lengths = sorted({one.lengths[0] for one in estimates})
    distances = sorted({_distance(one) for one in estimates})
    figure, all_axes = new_panels(len(lengths), columns=2)
    for length, axes in zip(lengths, all_axes, strict=True):
        here = [one for one in estimates if one.lengths[0] == length]
        series = [
            _points(name, [(distances.index(_distance(one)), one.own[place]) for one in here], 1)
            for place, name in enumerate(names)
        ]
        draw_points(axes, series, spread=min(0.1, 0.4 / len(series)), joined=True, baseline=True)
        axes.axhline(0, color="0.3", linewidth=0.8, zorder=2)
        axes.set_xlim(-0.5, len(distances) - 0.5)
        axes.set_xticks(range(len(distances)), [_short(one) for one in distances], fontsize=8)
        axes.set_title(f"context of {length:,} tokens", fontsize=9)
        axes.set_xlabel("evidence distance, tokens", fontsize=8)
        axes.set_ylabel("context margin, nats", fontsize=8)
    finish(figure, all_axes, "Context margin by evidence distance")
    return figure


def _length_axis(axes: "Axes", found: Sequence[int], lengths: Lengths) -> dict[int, int]:
    """Put the lengths on the x axis, shade the extrapolated lengths, and return the place of every length."""
    listed = sorted(set(found))
    for place, length in enumerate(listed):
        if lengths.regime(length) == "extrapolated":
            axes.axvspan(place - 0.5, place + 0.5, color=TAIL_COLOR, zorder=0)
    axes.set_xlim(-0.5, len(listed) - 0.5)
    axes.set_xticks(range(len(listed)), [_short(one) for one in listed], fontsize=8)
    axes.set_xlabel("context length, tokens", fontsize=8)
    return {length: place for place, length in enumerate(listed)}


def _points(name: str, found: Sequence[tuple[int, Interval]], factor: int) -> Points:
    errors = [
        None
        if one.low is None or one.high is None
        else (factor * (one.value - one.low), factor * (one.high - one.value))
        for _, one in found
    ]
    return Points(name, [place for place, _ in found], [factor * one.value for _, one in found], errors)


def _draw_map(axes: "Axes", grid: list[list[float]], low: float, high: float, number: str) -> None:
    from matplotlib.colors import Normalize

    # The lowest margin is not white, because white is an empty cell. The highest is not black, so that its number is
    # readable.
    reach = high - low or 1.0
    shades = Normalize(low - 0.1 * reach, high + 0.7 * reach)
    axes.imshow(grid, cmap="Greys", norm=shades, aspect="auto", origin="lower", interpolation="nearest")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if not math.isnan(value):
                axes.text(column, row, format(value, number), ha="center", va="center", fontsize=7)


def _short(tokens: int) -> str:
    """Return a number of tokens: ``512``, ``4K``, ``1.5K``."""
    return f"{tokens / 1024:g}K" if tokens >= 1024 and tokens % 128 == 0 else str(tokens)


def _distance(one: Estimate) -> int:
    assert one.distance is not None  # scope "distance"
    return one.distance


def _known(one: Interval | None) -> Interval:
    assert one is not None  # only the baseline has no difference
    return one
