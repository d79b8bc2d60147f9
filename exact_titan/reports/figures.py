"""The picture of a validation that goes to TensorBoard: cross-entropy per bucket, side by side."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def loss_by_context_figure(by_context: dict[str, float], *, threshold: int, title: str) -> Figure:
    """Bars of the plain cross-entropy of each bucket, the tail shaded.

    Args:
        by_context: nats by bucket (``<lo>-<hi>``, ascending).
        threshold: first context length of the tail, in tokens.
    """
    labels = list(by_context)
    first_of_tail = sum(int(label.split("-")[0]) < threshold for label in labels)
    figure = Figure(figsize=(7, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvspan(first_of_tail - 0.5, len(labels) - 0.5, color="#f0e6d2", zorder=0)
    bars = axes.bar(range(len(labels)), list(by_context.values()), 0.7, color="#c2542d", zorder=2)
    axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=1)
    # From just below the lowest bar: the buckets differ by little of their height.
    low, high = min(by_context.values()), max(by_context.values())
    margin = max(0.05 * high, high - low)
    axes.set_ylim(low - margin, high + 0.3 * margin)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
    axes.set_xlabel("effective left context of the target, tokens (shaded: the tail)")
    axes.set_ylabel("cross-entropy (nats)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
