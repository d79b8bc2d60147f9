"""The lines at the start and at the end of a run: the values in force, the results, and the next commands."""

import os
import shlex
import sys
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.config import CompileConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from exact_titan.errors import InputError
from exact_titan.launch.command import COMMAND
from exact_titan.runs.checkpoint_folders import find_checkpoints
from exact_titan.runs.metrics_log import read_validations
from exact_titan.titan.checkpoint import ResumableCheckpoints
from exact_titan.titan.console import duration
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.model.attention import DocumentAttention, describe
from exact_titan.titan.model.decoder import DecoderModel
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.validate import ExposureValidator

_TORCHRUN = "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGHUP --shutdown-timeout=600"


class Run(Protocol):
    """The parts of a trainer that the header and the summary describe."""

    config: RunConfig
    step: int
    loss_fn: ExactLoss
    dataloader: PackedDataLoader
    validator: ExposureValidator
    checkpointer: ResumableCheckpoints
    model_parts: list[nn.Module]
    parallel_dims: ParallelDims
    device: torch.device
    gradient_accumulation_steps: int
    windows_per_step: int


def header(trainer: Run) -> list[str]:
    """Return the aligned lines that describe a run after the load of its checkpoint. All values are in force."""
    config, step = trainer.config, trainer.step
    rows = [("rule", _rule(trainer)), ("weights", _weights(trainer)), *_data(trainer)]
    if config.validator.enable:
        rows.append(("validation", _validation(trainer)))
    parameters = sum(parameter.numel() for model in trainer.model_parts for parameter in model.parameters())
    rows += [
        ("model", f"{config.model or config.start_from or 'from scratch'}, {parameters:,} parameters"),
        *_rope(trainer),
        ("start", _start(trainer)),
        ("steps", _steps(trainer)),
        ("ranks", _layout(trainer)),
        ("precision", _precision(trainer)),
        *([("average", f"moving average of the weights, decay {decay:g}")] if (decay := config.ema.decay) else []),
        ("recompute", f"{_recomputation(trainer)} activation checkpointing"),
        ("attention", _attention(trainer)),
        ("compiled", _compiled(config.compile)),
        ("checkpoints", _checkpoints(trainer)),
        ("folder", config.dump_folder),
    ]
    width = max(len(name) for name, _ in rows)
    steps = config.training.steps
    first = f"exact_titan: step {step + 1:,} of {steps:,}" if step < steps else f"exact_titan: {steps:,} steps are done"
    return [first, *(f"  {name:<{width}}  {value}" for name, value in rows)]


def summary(trainer: Run, *, seconds: float, tokens: int, finished: bool) -> list[str]:
    """Return the lines at the end of a run: results, and the next commands.

    Args:
        trainer: the trainer after its last step.
        seconds: duration of this start.
        tokens: tokens of the whole run, over all ranks.
        finished: whether all steps are done. Otherwise a stop has ended the run.
    """
    config = trainer.config
    folder, steps = config.dump_folder, config.training.steps
    what = "finished" if finished else "stopped"
    lines = [f"{what}: step {trainer.step:,} of {steps:,}, {tokens:,} tokens, this start took {duration(seconds)}"]
    rows = _validations(Path(folder))
    quoted = shlex.quote(folder)
    complete = _complete(trainer)
    if complete:
        rows.append(("checkpoint", str(complete[max(complete)])))
    if finished:
        if complete and not config.export:
            rows.append(("export", f"exact-titan export {quoted} --out MODEL_FOLDER"))
        rows.append(("compare", f"exact-titan compare {quoted} OTHER_RUN"))
    if config.metrics.enable_tensorboard:
        rows.append(("tensorboard", f"tensorboard --logdir {quoted}"))
    if not finished:
        rows.append(("resume", _command()))
    width = max(len(name) for name, _ in rows) if rows else 0
    return lines + [f"  {name:<{width}}  {value}" for name, value in rows]


def _complete(trainer: Run) -> dict[int, Path]:
    """Return the complete checkpoints of the run by step."""
    if not trainer.checkpointer.enable:
        return {}
    try:
        return find_checkpoints(Path(trainer.checkpointer.folder)).complete
    except InputError:  # the end of a training must not depend on the list of its checkpoints
        return {}


def _command() -> str:
    if (launched := os.environ.get(COMMAND)) is not None:
        return launched
    arguments = shlex.join(sys.argv[1:])
    ranks, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks != here:
        return "the same command, on the same or another number of nodes"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return f"python -m exact_titan.train {arguments}"
    return f"torchrun --nproc_per_node={ranks} {_TORCHRUN} -m exact_titan.train {arguments}"


def _validations(run: Path) -> list[tuple[str, str]]:
    """Return the best and the last validation of the run, with the tail."""
    try:
        found = [record for record in read_validations(run) if record["cross_entropy"] is not None]
        averages = read_validations(run, "ema")
    except InputError as error:  # the end of a training must not depend on a file of numbers
        return [("validations", str(error))]
    if not found:
        return []

    def text(record: dict) -> str:
        tail = record["tail"]["cross_entropy"]
        shown = "-" if tail is None else f"{tail:.3f}"
        return f"CE {record['cross_entropy']:.3f}  tail {shown}  (step {record['step']:,})"

    best = min(found, key=lambda record: record["cross_entropy"])
    last = [("last validation", text(found[-1]))]
    if averages and averages[-1]["step"] == found[-1]["step"]:
        last.append(("moving average", text(averages[-1])))
    return [("best validation", text(best)), *last]


def _rule(trainer: Run) -> str:
    loss = trainer.loss_fn
    options, counts_n, rule = loss.config, loss.counts_n, loss.rule
    share = float(counts_n[loss.buckets.lower_bounds >= loss.threshold].sum() / counts_n.sum().clamp(min=1))
    tail = f"the tail starts at {loss.threshold:,} tokens of context, {share:.1%} of the targets"
    if not rule.is_weighted:
        return f"{rule.name} (plain loss), {tail}"
    refresh = f", refreshed every {options.refresh_steps:,} steps" if options.refresh_steps else ""
    gamma = rule.fixed.get("gamma", options.gamma)
    divisor = ", divided by the sum of the weights" if rule.weighted_divisor else ""
    return f"{rule.name}, alpha {options.alpha:g}, gamma {gamma:g}, {tail}{divisor}{refresh}"


def _weights(trainer: Run) -> str:
    loss = trainer.loss_fn
    rows = zip(loss.buckets.labels(), loss.buckets.lower_bounds.tolist(), loss.weights_n.tolist(), strict=True)
    tail = [f"{label} {weight:.3f}" for label, bound, weight in rows if bound >= loss.threshold]
    if not loss.rule.is_weighted:
        return "1 for every target"
    seed = f" (seed {loss.config._seed})" if loss.rule.needs_places else ""
    slots = f"by {loss.rule.slot_name}{seed}: " if loss.rule.slot_name else ""
    return f"{slots}1 below the tail, {', '.join(tail)}"


def _data(trainer: Run) -> list[tuple[str, str]]:
    """Return one row a dataset: windows, share of the run, epochs, fingerprint."""
    mixture = trainer.dataloader.mixture
    total = trainer.config.training.steps * trainer.windows_per_step
    turns = [len(dataset) for dataset in mixture.datasets] if mixture.shares is None else mixture.shares.turns(total)
    rows: list[tuple[str, str]] = []
    for dataset, windows in zip(mixture.datasets, turns, strict=True):
        rows.append(
            (
                "data" if not rows else "",
                f"{dataset.folder}: {windows:,} windows of {dataset.window:,} tokens, "
                f"{windows / len(dataset):.3g} epochs of its {len(dataset):,}, {dataset.manifest.fingerprint[:8]}",
            )
        )
    return rows


def _validation(trainer: Run) -> str:
    validator, windows = trainer.validator, trainer.validator.windows
    every = f"every {validator.config.freq:,} steps"
    if windows is None:
        return every
    path = trainer.config.validator.dataloader
    name = getattr(path, "dataset_path", "")
    return f"{name}: {windows.windows:,} windows of {windows.split}, {every}, {windows.fingerprint[:8]}"


def _rope(trainer: Run) -> list[tuple[str, str]]:
    spec = trainer.config.model_spec
    if spec is None or not isinstance(spec.model, DecoderModel.Config):
        return []
    return [("rope", spec.model.architecture.rope)]


def _start(trainer: Run) -> str:
    checkpoint = trainer.config.checkpoint
    if trainer.step:
        return f"resumed from step {trainer.step:,}, {trainer.checkpointer.folder}/step-{trainer.step}"
    if checkpoint.enable and checkpoint.initial_load_path:
        return f"weights of {checkpoint.initial_load_path}"
    seed = trainer.config.debug.seed
    return f"random weights, {'no seed' if seed is None else f'seed {seed}'}"


def _steps(trainer: Run) -> str:
    training = trainer.config.training
    tokens = trainer.windows_per_step * training.seq_len
    return (
        f"{training.steps:,} of {trainer.windows_per_step:,} windows, {tokens:,} tokens (data-parallel ranks "
        f"{trainer.dataloader.dp_world_size} x microbatches {trainer.gradient_accumulation_steps} x windows "
        f"{training.local_batch_size})"
    )


def _layout(trainer: Run) -> str:
    dims = trainer.parallel_dims
    shards = dims.dp_shard * dims.cp
    layout = f"sharded over {shards} (FSDP2)" if shards > 1 else "not sharded"
    replicas = f", {dims.dp_replicate} replicas" if dims.dp_replicate > 1 else ""
    context = f", context parallel over {dims.cp}" if dims.cp > 1 else ""
    tensor = f", tensor parallel over {dims.tp}" if dims.tp > 1 else ""
    return f"{dims.world_size} on {trainer.device.type}, parameters {layout}{replicas}{context}{tensor}"


def _precision(trainer: Run) -> str:
    model = trainer.model_parts[0]
    stored = str(next(model.parameters()).dtype).removeprefix("torch.")
    policy = model._get_fsdp_state()._mp_policy if isinstance(model, FSDPModule) else None
    computed = str((policy and policy.param_dtype) or stored).removeprefix("torch.")
    reduced = str((policy and policy.reduce_dtype) or computed).removeprefix("torch.")
    return f"parameters {stored}, compute {computed}, gradients reduced in {reduced}"


def _recomputation(trainer: Run) -> str:
    chosen = trainer.config.activation_checkpoint
    if chosen is None:
        return "no"
    names = {SelectiveAC.Config: "selective", FullAC.Config: "full"}
    return next((name for kind, name in names.items() if isinstance(chosen, kind)), "memory-budget")


def _attention(trainer: Run) -> str:
    kernels = {describe(m.kernel) for m in trainer.model_parts[0].modules() if isinstance(m, DocumentAttention)}
    return ", ".join(sorted(kernels)) or "the attention of the model"


def _compiled(options: CompileConfig) -> str:
    if not options.enable:
        return "nothing, compile.enable is off"
    return f"{' and '.join(options.components)}, by {options.backend}"


def _checkpoints(trainer: Run) -> str:
    checkpoint = trainer.config.checkpoint
    if not checkpoint.enable:
        return "none: checkpoint.enable is off, a stopped run starts again from step 1"
    if checkpoint.load_only:
        return "none: checkpoint.load_only is on, a stopped run starts again"
    kept = f"the last {checkpoint.keep_latest_k} kept" if checkpoint.keep_latest_k else "all kept"
    return f"every {checkpoint.interval:,} steps, {kept}, {checkpoint.async_mode} saves"
