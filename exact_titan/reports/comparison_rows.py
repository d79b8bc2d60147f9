"""The rows of a comparison of runs: a bucket of effective context, or the tail, below the tail, or all targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exact_titan.runs.target_losses import TargetLosses
from exact_titan.study.checkpoint_difference import mean_over_documents
from exact_titan.study.statistics import Estimate, mean_over_pairs

BELOW_TAIL, TAIL, ALL = "below the tail", "tail", "all"


@dataclass(frozen=True)
class Side:
    """One run, or several runs that differ in the seed."""

    name: str
    runs: tuple[Path, ...]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: a bucket ``<lo>-<hi>``, or one of ``below the tail``, ``tail`` and ``all``.
        targets: number of targets.
        values: plain cross-entropy of each side in nats.
        differences: difference of each side from the first side. The first side has none.
    """

    name: str
    targets: int
    values: list[Estimate]
    differences: list[Estimate]


def buckets_of_rows(record: dict[str, Any], threshold: int) -> dict[str, list[str]]:
    """Return the buckets of each row, by the name of the row."""
    labels = list(record["buckets"])
    tail = [label for label in labels if int(label.split("-")[0]) >= threshold]
    below = [label for label in labels if label not in tail]
    return {label: [label] for label in labels} | {BELOW_TAIL: below, TAIL: tail, ALL: labels}


def _mean(record: dict[str, Any], buckets: Sequence[str]) -> float:
    rows = [record["buckets"][label] for label in buckets if record["buckets"][label]["targets"]]
    total = sum(row["targets"] for row in rows)
    return sum(row["cross_entropy"] * row["targets"] for row in rows) / total if total else float("nan")


def row_over_pairs(
    name: str, count: int, sides: Sequence[Side], records: dict[Path, dict[str, Any]], buckets: Sequence[str]
) -> Row:
    """Return a row of sides with several runs. The errors of the differences are intervals over the pairs of runs."""
    means = [[_mean(records[run], buckets) for run in side.runs] for side in sides]
    values = [Estimate(mean_over_pairs(side).value, None) for side in means]
    pairs = [[one - other for one, other in zip(side, means[0], strict=True)] for side in means[1:]]
    return Row(name, count, values, [mean_over_pairs(differences) for differences in pairs])


def row_over_documents(
    name: str,
    count: int,
    sides: Sequence[Side],
    records: dict[Path, dict[str, Any]],
    targets: dict[Path, TargetLosses | None],
    buckets: Sequence[str],
) -> Row:
    """Return a row of sides with one run. The errors are standard errors over the documents of ``targets``."""
    runs = [side.runs[0] for side in sides]
    means = [_mean(records[run], buckets) for run in runs]
    kept = [targets[run] for run in runs]
    labels = list(records[runs[0]]["buckets"])
    wanted = np.isin(np.arange(len(labels)), [labels.index(label) for label in buckets])

    def estimate(mean: float, losses: TargetLosses | None, other: TargetLosses | None = None) -> Estimate:
        if losses is None:
            return Estimate(mean, None)
        row_T = wanted[losses.bucket]
        values_T = losses.cross_entropy[row_T].astype(np.float64)
        if other is not None:
            values_T -= other.cross_entropy[row_T]
        return Estimate(mean, mean_over_documents(values_T, losses.document[row_T]).error)

    values = [estimate(mean, losses) for mean, losses in zip(means, kept, strict=True)]
    differences = [
        Estimate(mean - means[0], None if kept[0] is None or losses is None else estimate(0, losses, kept[0]).error)
        for mean, losses in zip(means[1:], kept[1:], strict=True)
    ]
    return Row(name, count, values, differences)
