"""The last validation of several runs, per bucket of effective context: a table and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.exposure import default_threshold

_TAG = "validation_loss_by_context/"
_TOTAL = "validation_metrics/loss"
_COLORS = ("#8c96a3", "#c2542d", "#3b6ea5", "#5a8f4e", "#8a5aa8", "#b08d2e")


@dataclass(frozen=True)
class Validation:
    """A run's last validation: plain cross-entropy in nats, in total and by bucket (``<lo>-<hi>``, ascending)."""

    name: str
    step: int
    total: float
    by_context: dict[str, float]


def read_validation(run: Path) -> Validation:
    """Last validation in the TensorBoard files below a run's ``dump_folder``; a resumed run has several of them.

    Raises:
        InputError: if there is none.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    latest: dict[str, tuple[int, float, float]] = {}
    for folder in sorted({file.parent for file in run.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag == _TOTAL or tag.startswith(_TAG):
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
    """:func:`read_validation` of every run.

    Raises:
        InputError: if no run is given, one has no validation, or they were validated in windows of different lengths.
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
    """Plain cross-entropy per bucket, a column a run, and what each differs by from the first."""
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


def figure(runs: list[Validation], file: Path, *, threshold: int | None = None) -> None:
    """PNG: cross-entropy per bucket of every run, and below it what each differs by from the first; the tail shaded.

    Args:
        threshold: first context length of the tail, in tokens; None: a quarter of the window.

    Raises:
        InputError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = list(runs[0].by_context)
    if threshold is None:
        threshold = default_threshold(int(labels[-1].split("-")[1]))
    first_of_tail = next((i for i, label in enumerate(labels) if int(label.split("-")[0]) >= threshold), len(labels))
    fig = Figure(figsize=(9, 6.5), dpi=150, layout="constrained")
    FigureCanvasAgg(fig)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    places = range(len(labels))
    colors = dict(zip((run.name for run in runs), cycle(_COLORS), strict=False))
    for run in runs:
        top.plot(places, [run.by_context[label] for label in labels], "o-", color=colors[run.name], label=run.name)
    width = 0.8 / max(1, len(runs) - 1)
    for number, run in enumerate(runs[1:]):
        differences = [run.by_context[label] - runs[0].by_context[label] for label in labels]
        left = [place - 0.4 + width * (number + 0.5) for place in places]
        bottom.bar(left, differences, width, color=colors[run.name], zorder=2)
    for axes in (top, bottom):
        axes.axvspan(first_of_tail - 0.5, len(labels) - 0.5, color="#f0e6d2", zorder=0)
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    top.set_xlim(-0.5, len(labels) - 0.5)
    top.set_ylabel("cross-entropy (nats)")
    top.set_title(
        f"Plain cross-entropy on the validation windows by effective context\nshaded: the tail, {threshold} and more",
        fontsize=10,
    )
    top.legend(frameon=False)
    bottom.axhline(0, color="0.3", linewidth=0.8)
    bottom.set_ylabel(f"difference from {runs[0].name}")
    bottom.set_xticks(list(places), labels, rotation=35, ha="right")
    bottom.set_xlabel("effective left context of the target, tokens")
    try:
        fig.savefig(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be written: {error}") from error
