"""The bar figure: heights, the shaded tail, axes and numbers."""

import pytest

from exact_titan.reports.figures import Bars, bucket_figure

LABELS = ["0-7", "8-15", "16-31", "32-64"]


def heights(axes) -> list[float]:
    """Return the heights of the bars, one series after another."""
    return [bar.get_height() for container in axes.containers for bar in container]


def test_two_panels_show_every_value_and_the_tail():
    runs = {"one": [4.0, 3.0, 2.0, 1.0], "other": [5.0, 4.0, 3.0, 2.5]}
    differences = {"other": [1.0, 1.0, 1.0, 1.5]}
    panels = [Bars("nats", runs, "%.1f", from_zero=False), Bars("difference", differences, "%+.1f", first_color=1)]
    figure = bucket_figure(LABELS, panels, threshold=16, title="title")
    top, bottom = figure.axes
    assert heights(top) == [4.0, 3.0, 2.0, 1.0, 5.0, 4.0, 3.0, 2.5]
    assert heights(bottom) == [1.0, 1.0, 1.0, 1.5]
    assert [label.get_text() for label in bottom.get_xticklabels()] == LABELS
    assert "16 and more" in bottom.get_xlabel()
    for axes in (top, bottom):
        tail = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        assert (tail.x0, tail.x1) == pytest.approx((1.5, 3.5))
    # The axis of values far from 0 does not start at 0. The axis of differences contains 0.
    assert bottom.get_ylim()[0] <= 0 <= bottom.get_ylim()[1]
    other = top.containers[1][0].get_facecolor()
    assert other == bottom.containers[0][0].get_facecolor() != top.containers[0][0].get_facecolor()


def test_an_axis_from_just_below_the_lowest_value():
    figure = bucket_figure(
        LABELS, [Bars("nats", {"": [4.0, 3.9, 3.8, 3.7]}, "%.3f", from_zero=False)], threshold=16, title=""
    )
    low, high = figure.axes[0].get_ylim()
    assert 3.3 < low < 3.7
    assert 4.0 < high < 4.2


@pytest.mark.parametrize(("series", "shown"), [(1, 4), (2, 8), (3, 0)])
def test_numbers_that_would_overlap_are_left_out(series, shown):
    values = {f"run {number}": [1.5, 2.5, 3.5, 4.5] for number in range(series)}
    figure = bucket_figure(LABELS, [Bars("nats", values, "%.3f")], threshold=16, title="")
    assert len([text for text in figure.axes[0].texts if text.get_text()]) == shown
