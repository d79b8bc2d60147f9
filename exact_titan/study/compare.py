"""The last validation of several runs, per bucket of effective context: a table and a figure."""

from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError

_TAG = "validation_loss_by_context/"
_TOTAL = "validation_metrics/loss"


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
    rows = [(label, [run.by_context.get(label) for run in runs]) for label in runs[0].by_context]
    rows.append(("all", [run.total for run in runs]))
    for label, values in rows:
        first = values[0]
        differences = [None if value is None or first is None else value - first for value in values[1:]]
        cells = [f"{'-' if value is None else format(value, '.4f'):>{width}}" for value in values]
        cells += [f"{'-' if value is None else format(value, '+.4f'):>{width}}" for value in differences]
        lines.append(f"{label:>14}" + "".join(cells))
    return "\n".join(lines)


def figure(runs: list[Validation], threshold: int, file: Path) -> None:
    """PNG: cross-entropy per bucket of every run, and below it what each differs by from the first; the tail shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(runs[0].by_context)
    first_of_tail = next((i for i, label in enumerate(labels) if int(label.split("-")[0]) >= threshold), len(labels))
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6.5), sharex=True, height_ratios=[3, 2], layout="constrained")
    places = range(len(labels))
    for run in runs:
        top.plot(places, [run.by_context.get(label, float("nan")) for label in labels], "o-", label=run.name)
    width = 0.8 / max(1, len(runs) - 1)
    for number, run in enumerate(runs[1:]):
        differences = [run.by_context.get(label, float("nan")) - runs[0].by_context[label] for label in labels]
        left = [place - 0.4 + width * (number + 0.5) for place in places]
        bottom.bar(left, differences, width, label=run.name, color=f"C{number + 1}")
    for axes in (top, bottom):
        axes.axvspan(first_of_tail - 0.5, len(labels) - 0.5, color="0.92", zorder=0)
        axes.grid(axis="y", alpha=0.4)
    top.set_xlim(-0.5, len(labels) - 0.5)
    top.set_ylabel("cross-entropy (nats)")
    top.set_title(
        f"Plain cross-entropy on the validation windows by effective context (grey: tail, {threshold} and more)"
    )
    top.legend()
    bottom.axhline(0, color="0.3", linewidth=0.8)
    bottom.set_ylabel(f"difference from {runs[0].name}")
    bottom.set_xticks(list(places), labels, rotation=35, ha="right")
    bottom.set_xlabel("effective context of the target (tokens)")
    fig.savefig(file, dpi=150)
    plt.close(fig)
