"""Export of a run's weights as a Hugging Face folder, which transformers and vLLM load.

1. Find the checkpoint. Compare its tensors with the architecture in ``<run>/model``, and its files with their SHA-256.
2. Check and write the tokenizer, for transformers 4 and 5. Divide the tensors into output shards.
3. For each output shard, read its tensors from the checkpoint, convert the dtype, and write one safetensors file.
4. Write the index, ``config.json`` and ``generation_config.json``.
5. Write the unfinished folder through to the disk, and rename the folder to its final name.
"""

import json
import logging
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file

from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.architecture import Architecture
from exact_titan.models.hf_weights import INDEX_NAME, native_name
from exact_titan.runs.checkpoint_verification import check_contents
from exact_titan.runs.destinations import check_new, check_room
from exact_titan.runs.export_tokenizer import why_not_auto, with_special_ids, write_generation_config, write_tokenizer
from exact_titan.runs.locations import run_of
from exact_titan.runs.run_folder import MODEL_FOLDER, check_checkpoint, find_checkpoint, load_tensors
from exact_titan.system.atomic_files import unfinished_folder
from exact_titan.system.file_errors import file_name, why

logger = logging.getLogger(__name__)

Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def export(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    dtype: Dtype = "bfloat16",
    checkpoints: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = True,
) -> list[Path]:
    """Write a distributed checkpoint as a Hugging Face folder: config, tokenizer, safetensors files and their index.

    The checkpoint may come from any number of ranks. Memory holds one output shard at a time.

    Args:
        run: the output folder of a run, or one checkpoint in it. For an output folder the last complete checkpoint is
            exported.
        out: the new folder. The folder appears when all its files are written.
        step: the step of the checkpoint to export.
        dtype: the dtype of all exported tensors.
        checkpoints: as in :func:`find_checkpoint`.
        max_shard_size: the largest size of a safetensors file.
        verify: whether the SHA-256 of every file of the checkpoint is first compared with ``files.json``.

    Returns:
        The safetensors files.

    Raises:
        InputError: if ``out`` exists or cannot be written, if the disk has too little room for the weights, if the run
            has no complete checkpoint, if a file of the checkpoint has changed since the save, or if the run has no
            config.json.
    """
    check_out(out)
    checkpoint = find_checkpoint(run, checkpoints=checkpoints, step=step, on_skipped=logger.warning)
    model_folder = run_of(checkpoint) / MODEL_FOLDER
    if not model_folder.is_dir():
        raise InputError(
            f"{model_folder} is missing: the export reads the architecture from that folder; exact_titan.train writes "
            f"the folder if the run's config sets model, start_from or architecture"
        )
    architecture = hf_config.read_architecture(model_folder)
    check_checkpoint(checkpoint, architecture)

    if verify:
        check_contents(checkpoint)
    check_room(out, weights_bytes(architecture, dtype), "the folder of the export")
    try:
        with unfinished_folder(out) as partial:
            config = hf_config.portable_config(hf_config.read_config(model_folder), architecture, dtype=dtype)
            # A wrong file of the tokenizer ends the export before the weights are written.
            ids = write_tokenizer(model_folder, partial, model_config=config, max_positions=architecture.max_positions)
            files = _write_weights(checkpoint, architecture.tensors(), partial, DTYPES[dtype], max_shard_size)
            config = with_special_ids(config, ids)
            hf_config.write_config(partial, config)
            write_generation_config(partial, config)
            if (other_ids := why_not_auto(model_folder, architecture.family)) is not None:
                logger.warning(f"{out}: {other_ids}")
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and _is_input(error, checkpoint, model_folder):
            raise
        cause = why(error) if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(
            f"{out} cannot be written ({cause}): make room or choose another folder, and export {checkpoint} again"
        ) from error
    return [out / file for file in files]


def weights_bytes(architecture: Architecture, dtype: Dtype) -> int:
    """Return the size of the exported weights in bytes."""
    return architecture.num_parameters() * DTYPES[dtype].itemsize


def _is_input(error: OSError, *folders: Path) -> bool:
    """Return whether the error is about a file that the export reads."""
    name = file_name(error)
    return name is not None and any(Path(name).absolute().is_relative_to(folder.absolute()) for folder in folders)


def check_out(out: Path) -> None:
    """Refuse an output folder that exists, or that cannot be created.

    Raises:
        InputError: naming the folder.
    """
    check_new(out, "the folder of the export")


def _write_weights(
    checkpoint: Path, tensors: dict[str, tuple[int, ...]], folder: Path, dtype: torch.dtype, max_shard_size: str
) -> list[str]:
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in tensors.items()}
    split = split_state_dict_into_shards_factory(
        empty,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        shard = {native_name(name): torch.empty_like(empty[name], device="cpu") for name in names}
        load_tensors(checkpoint, shard)
        save_file({name: shard[native_name(name)] for name in names}, folder / file, metadata={"format": "pt"})
        # safetensors creates the file for its owner alone. The folder shows the permissions of the umask.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return list(split.filename_to_tensors)
