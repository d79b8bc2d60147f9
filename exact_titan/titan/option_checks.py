"""The ranges of the options, the options without effect, and the options that exclude each other.

torchtitan accepts most of these values. A wrong value then ends in a traceback hours later, or changes the training
without a message. One table lists the ranges (``_RANGES``). One table lists the options that must keep their default,
because a change has no effect here or breaks the training (``_FIXED``). The other functions check options against each
other. docs/operations.md describes the rules for users.

:mod:`exact_titan.titan.preflight` calls both functions before a process group exists:

1. :func:`check_values` reads only the config. ``exact-titan plan`` calls this function on machines without a GPU.
2. :func:`check_machine` compares the config with the GPUs and the compilers of this machine.
"""

import math
import os
import shlex
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.checkpointer.base import DATALOADER, LR_SCHEDULER, OPTIMIZER, TRAIN_STATE
from torchtitan.tools import filesystem

from exact_titan.errors import InputError
from exact_titan.models.architecture import LARGEST_SIZE
from exact_titan.titan.run_config import RunConfig

_SEEDS = 2**63 - 1
"""The largest seed that torch takes on every rank."""


@dataclass(frozen=True)
class _Range:
    """Allowed values of a number: ``low <= value <= high``, or one of ``also``.

    Attributes:
        text: the range in words, for the message after "it must be".
        also: allowed values outside the range.
        above: True if ``low`` itself is not allowed.
        below: True if ``high`` itself is not allowed.
    """

    low: float
    high: float
    text: str
    also: tuple[float | None, ...] = ()
    above: bool = False
    below: bool = False

    def contains(self, value: float | None) -> bool:
        if value in self.also:
            return True
        if value is None or not self.low <= value <= self.high:  # False for NaN, too
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)


_LARGEST = 1.7e308
_COUNT = _Range(1, math.inf, "1 or more")
_COUNT_OR_NONE = _Range(1, math.inf, "1 or more", also=(None,))
_NOT_NEGATIVE = _Range(0, math.inf, "0 or more")
_NOT_NEGATIVE_OR_NONE = _Range(0, math.inf, "0 or more", also=(None,))
_FINITE = _Range(0, _LARGEST, "a finite number, 0 or more")
_BETA = _Range(0, 1, "0 or more, and below 1", below=True)
_SHARE = _Range(0, 1, "from 0 to 1")
_POSITIVE_OR_NONE = _Range(0, _LARGEST, "a finite number above 0", also=(None,), above=True)
# A float32 holds no larger number.
_ABOVE_1_OR_NONE = _Range(1, 1e38, "a finite number above 1, and at most 1e+38", also=(None,), above=True)
_POSITIONS_OR_NONE = _Range(1, LARGEST_SIZE, f"from 1 to {LARGEST_SIZE}", also=(None,))
_SEED = _Range(0, _SEEDS, f"from 0 to {_SEEDS}")

_RANGES: dict[str, _Range] = {
    "training.steps": _COUNT,
    "training.seq_len": _COUNT,
    "training.local_batch_size": _COUNT,
    "training.global_batch_size": _Range(
        1, math.inf, "1 or more, or -1 for local_batch_size times the number of processes", also=(-1,)
    ),
    "training.max_norm": _Range(0, math.inf, "more than 0, or 0 for no clipping"),
    "training.gc_freq": _COUNT,
    "optimizer.lr": _FINITE,
    "optimizer.beta1": _BETA,
    "optimizer.beta2": _BETA,
    # With eps 0 a weight without gradient, such as the embedding of an unseen token, becomes 0 / 0.
    "optimizer.eps": _Range(0, _LARGEST, "a finite number above 0", above=True),
    "optimizer.weight_decay": _FINITE,
    "lr_scheduler.warmup_steps": _NOT_NEGATIVE,
    "lr_scheduler.total_steps": _COUNT_OR_NONE,
    "lr_scheduler.decay_ratio": _Range(0, 1, "from 0 to 1", also=(None,)),
    "lr_scheduler.min_lr_factor": _SHARE,
    "ema.decay": _Range(0, 1, "0 for no average, or more than 0 and below 1", below=True),
    "loss.num_chunks": _COUNT,
    "rope.theta": _ABOVE_1_OR_NONE,
    "rope.factor": _ABOVE_1_OR_NONE,
    "rope.original_positions": _POSITIONS_OR_NONE,
    "rope.max_positions": _POSITIONS_OR_NONE,
    "rope.beta_fast": _POSITIVE_OR_NONE,
    "rope.beta_slow": _POSITIVE_OR_NONE,
    "rope.attention_factor": _POSITIVE_OR_NONE,
    "rope.low_freq_factor": _POSITIVE_OR_NONE,
    "rope.high_freq_factor": _POSITIVE_OR_NONE,
    "dataloader.seed": _SEED,
    "validator.dataloader.seed": _SEED,
    "validator.freq": _COUNT,
    "validator.steps": _Range(1, math.inf, "1 or more, or -1 for all validation windows", also=(-1,)),
    "validator.keep_targets": _Range(0, math.inf, "a number of validations, or 0 for none"),
    "metrics.log_freq": _COUNT,
    "checkpoint.interval": _COUNT,
    "checkpoint.keep_latest_k": _Range(2, math.inf, "2 or more, or 0 to keep all", also=(0,)),
    "checkpoint.load_step": _Range(0, math.inf, "the step of a checkpoint, or -1 for the last one", also=(-1,)),
    "activation_checkpoint.memory_budget": _SHARE,
    "comm.init_timeout_seconds": _COUNT,
    "comm.train_timeout_seconds": _COUNT,
    "comm.trace_buf_size": _NOT_NEGATIVE,
    "debug.seed": _Range(0, _SEEDS, _SEED.text, also=(None,)),
    "profiler.profile_freq": _COUNT,
    "profiler.profiler_repeat": _NOT_NEGATIVE_OR_NONE,
    "profiler.profiler_skip_first": _NOT_NEGATIVE_OR_NONE,
    "profiler.profiler_skip_first_wait": _NOT_NEGATIVE_OR_NONE,
    "profiler.profiler_active": _COUNT,
    "profiler.profiler_warmup": _NOT_NEGATIVE,
    "profiler.memory_snapshot_freq": _COUNT_OR_NONE,
    "profiler.memory_snapshot_max_entries": _COUNT,
}

_OWN_DATASETS = "this option is for torchtitan's own datasets: name a packed dataset in dataset_path"
_MODEL_PARALLEL = "this option is for a kind of parallelism that is not supported here: leave it out"
_CONTEXT = "the context parallelism here divides heads, which is level for any documents: leave it out"
_ONE_GROUP = "all parameters are in one group: use optimizer.lr, beta1, beta2, eps and weight_decay"
_FIXED: dict[str, tuple[Any, str]] = {
    "dataloader.dataset": ("", _OWN_DATASETS),
    "dataloader.varlen_metadata": (True, "the trainer here needs the document borders: leave it out"),
    "validator.dataloader.dataset": ("", _OWN_DATASETS),
    "validator.dataloader.varlen_metadata": (True, "validation finds the document borders itself: leave it out"),
    "validator.dataloader.infinite": (False, "validator.steps decides whether the windows repeat: leave it out"),
    "validator.dataloader.balance": (True, "validation reads its windows in order: leave it out"),
    "validator.dataloader.allow_changed": (
        [],
        "only training data are compared: use dataloader.allow_changed",
    ),
    "optimizer.param_groups": ([], _ONE_GROUP),
    "optimizer.optimizer_factory_kwargs_by_name": ({}, _ONE_GROUP),
    "training.disable_cuda_graphs": (True, "a CUDA graph cannot replay windows with other document borders: set it"),
    "checkpoint.initial_load_in_hf_quantized": (False, "quantized weights cannot be trained: use the original model"),
    "compile.enable_async_tensor_parallel": (False, _MODEL_PARALLEL),
    "parallelism.enable_sequence_parallel": (True, _MODEL_PARALLEL),
    "parallelism.module_fqns_per_model_part": (None, _MODEL_PARALLEL),
    "parallelism.pipeline_parallel_first_stage_less_layers": (1, _MODEL_PARALLEL),
    "parallelism.pipeline_parallel_last_stage_less_layers": (1, _MODEL_PARALLEL),
    "parallelism.pipeline_parallel_layers_per_stage": (None, _MODEL_PARALLEL),
    "parallelism.pipeline_parallel_schedule": ("1F1B", _MODEL_PARALLEL),
    "parallelism.pipeline_parallel_schedule_csv": ("", _MODEL_PARALLEL),
    "parallelism.pipeline_parallel_microbatch_size": (1, _MODEL_PARALLEL),
    "parallelism.context_parallel_load_balancer": ("headtail", _CONTEXT),
    "parallelism.context_parallel_ptrr_mask_key": (None, _CONTEXT),
    "comm.mode": ("default", "the other modes compute no real gradients or are not supported here: leave it out"),
    "debug.moe_force_load_balance": (False, "the models here have no experts: leave it out"),
    "debug.spmd_typechecking": (False, "this option is for parallelism.spmd_backend spmd_types: leave it out"),
}
"""Options that must keep their default: the default, and the reason with the way out."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "activation_checkpoint.determinism_check": ("default", "none"),
    "compile.components": ("model", "loss"),
    "checkpoint.exclude_from_loading": (OPTIMIZER, LR_SCHEDULER, DATALOADER, TRAIN_STATE),
}
"""Allowed values of an option, or allowed elements of an option that is a list."""

_GPU_ONLY: tuple[tuple[str, Any, str], ...] = (
    ("optimizer.implementation", "fused_opt_states_bf16", "set it to fused"),
    ("training.enable_cpu_offload", True, "leave it out"),
    ("profiler.enable_memory_snapshot", True, "leave it out"),
)
"""An option, its value that needs a GPU, and the way out."""

_ABSENT = object()


def check_values(config: RunConfig, *, ranks: int) -> None:
    """Refuse values outside their range, options without effect, and options that exclude each other.

    Args:
        ranks: number of processes.

    Raises:
        InputError: naming the option, its value and the way out.
    """
    for name, allowed in _RANGES.items():
        value = _value(config, name)
        if value is not _ABSENT and not allowed.contains(value):
            raise InputError(f"{name} is {value}: it must be {allowed.text}")
    for name, (default, reason) in _FIXED.items():
        value = _value(config, name)
        if value is not _ABSENT and value != default:
            raise InputError(f"{name} is {_text(value)}, but {reason}")
    for name, choices in _CHOICES.items():
        value = _value(config, name)
        values = value if isinstance(value, list) else [value]
        wrong = [one for one in values if one is not _ABSENT and one not in choices]
        if wrong:
            raise InputError(f"{name} is {wrong[0]!r}: choose from {', '.join(map(str, choices))}")
    config.rope.check()
    _check_compile(config)
    _check_checkpoints(config, ranks)
    _check_profiler(config)


def check_machine(config: RunConfig) -> None:
    """Refuse options for a GPU on a machine without a GPU, and compiled steps without a compiler.

    Raises:
        InputError: naming the option and the way out.
    """
    for name, gpu_only, instead in _GPU_ONLY:
        if _value(config, name) == gpu_only and not torch.accelerator.is_available():
            raise InputError(f"{name} is {_text(gpu_only)}, but there is no GPU: {instead}")
    _check_compilers(config)


def _check_compilers(config: RunConfig) -> None:
    if not config.compile.enable or config.compile.backend != "inductor":
        return
    # Triton calls a C compiler for its kernels, and inductor a C++ compiler for kernels on the CPU.
    variable, names = ("CC", ("gcc", "clang")) if torch.cuda.is_available() else ("CXX", ("g++",))
    names = tuple(shlex.split(os.environ.get(variable, ""))[:1]) or names
    if not any(shutil.which(name) for name in names):
        raise InputError(
            f"compile.enable is on, but the compiler {' or '.join(names)} is not on this machine: install it, or give "
            f"--compile.no-enable"
        )


def _value(config: Any, name: str) -> Any:
    """Return the value of an option such as "training.steps". ``_ABSENT`` if a component has no such option."""
    for part in name.split("."):
        config = getattr(config, part, _ABSENT)
    return config


def _text(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else repr(value)


def _check_compile(config: RunConfig) -> None:
    if not config.compile.enable:
        return
    backends = torch.compiler.list_backends(exclude_tags=())
    if config.compile.backend not in backends:
        raise InputError(f"compile.backend is {config.compile.backend!r}: choose from {', '.join(backends)}")


def _check_checkpoints(config: RunConfig, ranks: int) -> None:
    checkpoint = config.checkpoint
    if filesystem.is_remote(checkpoint.folder):
        raise InputError(f"checkpoint.folder is {checkpoint.folder}: checkpoints need a folder on a mounted disk")
    if checkpoint.load_step != -1 and not checkpoint.enable:
        raise InputError(
            f"checkpoint.load_step is {checkpoint.load_step}, but checkpoint.enable is off: leave one of them out"
        )
    if checkpoint.export_dtype != "float32" and not checkpoint.last_save_model_only:
        raise InputError(
            f"checkpoint.export_dtype is {checkpoint.export_dtype}, but only a last checkpoint of the model alone has "
            f"another dtype: leave it out, and use exact-titan export --dtype {checkpoint.export_dtype}"
        )
    if checkpoint.create_seed_checkpoint and (ranks != 1 or not checkpoint.enable):
        raise InputError(
            "checkpoint.create_seed_checkpoint needs one process and checkpoint.enable: start it without torchrun"
        )


def _check_profiler(config: RunConfig) -> None:
    profiler = config.profiler
    cycle = profiler.profiler_warmup + profiler.profiler_active
    if profiler.enable_profiling and profiler.profile_freq < cycle:
        raise InputError(
            f"profiler.profile_freq is {profiler.profile_freq}: it must be at least profiler_warmup plus "
            f"profiler_active ({cycle})"
        )
