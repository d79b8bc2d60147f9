"""What a run starts from: its architecture, and the weights to begin with."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torchtitan.tools.logging import logger

from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.architecture import PRESETS, REPOSITORIES, Architecture
from exact_titan.models.hf_weights import check_weights
from exact_titan.runs.run_folder import (
    MODEL_FOLDER,
    check_checkpoint,
    find_checkpoint,
    run_of,
    write_model_folder,
)
from exact_titan.titan.model.decoder import DecoderModel, LlamaSizes

if TYPE_CHECKING:
    from exact_titan.titan.trainer import ExactTrainer


def resolve_architecture(config: "ExactTrainer.Config", *, tokenizer_vocab: int | None = None) -> Architecture:
    """The architecture that ``model``, ``start_from`` or ``architecture`` names, from config files alone.

    Args:
        tokenizer_vocab: ids of the dataset's tokenizer, for a model from scratch without a size of its own.

    Raises:
        InputError: naming the option or the file.
    """
    if config.model:
        if config.architecture != LlamaSizes():
            raise InputError(f"model is {config.model}, and architecture is set too: give one of them")
        folder = Path(config.model)
        if folder.is_dir():
            return hf_config.read_architecture(folder)
        if config.model in PRESETS:
            return PRESETS[config.model]
        raise InputError(
            f"model is {config.model!r}: there is no such folder, and the known models are {', '.join(PRESETS)}"
        )
    if config.start_from:
        return hf_config.read_architecture(_previous_model(config))
    if tokenizer_vocab is None and not config.architecture.vocab_size:
        raise InputError("architecture.vocab_size is 0, the dataset's, and there is no dataset: set it")
    return config.architecture.architecture(seq_len=config.training.seq_len, tokenizer_vocab=tokenizer_vocab or 0)


def check_positions(config: "ExactTrainer.Config", architecture: Architecture) -> None:
    """Refuse a window with more positions than the model knows.

    Raises:
        InputError: naming both.
    """
    if config.training.seq_len > architecture.max_positions:
        raise InputError(
            f"training.seq_len is {config.training.seq_len}, but the model has {architecture.max_positions} positions "
            f"(max_position_embeddings): take a shorter window or a model with more"
        )


def with_initial_weights(config: "ExactTrainer.Config", architecture: Architecture) -> "ExactTrainer.Config":
    """The config with the checkpointer told where the first weights are, which are checked here by their headers.

    A run that has a checkpoint of its own goes on from that, and what it started from may be gone.

    Raises:
        InputError: naming the option, the file or the tensor.
    """
    checkpoint = config.checkpoint
    own = _own_checkpoint(config)
    if own is not None:
        check_checkpoint(own, architecture)
        return config
    if config.start_from:
        stored = _previous_checkpoint(config)
        check_checkpoint(stored, architecture)
        initial, in_hf = stored, False
    elif config.model:
        initial, in_hf = Path(config.model), True
        if not initial.is_dir():
            raise InputError(
                f"model is {config.model}, and no folder of that name holds its weights: hf download "
                f"{REPOSITORIES[config.model]} --local-dir {config.model}"
            )
        check_weights(initial, architecture)
    else:
        return config
    if not checkpoint.enable:
        raise InputError("checkpoint.enable is off, and weights are read by it: --checkpoint.load_only saves nothing")
    path = str(initial.resolve())
    if checkpoint.initial_load_path not in (None, path):
        option = "model" if in_hf else "start_from"
        raise InputError(
            f"checkpoint.initial_load_path is {checkpoint.initial_load_path}, and {option} names weights too: give one"
        )
    config = copy.copy(config)
    config.checkpoint = replace(
        checkpoint, initial_load_path=path, initial_load_in_hf=in_hf, initial_load_model_only=True
    )
    return config


def keep_model_folder(config: "ExactTrainer.Config", *, dataset_tokenizer: Path) -> None:
    """Write ``model/`` into the run's folder, unless it is there: config.json and tokenizer of the model in training.

    Args:
        dataset_tokenizer: the tokenizer's folder in the packed dataset, for a model that brings none.
    """
    run, folder = Path(config.dump_folder), _model_folder(config)
    if folder is not None:
        tokenizer = folder if (folder / "tokenizer.json").is_file() else dataset_tokenizer
        write_model_folder(run, hf_config.read_config(folder), tokenizer)
    elif config.model_spec is not None and isinstance(config.model_spec.model, DecoderModel.Config):
        eos_id = Manifest.read(dataset_tokenizer.parent).tokenizer.eos_id
        made = hf_config.make_config(config.model_spec.model.architecture, eos_token_id=eos_id)
        write_model_folder(run, made, dataset_tokenizer)


def check_tokenizer(config: "ExactTrainer.Config", *, dataset_tokenizer: Path) -> None:
    """Refuse a dataset whose token ids are not the model's.

    Raises:
        InputError: naming the first token that differs.
    """
    folder = _model_folder(config)
    if folder is None:
        return
    ours, theirs = dataset_tokenizer / "tokenizer.json", folder / "tokenizer.json"
    if not theirs.is_file() or ours.read_bytes() == theirs.read_bytes():
        return
    packed, model = _vocabulary(ours), _vocabulary(theirs)
    for token, token_id in packed.items():
        if model.get(token) != token_id:
            raise InputError(
                f"the dataset was packed with another tokenizer than that of {folder}: {token!r} has the id {token_id} "
                f"in it, there {model.get(token, 'none')}; pack with --tokenizer {folder}"
            )


def _vocabulary(file: Path) -> dict[str, int]:
    try:
        return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{file} is not a Hugging Face tokenizer.json: {str(error).splitlines()[0]}") from None


def _model_folder(config: "ExactTrainer.Config") -> Path | None:
    """The folder with the model's config.json and tokenizer, if there is one."""
    if config.model and Path(config.model).is_dir():
        return Path(config.model)
    return _previous_model(config) if config.start_from else None


def _previous_checkpoint(config: "ExactTrainer.Config") -> Path:
    if Path(config.start_from).resolve() == Path(config.dump_folder).resolve():
        raise InputError(f"start_from is {config.start_from}, this run's own dump_folder: it goes on by itself")
    return find_checkpoint(Path(config.start_from), checkpoints=config.checkpoint.folder, on_skipped=logger.info)


def _previous_model(config: "ExactTrainer.Config") -> Path:
    own = Path(config.dump_folder) / MODEL_FOLDER
    return own if own.is_dir() else run_of(_previous_checkpoint(config)) / MODEL_FOLDER


def _own_checkpoint(config: "ExactTrainer.Config") -> Path | None:
    try:
        return find_checkpoint(Path(config.dump_folder), checkpoints=config.checkpoint.folder)
    except InputError:
        return None
