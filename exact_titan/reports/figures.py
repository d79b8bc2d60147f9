"""The bar figure of all reports: a value per bucket of effective context, with the tail shaded.

matplotlib is imported when a figure is drawn. A rank that draws nothing does not import matplotlib.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exact_titan.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#8c96a3", "#c2542d", "#3b6ea5", "#5a8f4e", "#8a5aa8", "#b08d2e")
"""Grey for the run or rule that the others are compared with."""

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "||||", "----")
"""Patterns of the bars of the series, for readers and printers without colors."""

TAIL_COLOR = "#f0e6d2"
_CHARACTERS = 12
"""Width of a bucket in characters of the numbers above its bars. A panel with wider numbers shows none."""


@dataclass(frozen=True)
class Bars:
    """One panel of the figure: a group of bars for each bucket, one bar a series.

    Args:
        ylabel: name and unit of the values.
        series: values by the name of their series, each with one value a bucket.
        number_format: format of the numbers above the bars, such as ``%.3f``.
        from_zero: whether the axis starts at 0. Otherwise the axis starts just below the lowest value, for values that
            differ by a small part of their height.
        first_color: place of the first series' color and hatch, so that a series keeps its look in all panels.
        errors: half the length of the error bars by the name of their series. None: no error bar at this place.
    """

    ylabel: str
    series: dict[str, list[float]]
    number_format: str
    from_zero: bool = True
    first_color: int = 0
    errors: dict[str, list[float | None]] = field(default_factory=dict)


def bucket_figure(labels: Sequence[str], panels: Sequence[Bars], *, threshold: int, title: str) -> "Figure":
    """Draw panels of bars, one below the other, over the same buckets.

    Args:
        labels: ``<lo>-<hi>`` of the buckets, ascending. Other names may follow, for sums over buckets.
        panels: at least one.
        threshold: first context length of the tail, in tokens.
        title: text above the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (max(7.0, 0.8 * len(labels) + 2), 1.4 + 2.9 * len(panels))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    bounds = [int(label.split("-")[0]) for label in labels if label[0].isdigit()]
    first_of_tail = sum(bound < threshold for bound in bounds)
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.axvspan(first_of_tail - 0.5, len(bounds) - 0.5, color=TAIL_COLOR, zorder=0)
        if len(bounds) < len(labels):
            axes.axvline(len(bounds) - 0.5, color="0.3", linewidth=0.8, zorder=3)
        _draw(axes, panel)
        axes.set_ylabel(panel.ylabel)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=1)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.series) > 1:
            axes.legend(frameon=False, loc="best", fontsize=8)
    all_axes[0].set_title(title, fontsize=10)
    all_axes[-1].set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=8)
    all_axes[-1].set_xlabel(f"effective left context of the target, tokens (shaded: the tail, {threshold:,} and more)")
    return figure


def save_png(figure: "Figure", file: Path) -> None:
    """Write a figure as a PNG.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        figure.savefig(file, format="png")
    except OSError as error:
        raise InputError(f"--png {file} cannot be written: {error.strerror}") from error


def _draw(axes: "Axes", panel: Bars) -> None:
    looks = islice(zip(cycle(COLORS), cycle(HATCHES), strict=False), panel.first_color, None)
    width = 0.8 / len(panel.series)
    values = [value for series in panel.series.values() for value in series]
    show_numbers = len(panel.series) * max(len(panel.number_format % value) for value in values) <= _CHARACTERS
    for number, (name, heights) in enumerate(panel.series.items()):
        left = [bucket - 0.4 + width * (number + 0.5) for bucket in range(len(heights))]
        errors = [math.nan if error is None else error for error in panel.errors.get(name, [])]
        shown: dict[str, Any] = (
            {"yerr": errors, "error_kw": {"elinewidth": 0.8, "capsize": 1.5, "zorder": 4}} if errors else {}
        )
        color, hatch = next(looks)
        bars = axes.bar(
            left, heights, width, color=color, hatch=hatch, edgecolor="white", label=name, zorder=2, **shown
        )
        if show_numbers:
            axes.bar_label(bars, fmt=panel.number_format, fontsize=7, padding=1)
    reach = [error or 0 for errors in panel.errors.values() for error in errors] or [0]
    # A run that has diverged has values that are not finite. Their bars are empty.
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite) - max(reach), max(finite) + max(reach)
    if panel.from_zero:
        axes.axhline(0, color="0.3", linewidth=0.8, zorder=3)
        axes.margins(y=0.15)
    else:
        margin = max(0.05 * abs(high), high - low) or 1.0
        axes.set_ylim(low - margin, high + 0.3 * margin)
