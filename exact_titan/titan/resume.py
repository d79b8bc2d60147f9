"""A resume: the checkpoint that a start continues, and the comparison of the start's options with that checkpoint.

Every option has one decision (:data:`DECISIONS`):

- ``applies``: the new value acts from the next step on, and the log names the change;
- a name of ``dataloader.allow_changed``: the resume refuses another value, unless ``allow_changed`` has the name;
- ``dataloader``: the state of the dataloader in the checkpoint is compared (:meth:`PackedDataLoader.load_state_dict`);
- ``free``: the option names a place or describes the output, and does not change the training. Files are compared by
  their content.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.exposure import default_threshold
from exact_titan.models import hf_config
from exact_titan.models.architecture import Architecture
from exact_titan.runs.checkpoint_manifest import DCP_METADATA, find_checkpoints, why_incomplete
from exact_titan.runs.run_folder import MODEL_FOLDER, stored_names
from exact_titan.runs.run_record import Resume, RunRecord, read_record
from exact_titan.titan.loader import CHANGES
from exact_titan.titan.run_config import RunConfig

DECISIONS = {
    # The longest name that is the option, or one of the option's sections, decides.
    "model_spec": "free",  # the architecture is compared (check_model)
    "architecture": "free",
    "model": "free",
    "start_from": "free",
    "hf_assets_path": "free",
    "dump_folder": "free",
    "export": "free",
    "attention": "applies",
    "activation_checkpoint": "applies",
    "optimizer": "applies",
    "lr_scheduler": "applies",
    "training": "applies",
    "training.seq_len": "dataloader",
    "training.global_batch_size": "dataloader",
    "training.disable_cuda_graphs": "free",
    "training.gc_freq": "free",
    "training.gc_debug": "free",
    "parallelism": "applies",
    "compile": "applies",
    "override": "applies",
    "loss": "loss",
    "loss.dataset_path": "free",  # the fingerprint is compared
    "loss.num_chunks": "applies",
    "dataloader": "dataloader",
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


def find_resume(config: RunConfig) -> Resume | None:
    """Return the checkpoint that the start continues, and None for a new run.

    Raises:
        InputError: if ``checkpoint.load_step`` names no complete checkpoint, or if the last checkpoint holds too little
            for a resume. The message names the option that saved it so.
    """
    options = config.checkpoint
    if not options.enable or options.create_seed_checkpoint:
        return None
    folder = Path(config.dump_folder) / options.folder
    complete, _ = find_checkpoints(folder)
    if options.load_step == -1 and not complete:
        return None
    step = max(complete) if options.load_step == -1 else options.load_step
    if step not in complete:
        checkpoint = folder / f"step-{step}"
        why = f"is not complete: {why_incomplete(checkpoint)}" if checkpoint.is_dir() else "is missing"
        steps = ", ".join(map(str, sorted(complete))) or "none"
        raise InputError(f"checkpoint.load_step is {step}, but {checkpoint} {why}: complete steps are {steps}")
    if step:  # torchtitan loads only the weights of step 0, a seed checkpoint
        _check_whole(complete[step], config, earlier=[one for one in complete if one < step])
    if config.training.steps < step:
        raise InputError(
            f"training.steps is {config.training.steps}, but {complete[step]} has {step} steps: set training.steps to "
            f"{step} or more, or start from an earlier checkpoint with --checkpoint.load_step"
        )
    return Resume(complete[step], step, read_record(complete[step]))


def is_finished(config: RunConfig) -> bool:
    """Whether all steps are done and the last validation has finished, so that the start has nothing to train."""
    resume = config._resume
    if resume is None or resume.step < config.training.steps or config.checkpoint.load_only:
        return False
    validator = config.validator
    due = validator.enable and resume.step % validator.freq == 0
    return not due or (resume.checkpoint / "validated").exists()


def _check_whole(checkpoint: Path, config: RunConfig, *, earlier: list[int]) -> None:
    """Refuse a checkpoint that lacks a part of the state."""
    resume_earlier = f"resume from step {max(earlier)} with --checkpoint.load_step {max(earlier)}" if earlier else ""
    if not (checkpoint / DCP_METADATA).is_file():
        new_run = (
            f"copy the files of {Path(config.dump_folder) / MODEL_FOLDER} to it, and name it with --model in another "
            f"dump_folder"
        )
        raise InputError(
            f"{checkpoint} holds Hugging Face weights without the optimizer, because checkpoint.last_save_in_hf was "
            f"on: a run cannot resume from it: {resume_earlier or new_run}"
        )
    needed = {"optimizer", "lr_scheduler", "dataloader", "train_state"} - set(config.checkpoint.exclude_from_loading)
    missing = needed - {name.split(".")[0] for name in stored_names(checkpoint)}
    if missing:
        new_run = f"start a new run from it with --start_from {config.dump_folder} in another dump_folder"
        raise InputError(
            f"{checkpoint} holds the weights without {', '.join(sorted(missing))}, because "
            f"checkpoint.last_save_model_only was on: a run cannot resume from it: {resume_earlier or new_run}"
        )


def check_changes(config: RunConfig, refused: dict[str, list[str]]) -> None:
    """Refuse the differences from the checkpoint, all in one message.

    Args:
        config: the config.
        refused: the differences by the name that permits them in ``dataloader.allow_changed``.

    Raises:
        InputError: if there are differences that ``allow_changed`` does not name. The message has both values of each.
    """
    refused = {name: lines for name, lines in refused.items() if lines and name not in config.dataloader.allow_changed}
    if refused:
        names = [*config.dataloader.allow_changed, *(name for name in CHANGES if name in refused)]
        raise InputError(
            f"{config.dump_folder}: the checkpoint was trained with "
            f"{'; '.join(line for lines in refused.values() for line in lines)}: resume with the value of the "
            f"checkpoint, start in another dump_folder, or allow the change with --dataloader.allow_changed "
            f"{','.join(names)}"
        )


def compare_data(record: RunRecord, config: RunConfig, *, ranks: int) -> dict[str, list[str]]:
    """Return the differences of training data, seed, batch and window, as :func:`check_changes` takes them.

    Args:
        record: the record of the checkpoint.
        config: the completed config.
        ranks: number of processes of this start.
    """
    mixture, was, now = config.dataloader._mixture, options_of(record.config), options_of(config_dict(config))
    changes: dict[str, list[str]] = {}
    if record.data["fingerprint"] != mixture.fingerprint:
        changes["dataset"] = [mixture.difference(record.data["fingerprint"])]
    batches = [_global_batch(options, ranks) for options, ranks in ((was, record.starts[-1].ranks), (now, ranks))]
    for name, (old, new) in {
        "seed": (was["dataloader.seed"], now["dataloader.seed"]),
        "global_batch_size": batches,
        "seq_len": (was["training.seq_len"], now["training.seq_len"]),
    }.items():
        if old != new:
            changes[name] = [f"{name} {old}, not {new}"]
    return changes


def _global_batch(options: dict[str, Any], ranks: int) -> int:
    batch = options["training.global_batch_size"]
    return batch if batch > 0 else options["training.local_batch_size"] * ranks


def compare_options(record: RunRecord, config: RunConfig, *, loss_data: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return a line for every option that applies from the next step on, and the differences to permit.

    Args:
        record: the record of the checkpoint.
        config: the completed config.
        loss_data: fingerprint of the datasets whose counts give the weights.
    """
    was, now = options_of(record.config), options_of(config_dict(config))
    changes: list[str] = []
    refused: dict[str, list[str]] = {}
    for option in sorted(was.keys() & now.keys()):  # an older version lacks some options
        if was[option] == now[option]:
            continue
        kind = decision(option)
        if kind in ("free", "dataloader"):
            continue
        if option == "loss.threshold" and _threshold(was) == _threshold(now):
            continue
        change = f"{option} {_text(was[option])} -> {_text(now[option])}"
        if kind == "applies" or kind in config.dataloader.allow_changed:
            changes.append(change)
        else:
            refused.setdefault(kind, []).append(f"{option} {_text(was[option])}, not {_text(now[option])}")
    # Counts of the training data follow the training data, which the dataloader compares.
    own_counts = config.loss.dataset_path != config.dataloader.dataset_path or record.loss_data != record.data.get(
        "fingerprint"
    )
    if loss_data != record.loss_data and own_counts and "loss" not in config.dataloader.allow_changed:
        refused.setdefault("loss", []).append(
            f"loss.dataset_path with fingerprint {record.loss_data}, not {loss_data} ({config.loss.dataset_path})"
        )
    return changes, refused


def compare_model(config: RunConfig, architecture: Architecture) -> tuple[list[str], dict[str, list[str]]]:
    """Return the permitted differences from the checkpoint's model, a line each, and the differences to permit.

    ``<dump_folder>/model`` has the architecture of the checkpoint. The shapes of the tensors are compared with the
    checkpoint itself. ``allow_changed`` permits another RoPE and another number of positions with ``seq_len`` or
    ``model``, and any other difference with ``model``.
    """
    folder = Path(config.dump_folder) / MODEL_FOLDER
    if not folder.is_dir():
        return [], {}
    trained = hf_config.read_architecture(folder)
    allowed = set(config.dataloader.allow_changed)
    record = config._resume.record if config._resume else None
    window = record.config["training"]["seq_len"] if record else None
    changes: list[str] = []
    refused: dict[str, list[str]] = {}
    for field in fields(Architecture):
        was, now = getattr(trained, field.name), getattr(architecture, field.name)
        if was == now:
            continue
        positional = field.name in ("rope_theta", "rope_scaling", "max_positions")
        if "model" in allowed or (positional and "seq_len" in allowed):
            changes.append(f"model: {field.name} {was} -> {now}")
        else:
            longer = positional and window not in (None, config.training.seq_len)
            refused.setdefault("seq_len" if longer else "model", []).append(f"{field.name} {was}, not {now}")
    return changes, refused


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


def options_of(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a config tree by option, such as ``optimizer.lr``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= options_of(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _threshold(options: dict[str, Any]) -> int:
    set_value = options["loss.threshold"]
    return default_threshold(options["training.seq_len"]) if set_value is None else set_value


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
