"""The exposure histogram of a split: the targets per context bucket, and their loss mass with and without EXACT."""

from dataclasses import dataclass
from pathlib import Path

import torch

from exact_titan.dataset.manifest import SplitRecord
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets, bucket_weights, tail_mass
from exact_titan.exposure.allocation import MIN_COUNT


@dataclass(frozen=True)
class ExposureReport:
    """The targets per bucket, their weights and their loss mass under ``standard`` and ``exact``.

    ``exact`` uses the default alpha and gamma.

    Args:
        counts: supervised targets per bucket, int64 ``[len(Buckets(window))]``.
        window: inputs per window.
        threshold: first context length of the tail, in tokens.

    Raises:
        InputError: if no bucket begins at the threshold or after the threshold.
    """

    counts: torch.Tensor
    window: int
    threshold: int

    def __post_init__(self) -> None:
        highest = int(Buckets(self.window).lower_bounds[-1])
        if not 0 <= self.threshold <= highest:
            raise InputError(
                f"--threshold is {self.threshold}: with a window of {self.window} it lies between 0 and {highest}, "
                "the start of the last bucket"
            )

    @classmethod
    def of(cls, record: SplitRecord, window: int, threshold: int) -> "ExposureReport":
        """Return the report of a split of a packed dataset."""
        return cls(torch.tensor(record.bucket_counts, dtype=torch.int64), window, threshold)

    @property
    def weights(self) -> torch.Tensor:
        """float32 ``[n]``: weight of a target in each bucket under ``exact``."""
        return bucket_weights(
            self.counts, Buckets(self.window).lower_bounds, threshold=self.threshold, min_count=MIN_COUNT
        )

    @property
    def tail_masses(self) -> tuple[float, float]:
        """The tail's share of the loss mass under ``standard`` and under ``exact``.

        The share under ``standard`` is the tail's share of the targets.
        """
        bounds = Buckets(self.window).lower_bounds
        standard, exact = (
            tail_mass(self.counts, weights, bounds, threshold=self.threshold)
            for weights in (torch.ones_like(self.weights), self.weights)
        )
        return standard, exact

    @property
    def tail_start(self) -> int:
        """Lower bound of the tail's first bucket."""
        bounds = Buckets(self.window).lower_bounds
        return int(bounds[bounds >= self.threshold][0])

    def mass_percent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each bucket's loss mass in percent of the total, under ``standard`` and ``exact``: float64 ``[n]``."""
        standard = self.counts.double()
        exact = standard * self.weights
        return 100 * standard / standard.sum(), 100 * exact / exact.sum()

    def table(self) -> str:
        """Return the histogram as text."""
        standard, exact = self.mass_percent()
        names = f"{'context':>13}  {'targets':>15}  {'share %':>8}  {'weight':>8}"
        lines = [f"{names}  {'mass % standard':>15}  {'mass % exact':>12}"]
        rows = zip(Buckets(self.window).labels(), self.counts, self.weights, standard, exact, strict=True)
        for label, count, weight, plain, weighted in rows:
            lines.append(f"{label:>13}  {count:>15,}  {plain:>8.2f}  {weight:>8.4f}  {plain:>15.2f}  {weighted:>12.2f}")
        total = int(self.counts.sum())
        mean = float((self.counts * self.weights.double()).sum() / total)
        lines.append(f"{'total':>13}  {total:>15,}  {100:>8.2f}  {mean:>8.4f}  {100:>15.2f}  {100:>12.2f}")
        plain_tail, exact_tail = (100 * mass for mass in self.tail_masses)
        lines.append(
            f"tail (>= {self.tail_start}): share {plain_tail:.1f} %, loss mass standard {plain_tail:.1f} %, "
            f"exact {exact_tail:.1f} %"
        )
        return "\n".join(lines)

    def plot(self, file: Path, title: str) -> None:
        """Write a PNG of the loss mass per bucket. The bars of both rules are side by side, and the tail is shaded.

        Raises:
            InputError: if the file cannot be written.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        labels = Buckets(self.window).labels()
        standard, exact = self.mass_percent()
        first = Buckets(self.window).lower_bounds.tolist().index(self.tail_start)
        figure = Figure(figsize=(max(6.4, 0.8 * len(labels) + 2), 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.axvspan(first - 0.5, len(labels) - 0.5, color="#f0e6d2", label="tail", zorder=0)
        where = range(len(labels))
        left = axes.bar([x - 0.2 for x in where], standard.tolist(), 0.4, color="#8c96a3", label="standard", zorder=2)
        right = axes.bar([x + 0.2 for x in where], exact.tolist(), 0.4, color="#c2542d", label="exact", zorder=2)
        for bars in (left, right):
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
        plain_tail, exact_tail = (100 * mass for mass in self.tail_masses)
        axes.set_title(
            f"{title}\ntail (context ≥ {self.tail_start}): {plain_tail:.1f} % of the loss under standard, "
            f"{exact_tail:.1f} % under exact",
            fontsize=10,
        )
        axes.set_xticks(list(where), [label.replace("-", "–") for label in labels], rotation=35, ha="right", fontsize=8)
        axes.set_xlabel("effective left context of the target, tokens")
        axes.set_ylabel("share of the loss mass, %")
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.margins(y=0.12)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=1)
        axes.legend(loc="upper left", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        try:
            figure.savefig(file, format="png")
        except OSError as error:
            raise InputError(f"--png {file} cannot be written: {error.strerror}") from error
