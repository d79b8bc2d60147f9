"""The rows of the CSV files of a study's report, with all digits."""

from collections.abc import Iterator
from typing import Any

from exact_titan.study.comparisons import CheckpointComparison, Comparison, Pairs
from exact_titan.study.weighting import LossMass


def comparison_row(one: Comparison, pairs: Pairs) -> dict[str, Any]:
    """Return an arm against the baseline, in an outcome or a bucket, as a row."""
    test = one.test
    return {
        "name": one.name,
        "primary": one.name == pairs.primary.name,
        "step": one.step,
        "weights": one.weights,
        "start": "all" if one.start is None else one.start,
        "arm": one.arm,
        "n": test.n,
        "targets": one.targets,
        "baseline_value": one.baseline,
        "arm_value": one.value,
        "difference": test.mean,
        "half_width": test.error,
        "p_t": test.p,
        "p_sign_flip": test.sign_flip_p,
        "detectable": test.detectable,
        "n_needed": test.pairs_needed,
    }


def pair_rows(one: Comparison) -> Iterator[dict[str, Any]]:
    """Yield a row for every pair of a comparison. ``counts``: whether the pair counts in the test."""
    for (start, seed), difference in one.differences.items():
        yield {
            "name": one.name,
            "step": one.step,
            "weights": one.weights,
            "arm": one.arm,
            "start": start,
            "seed": seed,
            "difference": difference,
            "counts": (start, seed) in one.counted,
        }


def loss_mass_rows(one: LossMass) -> Iterator[dict[str, Any]]:
    """Yield a row for every bucket of an arm."""
    for label, percent in one.percent.items():
        yield {
            "arm": one.arm,
            "bucket": label,
            "targets": one.targets[label],
            "weight": one.weights[label],
            "percent": percent,
        }


def checkpoint_row(one: CheckpointComparison) -> dict[str, Any]:
    """Return the two checkpoints of a pair as a row."""
    return {
        "outcome": one.outcome.name,
        "step": one.step,
        "weights": one.weights,
        "arm": one.arm,
        "start": one.start,
        "seed": one.seed,
        "macro_difference": one.difference.value,
        "half_width": one.difference.error,
        "documents": one.difference.documents,
        "buckets": one.difference.cells,
    }
