"""The comparison of paired runs: same data, order, start weights, optimizer and batch.

The functions compare :class:`~exact_titan.runs.run_record.RunRecord` objects. Before the training, the records come
from the completed configs of the arms. After the training, the records are the ``run.json`` of the runs.
"""

from collections.abc import Iterator
from typing import Any

from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord, options_of, order_version
from exact_titan.sampling.order import SMALL

MAY_DIFFER = ("loss", "ema", "attention", "activation_checkpoint", "compile", "metrics", "profiler", "comm")
"""Options, and sections of options, in which the arms of a study may differ."""

_PLACES = (
    "dump_folder",
    "export",
    "start_from",
    "hf_assets_path",
    "checkpoint.initial_load_path",
    "dataloader.dataset_path",
    "validator.dataloader.dataset_path",
    "loss.dataset_path",
)
"""Options that name folders. The files are compared by their content."""

_WHAT = {
    "dataloader.seed": "the order of the data",
    "dataloader.infinite": "the order of the data",
    "dataloader.split": "the data",
    "dataloader": "the data",
    "training.seq_len": "the order of the data",
    "training.global_batch_size": "the batch",
    "training.local_batch_size": "the batch",
    "training.steps": "the number of steps",
    "training": "the training",
    "optimizer": "the optimizer",
    "lr_scheduler": "the learning rate schedule",
    "model": "the start weights",
    "architecture": "the start weights",
    "debug.seed": "the start weights",
    "checkpoint": "the checkpoints",
    "parallelism": "the ranks",
    "validator": "the validation",
}
"""What an option decides, by the longest name that is the option or one of its sections."""


def differences(baseline: RunRecord, other: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ, with the values of both runs. Options that name folders are left out."""
    one, two = options_of(baseline.config), options_of(other.config)
    found = {
        name: (one.get(name), two.get(name))
        for name in sorted(one.keys() | two.keys())
        if name not in _PLACES and one.get(name) != two.get(name)
    }
    if baseline.loss_data != other.loss_data:
        found["loss.dataset_path, fingerprint"] = (baseline.loss_data, other.loss_data)
    return found


def check_arms(records: dict[tuple[str, str], RunRecord], baseline: str, *, where: str) -> None:
    """Refuse arms that are not paired with the baseline.

    Args:
        records: the record of every arm by stage and arm. A shared stage has an arm without a name.
        baseline: name of the arm that the others are compared with.
        where: the file of the study, for messages.

    Raises:
        InputError: naming the stage, the arm, the option and both values.
    """
    for (stage, arm), record in records.items():
        if not arm or arm == baseline:
            continue
        for fault in faults(records[stage, baseline], record):
            raise InputError(
                f"{where}: the arm {arm} is not paired with {baseline} in the stage {stage}: {fault}: set the option "
                f"for all arms, in [options] or in the stage"
            )
    named = [arm for arm in dict.fromkeys(arm for _, arm in records) if arm]
    for place, arm in enumerate(named):
        for other in named[:place]:
            pairs = [(records[key], records[key[0], arm]) for key in records if key[1] == other]
            if not any(differences(one, two) for one, two in pairs):
                raise InputError(
                    f"{where}: the arms {other} and {arm} train with the same options: change or remove one of them"
                )


def faults(baseline: RunRecord, other: RunRecord) -> Iterator[str]:
    """Yield the reasons why two runs of one stage, start and seed are not paired, apart from their first weights."""
    if baseline.data.get("fingerprint") != other.data.get("fingerprint"):
        yield (
            f"dataloader.dataset_path changes the data: it is {_path(other)} with fingerprint "
            f"{_short(other.data)}, but {_path(baseline)} with {_short(baseline.data)} in the baseline"
        )
    versions = [order_version(record.data) for record in (baseline, other)]
    if versions[0] != versions[1] and any(one["windows"] <= SMALL for one in other.data.get("datasets", [])):
        yield (
            f"the order of the windows has version {versions[1]}, but {versions[0]} in the baseline: an older "
            f"exact_titan trained one of the runs"
        )
    for name, (one, two) in differences(baseline, other).items():
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_DIFFER):
            yield f"{name} changes {_what(name)}: it is {two}, but {one} in the baseline"
    if (baseline.validation or {}).get("fingerprint") != (other.validation or {}).get("fingerprint"):
        yield (
            f"validator.dataloader.dataset_path changes the validation: its fingerprint is {_short(other.validation)}, "
            f"but {_short(baseline.validation)} in the baseline"
        )
    if baseline.model != other.model:
        yield "model changes the start weights: the architecture is not the architecture of the baseline"


def check_first_weights(records: dict[tuple[str, str], RunRecord], baseline: str, stage: str, *, where: str) -> None:
    """Refuse arms with other first weights than the baseline, in the first stage of the arms.

    Raises:
        InputError: naming the arm and both weights.
    """
    one = records[stage, baseline].weights
    for (name, arm), record in records.items():
        if name == stage and _weights(record.weights) != _weights(one):
            raise InputError(
                f"{where}: the arm {arm} is not paired with {baseline} in the stage {stage}: model changes the start "
                f"weights: they are {record.weights.get('path')}, but {one.get('path')} in the baseline"
            )


def same_weights(one: RunRecord, other: RunRecord) -> bool:
    """Return whether two runs have the same first weights: same kind, same step, same digest."""
    return _weights(one.weights) == _weights(other.weights)


def _weights(weights: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(weights.get(name) for name in ("kind", "step", "digest"))


def _what(name: str) -> str:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in _WHAT:
            return _WHAT[prefix]
    return "more than the loss"


def _path(record: RunRecord) -> str:
    return str(record.config["dataloader"]["dataset_path"])


def _short(data: dict[str, Any] | None) -> str:
    return str((data or {}).get("fingerprint", "none"))[:12]
