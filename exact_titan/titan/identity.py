"""The identity of a start, from its completed config: the record of ``run.json``, and the values that ranks share."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from torchtitan.components.dataloader import BaseDataLoader

import exact_titan
from exact_titan.models import hf_config
from exact_titan.runs.run_record import RunRecord, Start, code_commit, options_of
from exact_titan.titan.changes import config_dict
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.model.decoder import DecoderModel
from exact_titan.titan.run_config import RunConfig

_PLACES = ("dump_folder", "export", "hf_assets_path", "model", "start_from")
"""Options that may name other folders with the same files on another machine."""


def record_of(config: RunConfig, earlier: RunRecord | None) -> RunRecord:
    """Return the record of this start.

    Args:
        config: a config that :func:`exact_titan.titan.preflight.complete` has returned.
        earlier: the record of the checkpoint that the start continues. None: a new run, or a run of an older version.
    """
    resume = config._resume
    ranks = int(os.environ["WORLD_SIZE"])
    replicas = config.parallelism.data_parallel_replicate_degree
    start = Start(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed_from=resume.step if resume else 0,
        version=exact_titan.version(),
        commit=code_commit(),
        software={"python": platform.python_version(), "torch": version("torch"), "torchtitan": version("torchtitan")},
        ranks=ranks,
        hosts=ranks // int(os.environ.get("LOCAL_WORLD_SIZE", ranks)),
        replicas=replicas,
        shards=ranks // replicas,
    )
    weights = config._first_weights or {"kind": "scratch", "path": None, "step": None, "digest": None}
    if resume is not None:
        weights = earlier.weights if earlier else {"kind": "unknown", "path": None, "step": None, "digest": None}
    model = config.model_spec.model if config.model_spec else None
    return RunRecord(
        config=config_dict(config),
        data=_data(config.dataloader) or {},
        validation=_data(config.validator.dataloader) if config.validator.enable else None,
        loss_data=config.loss._mixture.fingerprint,
        weights=weights,
        model=hf_config.make_config(model.architecture, eos_token_id=None)
        if isinstance(model, DecoderModel.Config)
        else {},
        starts=[*(earlier.starts if earlier else []), start],
    )


def shared_values(config: RunConfig) -> dict[str, Any]:
    """Return the values that must be equal on all ranks, by a text that names the value.

    A path is no such value: machines with local disks may have the same files in other places.
    """
    options = config_dict(config)
    for name in _PLACES:
        options.pop(name)
    for section in ("dataloader", "loss"):
        options[section].pop("dataset_path")
    options["validator"].pop("dataloader")
    options["checkpoint"].pop("initial_load_path")
    validation = getattr(config.validator.dataloader, "_mixture", None) if config.validator.enable else None
    resume = config._resume
    return {
        "the fingerprint of dataloader.dataset_path": config.dataloader._mixture.fingerprint,
        "the fingerprint of the validation data": validation.fingerprint if validation else None,
        "the fingerprint of loss.dataset_path": config.loss._mixture.fingerprint,
        "the digest of the first weights": config._first_weights.get("digest"),
        "the step of the checkpoint to resume from": resume.step if resume else None,
        **{f"the option {name}": value for name, value in options_of(options).items()},
    }


def _data(loader: BaseDataLoader.Config) -> dict[str, Any] | None:
    if not isinstance(loader, PackedDataLoader.Config) or (mixture := loader._mixture) is None:
        return None
    weights = mixture.shares.weights if mixture.shares is not None else [None] * len(mixture.datasets)
    return {
        "fingerprint": mixture.fingerprint,
        "split": mixture.split,
        "window": mixture.window,
        "order_version": loader._order_version,
        "datasets": [
            {
                "path": str(dataset.folder.resolve()),
                "fingerprint": dataset.manifest.fingerprint,
                "windows": len(dataset),
                "weight": weight,
            }
            for dataset, weight in zip(mixture.datasets, weights, strict=True)
        ],
    }
