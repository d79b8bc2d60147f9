"""The checks before a run starts, and the values that the packed dataset and the model fill in.

:func:`complete` runs once per rank, before any process group exists:

1. Check the options against each other (:func:`check_options`).
2. Open the packed datasets. Each rank reads each manifest once. The ranks of a machine divide the shards, and check
   the size of each shard once. The completed config carries the open datasets to the dataloader, the loss and the
   validator.
3. Resolve the architecture and the first weights (:mod:`exact_titan.titan.start`).
4. Choose the attention kernel.
5. Compare the options with the checkpoint that the start continues (:mod:`exact_titan.titan.changes`).
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torchtitan.tools.logging import logger

from exact_titan.dataset.manifest import TOKENIZER_FOLDER, Manifest
from exact_titan.errors import InputError
from exact_titan.runs.run_record import Resume, order_version
from exact_titan.sampling.dataset_path import Entry, join, parse
from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.order import VERSION
from exact_titan.titan import start
from exact_titan.titan.changes import permitted_changes
from exact_titan.titan.console import FILE_ONLY
from exact_titan.titan.context_gain import check_pieces
from exact_titan.titan.destinations import check_destinations, check_disks
from exact_titan.titan.layout import check_layout, check_sizes_of_model, data_parallel_ranks
from exact_titan.titan.loader import PackedDataLoader, check_window, open_mixture
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.loss_options import LossOptions, check_config, open_counts
from exact_titan.titan.model.attention import set_implementation
from exact_titan.titan.model.decoder import DecoderModel, check_vocabulary, decoder_spec
from exact_titan.titan.option_checks import check_machine, check_values
from exact_titan.titan.resume import find_resume
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.trackers import check_wandb
from exact_titan.titan.validate import ExposureValidator


def complete(config: RunConfig) -> RunConfig:
    """Return the config with dataset paths, open datasets, model and tokenizer filled in.

    Raises:
        InputError: naming the option or the file, and the way out.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config = check_options(config, ranks=ranks)
    check_machine(config)
    config = replace(config, _resume=find_resume(config))
    check_destinations(config)
    _check_assets(config)
    loader = config.dataloader
    seq_len = config.training.seq_len
    mixture = open_mixture(loader, seq_len)
    _check_supply(config, mixture, ranks)
    if data_parallel_ranks(config.parallelism, ranks) > 1:
        for dataset in mixture.datasets:
            _ = dataset.work  # a damaged file ends the start here, before the process group exists
    loss = _with_counts(config.loss, loader, mixture, seq_len)
    validator = _with_validation_windows(config.validator, loader, mixture, config._resume, seq_len)

    tokenizer = packed_tokenizer(config)
    vocabulary = mixture.datasets[0].manifest.tokenizer.vocab_size
    model_spec = config.model_spec
    if model_spec is None or config.model or config.start_from:
        architecture = start.resolve_architecture(config, tokenizer_vocab=vocabulary)
        start.check_positions(config, architecture)
        start.check_tokenizer(config, dataset_tokenizer=tokenizer)
        config = start.with_initial_weights(config, architecture)
        model_spec = decoder_spec(architecture)
    else:
        start.refuse_rope(config)
    check_vocabulary(model_spec.model, tokenizer_vocab=vocabulary)
    check_sizes_of_model(model_spec.model, config.parallelism)
    if isinstance(model_spec.model, DecoderModel.Config):
        check_disks(config, model_spec.model.architecture.num_parameters())
    set_implementation(model_spec.model, config.attention)
    completed = replace(
        config,
        dataloader=replace(
            loader,
            varlen_metadata=True,
            _mixture=mixture,
            _order_version=_order_version(config._resume, "data", mixture),
        ),
        loss=loss,
        validator=validator,
        hf_assets_path=config.hf_assets_path or str(tokenizer),
    )
    completed.model_spec = model_spec
    _check_tokenizer(completed)
    start.check_copied_tokenizer(completed, dataset_tokenizer=tokenizer)
    return _with_changes(completed, ranks)


def _with_changes(config: RunConfig, ranks: int) -> RunConfig:
    """Return the config with the differences from the checkpoint to resume from. Refuse what is not permitted."""
    if config._resume is None:
        return config
    found = permitted_changes(config, ranks=ranks)
    kinds = {change.kind for change in found}
    return replace(
        config,
        loss=replace(config.loss, _changed="loss" in kinds),
        dataloader=replace(config.dataloader, _new_order="dataset" in kinds),
        _resume=replace(
            config._resume,
            changes=tuple(change.applied for change in found),
            model_changed=any(change.of_model for change in found),
        ),
    )


def _order_version(resume: Resume | None, name: Literal["data", "validation"], mixture: Mixture) -> int:
    """Return the version of the order of the windows: the run's own version on the datasets of the checkpoint."""
    if resume is None:
        return VERSION
    if resume.record is None:  # the run is older than version 2
        return 1
    data = getattr(resume.record, name) or {}
    return order_version(data) if data.get("fingerprint") == mixture.fingerprint else VERSION


def is_complete(config: RunConfig) -> bool:
    """Whether :func:`complete` has returned this config."""
    return isinstance(config.dataloader, PackedDataLoader.Config) and config.dataloader._mixture is not None


def check_options(config: RunConfig, *, ranks: int) -> RunConfig:
    """Return the config with ``{rule}`` filled in, after all checks that need neither a dataset nor a model.

    Args:
        ranks: number of processes.

    Raises:
        InputError: naming the option.
    """
    config = with_rule(config)
    check_values(config, ranks=ranks)
    check_layout(config.parallelism, ranks=ranks, seq_len=config.training.seq_len)
    _check_sizes(config, ranks)
    check_wandb(config.metrics)
    return config


def with_rule(config: RunConfig) -> RunConfig:
    """Return the config with ``loss.rule`` instead of ``{rule}``. Paired runs therefore get different folders.

    Raises:
        InputError: if the loss or the dataloader of the config is not from this package.
    """
    if not isinstance(config.dataloader, PackedDataLoader.Config) or not isinstance(config.loss, ExactLoss.Config):
        raise InputError("exact_titan needs its own dataloader and loss: start from a recipe of exact_titan")
    names = ("dump_folder", "start_from", "export")
    return replace(config, **{name: getattr(config, name).replace("{rule}", config.loss.rule) for name in names})


def packed_tokenizer(config: RunConfig) -> Path:
    """Folder of the tokenizer of the training windows: the copy in the first packed dataset."""
    return parse(config.dataloader.dataset_path)[0].folder / TOKENIZER_FOLDER


def _check_tokenizer(config: RunConfig) -> None:
    """Refuse a tokenizer folder that torchtitan's trainer cannot load. The trainer loads the folder for its datasets.

    A large tokenizer takes about a second.
    """
    try:
        config.tokenizer.build(tokenizer_path=config.hf_assets_path)
    except Exception as error:  # the library raises the bare class Exception
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the tokenizer in {config.hf_assets_path} cannot be loaded ({why}): copy the folder again from its source"
        ) from error


def _check_supply(config: RunConfig, mixture: Mixture, ranks: int) -> None:
    """Log the epochs of each dataset in the run. Refuse a mixture without repeats if a dataset is too small."""
    training = config.training
    windows = training.local_batch_size * data_parallel_ranks(config.parallelism, ranks)
    batch = training.global_batch_size if training.global_batch_size > 0 else windows
    if mixture.shares is None:
        return
    short = []
    for dataset, turns in zip(mixture.datasets, mixture.shares.turns(training.steps * batch), strict=True):
        logger.info(
            f"{dataset.folder}: {turns:,} of the run's {training.steps * batch:,} windows, "
            f"{turns / len(dataset):.3g} epochs of its {len(dataset):,}",
            extra=FILE_ONLY,
        )
        if turns > len(dataset):
            short.append(
                f"{dataset.folder} has {len(dataset):,} of the {turns:,} windows of its share, "
                f"{turns - len(dataset):,} too few"
            )
    # A single dataset without epochs ends the run at its last window, as in torchtitan.
    if short and len(mixture.datasets) > 1 and not config.dataloader.infinite:
        raise InputError(
            f"dataloader.infinite is off and {'; '.join(short)}: lower the weight of these datasets, train fewer "
            f"steps, or repeat them with --dataloader.infinite"
        )


def _with_counts(loss: LossOptions, loader: PackedDataLoader.Config, mixture: Mixture, seq_len: int) -> LossOptions:
    """Return the loss's config with its open datasets. By default these are the datasets of the run."""
    loss = replace(loss, dataset_path=loss.dataset_path or loader.dataset_path, _seed=loader.seed)
    if loss.dataset_path == mixture.dataset_path and mixture.split == "train":
        loss = replace(loss, _mixture=mixture)
    counted = open_counts(loss, manifests=mixture.manifests)
    check_window(counted.datasets[0], seq_len)
    check_config(loss, window=mixture.window)
    return replace(loss, _mixture=counted)


def _with_validation_windows(
    validator: ExposureValidator.Config,
    loader: PackedDataLoader.Config,
    training: Mixture,
    resume: Resume | None,
    seq_len: int,
) -> ExposureValidator.Config:
    """Return the validator's config with its dataset paths and open datasets.

    By default these are the training datasets that have the validation split. A validator with another dataloader does
    not change.
    """
    if not validator.enable or not isinstance(validator.dataloader, PackedDataLoader.Config):
        return validator
    dataloader = replace(validator.dataloader, infinite=validator.steps != -1)
    entries = parse(dataloader.dataset_path or loader.dataset_path)
    known = training.manifests
    manifests = {entry.folder: known.get(entry.folder) or Manifest.read(entry.folder) for entry in entries}
    with_split = [entry for entry in entries if dataloader.split in manifests[entry.folder].splits]
    if not with_split or (dataloader.dataset_path and with_split != entries):
        without = next(entry.folder for entry in entries if entry not in with_split)
        raise InputError(
            f"{without} has no split {dataloader.split!r} to validate on: pack with --val-fraction, or train with "
            f"--validator.no-enable"
        )
    if not dataloader.dataset_path:
        # Full validation reads all of each dataset, one after another. A fixed number of steps mixes them by weight.
        named = with_split if dataloader.infinite else [Entry(entry.folder) for entry in with_split]
        dataloader = replace(dataloader, dataset_path=join(named))
    mixture = open_mixture(dataloader, seq_len, manifests=manifests)
    version = _order_version(resume, "validation", mixture)
    return replace(validator, dataloader=replace(dataloader, _mixture=mixture, _order_version=version))


def _check_sizes(config: RunConfig, ranks: int) -> None:
    training = config.training
    data_ranks = data_parallel_ranks(config.parallelism, ranks)
    if training.global_batch_size > 0 and training.global_batch_size % (training.local_batch_size * data_ranks):
        processes = "processes" if data_ranks == ranks else "data-parallel ranks"
        raise InputError(
            f"training.global_batch_size is {training.global_batch_size}: it must be a multiple of "
            f"training.local_batch_size ({training.local_batch_size}) times the number of {processes} ({data_ranks})"
        )
    num_chunks = config.loss.num_chunks
    part = training.seq_len // config.parallelism.context_parallel_degree
    if part % num_chunks:
        of = "training.seq_len" if part == training.seq_len else "a rank's part of training.seq_len"
        raise InputError(f"loss.num_chunks is {num_chunks}: it must divide {of} ({part})")
    if isinstance(config.validator, ExposureValidator.Config):
        check_pieces(config.validator.context_gain, window=training.seq_len)


def _check_assets(config: RunConfig) -> None:
    if config.hf_assets_path and not Path(config.hf_assets_path).is_dir():
        raise InputError(
            f"hf_assets_path is {config.hf_assets_path!r}: there is no such folder; leave it empty for the dataset's "
            f"tokenizer"
        )
    _check_initial_load(config)


def _check_initial_load(config: RunConfig) -> None:
    """Refuse torchtitan's own options for first weights. Only a config.json has the RoPE and the norm of a model."""
    checkpoint = config.checkpoint
    if config.model or config.start_from:
        return  # with_initial_weights compares the paths
    for name in ("initial_load_in_hf", "initial_load_path"):
        value = getattr(checkpoint, name)
        if value and (config.model_spec is None or not checkpoint.initial_load_path):
            raise InputError(
                f"checkpoint.{name} is {value}, and the model is from scratch: name the folder with --model, or the "
                f"run with --start_from; RoPE and norm come from its config.json"
            )
    if checkpoint.initial_load_path and not Path(checkpoint.initial_load_path).is_dir():
        raise InputError(f"checkpoint.initial_load_path is {checkpoint.initial_load_path}: there is no such folder")
