"""The figures of a study's report, with the numbers that each figure draws.

Every arm has a color, a marker and a line style, or a hatch, so that the figures are readable in black and white.
matplotlib is imported when a figure is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

from exact_titan.reports.figures import COLORS, TAIL_COLOR, Bars, bucket_figure
from exact_titan.reports.study_tables import WEIGHTS
from exact_titan.runs.records import Weights
from exact_titan.study.comparisons import Comparison, Pairs
from exact_titan.study.weighting import Dose, LossMass

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)), (0, (8, 2, 1, 2)), (0, (3, 3)))


@dataclass(frozen=True)
class Points:
    """The points of an arm: places on the x axis, values, and half the lengths of the error bars (None: no bar)."""

    name: str
    x: list[float]
    y: list[float]
    errors: list[float | None]


def loss_mass_figure(masses: Sequence[LossMass], threshold: int) -> "Figure":
    """Draw the share of the loss mass in every bucket, one bar an arm (Figure 1 of the paper)."""
    series = {f"{one.arm}: tail {one.tail_percent(threshold):.1f} %": list(one.percent.values()) for one in masses}
    return bucket_figure(
        list(masses[0].percent),
        [Bars("share of the loss mass, %", series, "%.1f")],
        threshold=threshold,
        title="Loss mass by effective context, over all training steps",
    )


def bucket_differences_figure(pairs: Pairs, comparisons: Sequence[Comparison]) -> "Figure":
    """Draw the difference of every arm in every bucket, with 95 % intervals over pairs."""
    labels = list(dict.fromkeys(one.name for one in comparisons))
    figure, (axes,) = _axes(1, columns=1, width=max(7.0, 0.8 * len(labels) + 2))
    first_of_tail = sum(int(label.split("-")[0]) < pairs.threshold for label in labels)
    axes.axvspan(first_of_tail - 0.5, len(labels) - 0.5, color=TAIL_COLOR, zorder=0)
    places = {label: place for place, label in enumerate(labels)}
    series = [_points(arm, [(places[one.name], one) for one in comparisons if one.arm == arm]) for arm in pairs.arms]
    _draw(axes, series, spread=min(0.14, 0.7 / len(series)), joined=False)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=8)
    axes.set_xlabel(f"effective left context of the target, tokens (shaded: the tail, {pairs.threshold:,} and more)")
    axes.set_ylabel(f"difference from {pairs.study.baseline} (nats)")
    weights, step = comparisons[0].weights, comparisons[0].step
    _finish(figure, [axes], f"Difference of the cross-entropy per bucket, step {step}, {WEIGHTS[weights]}")
    return figure


def training_figure(pairs: Pairs, comparisons: Sequence[Comparison], weights: Weights) -> "Figure":
    """Draw the difference of every arm over the training, one panel an outcome, with 95 % intervals over pairs."""
    names = [one.name for one in pairs.outcomes if any(found.name == one.name for found in comparisons)]
    figure, panels = _axes(len(names), columns=2)
    steps = sorted({one.step for one in comparisons})
    gap = min((b - a for a, b in pairwise(steps)), default=1)
    for name, axes in zip(names, panels, strict=True):
        of_name = [one for one in comparisons if one.name == name]
        series = [_points(arm, [(one.step, one) for one in of_name if one.arm == arm]) for arm in pairs.arms]
        _draw(axes, series, spread=min(0.06, 0.4 / len(series)) * gap, joined=True)
        axes.set_title(f"{name} (primary)" if name == pairs.primary.name else name, fontsize=9)
        axes.set_xlabel("step")
        axes.set_xlim(steps[0] - 0.4 * gap, steps[-1] + 0.4 * gap)
        if len(steps) <= 8:
            axes.set_xticks(steps)
        axes.set_ylabel("difference (nats)")
    _finish(figure, panels, f"Difference from {pairs.study.baseline} at every validation, {WEIGHTS[weights]}")
    return figure


def dose_figure(pairs: Pairs, doses: Sequence[Dose], comparisons: Sequence[Comparison]) -> "Figure":
    """Draw the difference against alpha, one panel an outcome, for the arms that differ in ``loss.alpha`` only."""
    names = [one.name for one in pairs.outcomes if any(found.name == one.name for found in comparisons)]
    figure, panels = _axes(len(names), columns=2)
    by_cell = {(one.name, one.arm): one for one in comparisons}
    for name, axes in zip(names, panels, strict=True):
        series = []
        for dose in doses:
            found = [(alpha, by_cell[name, arm]) for alpha, arm in dose.arms if (name, arm) in by_cell]
            points = _points(dose.rule, found)
            if dose.baseline is not None:  # the difference of the baseline from itself
                x, y, errors = [dose.baseline, *points.x], [0.0, *points.y], [None, *points.errors]
                points = Points(dose.rule, x, y, errors)
            series.append(points)
        _draw(axes, series, spread=0.0, joined=True)
        axes.set_title(f"{name} (primary)" if name == pairs.primary.name else name, fontsize=9)
        axes.set_xlabel("alpha")
        axes.set_ylabel("difference (nats)")
    step, weights = comparisons[0].step, comparisons[0].weights
    _finish(figure, panels, f"Difference from {pairs.study.baseline} by alpha, step {step}, {WEIGHTS[weights]}")
    return figure


def _points(name: str, found: Sequence[tuple[float, Comparison]]) -> Points:
    rows = sorted(found, key=lambda row: row[0])
    return Points(name, [x for x, _ in rows], [one.test.mean for _, one in rows], [one.test.error for _, one in rows])


def _axes(panels: int, *, columns: int, width: float = 9.0) -> "tuple[Figure, list[Axes]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width if columns > 1 else max(7.0, min(width, 11.0)), 1.2 + 2.7 * rows), dpi=150)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in grid[panels:]:
        empty.set_axis_off()
    return figure, list(grid[:panels])


def _draw(axes: "Axes", series: Sequence[Points], *, spread: float, joined: bool) -> None:
    """Draw the points of every arm. ``spread`` moves the arms apart on the x axis, because their bars would overlap."""
    looks = zip(cycle(COLORS[1:] + COLORS[:1]), cycle(_MARKERS), cycle(_LINES), strict=False)
    for number, (points, (color, marker, line)) in enumerate(zip(series, looks, strict=False)):
        offset = spread * (number - (len(series) - 1) / 2)
        axes.errorbar(
            [x + offset for x in points.x],
            points.y,
            yerr=[math.nan if error is None else error for error in points.errors],
            label=points.name,
            color=color,
            marker=marker,
            markersize=4.5,
            markeredgecolor="black",
            markeredgewidth=0.5,
            linestyle=line if joined else "none",
            linewidth=1.2,
            elinewidth=0.9,
            capsize=2.5,
            zorder=3,
        )
    axes.axhline(0, color="0.3", linewidth=0.8, zorder=2)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _finish(figure: "Figure", panels: "Sequence[Axes]", title: str) -> None:
    """Put the title and one legend for all panels above the panels."""
    handles, names = panels[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=10)
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=8)
