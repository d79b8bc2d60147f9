"""A plan as text, and the changes that help if the run does not fit."""

import re
from collections.abc import Iterator

from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from exact_titan.errors import InputError
from exact_titan.planning.run import RunPlan
from exact_titan.planning.trace import Kind

GIB = 2**30
RESERVED_BYTES = 2 * GIB
"""Memory reserved on every GPU for the CUDA context, NCCL's buffers and cuBLAS's workspaces. An assumption."""

FRAGMENTATION = 0.10
"""Reserve for the fragmentation of the caching allocator, as a share of the peak. An assumption."""

COMPILED_PEAK = "70 to 95 %"
"""Peak of compiled steps over the peak of eager steps, measured on one H200 (docs/benchmarks.md)."""

ACCURACY = (
    "Accuracy: on CPU processes the states were equal to the byte and the peak within 0.1 % of a measured step.\n"
    "On one H200 the states were within 0.03 % and the peak within 3 %. Figures and commands: docs/benchmarks.md."
)
"""The results of :mod:`benchmarks.plan` and :mod:`benchmarks.gpu`. docs/benchmarks.md must say the same."""

_UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
_LABELS: dict[Kind, str] = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "average": "moving average of the weights",
    "buffers": "buffers (RoPE)",
    "activations": "saved activations",
    "gathered parameters": "whole parameters, gathered for use",
    "gradients in flight": "whole gradients, before they are reduced",
    "logits": "logits of a loss chunk",
    "working": "other: gradients of activations, recomputation",
}


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as ``80GiB`` or ``141GB``.

    Raises:
        InputError: if ``text`` is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w+)", text.strip())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"--memory is {text!r}: give a size with one of the units {', '.join(_UNITS)}, such as 80GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def needed(plan: RunPlan) -> int:
    """Return the bytes that a GPU must have: the peak and the reserve."""
    return plan.memory.peak.bytes + _reserve(plan)


def table(plan: RunPlan, *, memory: int | None, peak_flops: float, mfu: float) -> str:
    """Return the plan as text for the terminal.

    Args:
        memory: bytes of one GPU, for the comparison with the needed memory.
        peak_flops: dense bfloat16 FLOP/s of one GPU.
        mfu: assumed share of ``peak_flops`` that the run reaches.
    """
    return "\n".join(
        [*_head(plan), "", *_memory(plan, memory), "", *_compute(plan, peak_flops=peak_flops, mfu=mfu), "", ACCURACY]
    )


def shortfall(plan: RunPlan, memory: int) -> str | None:
    """Return one line with the missing memory and the options that reduce the need, or ``None`` if the run fits."""
    missing = needed(plan) - memory
    if missing <= 0:
        return None
    return (
        f"does not fit: {missing / GIB:.1f} GiB too much on every GPU; to reduce the need: {'; '.join(_remedies(plan))}"
    )


def _remedies(plan: RunPlan) -> Iterator[str]:
    config = plan.config
    if config.activation_checkpoint is None:
        yield "activation-checkpoint:selective or :full"
    elif isinstance(config.activation_checkpoint, SelectiveAC.Config):
        yield "activation-checkpoint:full"
    if config.training.local_batch_size > 1:
        yield f"--training.local_batch_size below {config.training.local_batch_size}"
    if plan.memory.peak.phase == "loss":
        yield f"--loss.num_chunks above {config.loss.num_chunks}"
    if plan.shards < plan.nproc:
        yield "--parallelism.data_parallel_replicate_degree 1"
    context, tensor = _degrees(plan)
    if plan.nproc // (context * tensor) > 1:
        yield f"--parallelism.context_parallel_degree above {context}"
    yield f"--nproc above {plan.nproc}"
    yield f"--training.seq_len below {config.training.seq_len}"


def _degrees(plan: RunPlan) -> tuple[int, int]:
    """Return the degrees of context and tensor parallelism."""
    parallelism = plan.config.parallelism
    return parallelism.context_parallel_degree, parallelism.tensor_parallel_degree


def _reserve(plan: RunPlan) -> int:
    return RESERVED_BYTES + int(FRAGMENTATION * plan.memory.peak.bytes)


def _checkpointing(plan: RunPlan) -> str:
    policy = plan.config.activation_checkpoint
    if policy is None:
        return "no"
    return "full" if isinstance(policy, FullAC.Config) else "selective"


def _head(plan: RunPlan) -> Iterator[str]:
    training, loss = plan.config.training, plan.config.loss
    copies = plan.nproc // plan.shards
    sharing = f"{copies} copies of the states, each over {plan.shards}" if copies > 1 else "states sharded over all"
    context, tensor = _degrees(plan)
    if context > 1:
        sharing += f", every window over {context}"
    if tensor > 1:
        sharing += f", every weight over {tensor}"
    windows = plan.compute.tokens_per_step // training.seq_len
    microbatches = "1 microbatch" if plan.microbatches == 1 else f"{plan.microbatches} microbatches"
    yield f"{plan.name}: {plan.memory.num_parameters:,} parameters"
    if plan.rope is not None:
        yield f"RoPE: {plan.rope}"
    yield "1 GPU" if plan.nproc == 1 else f"{plan.nproc} GPUs, {sharing}"
    yield (
        f"a step: {windows} windows of {training.seq_len:,} tokens; on each GPU {microbatches} of "
        f"{training.local_batch_size}"
    )
    yield (
        f"{_checkpointing(plan)} activation checkpointing, loss in {loss.num_chunks} chunks, {training.dtype} states, "
        f"{training.mixed_precision_param} compute"
    )
    yield f"planned for eager steps; compiled steps, the default on CUDA, need {COMPILED_PEAK} of this peak (measured)"


def _memory(plan: RunPlan, memory: int | None) -> Iterator[str]:
    planned, training = plan.memory, plan.config.training
    context, tensor = _degrees(plan)
    chunk = training.local_batch_size * training.seq_len // context // plan.config.loss.num_chunks
    peak = planned.peak
    yield _row("Memory of one GPU, GiB", "at most", f"at the peak ({peak.phase})")
    for kind, label in _LABELS.items():
        if kind == "average" and kind not in planned.most:
            continue
        if kind == "logits":
            label += f" ({chunk:,} x {-(-plan.vocab_size // tensor):,})"
        yield _row(f"  {label}", _gib(planned.most[kind]), _gib(peak.by_kind.get(kind, 0)))
    yield _row("  peak of the tensors", "", _gib(peak.bytes))
    yield _row(f"  reserve: {RESERVED_BYTES / GIB:.0f} GiB and {FRAGMENTATION:.0%} (assumed)", "", _gib(_reserve(plan)))
    yield _row("  needed", "", _gib(needed(plan)))
    if memory is not None:
        yield _row("  one GPU has", "", _gib(memory))
    yield "  peaks by phase: " + ", ".join(f"{one.phase} {_gib(one.bytes)}" for one in planned.peaks)
    yield "  The reserve is for the CUDA context, NCCL, cuBLAS and the allocator's fragmentation, which are not traced."


def _compute(plan: RunPlan, *, peak_flops: float, mfu: float) -> Iterator[str]:
    work = plan.compute
    seconds = work.seconds_per_step(nproc=plan.nproc, peak_flops=peak_flops, mfu=mfu)
    hours = work.steps * seconds / 3600
    exact = (
        f"documents of {plan.windows.source}"
        if plan.windows.source
        else "at most; no dataset, so one document in a window"
    )
    yield _row("Work", "a step", f"{work.steps:,} steps")
    yield _row("  tokens", f"{work.tokens_per_step:,}", f"{work.tokens:,}")
    yield _row("  PFLOP, matrix products", _peta(work.matmul_flops), _peta(work.matmul_flops * work.steps))
    yield _row("  PFLOP, attention", _peta(work.attention_flops), _peta(work.attention_flops * work.steps))
    yield _row("  PFLOP, both", _peta(work.flops_per_step), _peta(work.flops_per_step * work.steps))
    yield _row("  time", f"{seconds:,.2f} s", f"{hours:,.2f} h")
    yield _row("  GPU hours", "", f"{hours * plan.nproc:,.1f}")
    yield f"  attention: {exact}"
    yield (
        f"  time: at {mfu:.0%} MFU of {peak_flops / 1e12:,.0f} bfloat16 TFLOP/s a GPU; without validation, checkpoints "
        f"and start-up"
    )
    if plan.config.activation_checkpoint is not None:
        share = work.recomputed_flops / work.flops_per_step
        yield (
            f"  activation checkpointing recomputes {share:.0%} of the FLOPs; MFU does not count recomputation: "
            f"expect a lower MFU"
        )


def _row(label: str, first: str, second: str) -> str:
    return f"{label:<62}{first:>18}{second:>24}"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"


def _peta(flops: float) -> str:
    return f"{flops / 1e15:,.2f}"
