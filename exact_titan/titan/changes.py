"""The differences between a start's options and the checkpoint that the start continues.

Every option has one decision (:data:`DECISIONS`):

- ``applies``: the new value acts from the next step on, and the log names the change;
- a name of ``dataloader.allow_changed``: the resume refuses another value, unless ``allow_changed`` has the name;
- ``order``: the option decides the order of the windows (:func:`exact_titan.titan.loader.order_changes`);
- ``free``: the option names a place or describes the output, and does not change the training. Files are compared by
  their content.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.exposure import default_threshold
from exact_titan.models import hf_config
from exact_titan.models.architecture import Architecture
from exact_titan.runs.run_folder import MODEL_FOLDER
from exact_titan.runs.run_record import RunRecord, options_of
from exact_titan.titan.loader import CHANGES, order_changes
from exact_titan.titan.model.decoder import DecoderModel
from exact_titan.titan.run_config import RunConfig

DECISIONS = {
    # The longest name that is the option, or one of the option's sections, decides.
    "model_spec": "free",  # the architecture is compared
    "architecture": "free",
    "rope": "free",  # the architecture is compared
    "model": "free",
    "start_from": "free",
    "hf_assets_path": "free",
    "dump_folder": "free",
    "export": "free",
    "attention": "applies",
    "activation_checkpoint": "applies",
    "optimizer": "applies",
    "ema": "applies",
    "lr_scheduler": "applies",
    "training": "applies",
    "training.seq_len": "order",
    "training.global_batch_size": "order",
    "training.disable_cuda_graphs": "free",
    "training.gc_freq": "free",
    "training.gc_debug": "free",
    "parallelism": "applies",
    "compile": "applies",
    "override": "applies",
    "loss": "loss",
    "loss.dataset_path": "free",  # the fingerprint is compared
    "loss.num_chunks": "applies",
    "dataloader": "order",
    "dataloader.split": "dataset",
    "dataloader.infinite": "dataset",
    "dataloader.balance": "applies",
    "dataloader.dataset_path": "free",  # the fingerprint is compared
    "dataloader.allow_changed": "free",
    "dataloader.varlen_metadata": "free",
    "validator": "applies",
    "validator.dataloader.dataset_path": "free",  # the fingerprint is compared
    "checkpoint": "free",
    "metrics": "free",
    "profiler": "free",
    "comm": "free",
    "debug": "free",
    "debug.deterministic": "applies",
    "debug.batch_invariant": "applies",
}


def decision(option: str) -> str:
    """Return the decision of an option, such as ``optimizer.lr``.

    Raises:
        KeyError: if the option has no decision.
    """
    parts = option.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in DECISIONS:
            return DECISIONS[name]
    raise KeyError(option)


@dataclass(frozen=True)
class Change:
    """A difference from the checkpoint.

    Attributes:
        kind: ``applies``, or the name that permits the change in ``dataloader.allow_changed``.
        applied: the words of the log, if the change applies: ``optimizer.lr 0.01 -> 1e-05``.
        refusal: the words of the message, if the change is refused: ``seed 0, not 5``.
        of_model: whether the model itself differs.
    """

    kind: str
    applied: str
    refusal: str
    of_model: bool = False

    @classmethod
    def of(cls, kind: str, what: str, was: Any, now: Any, *, prefix: str = "", of_model: bool = False) -> "Change":
        return cls(kind, f"{prefix}{what} {was} -> {now}", f"{what} {was}, not {now}", of_model)


def permitted_changes(config: RunConfig, *, ranks: int) -> list[Change]:
    """Return the differences from the checkpoint of ``config._resume``. All of them apply from the next step on.

    Args:
        config: the completed config of a start that continues a checkpoint.
        ranks: number of processes of the start.

    Raises:
        InputError: naming every difference that ``dataloader.allow_changed`` does not permit, with both values.
    """
    assert config._resume is not None
    record = config._resume.record
    found = list(_model_changes(config, record))
    if record is not None:  # otherwise the dataloader compares the order, when it loads its state
        found += [*_order_changes(record, config, ranks), *_option_changes(record, config)]
    allowed = config.dataloader.allow_changed
    refused = [change for change in found if change.kind not in ("applies", *allowed)]
    if refused:
        kinds = {change.kind for change in refused}
        raise InputError(
            f"{config.dump_folder}: the checkpoint was trained with "
            f"{'; '.join(change.refusal for change in refused)}: resume with the value of the checkpoint, start in "
            f"another dump_folder, or allow the change with --dataloader.allow_changed "
            f"{','.join([*allowed, *(name for name in CHANGES if name in kinds)])}"
        )
    return found


def _order_changes(record: RunRecord, config: RunConfig, ranks: int) -> Iterator[Change]:
    was, now = (
        {
            "fingerprint": fingerprint,
            "seed": options["dataloader.seed"],
            "global_batch_size": _global_batch(options, ranks_then),
            "seq_len": options["training.seq_len"],
        }
        for fingerprint, options, ranks_then in (
            (record.data["fingerprint"], options_of(record.config), record.starts[-1].ranks),
            (config.dataloader._mixture.fingerprint, options_of(config_dict(config)), ranks),
        )
    )
    for kind, text in order_changes(was, now, config.dataloader._mixture).items():
        yield Change(kind, text, text)


def _global_batch(options: dict[str, Any], ranks: int) -> int:
    batch = options["training.global_batch_size"]
    if batch > 0:
        return batch
    # A record of somebody else may lack the degrees, or have any number.
    degrees = (options.get(f"parallelism.{kind}_parallel_degree", 1) for kind in ("context", "tensor"))
    return options["training.local_batch_size"] * (ranks // max(1, math.prod(degrees)))


def _option_changes(record: RunRecord, config: RunConfig) -> Iterator[Change]:
    was, now = options_of(record.config), options_of(config_dict(config))
    for option in sorted(was.keys() & now.keys()):  # an older version lacks some options
        if was[option] == now[option] or (kind := decision(option)) in ("free", "order"):
            continue
        if option == "loss.threshold" and _threshold(was) == _threshold(now):
            continue
        yield Change.of(kind, option, was[option], now[option])
    # Counts of the training data follow the training data.
    own_counts = config.loss.dataset_path != config.dataloader.dataset_path or record.loss_data != record.data.get(
        "fingerprint"
    )
    loss_data = config.loss._mixture.fingerprint
    if loss_data != record.loss_data and own_counts:
        yield Change.of("loss", "loss.dataset_path with fingerprint", record.loss_data, loss_data)


def _model_changes(config: RunConfig, record: RunRecord | None) -> Iterator[Change]:
    """Yield the differences from the architecture in ``<dump_folder>/model``, the architecture of the checkpoint.

    The shapes of the tensors are compared with the checkpoint itself. A new window needs another RoPE or more
    positions, so the permission of another ``seq_len`` permits them.
    """
    folder, model = Path(config.dump_folder) / MODEL_FOLDER, config.model_spec and config.model_spec.model
    if not folder.is_dir() or not isinstance(model, DecoderModel.Config):
        return
    trained = hf_config.read_architecture(folder)
    longer = record is not None and record.config["training"]["seq_len"] != config.training.seq_len
    allowed = config.dataloader.allow_changed
    with_window = "model" not in allowed and (longer or "seq_len" in allowed)
    for field in fields(Architecture):
        was, now = getattr(trained, field.name), getattr(model.architecture, field.name)
        if was != now:
            positional = field.name in ("rope_theta", "rope_scaling", "max_positions")
            kind = "seq_len" if positional and with_window else "model"
            shown = ("none" if value is None else value for value in (was, now))
            yield Change.of(kind, field.name, *shown, prefix="model: ", of_model=True)


def config_dict(config: RunConfig) -> dict[str, Any]:
    """Return all options as JSON values. The model spec is left out, because ``run.json`` has the architecture."""
    options = _public(config.to_dict())
    options.pop("model_spec", None)
    # The options of selective and full checkpointing have the same names.
    kind = "none"
    if config.activation_checkpoint is not None:
        kind = type(config.activation_checkpoint).__qualname__.removesuffix(".Config")
    options["activation_checkpoint"] = {**(options["activation_checkpoint"] or {}), "kind": kind}
    return options


def _public(value: Any) -> Any:
    """Return a config's dictionary without names that start with an underscore, at any depth."""
    if not isinstance(value, dict):
        return value
    return {name: _public(one) for name, one in value.items() if not name.startswith("_")}


def _threshold(options: dict[str, Any]) -> int:
    set_value = options["loss.threshold"]
    return default_threshold(options["training.seq_len"]) if set_value is None else set_value
