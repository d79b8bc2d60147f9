"""Before anything is started: what the packed dataset says goes into the config, and what cannot work is refused."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchtitan.tools.logging import logger

from exact_titan.dataset import Manifest
from exact_titan.dataset.manifest import TOKENIZER_FOLDER
from exact_titan.errors import InputError
from exact_titan.runs.export import check_out
from exact_titan.sampling.dataset_path import Entry, join, parse
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan import start
from exact_titan.titan.loader import PackedDataLoader, check_window, open_mixture
from exact_titan.titan.loss import ExactLoss, check_config
from exact_titan.titan.model.attention import set_implementation
from exact_titan.titan.model.decoder import check_vocabulary, decoder_spec
from exact_titan.titan.torch_versions import SPMD_BACKEND

if TYPE_CHECKING:
    from exact_titan.titan.trainer import ExactTrainer


def complete(config: "ExactTrainer.Config") -> "ExactTrainer.Config":
    """The config with dataset paths, model and tokenizer filled in, checked before any process group is set up.

    Raises:
        InputError: naming the option or the file, and what to do.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config = check_options(config, ranks=ranks)
    _check_assets(config)
    loader, loss, validator = config.dataloader, config.loss, config.validator
    if loader.dataset:
        raise InputError(
            f"dataloader.dataset is {loader.dataset!r}, which names torchtitan's own datasets: name a packed dataset's "
            f"folder in dataloader.dataset_path"
        )
    mixture = open_mixture(loader, config.training.seq_len)
    _check_supply(config, mixture, ranks)

    loss = replace(loss, dataset_path=loss.dataset_path or loader.dataset_path)
    check_window(Mixture(loss.dataset_path).datasets[0], config.training.seq_len)
    check_config(loss, window=mixture.window)
    if validator.enable and isinstance(validator.dataloader, PackedDataLoader.Config):
        dataloader = replace(validator.dataloader, infinite=validator.steps != -1)
        dataloader = replace(dataloader, dataset_path=_validation_path(dataloader, loader.dataset_path))
        open_mixture(dataloader, config.training.seq_len)
        validator = replace(validator, dataloader=dataloader)

    vocabulary = mixture.datasets[0].manifest.tokenizer.vocab_size
    tokenizer = packed_tokenizer(config)
    model_spec = config.model_spec
    if model_spec is None or config.model or config.start_from:
        architecture = start.resolve_architecture(config, tokenizer_vocab=vocabulary)
        start.check_positions(config, architecture)
        start.check_tokenizer(config, dataset_tokenizer=tokenizer)
        _check_export(config)
        config = start.with_initial_weights(config, architecture)
        model_spec = decoder_spec(architecture)
    check_vocabulary(model_spec.model, tokenizer_vocab=vocabulary)
    set_implementation(model_spec.model, config.attention)
    completed = replace(
        config,
        dataloader=replace(loader, varlen_metadata=True),
        loss=loss,
        validator=validator,
        hf_assets_path=config.hf_assets_path or str(tokenizer),
    )
    completed.model_spec = model_spec
    return completed


def check_options(config: "ExactTrainer.Config", *, ranks: int) -> "ExactTrainer.Config":
    """The config with ``{rule}`` filled in, after all checks that need neither a dataset nor a model.

    Args:
        ranks: number of processes.

    Raises:
        InputError: naming the option.
    """
    config = with_rule(config)
    _check_sizes(config, ranks)
    _check_parallelism(config, ranks)
    return config


def with_rule(config: "ExactTrainer.Config") -> "ExactTrainer.Config":
    """The config with the loss's rule for ``{rule}``, so that runs paired by one option keep apart.

    Raises:
        InputError: for a config with another loss or dataloader than this package's.
    """
    if not isinstance(config.dataloader, PackedDataLoader.Config) or not isinstance(config.loss, ExactLoss.Config):
        raise InputError("exact_titan needs its own dataloader and loss: start from one of its recipes")
    names = ("dump_folder", "start_from", "export")
    return replace(config, **{name: getattr(config, name).replace("{rule}", config.loss.rule) for name in names})


def packed_tokenizer(config: "ExactTrainer.Config") -> Path:
    """Folder of the tokenizer that the training windows were packed with."""
    return parse(config.dataloader.dataset_path)[0].folder / TOKENIZER_FOLDER


def _check_export(config: "ExactTrainer.Config") -> None:
    if not config.export:
        return
    check_out(Path(config.export))
    saves = config.checkpoint.enable and not config.checkpoint.load_only
    if not saves or config.checkpoint.last_save_in_hf:
        raise InputError(
            "export is set, which reads the last checkpoint: enable checkpoint, without load_only or last_save_in_hf"
        )


def _check_supply(config: "ExactTrainer.Config", mixture: Mixture, ranks: int) -> None:
    """Say how often the run reads each dataset, and refuse a mixture that is to be read once and is too small."""
    training = config.training
    batch = training.global_batch_size if training.global_batch_size > 0 else training.local_batch_size * ranks
    if mixture.shares is None:
        return
    short = []
    for dataset, turns in zip(mixture.datasets, mixture.shares.turns(training.steps * batch), strict=True):
        # Before torchtitan's logger is set up nothing is shown: of the calls in a run, only the trainer's says it.
        logger.info(
            f"{dataset.folder}: {turns:,} of the run's {training.steps * batch:,} windows, "
            f"{turns / len(dataset):.3g} epochs of its {len(dataset):,}"
        )
        if turns > len(dataset):
            short.append(
                f"{dataset.folder} has {len(dataset):,} of the {turns:,} windows of its share, "
                f"{turns - len(dataset):,} too few"
            )
    # A single dataset ends the run where it ends, as everywhere in torchtitan.
    if short and len(mixture.datasets) > 1 and not config.dataloader.infinite:
        raise InputError(
            f"dataloader.infinite is off and {'; '.join(short)}: give that less weight, train fewer steps, or let it "
            f"come again with --dataloader.infinite"
        )


def _validation_path(loader: PackedDataLoader.Config, training_path: str) -> str:
    """``loader``'s datasets to validate on; unless it names some, those of the training that have the split.

    The whole of each, one after another, or mixed with their weights where validation is cut short.
    """
    entries = parse(loader.dataset_path or training_path)
    having = [entry for entry in entries if loader.split in Manifest.read(entry.folder).splits]
    if not having or (loader.dataset_path and having != entries):
        lacking = next(entry.folder for entry in entries if entry not in having)
        raise InputError(
            f"{lacking} has no split {loader.split!r} to validate on: pack with --val-fraction, or train with "
            f"--validator.no-enable"
        )
    if loader.dataset_path:
        return loader.dataset_path
    return join(having if loader.infinite else [Entry(entry.folder) for entry in having])


def _check_sizes(config: "ExactTrainer.Config", ranks: int) -> None:
    training = config.training
    for name, value in {
        "training.steps": training.steps,
        "training.local_batch_size": training.local_batch_size,
        "metrics.log_freq": config.metrics.log_freq,
        "validator.freq": config.validator.freq,
        "training.gc_freq": training.gc_freq,
        "loss.num_chunks": config.loss.num_chunks,
        "comm.init_timeout_seconds": config.comm.init_timeout_seconds,
        "comm.train_timeout_seconds": config.comm.train_timeout_seconds,
    }.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be 1 or more")
    if training.global_batch_size > 0 and training.global_batch_size % (training.local_batch_size * ranks):
        raise InputError(
            f"training.global_batch_size is {training.global_batch_size}: it must be a multiple of "
            f"training.local_batch_size ({training.local_batch_size}) times the number of processes ({ranks})"
        )
    num_chunks = config.loss.num_chunks
    if training.seq_len % num_chunks:
        raise InputError(f"loss.num_chunks is {num_chunks}: it must divide training.seq_len ({training.seq_len})")


def _check_parallelism(config: "ExactTrainer.Config", ranks: int) -> None:
    parallelism = config.parallelism
    for name, reason in _REFUSED.items():
        degree = getattr(parallelism, name)
        if degree != 1:
            raise InputError(f"parallelism.{name} is {degree}: {reason}; set it to 1")
    replicas, shards = parallelism.data_parallel_replicate_degree, parallelism.data_parallel_shard_degree
    if replicas < 1 or ranks % replicas or shards not in (-1, ranks // replicas):
        raise InputError(
            f"parallelism.data_parallel_replicate_degree is {replicas} and data_parallel_shard_degree {shards}: their "
            f"product must be the number of processes ({ranks}), and -1 stands for the shards that makes"
        )
    if parallelism.spmd_backend != SPMD_BACKEND:
        raise InputError(
            f"parallelism.spmd_backend is {parallelism.spmd_backend}: set it to {SPMD_BACKEND}, "
            f"which runs on every torch version supported here"
        )


def _check_assets(config: "ExactTrainer.Config") -> None:
    if config.hf_assets_path and not Path(config.hf_assets_path).is_dir():
        raise InputError(
            f"hf_assets_path is {config.hf_assets_path!r}: there is no such folder; leave it empty for the dataset's"
        )
    if config.checkpoint.initial_load_in_hf and not config.checkpoint.initial_load_path:
        raise InputError("checkpoint.initial_load_in_hf is on, and no initial_load_path: name the folder with --model")
    if config.training.enable_cpu_offload and not torch.accelerator.is_available():
        raise InputError("training.enable_cpu_offload is on, but there is no GPU to offload from")


_REFUSED = {
    "pipeline_parallel_degree": "torchtitan hands the loss no positions there, so effective context is unknown to it",
    "tensor_parallel_degree": "the vocabulary-parallel loss does not carry the weights yet",
    "context_parallel_degree": "varlen attention does not run under context parallelism",
    "expert_parallel_degree": "the models here have no experts",
}
