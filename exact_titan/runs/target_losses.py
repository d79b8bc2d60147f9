"""The plain cross-entropy of every target of a validation: ``<dump_folder>/validation/step-N.safetensors``.

``step-N-ema.safetensors`` has the same targets with the exponential moving average of the weights. Two runs with the
same validation windows have the same targets in the same order. The files therefore compare two runs target by target
and document by document. The file has these tensors, 17 bytes a target for T targets::

    cross_entropy  [T]  float32  plain cross-entropy in nats
    bucket         [T]  uint8    bucket of the effective context
    document       [T]  int32    number of the document in the validation datasets; a cut document keeps its number
    place          [T]  int64    place of the window, times the window length, plus the index in the window

The metadata of the file have the step, the threshold and the validation windows. The file does not depend on the number
of ranks, except for the rounding of the cross-entropy.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from exact_titan.errors import InputError
from exact_titan.runs.records import ValidationSet, Weights
from exact_titan.system.atomic_files import partial_of, publish
from exact_titan.system.file_errors import check_readable

FOLDER = "validation"


@dataclass(frozen=True)
class TargetLosses:
    """The content of a file. The arrays are those of the module's table.

    Attributes:
        step: the optimizer step before the validation.
        threshold: first effective context of the tail, in tokens.
        windows: the validation windows.
        weights: the weights that are validated.
    """

    step: int
    threshold: int
    windows: ValidationSet
    cross_entropy: np.ndarray
    bucket: np.ndarray
    document: np.ndarray
    place: np.ndarray
    weights: Weights = "last"


_DTYPES = {"cross_entropy": np.float32, "bucket": np.uint8, "document": np.int32, "place": np.int64}


def target_losses_file(run: Path, step: int, weights: Weights = "last") -> Path:
    """Return the path of the file of a validation with one set of weights."""
    return run / FOLDER / f"step-{step}{'' if weights == 'last' else f'-{weights}'}.safetensors"


def write_target_losses(run: Path, losses: TargetLosses, *, keep: int) -> None:
    """Write the file of a validation atomically. Remove the files of all other steps except the ``keep - 1`` before.

    The files of all weights of a step are one validation, and the file of the last weights is the first. A file of a
    later step, or of other weights and the same step, is then from an attempt that the run replaces. Such a file is
    removed as well.
    """
    file = target_losses_file(run, losses.step, losses.weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(file)
    metadata = {name: str(value) for name, value in _metadata(losses).items()}
    try:
        save_file({name: getattr(losses, name).astype(dtype) for name, dtype in _DTYPES.items()}, partial, metadata)
        publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    steps = {one: step for one in file.parent.iterdir() if (step := _step(one)) is not None}
    kept = sorted({step for step in steps.values() if step <= losses.step})[-keep:]
    for one, step in steps.items():
        replaced = step == losses.step and losses.weights == "last" and one != file
        if step not in kept or replaced:
            one.unlink()


def read_target_losses(run: Path, step: int, weights: Weights = "last") -> TargetLosses | None:
    """Read the file of a validation with one set of weights. None if the run did not write or did not keep the file.

    Raises:
        InputError: if the file is damaged.
    """
    file = target_losses_file(run, step, weights)
    if not file.is_file():
        return None
    check_readable(file)
    try:
        with safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in _DTYPES}
        seed = metadata["seed"]
        windows = ValidationSet(
            fingerprint=metadata["fingerprint"],
            split=metadata["split"],
            window=int(metadata["window"]),
            windows=int(metadata["windows"]),
            seed=None if seed == "None" else int(seed),
        )
        return TargetLosses(int(metadata["step"]), int(metadata["threshold"]), windows, **arrays, weights=weights)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): copy the file again, or validate again") from error


def _metadata(losses: TargetLosses) -> dict[str, int | str | None]:
    return {
        "step": losses.step,
        "weights": losses.weights,
        "threshold": losses.threshold,
        **asdict(losses.windows),
    }


def _step(file: Path) -> int | None:
    match = re.fullmatch(r"step-(\d+)(-ema)?\.safetensors", file.name)
    return int(match[1]) if match else None
