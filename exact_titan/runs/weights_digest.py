"""The hash of all weights of a checkpoint or of a Hugging Face folder. For weights that are small enough to read whole.

:func:`exact_titan.runs.run_record.sampled_digest` identifies files of any size. Two distributed checkpoints with equal
weights have different files, because a checkpoint also has the optimizer and random names.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from exact_titan.models import hf_config
from exact_titan.models.hf_weights import native_name
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.runs.locations import run_of
from exact_titan.runs.run_folder import MODEL_FOLDER, load_tensors, stored_names
from exact_titan.system.file_errors import check_readable

LARGEST_BYTES = 2**30
"""Weights up to this size are hashed."""


def weights_digest(path: Path) -> str | None:
    """Return the SHA-256 of all weights, in hexadecimal digits.

    The hash covers name, dtype, shape and bytes of every tensor of the model, sorted by name. The hash does not depend
    on the optimizer, or on the number of ranks that saved a checkpoint.

    Args:
        path: folder of a distributed checkpoint of a run, or a Hugging Face folder with safetensors.

    Returns:
        None if the folder has no weights, or more than :data:`LARGEST_BYTES`.

    Raises:
        InputError: if a file is damaged.
    """
    tensors = _of_checkpoint(path) if (path / DCP_METADATA).is_file() else _of_safetensors(path)
    digest, found = hashlib.sha256(), False
    for name, tensor in tensors:
        found = True
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if found else None


def _of_checkpoint(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    model = run_of(checkpoint) / MODEL_FOLDER
    if not model.is_dir():
        return
    stored = stored_names(checkpoint)
    names = sorted(native_name(name) for name in hf_config.read_architecture(model).tensors())
    tensors = {
        name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name in names
        if isinstance(tensor := stored.get(name), TensorStorageMetadata)
    }
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST_BYTES:
        load_tensors(checkpoint, tensors)
        yield from tensors.items()


def _of_safetensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > LARGEST_BYTES:
        return
    for file in files:
        check_readable(file)
        with safe_open(file, framework="pt") as stored:
            for name in sorted(stored.keys()):
                yield name, stored.get_tensor(name)
