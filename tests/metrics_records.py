"""Records of metrics. A test names the values that it compares. The other values are fixed."""

from dataclasses import replace
from typing import Any

from exact_titan.runs.records import ContextLosses, Memory, Pace, TrainRecord, ValidationRecord

_MEMORY = Memory(1.0, 10.0, 2.0, 20.0, 0, 0)


def train_record(step: int, losses: ContextLosses, **values: Any) -> TrainRecord:
    """Return the record of a log step of a run with 40 steps of 64 tokens."""
    record = TrainRecord(
        step=step,
        steps=40,
        time=1.0,
        loss=2.5,
        max_loss=2.6,
        losses=losses,
        weights={"0-7": 1.0, "8-15": 1.0, "16-32": 1.15},
        tail_loss_mass=0.4,
        learning_rates={"AdamW": 1e-3},
        grad_norm=1.0,
        tokens_seen=64 * step,
        seconds_per_step=0.1,
        tokens_per_second=640.0,
        devices=1,
        tflops=0.1,
        mfu_percent=None,
        memory=_MEMORY,
        pace=Pace({"data": 0.01}, 1.0, 0.0, 64, None),
    )
    return replace(record, **values)


def validation_record(step: int, losses: ContextLosses, **values: Any) -> ValidationRecord:
    """Return the record of a validation of a run with 40 steps."""
    record = ValidationRecord(
        step=step,
        steps=40,
        time=1.0,
        losses=losses,
        windows=None,
        seconds=1.0,
        tokens_per_second=160.0,
        devices=1,
        memory=_MEMORY,
    )
    return replace(record, **values)
