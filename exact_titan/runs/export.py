"""A run's weights as a Hugging Face folder, which transformers, vLLM and the rest load."""

import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file

from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.hf_weights import INDEX_NAME, native_name
from exact_titan.runs.checkpoint_manifest import reading_checkpoint
from exact_titan.runs.run_folder import MODEL_FOLDER, check_checkpoint, copy_tokenizer, find_checkpoint, run_of

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
    checkpoints: str = "checkpoint",
    max_shard_size: str = "5GB",
) -> list[Path]:
    """Write a distributed checkpoint as a Hugging Face folder: config, tokenizer, safetensors and their index.

    Reads the checkpoint of any number of ranks, one output shard at a time: memory holds no more than that.

    Args:
        run: a run's output folder (its last checkpoint is taken), or one checkpoint in it.
        out: new folder; it appears when everything is in it.
        step: take the checkpoint of this step.
        dtype: of all tensors.
        checkpoints: as in :func:`find_checkpoint`.

    Returns:
        The safetensors files.

    Raises:
        InputError: if ``out`` exists, or there is no checkpoint, or the run has kept no config.json.
    """
    check_out(out)
    checkpoint = find_checkpoint(run, checkpoints=checkpoints, step=step, on_skipped=logger.warning)
    model_folder = run_of(checkpoint) / MODEL_FOLDER
    if not model_folder.is_dir():
        raise InputError(
            f"{model_folder} is missing, which says what the model is: only runs of exact_titan.train that take their "
            f"architecture from model, start_from or architecture write it"
        )
    architecture = hf_config.read_architecture(model_folder)
    check_checkpoint(checkpoint, architecture)

    partial = out.parent / f".{out.name}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        files = _write_weights(checkpoint, architecture.tensors(), partial, DTYPES[dtype], max_shard_size)
        config = hf_config.read_config(model_folder)
        # transformers 5 calls it dtype, which older ones do not know.
        hf_config.write_config(partial, {**config, "dtype" if "dtype" in config else "torch_dtype": dtype})
        copy_tokenizer(model_folder, partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [out / file for file in files]


def check_out(out: Path) -> None:
    """Refuse to write where something is already.

    Raises:
        InputError: naming the folder.
    """
    if out.exists():
        raise InputError(f"{out} is there already: choose another folder, or remove it")


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
        with reading_checkpoint(checkpoint), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            # In one process whatever ranks saved it; the copy into each tensor makes the dtype.
            dcp.load(shard, checkpoint_id=checkpoint, no_dist=True)
        save_file({name: shard[native_name(name)] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return list(split.filename_to_tensors)
