"""Draw docs/images/exact.png, the figure of the README, from a packed dataset.

python docs/images/exact.py PACKED [--window K]
"""

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from exact_titan.dataset import PackedDataset
from exact_titan.exposure import bucket_weights

_GREY, _RUST, _SAND = "#8c96a3", "#c2542d", "#f0e6d2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--window", type=int, default=0, help="window to show on top (default: %(default)s)")
    options = parser.parse_args()
    dataset = PackedDataset(options.packed)
    threshold = dataset.window // 4
    positions = dataset[options.window]["positions"].numpy()
    borders = dataset[options.window]["cu_seqlens"].tolist()

    figure = Figure(figsize=(10, 6.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[2, 3])

    top.fill_between(range(dataset.window), positions + 1, color=_GREY, linewidth=0, step="post")
    top.fill_between(
        range(dataset.window), positions + 1, threshold, where=positions + 1 >= threshold, color=_RUST, linewidth=0
    )
    top.axhline(threshold, color=_RUST, linewidth=0.8, linestyle="--")
    for border in borders[1:-1]:
        top.axvline(border, color="white", linewidth=1.2)
    top.set_xlim(0, dataset.window)
    top.set_ylim(0)
    top.set_xlabel(f"position in one packed window of {dataset.window} tokens")
    top.set_ylabel("effective left context")
    top.text(dataset.window * 0.005, threshold * 1.06, f"tail: {threshold} and more", color=_RUST, fontsize=9)
    top.set_title(
        "A target sees only its own document: in a packed window most see far less than the window holds", fontsize=11
    )

    labels = dataset.buckets.labels()
    bounds = dataset.buckets.lower_bounds
    weights = bucket_weights(dataset.counts, bounds, threshold=threshold)
    share = 100 * dataset.counts.double() / dataset.counts.sum()
    mass = dataset.counts * weights.double()
    mass = 100 * mass / mass.sum()
    first = int((bounds < threshold).sum())
    where = range(len(labels))
    bottom.axvspan(first - 0.5, len(labels) - 0.5, color=_SAND, zorder=0)
    bars = bottom.bar([x - 0.2 for x in where], share.tolist(), 0.4, color=_GREY, label="plain loss", zorder=2)
    bottom.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    bars = bottom.bar([x + 0.2 for x in where], mass.tolist(), 0.4, color=_RUST, label="EXACT", zorder=2)
    bottom.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    for x in where[first:]:
        height = max(share[x], mass[x]) + 2.2
        bottom.text(x, height, f"weight {weights[x]:.3f}", color=_RUST, ha="center", fontsize=8)
    bottom.set_xlim(-0.5, len(labels) - 0.5)
    bottom.set_xticks(list(where), labels, rotation=30, ha="right", fontsize=8)
    bottom.set_xlabel("effective left context of the target, tokens")
    bottom.set_ylabel("share of the loss, %")
    tail = [values[first:].sum().item() for values in (share, mass)]
    bottom.set_title(
        f"EXACT gives the tail a fixed extra weight, more to its rarer part: "
        f"{tail[0]:.1f} % of the loss becomes {tail[1]:.1f} %",
        fontsize=11,
    )
    bottom.legend(frameon=False, loc="upper left")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
