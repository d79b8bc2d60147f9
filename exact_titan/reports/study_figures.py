"""The figures of a study's report, with the numbers that each figure draws.

Every arm has a color, a marker and a line style, or a hatch, so that the figures are readable in black and white.
matplotlib is imported when a figure is drawn.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from exact_titan.reports.figures import TAIL_COLOR, Bars, bucket_figure
from exact_titan.reports.point_figures import Points, draw_points, finish, new_panels
from exact_titan.reports.study_tables import WEIGHTS
from exact_titan.runs.records import Weights
from exact_titan.study.comparisons import Comparison, Pairs
from exact_titan.study.weighting import Dose, LossMass

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure, (axes,) = new_panels(1, columns=1, width=max(7.0, 0.8 * len(labels) + 2))
    first_of_tail = sum(int(label.split("-")[0]) < pairs.threshold for label in labels)
    axes.axvspan(first_of_tail - 0.5, len(labels) - 0.5, color=TAIL_COLOR, zorder=0)
    places = {label: place for place, label in enumerate(labels)}
    series = [_points(arm, [(places[one.name], one) for one in comparisons if one.arm == arm]) for arm in pairs.arms]
    draw_points(axes, series, spread=min(0.14, 0.7 / len(series)), joined=False)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=8)
    axes.set_xlabel(f"effective left context of the target, tokens (shaded: the tail, {pairs.threshold:,} and more)")
    axes.set_ylabel(f"difference from {pairs.study.baseline} (nats)")
    weights, step = comparisons[0].weights, comparisons[0].step
    finish(figure, [axes], f"Difference of the cross-entropy per bucket, step {step}, {WEIGHTS[weights]}")
    return figure


def training_figure(pairs: Pairs, comparisons: Sequence[Comparison], weights: Weights) -> "Figure":
    """Draw the difference of every arm over the training, one panel an outcome, with 95 % intervals over pairs."""
    names = [one.name for one in pairs.outcomes if any(found.name == one.name for found in comparisons)]
    figure, panels = new_panels(len(names), columns=2)
    steps = sorted({one.step for one in comparisons})
    gap = min((b - a for a, b in pairwise(steps)), default=1)
    for name, axes in zip(names, panels, strict=True):
        of_name = [one for one in comparisons if one.name == name]
        series = [_points(arm, [(one.step, one) for one in of_name if one.arm == arm]) for arm in pairs.arms]
        draw_points(axes, series, spread=min(0.06, 0.4 / len(series)) * gap, joined=True)
        axes.set_title(f"{name} (primary)" if name == pairs.primary.name else name, fontsize=9)
        axes.set_xlabel("step")
        axes.set_xlim(steps[0] - 0.4 * gap, steps[-1] + 0.4 * gap)
        if len(steps) <= 8:
            axes.set_xticks(steps)
        axes.set_ylabel("difference (nats)")
    finish(figure, panels, f"Difference from {pairs.study.baseline} at every validation, {WEIGHTS[weights]}")
    return figure


def dose_figure(pairs: Pairs, doses: Sequence[Dose], comparisons: Sequence[Comparison]) -> "Figure":
    """Draw the difference against alpha, one panel an outcome, for the arms that differ in ``loss.alpha`` only."""
    names = [one.name for one in pairs.outcomes if any(found.name == one.name for found in comparisons)]
    figure, panels = new_panels(len(names), columns=2)
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
        draw_points(axes, series, spread=0.0, joined=True)
        axes.set_title(f"{name} (primary)" if name == pairs.primary.name else name, fontsize=9)
        axes.set_xlabel("alpha")
        axes.set_ylabel("difference (nats)")
    step, weights = comparisons[0].step, comparisons[0].weights
    finish(figure, panels, f"Difference from {pairs.study.baseline} by alpha, step {step}, {WEIGHTS[weights]}")
    return figure


def _points(name: str, found: Sequence[tuple[float, Comparison]]) -> Points:
    rows = sorted(found, key=lambda row: row[0])
    errors = [None if one.test.error is None else (one.test.error, one.test.error) for _, one in rows]
    return Points(name, [x for x, _ in rows], [one.test.mean for _, one in rows], errors)
