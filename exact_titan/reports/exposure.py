"""The exposure histogram of a split: the targets per context bucket, and their loss mass under any rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from exact_titan.dataset.dataset import PackedDataset, split_record
from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError, did_you_mean
from exact_titan.exposure import RULES, Buckets, Rule, TargetCounts, tail_mass
from exact_titan.reports.figures import Bars, bucket_figure
from exact_titan.sampling.mixture import Mixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_RULES = ("standard", "exact")


@dataclass(frozen=True)
class ExposureReport:
    """The targets per bucket, their expected weights and their expected loss mass under some rules.

    The rules have the default alpha and gamma.

    Args:
        counts: supervised targets per bucket of effective context, int64 ``[len(Buckets(window))]``.
        window: inputs per window.
        threshold: first context length of the tail, in tokens.
        rules: names of the rules, in the order of the report.
        joint: targets per bucket of effective context and of packed position, int64 ``[n, n]``
            (:meth:`PackedDataset.joint_counts`), if a rule needs the packed positions.

    Raises:
        InputError: if no bucket begins at the threshold or after the threshold.
    """

    counts: torch.Tensor
    window: int
    threshold: int
    rules: Sequence[str] = DEFAULT_RULES
    joint: torch.Tensor | None = None

    def __post_init__(self) -> None:
        highest = int(Buckets(self.window).lower_bounds[-1])
        if not 0 <= self.threshold <= highest:
            raise InputError(
                f"--threshold is {self.threshold}: with a window of {self.window} it lies between 0 and {highest}, "
                "the start of the last bucket"
            )

    @classmethod
    def of(
        cls, folder: Path, manifest: Manifest, split: str, *, threshold: int, rules: Sequence[str] = DEFAULT_RULES
    ) -> "ExposureReport":
        """Return the report of a split of a packed dataset. Only ``packed_position`` needs the shards.

        Raises:
            InputError: if a rule is unknown, the dataset has no such split, or a shard is missing or broken.
        """
        needs_joint = _check_rules(rules)
        counts = torch.tensor(split_record(manifest, split, folder).bucket_counts, dtype=torch.int64)
        joint = PackedDataset(folder, split, manifest=manifest).joint_counts() if needs_joint else None
        return cls(counts, manifest.window, threshold, tuple(dict.fromkeys(rules)), joint)

    @classmethod
    def of_mixture(cls, mixture: Mixture, *, threshold: int, rules: Sequence[str] = DEFAULT_RULES) -> "ExposureReport":
        """Return the report of several datasets, with the counts that a run uses (:attr:`Mixture.counts`).

        Raises:
            InputError: if a rule is unknown, or a shard is missing or broken.
        """
        joint = torch.from_numpy(mixture.joint_counts) if _check_rules(rules) else None
        return cls(torch.from_numpy(mixture.counts), mixture.window, threshold, tuple(dict.fromkeys(rules)), joint)

    @property
    def tail_start(self) -> int:
        """Lower bound of the tail's first bucket."""
        bounds = Buckets(self.window).lower_bounds
        return int(bounds[bounds >= self.threshold][0])

    @property
    def tail_percent(self) -> float:
        """The tail's share of the targets in percent."""
        return self.tail_mass_percent("standard")

    def tail_mass_percent(self, rule: str) -> float:
        """Return the tail's share of the loss mass under a rule, in percent."""
        bounds = Buckets(self.window).lower_bounds
        return 100 * tail_mass(self.counts, self.weights(rule), bounds, threshold=self.threshold)

    def weights(self, rule: str) -> torch.Tensor:
        """Return the expected weight of a target in each bucket of effective context under a rule: float64 ``[n]``."""
        counts = TargetCounts(self.counts, self.joint)
        found = RULES[rule]
        weights_n = found.weights(counts, Buckets(self.window).lower_bounds, threshold=self.threshold)
        return found.mean_weights(counts, weights_n)

    def mass_percent(self, rule: str) -> torch.Tensor:
        """Return each bucket's loss mass under a rule in percent of the total: float64 ``[n]``."""
        mass = self.counts * self.weights(rule)
        return 100 * mass / mass.sum()

    def table(self) -> str:
        """Return the histogram as text. Several weighted rules have a table of the weights and a table of the mass.

        Under some rules the targets of a bucket have different weights. The table then has their mean.
        """
        weighted = [rule.name for rule in self._rules if rule.is_weighted]
        weights = {name: [f"{weight:.4f}" for weight in self._with_mean(name)] for name in weighted}
        masses = {
            name: [f"{percent:.2f}" for percent in [*self.mass_percent(name).tolist(), 100]] for name in self.rules
        }
        if len(weighted) <= 1:
            weight = dict(zip(["weight"], weights.values(), strict=False))
            lines = self._lines(weight | {f"mass % {name}": cells for name, cells in masses.items()})
        else:
            lines = ["mean weight of a target", *self._lines(weights), "", "loss mass, %", *self._lines(masses)]
        tails = ", ".join(f"{name} {self.tail_mass_percent(name):.1f} %" for name in self.rules)
        lines.append(f"tail (>= {self.tail_start}): share {self.tail_percent:.1f} %, loss mass {tails}")
        return "\n".join(lines + [note for rule in self._rules for note in _notes(rule)])

    def _with_mean(self, rule: str) -> list[float]:
        """Return the weight of each bucket, and the mean over all targets."""
        weights_n = self.weights(rule)
        return [*weights_n.tolist(), float((self.counts * weights_n).sum() / self.counts.sum())]

    def _lines(self, columns: dict[str, list[str]]) -> list[str]:
        """Return the rows of all buckets and of the total. The columns stand after context, targets and share."""
        counts = [*self.counts.tolist(), int(self.counts.sum())]
        rows = zip(
            ["context", *Buckets(self.window).labels(), "total"],
            ["targets", *(f"{count:,}" for count in counts)],
            ["share %", *(f"{100 * count / counts[-1]:.2f}" for count in counts)],
            *([header, *cells] for header, cells in columns.items()),
            strict=True,
        )
        widths = [13, 15, 8, *(max(8, len(header)) for header in columns)]
        return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]

    def figure(self, title: str) -> "Figure":
        """Draw the loss mass per bucket under the rules side by side."""
        masses = {name: self.mass_percent(name).tolist() for name in self.rules}
        tails = [f"{self.tail_mass_percent(name):.1f} % under {name}" for name in self.rules]
        tails[0] = "tail: " + tails[0].replace(" %", " % of the loss")
        return bucket_figure(
            Buckets(self.window).labels(),
            [Bars("share of the loss mass, %", masses, "%.1f")],
            threshold=self.tail_start,
            title="\n".join([title, *(", ".join(tails[k : k + 3]) for k in range(0, len(tails), 3))]),
        )

    @property
    def _rules(self) -> list[Rule]:
        return [RULES[name] for name in self.rules]


def mixture_table(mixture: Mixture, *, threshold: int) -> str:
    """Return a row for every dataset of a mixture: its share, its windows, and the tail's share of its targets.

    A weighted mixture also has the epochs of every dataset at the place where the first dataset begins to repeat.
    """
    shares = mixture.shares
    places = mixture.places_once()
    total = sum(map(len, mixture.datasets))
    header = ["share %", "windows", "documents", f"tail % (>= {threshold})", *(["epochs"] if shares else []), "dataset"]
    rows = [header]
    for index, dataset in enumerate(mixture.datasets):
        share = shares.weights[index] / shares.period if shares else len(dataset) / total
        tail = ExposureReport(dataset.counts, dataset.window, threshold).tail_percent
        row = [f"{100 * share:.2f}", f"{len(dataset):,}", f"{dataset.record.documents:,}", f"{tail:.1f}"]
        if shares:
            row.append(f"{shares.turns(places)[index] / len(dataset):.2f}")
        rows.append([*row, str(dataset.folder)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]])
        for row in rows
    )


def _check_rules(rules: Sequence[str]) -> bool:
    """Return whether a rule needs the packed positions. Refuse unknown rules."""
    for name in rules:
        if name not in RULES:
            raise InputError(f"--rules has {name!r}: choose from {', '.join(RULES)}{did_you_mean(name, RULES)}")
    return any(RULES[name].needs_joint for name in rules)


def _notes(rule: Rule) -> Iterator[str]:
    """Yield how to read the numbers of a rule."""
    if rule.slot_name:
        yield f"{rule.name}: {rule.slot_name} decides the weight of a target; the table has the mean of a bucket"
    if rule.weighted_divisor:
        yield f"{rule.name}: the loss is divided by the sum of the weights of the step"
