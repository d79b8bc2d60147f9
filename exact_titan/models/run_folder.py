"""What a training run's output folder keeps of its model: ``model/`` and the distributed checkpoints."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.architecture import Architecture
from exact_titan.models.hf_weights import INDEX_NAME, native_name

MODEL_FOLDER = "model"
"""In the run's folder: config.json and the tokenizer, all that an export needs beside the weights."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)
_DCP_METADATA = ".metadata"


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


def find_checkpoint(path: Path, *, checkpoints: str = "checkpoint", step: int | None = None) -> Path:
    """A run's last complete checkpoint, or that of ``step``; a checkpoint's own folder is taken as it is.

    Args:
        path: a run's output folder, or one checkpoint in it.
        checkpoints: where in the output folder they lie, ``checkpoint.folder`` of the run.

    Raises:
        InputError: if there is none, naming the folder.
    """
    if (path / _DCP_METADATA).is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    found = {int(match[1]): folder for folder, match in _step_folders(path / checkpoints) if _is_complete(folder)}
    if step is not None and step not in found:
        steps = ", ".join(map(str, sorted(found))) or "none"
        raise InputError(f"{path / checkpoints} has no complete checkpoint of step {step}: there are {steps}")
    if not found:
        raise InputError(f"{path / checkpoints} has no complete checkpoint: the run has not saved one yet")
    chosen = found[max(found) if step is None else step]
    if not (chosen / _DCP_METADATA).is_file():
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
        raise InputError(f"{checkpoint / _DCP_METADATA} is damaged: {error}") from None
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


def _step_folders(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    if not folder.is_dir():
        return []
    return [(one, match) for one in folder.iterdir() if (match := re.fullmatch(r"step-(\d+)", one.name))]


def _is_complete(folder: Path) -> bool:
    # DCP writes the metadata last.
    return any((folder / name).is_file() for name in (_DCP_METADATA, INDEX_NAME, "model.safetensors"))
