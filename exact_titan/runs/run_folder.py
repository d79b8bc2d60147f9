"""The output folder of a training run: the ``model/`` folder and the distributed checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.architecture import Architecture
from exact_titan.models.hf_weights import native_name
from exact_titan.runs.checkpoint_errors import read_error, reading_checkpoint
from exact_titan.runs.checkpoint_folders import find_checkpoints
from exact_titan.runs.checkpoint_reader import DCP_METADATA, load_checkpoint, read_metadata
from exact_titan.runs.checkpoint_verdict import Kind, Verdict
from exact_titan.runs.locations import MODEL_FOLDER, checkpoints_of, is_checkpoint
from exact_titan.runs.safe_pickle import MetadataError
from exact_titan.system.atomic_files import unfinished_folder
from exact_titan.system.folder_files import checked_content, copy_files

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)


def write_model_folder(run: Path, config: dict[str, Any], files_from: Path) -> None:
    """Write ``run/model``: ``config`` as config.json, and the tokenizer of ``files_from``. Replace an older folder."""
    folder, old = run / MODEL_FOLDER, run / f".{MODEL_FOLDER}.old"
    with unfinished_folder(folder) as partial:
        hf_config.write_config(partial, config)
        copy_tokenizer(files_from, partial)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of the tokenizer and of the generation config that ``source`` contains.

    Raises:
        InputError: if a file is a link out of the folder, or is not what its name says.
    """
    copy_files(source, target, TOKENIZER_FILES)


def check_tokenizer_files(source: Path) -> None:
    """Refuse a folder whose files :func:`copy_tokenizer` refuses, before hours of work.

    Raises:
        InputError: as :func:`copy_tokenizer`.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            checked_content(source, source / name)


def find_checkpoint(
    path: Path,
    *,
    checkpoints: str | None = None,
    step: int | None = None,
    on_skipped: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the last complete checkpoint of a run, or the checkpoint of ``step``.

    If ``path`` is a checkpoint, the function returns ``path``.

    Args:
        path: the output folder of a run, or one checkpoint in it.
        checkpoints: ``checkpoint.folder`` of the run. None: the folder that the run has recorded
            (:mod:`exact_titan.runs.locations`).
        step: the step of the wanted checkpoint.
        on_skipped: a function that receives one line for every incomplete checkpoint, because the search skips it.

    Raises:
        InputError: if there is no complete checkpoint, or if a later checkpoint cannot be read. The message names the
            folder.
    """
    if is_checkpoint(path):
        if (verdict := Verdict.of(path)).kind != Kind.COMPLETE:
            raise verdict.error()
        return _distributed(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    folder = checkpoints_of(path) if checkpoints is None else path / checkpoints
    found = find_checkpoints(folder)
    if step is None:
        step = found.last()
        for one in found.of_kind(Kind.INCOMPLETE):
            on_skipped(one.line(skipped=True))
        if step is None:
            hint = "" if folder.is_dir() else f", or {path} is neither the output folder of a run nor a checkpoint"
            raise InputError(f"{folder} has no complete checkpoint: the run has not saved one yet{hint}")
    return _distributed(found.of_step(step))


def _distributed(checkpoint: Path) -> Path:
    """Return a complete checkpoint. Refuse weights in Hugging Face's format."""
    if not (checkpoint / DCP_METADATA).is_file():
        raise InputError(
            f"{checkpoint} contains Hugging Face weights, not a distributed checkpoint: use that folder without an "
            f"export"
        )
    return checkpoint


def stored_names(checkpoint: Path) -> dict[str, Any]:
    """Return the metadata of every stored value of a distributed checkpoint, by name.

    Raises:
        InputError: if the metadata cannot be read.
    """
    try:
        return read_metadata(checkpoint).state_dict_metadata
    except (MetadataError, OSError, MemoryError) as error:
        raise read_error(checkpoint / DCP_METADATA, error) from None


def load_tensors(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill tensors with the stored values of their names. The checkpoint may come from any number of ranks.

    Args:
        checkpoint: folder of a distributed checkpoint.
        tensors: tensors by native name, on the CPU. The dtype of a tensor may differ from the stored dtype.

    Raises:
        InputError: if a file is damaged.
    """
    with reading_checkpoint(checkpoint):
        # One process reads the files of all ranks. The copy into each tensor converts the dtype.
        load_checkpoint(tensors, checkpoint, no_dist=True)


def check_checkpoint(checkpoint: Path, architecture: Architecture) -> None:
    """Refuse a distributed checkpoint whose weights do not match the architecture.

    Raises:
        InputError: if a tensor is missing or has another shape. The message names the tensor and both shapes.
    """
    stored = stored_names(checkpoint)
    for name, shape in architecture.tensors().items():
        native = native_name(name)
        tensor = stored.get(native)
        if not isinstance(tensor, TensorStorageMetadata):
            raise InputError(f"{checkpoint} lacks the tensor {native}: the checkpoint belongs to another model")
        if tuple(tensor.size) != shape:
            raise InputError(
                f"{checkpoint}: the tensor {native} is {' x '.join(map(str, tensor.size))}, but this model's is "
                f"{' x '.join(map(str, shape))}: the checkpoint belongs to another model"
            )
