"""What a training run's output folder keeps of its model: ``model/`` and the distributed checkpoints."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.architecture import Architecture
from exact_titan.models.hf_weights import native_name
from exact_titan.runs.checkpoint_manifest import DCP_METADATA, find_checkpoints, why_incomplete

MODEL_FOLDER = "model"
"""In the run's folder: config.json and the tokenizer, all that an export needs beside the weights."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)


def write_model_folder(run: Path, config: dict[str, Any], files_from: Path) -> None:
    """Write ``run/model`` unless it is there: ``config`` as config.json, and the tokenizer of ``files_from``."""
    folder = run / MODEL_FOLDER
    if folder.is_dir():
        return
    partial = run / f".{MODEL_FOLDER}.{os.getpid()}"
    partial.mkdir(parents=True)
    hf_config.write_config(partial, config)
    copy_tokenizer(files_from, partial)
    partial.rename(folder)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's and the generation's files that ``source`` has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def find_checkpoint(
    path: Path,
    *,
    checkpoints: str = "checkpoint",
    step: int | None = None,
    on_skipped: Callable[[str], None] = lambda line: None,
) -> Path:
    """A run's last complete checkpoint, or that of ``step``; a checkpoint's own folder is taken as it is.

    Args:
        path: a run's output folder, or one checkpoint in it.
        checkpoints: where in the output folder they lie, ``checkpoint.folder`` of the run.
        on_skipped: called with a line for every newer checkpoint that is passed over, because it is not complete.

    Raises:
        InputError: if there is none, naming the folder.
    """
    if (path / DCP_METADATA).is_file():
        if (why := why_incomplete(path)) is not None:
            raise InputError(f"{path} is not a complete checkpoint: {why}")
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    complete, incomplete = find_checkpoints(path / checkpoints)
    for checkpoint, why in incomplete.items():
        on_skipped(f"{checkpoint} is not complete and is passed over: {why}")
    if step is not None and step not in complete:
        steps = ", ".join(map(str, sorted(complete))) or "none"
        raise InputError(f"{path / checkpoints} has no complete checkpoint of step {step}: there are {steps}")
    if not complete:
        raise InputError(f"{path / checkpoints} has no complete checkpoint: the run has not saved one yet")
    chosen = complete[max(complete) if step is None else step]
    if not (chosen / DCP_METADATA).is_file():
        raise InputError(f"{chosen} holds Hugging Face weights already, and no distributed checkpoint")
    return chosen


def run_of(checkpoint: Path) -> Path:
    """The output folder of the run that a checkpoint is from."""
    return checkpoint.parent.parent


def check_checkpoint(checkpoint: Path, architecture: Architecture) -> None:
    """Refuse a distributed checkpoint whose weights are not the architecture's.

    Raises:
        InputError: naming the tensor and both shapes.
    """
    try:
        stored = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling a damaged file raises
        raise InputError(
            f"{checkpoint / DCP_METADATA} is damaged ({error}): remove {checkpoint}, and the one before it is taken"
        ) from None
    for name, shape in architecture.tensors().items():
        native = native_name(name)
        tensor = stored.get(native)
        if not isinstance(tensor, TensorStorageMetadata):
            raise InputError(f"{checkpoint} lacks the tensor {native}: it is of another model")
        if tuple(tensor.size) != shape:
            raise InputError(
                f"{checkpoint}: the tensor {native} is {' x '.join(map(str, tensor.size))}, but this model's is "
                f"{' x '.join(map(str, shape))}: it is of another model"
            )
