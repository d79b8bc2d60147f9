"""The value of every outcome of one run, from its ``metrics.jsonl`` and its target files.

The selections ``tail``, ``below_tail`` and ``all`` are mean plain cross-entropies, and ``context_gain`` is the gain of
the tail from context. ``metrics.jsonl`` has these values for every validation. The selection ``facts`` needs the
cross-entropy of every target. A run keeps the target files of its last validations only (``validator.keep_targets``).
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.runs.metrics_log import FILE_NAME, read_records
from exact_titan.runs.records import Weights
from exact_titan.runs.run_record import FILE_NAME as RUN_FILE
from exact_titan.runs.run_record import read_record
from exact_titan.runs.target_losses import TargetLosses, read_target_losses, target_losses_file
from exact_titan.study.facts import fact_distances
from exact_titan.study.spec import Outcome


@dataclass(frozen=True)
class Value:
    """The value of an outcome.

    Attributes:
        value: mean over the targets in nats. NaN without targets.
        targets: number of targets.
    """

    value: float
    targets: int


class RunOutcomes:
    """The outcomes of a finished run.

    Args:
        folder: output folder of the run.

    Raises:
        InputError: if ``metrics.jsonl`` is missing or damaged, or has no validation on a packed dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._validations: dict[Weights, dict[int, dict[str, Any]]] = {}
        for record in read_records(folder, "validation"):
            if record.get("windows") is None or "buckets" not in record or "threshold" not in record:
                raise InputError(
                    f"{folder / FILE_NAME}: the validation of step {record['step']} has no buckets of a packed "
                    f"dataset: validate the study on a packed dataset, with this version of exact_titan"
                )
            self._validations.setdefault(record.get("weights", "last"), {})[record["step"]] = record
        if not self._validations:
            raise InputError(f"{folder / FILE_NAME} has no validation: train with validator.enable and validator.freq")

    def steps(self, weights: Weights) -> list[int]:
        """Return the steps of the validations of one set of weights, ascending."""
        return sorted(self._validations.get(weights, {}))

    def record(self, step: int, weights: Weights) -> dict[str, Any]:
        """Return the validation record of ``metrics.jsonl``."""
        return self._validations[weights][step]

    def has_targets(self, step: int, weights: Weights) -> bool:
        """Return whether the run has kept the target file of a validation."""
        return target_losses_file(self.folder, step, weights).is_file()

    def value(self, outcome: Outcome, step: int, weights: Weights, threshold: int) -> Value | None:
        """Return the value of an outcome at one validation.

        Args:
            outcome: the outcome.
            step, weights: the validation.
            threshold: first effective context of the tail, in tokens. All runs of a study need the same threshold.

        Returns:
            None if the run has not kept the target file that the outcome needs, or if the context gain belongs to
            another tail than ``threshold``.

        Raises:
            InputError: if the validation did not measure the outcome, or the dataset with the facts is not at hand.
        """
        record = self.record(step, weights)
        if outcome.select == "context_gain":
            gain = record.get("context_gain", {}).get(str(outcome.piece))
            if gain is None:
                raise InputError(
                    f"{self.folder / FILE_NAME}: the validation of step {step} has no context gain beyond "
                    f"{outcome.piece} tokens: train with validator.context_gain = [{outcome.piece}]"
                )
            value = math.nan if gain["gain"] is None else gain["gain"]
            return Value(value, gain["targets"]) if record["threshold"] == threshold else None
        if outcome.select == "facts":
            losses = self.targets(step, weights)
            if losses is None:
                return None
            chosen = losses.cross_entropy[self.selected(outcome, losses, threshold)].astype(np.float64)
            return Value(float(chosen.mean()) if len(chosen) else math.nan, len(chosen))
        rows = [record["buckets"][label] for label in _buckets(record, outcome, threshold)]
        total = sum(row["targets"] for row in rows)
        mean = (
            sum(row["cross_entropy"] * row["targets"] for row in rows if row["targets"]) / total if total else math.nan
        )
        return Value(mean, total)

    def targets(self, step: int, weights: Weights) -> TargetLosses | None:
        """Return the cross-entropy of every target of a validation. None if the run has not kept the file.

        Raises:
            InputError: if the file is damaged, or has other windows than ``metrics.jsonl``.
        """
        losses = read_target_losses(self.folder, step, weights)
        if losses is not None and vars(losses.windows) != self.record(step, weights)["windows"]:
            raise InputError(
                f"{target_losses_file(self.folder, step, weights)} has other windows than {self.folder / FILE_NAME}: "
                f"copy the run again"
            )
        return losses

    def selected(self, outcome: Outcome, losses: TargetLosses, threshold: int) -> np.ndarray:
        """Return which targets of a file belong to an outcome, bool ``[T]``. Not for ``context_gain``.

        Raises:
            InputError: if the dataset with the facts is not at hand, or is not the dataset of the validation.
        """
        if outcome.select != "facts":
            record = self.record(losses.step, losses.weights)
            labels = list(record["buckets"])
            return np.isin(losses.bucket, [labels.index(one) for one in _buckets(record, outcome, threshold)])
        if losses.windows.seed is not None:
            raise InputError(
                f"{self.folder}: the validation shuffles its windows, and {outcome.name!r} needs all windows in their "
                f"order: train with validator.steps = -1"
            )
        distance_T = _distances(self._dataset(outcome), losses.windows.split, losses.windows.fingerprint)
        if len(distance_T) != len(losses.cross_entropy):
            raise InputError(
                f"{target_losses_file(self.folder, losses.step, losses.weights)} has {len(losses.cross_entropy)} "
                f"targets, and the dataset {len(distance_T)}: copy the run and the dataset again"
            )
        most = np.iinfo(np.int32).max if outcome.max_distance is None else outcome.max_distance
        return (distance_T >= max(1, outcome.min_distance)) & (distance_T < most)

    def _dataset(self, outcome: Outcome) -> Path:
        """Return the only dataset of the validation."""
        datasets = self._datasets
        if len(datasets) != 1:
            raise InputError(
                f"{self.folder / RUN_FILE} names {len(datasets)} validation datasets: {outcome.name!r} needs one"
            )
        if not datasets[0].is_dir():
            raise InputError(
                f"{datasets[0]}: no such folder, and {outcome.name!r} needs this validation dataset of {self.folder}: "
                f"copy the dataset back"
            )
        return datasets[0]

    @cached_property
    def _datasets(self) -> list[Path]:
        record = read_record(self.folder)
        if record is None:
            raise InputError(f"{self.folder} has no {RUN_FILE}: restore the file from a copy")
        return [Path(one["path"]) for one in (record.validation or {}).get("datasets", [])]


@lru_cache
def _distances(dataset: Path, split: str, fingerprint: str) -> np.ndarray:
    """Return the distance of every target to its fact (:func:`fact_distances`), for the dataset of a validation."""
    found = Manifest.read(dataset).fingerprint
    if found != fingerprint:
        raise InputError(
            f"{dataset} has the fingerprint {found[:12]}, and the runs were validated on {fingerprint[:12]}: put the "
            f"dataset of the study back"
        )
    return fact_distances(dataset, split)


def _buckets(record: dict[str, Any], outcome: Outcome, threshold: int) -> list[str]:
    """Return the labels of the buckets of an outcome."""
    in_tail = {label: int(label.split("-")[0]) >= threshold for label in record["buckets"]}
    wanted = {"tail": (True,), "below_tail": (False,), "all": (True, False)}[outcome.select]
    return [label for label, tail in in_tail.items() if tail in wanted]
