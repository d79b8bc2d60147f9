"""Runs side by side: the last common validation of each, per bucket of effective context, with errors.

1. :func:`parse_sides` reads the arguments: a run, or a name with several runs that differ in the seed.
2. :func:`compare` finds the last step at which all runs have validated. The function refuses runs whose validation
   windows or thresholds differ.
3. With one run a side, the errors are standard errors over documents. The error of a difference is the paired error.
   These errors describe the two checkpoints, not the training: another seed moves the values as well.
4. With several runs a side, the values are means over the runs. The n-th run of a side forms a pair with the n-th run
   of the first side. The error of a difference is half of Student's 95 % interval over the pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exact_titan.errors import InputError
from exact_titan.exposure import Buckets
from exact_titan.reports.comparison_rows import (
    ALL,
    BELOW_TAIL,
    TAIL,
    Row,
    Side,
    buckets_of_rows,
    row_over_documents,
    row_over_pairs,
)
from exact_titan.reports.figures import Bars, bucket_figure
from exact_titan.runs.metrics_log import FILE_NAME, read_validations
from exact_titan.runs.target_losses import read_target_losses, target_losses_file
from exact_titan.study.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """The last common validation of all runs.

    Attributes:
        sides: the sides. Differences are from the first side.
        step: the step of the validation.
        windows: the validation windows, as in ``metrics.jsonl``.
        threshold: first effective context of the tail, in tokens.
        rows: the buckets with targets in ascending order, then below the tail, tail and all.
        notes: sentences about the errors.
    """

    sides: list[Side]
    step: int
    windows: dict[str, Any]
    threshold: int
    rows: list[Row]
    notes: list[str]


def parse_sides(arguments: Sequence[str]) -> list[Side]:
    """Return the sides of a comparison: ``FOLDER``, or ``NAME=FOLDER,FOLDER,…`` for several runs of one side.

    A side without a name gets the part of its path that differs from the paths of the other sides.

    Raises:
        InputError: if there is no run, if a run stands twice, or if the sides have different numbers of runs.
    """
    if not arguments:
        raise InputError("no run given: name the dump folders of the runs to compare")
    named: list[tuple[str, tuple[Path, ...]]] = []
    for argument in arguments:
        name, equals, folders = argument.partition("=")
        # A folder may have a comma or an equals sign in its name.
        whole = Path(argument).is_dir() or not (equals or "," in argument)
        names = [argument] if whole else (folders if equals else argument).split(",")
        named.append((name if equals and not whole else "", tuple(Path(one) for one in names if one)))
    runs = [run for _, side in named for run in side]
    twice = next((run for run in runs if sum(run.resolve() == other.resolve() for other in runs) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice: name every run once")
    short = iter(_short_names([side[0] for name, side in named if side and not name]))
    sides = [Side(name or next(short, ""), side) for name, side in named]
    for side in sides:
        if not side.runs or not side.name:
            raise InputError(f"{arguments[sides.index(side)]!r} names no run: write FOLDER, or NAME=FOLDER,FOLDER")
        if len(side.runs) != len(sides[0].runs):
            raise InputError(
                f"{sides[0].name} has {len(sides[0].runs)} runs and {side.name} has {len(side.runs)}: every run of a "
                f"side needs a partner, so give every side the same number of runs"
            )
    return sides


def compare(sides: Sequence[Side], *, threshold: int | None = None) -> Comparison:
    """Compare the last validation that all runs have in common.

    Args:
        sides: the sides, each with the same number of runs.
        threshold: first effective context of the tail, in tokens. None: the threshold of the runs.

    Raises:
        InputError: if a run has no validation, if the validation windows or the thresholds differ, or if no step has a
            validation of all runs.
    """
    runs = [run for side in sides for run in side.runs]
    step, records = _last_common(runs)
    first = records[runs[0]]
    threshold = _threshold(records, threshold)
    targets = {run: read_target_losses(run, step) for run in runs}
    missing = [run for run, one in targets.items() if one is None]
    for run, one in targets.items():
        if one is not None and vars(one.windows) != first["windows"]:
            file = target_losses_file(run, step)
            raise InputError(f"{file} has other windows than {run / FILE_NAME}: copy the run again")
    rows = []
    for name, buckets in buckets_of_rows(first, threshold).items():
        count = sum(first["buckets"][label]["targets"] for label in buckets)
        if not count and name not in (BELOW_TAIL, TAIL, ALL):
            continue
        if len(sides[0].runs) > 1:
            rows.append(row_over_pairs(name, count, sides, records, buckets))
        else:
            rows.append(row_over_documents(name, count, sides, records, targets, buckets))
    return Comparison(list(sides), step, first["windows"], threshold, rows, _notes(sides, step, missing))


def table(comparison: Comparison) -> str:
    """Return the comparison as text."""
    sides = comparison.sides
    windows = comparison.windows
    cells = [["context", "targets", *(side.name for side in sides)]]
    cells[0] += [f"{side.name} - {sides[0].name}" for side in sides[1:]]
    for row in comparison.rows:
        values = [_cell(value, ".4f") for value in row.values] + [_cell(value, "+.4f") for value in row.differences]
        cells.append([row.name, f"{row.targets:,}", *values])
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(
        [
            f"Plain cross-entropy on the validation windows (nats per target), step {comparison.step}",
            f"{windows['windows']:,} windows of {windows['window']:,} tokens, split {windows['split']}, fingerprint "
            f"{windows['fingerprint'][:12]}; tail: context of {comparison.threshold:,} or more",
            *lines,
            *comparison.notes,
        ]
    )


def figure(comparison: Comparison) -> "Figure":
    """Draw the cross-entropy of every side per bucket. A second panel has the differences from the first side."""
    sides = comparison.sides
    rows = [row for row in comparison.rows if row.targets]
    series = {side.name: [row.values[number].value for row in rows] for number, side in enumerate(sides)}
    errors = {side.name: [row.values[number].error for row in rows] for number, side in enumerate(sides)}
    first_color = 1 if len(sides) == 1 else 0
    panels = [Bars("cross-entropy (nats)", series, "%.3f", from_zero=False, first_color=first_color, errors=errors)]
    if len(sides) > 1:
        names = [side.name for side in sides[1:]]
        differences = {name: [row.differences[number].value for row in rows] for number, name in enumerate(names)}
        errors = {name: [row.differences[number].error for row in rows] for number, name in enumerate(names)}
        panels.append(Bars(f"difference from {sides[0].name}", differences, "%+.4f", first_color=1, errors=errors))
    return bucket_figure(
        [row.name for row in rows],
        panels,
        threshold=comparison.threshold,
        title=f"Plain cross-entropy on the validation windows by effective context, step {comparison.step}",
    )


def _last_common(runs: Sequence[Path]) -> tuple[int, dict[Path, dict[str, Any]]]:
    """Return the last step with a validation of every run, and the record of each run.

    The validations of a run may have different windows, after a resume with another dataset. Only validations on the
    windows of the first run's last validation count.
    """
    found = {run: read_validations(run) for run in runs}
    for run, records in found.items():
        if not records:
            raise InputError(
                f"{run / FILE_NAME} has no validation: train with --validator.enable and a dataset packed with "
                f"--val-fraction"
            )
        for record in records:
            if missing := {"windows", "buckets", "threshold"} - record.keys():
                raise InputError(
                    f"{run / FILE_NAME}: the validation of step {record['step']} has no {min(missing)}: the file is "
                    f"not from this version of exact_titan"
                )
    windows = found[runs[0]][-1]["windows"]
    if windows is None:
        raise InputError(f"{runs[0]} was not validated on a packed dataset: compare needs equal validation windows")
    by_step = {run: {one["step"]: one for one in found[run] if one["windows"] == windows} for run in runs}
    for run in runs:
        if not by_step[run]:
            other = found[run][-1]["windows"]
            raise InputError(
                f"{run} and {runs[0]} have different validation windows: {_difference(other, windows)}: validate both "
                f"runs on one dataset"
            )
    common = set.intersection(*(set(steps) for steps in by_step.values()))
    if not common:
        steps = "; ".join(f"{run}: {', '.join(map(str, by_step[run]))}" for run in runs)
        raise InputError(f"the runs have no step with a validation of every run ({steps}): use one validator.freq")
    step = max(common)
    return step, {run: by_step[run][step] for run in runs}


def _difference(other: dict[str, Any] | None, windows: dict[str, Any]) -> str:
    if other is None:
        return "a dataset that is not packed"
    return "; ".join(f"{name} {other[name]}, not {value}" for name, value in windows.items() if other[name] != value)


def _threshold(records: dict[Path, dict[str, Any]], wanted: int | None) -> int:
    run, first = next(iter(records.items()))
    if wanted is not None:
        highest = int(Buckets(first["windows"]["window"]).lower_bounds[-1])
        if not 0 < wanted <= highest:
            raise InputError(
                f"--threshold is {wanted}: it must be between 1 and {highest}, the start of the last bucket"
            )
        return wanted
    for other, record in records.items():
        if record["threshold"] != first["threshold"]:
            raise InputError(
                f"the tail of {run} starts at {first['threshold']}, and the tail of {other} at {record['threshold']} "
                f"(loss.threshold): name the start of the tail with --threshold"
            )
    return first["threshold"]


def _notes(sides: Sequence[Side], step: int, missing: Sequence[Path]) -> list[str]:
    if len(sides[0].runs) > 1:
        pairs = len(sides[0].runs)
        return [f"values: means over {pairs} runs; ± is half of Student's 95 % interval over {pairs} pairs of runs"]
    notes = [
        "± is the standard error over documents; for a difference, the paired error. It does not contain the noise of "
        "training: compare several seeds for that"
    ]
    notes += [
        f"no standard error: {target_losses_file(run, step)} is missing; a run keeps the targets of its last "
        f"validations (validator.keep_targets)"
        for run in missing
    ]
    return notes[len(missing) == len(sides) :]


def _cell(estimate: Estimate, number_format: str) -> str:
    if math.isnan(estimate.value):  # no targets
        return "-"
    error = "" if estimate.error is None else f" ±{estimate.error:.4f}"
    return f"{estimate.value:{number_format}}{error}"


def _short_names(runs: Sequence[Path]) -> list[str]:
    """Return for each path the parts that differ from the other paths, as short as possible."""
    parts = [list(run.resolve().parts) for run in runs]
    if len(parts) == 1:
        return [parts[0][-1]]
    for end in (-1, 0):  # the common parts at the end, then at the beginning
        while all(len(one) > 1 for one in parts) and len({one[end] for one in parts}) == 1:
            for one in parts:
                one.pop(end)
    return ["/".join(one) for one in parts]
