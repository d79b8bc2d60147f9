"""Runs side by side: a table and a figure of the last validation of each, per bucket of effective context."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exact_titan.errors import InputError
from exact_titan.exposure import default_threshold
from exact_titan.reports.figures import Bars, bucket_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TAG = "validation_loss_by_context/"
_TOTAL = "validation_metrics/loss"


@dataclass(frozen=True)
class Validation:
    """The last validation of a run: plain cross-entropy in nats, in total and by bucket (``<lo>-<hi>``, ascending)."""

    name: str
    step: int
    total: float
    by_context: dict[str, float]


def read_validation(run: Path) -> Validation:
    """Read the last validation from the TensorBoard files below the ``dump_folder`` of a run.

    A resumed run has several TensorBoard files. For a step that stands in several files, the latest value counts.

    Raises:
        InputError: if no file has a validation.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    latest: dict[str, tuple[int, float, float]] = {}
    for folder in sorted({file.parent for file in run.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag == _TOTAL or re.fullmatch(rf"{_TAG}\d+-\d+", tag):
                found = max((scalar.step, scalar.wall_time, scalar.value) for scalar in events.Scalars(tag))
                latest[tag] = max(found, latest.get(tag, found))
    if _TOTAL not in latest:
        raise InputError(
            f"{run} has no validation in its TensorBoard files: train with --metrics.enable-tensorboard and "
            f"--validator.enable, and a dataset packed with --val-fraction"
        )
    buckets = sorted(
        (tag.removeprefix(_TAG) for tag in latest if tag != _TOTAL), key=lambda label: int(label.split("-")[0])
    )
    step, _, total = latest[_TOTAL]
    return Validation(run.name, step, total, {label: latest[_TAG + label][2] for label in buckets})


def read_validations(runs: Sequence[Path]) -> list[Validation]:
    """Read the last validation of every run.

    Raises:
        InputError: if no run is given, a run has no validation, or the windows of two validations differ in length.
    """
    if not runs:
        raise InputError("no run given: name the dump folders of the runs to compare")
    validations = [read_validation(run) for run in runs]
    for other in validations[1:]:
        if other.by_context.keys() != validations[0].by_context.keys():
            raise InputError(
                f"{other.name} was validated in other buckets than {validations[0].name}: compare like with like"
            )
    return validations


def table(runs: list[Validation]) -> str:
    """The plain cross-entropy per bucket, one column a run, and the differences from the first run."""
    others = runs[1:]
    head = [run.name for run in runs] + [f"{run.name} - {runs[0].name}" for run in others]
    width = max(12, *(len(text) + 2 for text in head))
    lines = [
        "Plain cross-entropy on the validation windows (nats per target), step "
        + ", ".join(str(run.step) for run in runs),
        f"{'context':>14}" + "".join(f"{text:>{width}}" for text in head),
    ]
    rows = {label: [run.by_context[label] for run in runs] for label in runs[0].by_context}
    for label, values in (rows | {"all": [run.total for run in runs]}).items():
        cells = [f"{value:>{width}.4f}" for value in values]
        cells += [f"{value - values[0]:>+{width}.4f}" for value in values[1:]]
        lines.append(f"{label:>14}" + "".join(cells))
    return "\n".join(lines)


def figure(runs: list[Validation], *, threshold: int | None = None) -> "Figure":
    """Draw the cross-entropy per bucket of every run. A second panel has the differences from the first run.

    Args:
        runs: the validations, of at least one run.
        threshold: first context length of the tail, in tokens. None: a quarter of the window.
    """
    labels = list(runs[0].by_context)
    if threshold is None:
        threshold = default_threshold(int(labels[-1].split("-")[1]))
    first, others = runs[0], runs[1:]
    panels = [
        Bars(
            "cross-entropy (nats)",
            {run.name: list(run.by_context.values()) for run in runs},
            "%.3f",
            from_zero=False,
            first_color=0 if others else 1,
        )
    ]
    if others:
        differences = {
            run.name: [run.by_context[label] - first.by_context[label] for label in labels] for run in others
        }
        panels.append(Bars(f"difference from {first.name}", differences, "%+.4f", first_color=1))
    return bucket_figure(
        labels,
        panels,
        threshold=threshold,
        title="Plain cross-entropy on the validation windows by effective context",
    )
