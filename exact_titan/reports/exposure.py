"""The exposure histogram of a split: the targets per context bucket, and their loss mass with and without EXACT."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from exact_titan.dataset.manifest import SplitRecord
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets, bucket_weights, tail_mass
from exact_titan.reports.figures import Bars, bucket_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        return bucket_weights(self.counts, Buckets(self.window).lower_bounds, threshold=self.threshold)

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

    def figure(self, title: str) -> "Figure":
        """Draw the loss mass per bucket under both rules side by side."""
        standard, exact = self.mass_percent()
        plain_tail, exact_tail = (100 * mass for mass in self.tail_masses)
        return bucket_figure(
            Buckets(self.window).labels(),
            [Bars("share of the loss mass, %", {"standard": standard.tolist(), "exact": exact.tolist()}, "%.1f")],
            threshold=self.tail_start,
            title=f"{title}\ntail: {plain_tail:.1f} % of the loss under standard, {exact_tail:.1f} % under exact",
        )
