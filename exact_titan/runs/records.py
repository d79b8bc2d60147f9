"""The values of a log step and of a validation. TensorBoard, W&B, the console and ``metrics.jsonl`` get these records.

A record is made once, on every rank, and does not change. :func:`as_json` gives the JSON object of ``metrics.jsonl``.
``docs/metrics.md`` lists the fields.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from exact_titan.system.typed_values import wrong_value

Weights = Literal["last", "ema"]
"""The weights of a validation: of the last optimizer step, or their exponential moving average."""


@dataclass(frozen=True)
class Mean:
    """The mean plain cross-entropy of some targets in nats, ``None`` without targets, and the number of targets."""

    cross_entropy: float | None
    targets: int

    @classmethod
    def of(cls, cross_entropy: float, targets: float) -> "Mean":
        """Return the mean of ``targets`` targets from the sum of their cross-entropies."""
        return cls(cross_entropy / targets if targets else None, int(targets))


@dataclass(frozen=True)
class ContextLosses:
    """Plain cross-entropy by effective context: of all targets, below the tail, in the tail, and per bucket.

    Attributes:
        cross_entropy: mean over all targets in nats, ``None`` without targets.
        targets: number of targets.
        below_tail, tail: the targets below and in the tail.
        threshold: first effective context of the tail, in tokens.
        buckets: the targets of each bucket by ``<lo>-<hi>``, ascending, buckets without targets included.
    """

    cross_entropy: float | None
    targets: int
    below_tail: Mean
    tail: Mean
    threshold: int
    buckets: dict[str, Mean]

    @classmethod
    def of(
        cls, sums_2n: Sequence[Sequence[float]], labels: Sequence[str], lower_bounds: Sequence[int], threshold: int
    ) -> "ContextLosses":
        """Return the means from sums.

        Args:
            sums_2n: sum of the cross-entropies and number of targets of each bucket, over all ranks.
            labels: ``<lo>-<hi>`` of the n buckets.
            lower_bounds: lower bound of the n buckets.
            threshold: first effective context of the tail, in tokens.
        """
        ce_n, count_n = sums_2n
        rows = list(zip(ce_n, count_n, lower_bounds, strict=True))

        def mean_of(rows: Sequence[tuple[float, float, int]]) -> Mean:
            return Mean.of(sum(ce for ce, _, _ in rows), sum(count for _, count, _ in rows))

        total = mean_of(rows)
        return cls(
            cross_entropy=total.cross_entropy,
            targets=total.targets,
            below_tail=mean_of([row for row in rows if row[2] < threshold]),
            tail=mean_of([row for row in rows if row[2] >= threshold]),
            threshold=threshold,
            buckets={label: Mean.of(ce, count) for label, (ce, count, _) in zip(labels, rows, strict=True)},
        )


@dataclass(frozen=True)
class Memory:
    """Peak memory of rank 0's device since the last log step or validation. On the CPU: peak memory of the process."""

    max_active_gib: float
    max_active_percent: float
    max_reserved_gib: float
    max_reserved_percent: float
    alloc_retries: int
    ooms: int


@dataclass(frozen=True)
class Pace:
    """The time of the parts of a step, the imbalance of the ranks, and the remaining work.

    Attributes:
        step_seconds: seconds a step on the slowest rank, by part (``data``, ``forward_backward``, ``optimizer``,
            ``checkpoint``).
        imbalance_attention: attention work of the rank with the most work, divided by the mean.
        imbalance_data_seconds: wait of the slowest rank for data, minus the mean wait, in seconds a step.
        tokens_left: tokens until the end of the run.
        hours_left: hours until the end of the run, at the mean pace since the first log step of this process. ``None``
            at that first log step.
    """

    step_seconds: dict[str, float]
    imbalance_attention: float
    imbalance_data_seconds: float
    tokens_left: int
    hours_left: float | None


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """The values of a log step.

    Attributes:
        step: the optimizer step, from 1.
        steps: optimizer steps of the run.
        time: Unix time in seconds.
        loss: weighted loss of this step alone, over all ranks. With ``max_loss``, the highest mean of a rank.
        losses: plain cross-entropy over the steps since the last log step.
        weights: mean weight of the targets of each bucket since the last log step, by ``<lo>-<hi>``. A bucket without
            targets has the expected weight of its targets.
        tail_loss_mass: share of the loss mass in the tail since the last log step, between 0 and 1.
        learning_rates: learning rate of this step by optimizer, such as ``AdamW``. With several parameter groups by
            ``AdamW/0``, ``AdamW/1``, ….
        grad_norm: norm of the gradient of this step before clipping.
        tokens_seen: tokens of the run so far, over all ranks.
        seconds_per_step: mean seconds a step since the last log step or validation.
        tokens_per_second: over all ranks, since the last log step or validation.
        devices: number of ranks.
        tflops: model TFLOP/s of one device. The attention counts inside the documents only.
        mfu_percent: ``tflops`` in percent of the device's peak. ``None`` where the peak is not known, as on a CPU.
        memory: peak memory.
        pace: time of the parts of a step, imbalance, and remaining work.
    """

    step: int
    steps: int
    time: float
    loss: float
    max_loss: float
    losses: ContextLosses
    weights: dict[str, float]
    tail_loss_mass: float
    learning_rates: dict[str, float]
    grad_norm: float
    tokens_seen: int
    seconds_per_step: float
    tokens_per_second: float
    devices: int
    tflops: float
    mfu_percent: float | None
    memory: Memory
    pace: Pace


@dataclass(frozen=True)
class ValidationSet:
    """The windows of a validation. Two validations are comparable if their sets are equal.

    Attributes:
        fingerprint: fingerprint of the packed dataset, or of several datasets, and of a small dataset also the version
            of its shuffle (:attr:`RunOrder.fingerprint`).
        split: split of the datasets.
        window: inputs a window.
        windows: number of windows.
        seed: seed of the order. ``None`` if the validation reads every window once.
    """

    fingerprint: str
    split: str
    window: int
    windows: int
    seed: int | None


@dataclass(frozen=True)
class ContextGain:
    """The loss of the tail in pieces of K tokens, minus the loss with the whole context.

    Attributes:
        gain: mean difference of the plain cross-entropy in nats. ``None`` without targets.
        targets: number of targets: in the tail, and with an effective context of K or more.
        seconds: duration of the pass over the pieces.
    """

    gain: float | None
    targets: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """The values of a validation with one set of weights.

    Attributes:
        step: the optimizer step before the validation.
        steps: optimizer steps of the run.
        time: Unix time in seconds.
        weights: the weights that are validated.
        losses: plain cross-entropy of the validation windows.
        context_gain: what the tail gains from context beyond K tokens, by K. Empty without ``validator.context_gain``.
        windows: the validation windows. ``None`` for a dataloader of another package.
        seconds: duration of the validation with the whole context.
        tokens_per_second: over all ranks.
        devices: number of ranks.
        memory: peak memory.
    """

    step: int
    steps: int
    time: float
    weights: Weights = "last"
    losses: ContextLosses
    context_gain: dict[str, ContextGain] = field(default_factory=dict)
    windows: ValidationSet | None
    seconds: float
    tokens_per_second: float
    devices: int
    memory: Memory


Record = TrainRecord | ValidationRecord


def wrong_in(values: dict[str, Any]) -> str | None:
    """Return which value of the JSON object of a record has another type. None: all values have the right types."""
    own = TrainRecord if values.get("kind") == "train" else ValidationRecord
    return next((wrong for part in (own, ContextLosses, Pace) if (wrong := wrong_value(values, part))), None)


def as_json(record: Record) -> dict[str, Any]:
    """Return the JSON object of a record: ``kind`` and the fields of the record.

    The fields of ``losses`` and ``pace`` stand beside the fields of the record, not inside an object of their own.
    """
    fields = asdict(record)
    return {
        "kind": "train" if isinstance(record, TrainRecord) else "validation",
        **{name: value for name, value in fields.items() if name not in ("losses", "pace")},
        **fields["losses"],
        **fields.get("pace", {}),
    }
