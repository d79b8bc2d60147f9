"""The bar figure of all reports: a value per bucket of effective context, with the tail shaded.

matplotlib is imported when a figure is drawn. A rank that draws nothing does not import matplotlib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from exact_titan.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#8c96a3", "#c2542d", "#3b6ea5", "#5a8f4e", "#8a5aa8", "#b08d2e")
"""Grey for the run or rule that the others are compared with."""

_TAIL_COLOR = "#f0e6d2"
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
        first_color: place of the first series' color in the palette, so that a series keeps its color in all panels.
    """

    ylabel: str
    series: dict[str, list[float]]
    number_format: str
    from_zero: bool = True
    first_color: int = 0


def bucket_figure(labels: Sequence[str], panels: Sequence[Bars], *, threshold: int, title: str) -> "Figure":
    """Draw panels of bars, one below the other, over the same buckets.

    Args:
        labels: ``<lo>-<hi>`` of the buckets, ascending.
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
    first_of_tail = sum(int(label.split("-")[0]) < threshold for label in labels)
    for axes, panel in zip(all_axes, panels, strict=True):
        axes.axvspan(first_of_tail - 0.5, len(labels) - 0.5, color=_TAIL_COLOR, zorder=0)
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
    colors = islice(cycle(_COLORS), panel.first_color, None)
    width = 0.8 / len(panel.series)
    values = [value for series in panel.series.values() for value in series]
    show_numbers = len(panel.series) * max(len(panel.number_format % value) for value in values) <= _CHARACTERS
    for number, (name, heights) in enumerate(panel.series.items()):
        left = [bucket - 0.4 + width * (number + 0.5) for bucket in range(len(heights))]
        bars = axes.bar(left, heights, width, color=next(colors), label=name, zorder=2)
        if show_numbers:
            axes.bar_label(bars, fmt=panel.number_format, fontsize=7, padding=1)
    low, high = min(values), max(values)
    if panel.from_zero:
        axes.axhline(0, color="0.3", linewidth=0.8, zorder=3)
        axes.margins(y=0.15)
    else:
        margin = max(0.05 * abs(high), high - low)
        axes.set_ylim(low - margin, high + 0.3 * margin)
