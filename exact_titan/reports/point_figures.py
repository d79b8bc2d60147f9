"""Figures with points and error bars: the shared parts of the figures of studies and evaluations.

Every series has a color, a marker and a line style, so that the figures are readable in black and white. matplotlib is
imported when a figure is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from exact_titan.reports.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)), (0, (8, 2, 1, 2)), (0, (3, 3)))


@dataclass(frozen=True)
class Points:
    """The points of a series: places on the x axis, values, and the lengths of the error bars down and up."""

    name: str
    x: list[float]
    y: list[float]
    errors: Sequence[tuple[float, float] | None]


def new_panels(panels: int, *, columns: int, width: float = 9.0, height: float = 2.7) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width if columns > 1 else max(7.0, min(width, 11.0)), 1.2 + height * rows), dpi=150)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in grid[panels:]:
        empty.set_axis_off()
    return figure, list(grid[:panels])


def draw_points(axes: "Axes", series: Sequence[Points], *, spread: float, joined: bool, baseline: bool = False) -> None:
    """Draw the points of every series.

    Args:
        axes: the panel.
        series: the series.
        spread: distance of two series on the x axis. The bars of two series at one place would overlap.
        joined: whether lines join the points.
        baseline: whether the first series is the baseline, in grey. Otherwise the values are differences from 0.
    """
    colors = COLORS if baseline else COLORS[1:] + COLORS[:1]
    looks = zip(cycle(colors), cycle(_MARKERS), cycle(_LINES), strict=False)
    for number, (points, (color, marker, line)) in enumerate(zip(series, looks, strict=False)):
        offset = spread * (number - (len(series) - 1) / 2)
        axes.errorbar(
            [x + offset for x in points.x],
            points.y,
            yerr=[[math.nan if error is None else error[side] for error in points.errors] for side in (0, 1)],
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
    if not baseline:
        axes.axhline(0, color="0.3", linewidth=0.8, zorder=2)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def finish(figure: "Figure", panels: "Sequence[Axes]", title: str) -> None:
    """Put the title above the panels, and one legend for all panels below."""
    handles, names = panels[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=10)
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=8)
