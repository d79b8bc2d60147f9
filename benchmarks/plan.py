"""The memory plan of ``exact-titan plan`` against the memory of a real training step.

For every kind of activation checkpointing:

1. Train a small model for two steps with :class:`ExactTrainer`.
2. Measure the third step.
3. Plan the step from the same config and documents, for the same number of processes and the same kind of device.

The table has these lines:

* parameters, gradients and optimizer state: the bytes of these tensors' storages on one rank;
* after the forward pass: the remaining memory beyond the states, mostly saved activations;
* forward, loss and backward: the peak of each phase, with the states. The optimizer's step belongs to the last phase;
* peak: the peak of the whole step.

On the CPU, the figures come from the allocations and frees in torch's profiler. On CUDA, the figures come from torch's
caching allocator and include cuBLAS's workspaces. gloo's own thread can free a tensor late, and the profiler does not
follow this thread. Each line on the CPU is therefore the lowest value of three steps. In the model ``narrow``, a
gathered weight is also a small part of the peak.

::

    python -m benchmarks.plan                                        # one process
    torchrun --nproc_per_node=2 -m benchmarks.plan --kinds selective   # sharded; one kind per call
    torchrun --nproc_per_node=2 -m benchmarks.plan --kinds selective --models narrow --context 2   # or --tensor 2
    python -m benchmarks.plan --device cuda --models smollm2-135m llama3.2-1b
    python -m benchmarks.plan --compile                              # the plan is that of the eager step
"""

import argparse
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torchtitan.config import CompileConfig
from torchtitan.tools.logging import logger

from benchmarks.step import CHECKPOINTING, SHAPES, device_name, free_memory, local, profiled_events, random_config
from exact_titan.planning.memory import MemoryPlan, plan_memory
from exact_titan.titan import cpu, torch_versions
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.trainer import ExactTrainer

_LOSS = "benchmarks.plan: loss"
_WARMUP_STEPS = 2
_MEASURED_STEPS = 3
"""Steps on the CPU, all with the same windows."""


def run_config(
    shape: str,
    kind: str,
    *,
    seq_len: int,
    dtype: str,
    compute_dtype: str,
    folder: Path,
    context: int = 1,
    tensor: int = 1,
    compiled: bool = False,
) -> RunConfig:
    """Return a run on random documents of 64 tokens to four windows, without features that a step does not need.

    Args:
        shape: shape of the model, see ``SHAPES``.
        kind: kind of activation checkpointing, one of ``CHECKPOINTING``.
        seq_len: window length.
        dtype: dtype of parameters, gradients and optimizer state.
        compute_dtype: dtype of activations and matrix products.
        folder: folder for the dataset and the run's output.
        context: degree of context parallelism.
        tensor: degree of tensor parallelism.
        compiled: compile the model and the loss.
    """
    config = random_config(
        shape,
        seq_len=seq_len,
        windows=8 * int(os.environ.get("WORLD_SIZE", "1")),
        dtype=dtype,
        compute_dtype=compute_dtype,
        folder=folder,
        checkpointing=kind,
        compiled=compiled,
    )
    parallelism = dataclasses.replace(
        config.parallelism, context_parallel_degree=context, tensor_parallel_degree=tensor
    )
    return dataclasses.replace(config, parallelism=parallelism)


def compare(config: RunConfig) -> dict[str, dict[str, int]]:
    """Return the bytes of every line as ``{"measured": …, "planned": …}``. No process group may exist at the call."""
    free_memory()
    trainer = config.build()
    try:
        trainer.step = 1  # the trainer logs the first step
        batches = iter(trainer.dataloader)
        for _ in range(_WARMUP_STEPS):
            _run_step(trainer, next(batches))
        batch = next(batches)
        documents = [end - start for start, end in pairwise(batch[0]["cu_seqlens"].tolist())]
        for parameter in trainer.model_parts[0].parameters():
            parameter.grad = None
        measured = _measure(trainer, batch)
        config, processes, device = trainer.config, dist.get_world_size(), trainer.device.type
        trainer.close()
    finally:
        dist.destroy_process_group()
    assert config.model_spec is not None
    eager = dataclasses.replace(config, compile=CompileConfig())
    planned = _planned(
        plan_memory(config.model_spec, eager, nproc=processes, microbatches=1, documents=documents, device=device)
    )
    return {line: {"measured": measured[line], "planned": planned[line]} for line in planned}


def compare_shape(
    shape: str,
    kind: str,
    *,
    dtype: str,
    context: int = 1,
    tensor: int = 1,
    compiled: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Return :func:`compare` of :func:`run_config`, together with the options, the device and the versions."""
    options |= {"context": context, "tensor": tensor, "compiled": compiled}
    with tempfile.TemporaryDirectory() as folder:
        lines = compare(run_config(shape, kind, dtype=dtype, folder=Path(folder), **options))
    return {
        "model": shape,
        "dtype": dtype,
        **options,
        "kind": kind,
        "processes": int(os.environ["WORLD_SIZE"]),
        "device": device_name(),
        "torch": torch.__version__,
        "lines": lines,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return all comparisons as text, in MiB."""
    lines = []
    for result in results:
        lines.append(
            f"{result['model']}, windows of {result['seq_len']}, {result['dtype']} states, {result['compute_dtype']} "
            f"compute, {result['kind']} activation checkpointing, {result['processes']} x {result['device']}, "
            f"context parallel {result['context']}, tensor parallel {result['tensor']}, "
            f"{'compiled' if result['compiled'] else 'eager'}, torch {result['torch']}"
        )
        lines.append(f"{'MiB':24}{'measured':>12}{'planned':>12}{'ratio':>10}")
        for line, sides in result["lines"].items():
            measured, planned = sides["measured"], sides["planned"]
            lines.append(f"{line:24}{measured / 2**20:>12,.2f}{planned / 2**20:>12,.2f}{planned / measured:>10.4f}")
    return "\n".join(lines)


class _MarkedLoss:
    """The trainer's loss, with its start and end marked in the profile, or, on CUDA, with the memory read at both."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.cuda: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.cuda.is_available():
            with record_function(_LOSS):
                return self.loss(*args, **kwargs)
        self.cuda["after the forward pass"] = torch.cuda.memory_allocated()
        self.cuda["forward"] = _take_cuda_peak()
        result = self.loss(*args, **kwargs)
        self.cuda["loss"] = _take_cuda_peak()
        return result


def _take_cuda_peak() -> int:
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def _run_step(trainer: ExactTrainer, batch: tuple[dict[str, Any], torch.Tensor]) -> None:
    inputs, labels = batch
    trainer.step += 1
    trainer.train_step(iter([(dict(inputs), labels)]))


def _measure(trainer: ExactTrainer, batch: tuple[dict[str, Any], torch.Tensor]) -> dict[str, int]:
    model = trainer.model_parts[0]
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    measured = {
        "parameters": _bytes(model.parameters()),
        "optimizer state": _bytes(value for state in states for value in state.values()),
    }
    resident = sum(measured.values()) + _bytes(model.buffers())
    marked: Any = _MarkedLoss(trainer.loss_fn)
    trainer.loss_fn = marked
    if trainer.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _run_step(trainer, batch)
        phases = {**marked.cuda, "backward": _take_cuda_peak()}
        phases["after the forward pass"] -= before
    else:
        phases = _lowest(_profiled_step(trainer, batch, resident) for _ in range(_MEASURED_STEPS))
    measured["gradients"] = _bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    return {**measured, **phases, "peak": max(phases[phase] for phase in ("forward", "loss", "backward"))}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the tensors' storages. FSDP's gradients are parts of larger storages."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (local(t).untyped_storage() for t in tensors)}
    return sum(storages.values())


def _profiled_step(trainer: ExactTrainer, batch: tuple[dict[str, Any], torch.Tensor], resident: int) -> dict[str, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _run_step(trainer, batch)
    return _phases_of_profile(profiled, resident)


def _lowest(steps: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the lowest value of every line. A late free adds to a line, and no free is early."""
    measured = list(steps)
    return {line: min(step[line] for step in measured) for line in measured[0]}


def _phases_of_profile(profiled: profile, resident: int) -> dict[str, int]:
    """Return the highest running sums of the bytes allocated and freed before, during and after the loss."""
    memory, marks = [], []
    for event in profiled_events(profiled):
        if event.name == "[memory]":
            memory.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        elif event.name == _LOSS:
            marks.append((event.start_time_ns, event.end_time_ns))
    ((start, end),) = marks
    sizes: dict[int, int] = {}
    alive = after_forward = 0
    peaks = {"forward": 0, "loss": 0, "backward": 0}
    for time, pointer, size in sorted(memory):
        if size > 0:
            # gloo's thread has freed a block at this address.
            alive += size - sizes.get(pointer, 0)
            sizes[pointer] = size
        else:
            # The size is 0 if the block is older than the profile.
            alive -= sizes.pop(pointer, 0)
        phase = "forward" if time < start else "loss" if time < end else "backward"
        if phase == "forward":
            after_forward = alive
        peaks[phase] = max(peaks[phase], alive)
    return {"after the forward pass": after_forward, **{phase: resident + peak for phase, peak in peaks.items()}}


def _planned(memory: MemoryPlan) -> dict[str, int]:
    peaks = {peak.phase: peak.bytes for peak in memory.peaks}
    states = memory.parameters + memory.optimizer + memory.buffers
    return {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "after the forward pass": sum(memory.after_forward.values()) - states,
        "forward": peaks["forward"],
        "loss": peaks["loss"],
        "backward": max(peaks["backward"], peaks["optimizer"]),
        "peak": memory.peak.bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="default: small on the CPU, the other two on CUDA")
    parser.add_argument("--seq-len", type=int, help="default: 2048 on the CPU, 16384 on CUDA")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], help="default: both; CUDA: bfloat16")
    parser.add_argument("--kinds", nargs="+", choices=CHECKPOINTING, default=CHECKPOINTING)
    parser.add_argument("--context", type=int, default=1, help="degree of context parallelism")
    parser.add_argument("--tensor", type=int, default=1, help="degree of tensor parallelism")
    parser.add_argument("--compile", action="store_true", help="compile the model and the loss of the measured step")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--small", action="store_true", help="a toy model; the run takes seconds")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    models = args.models or (["small"] if on_cpu else ["smollm2-135m", "llama3.2-1b"])
    seq_len = args.seq_len or (2048 if on_cpu else 16_384)
    dtypes = args.dtypes or (["float32", "bfloat16"] if on_cpu else ["bfloat16"])
    if args.small:
        models, seq_len = ["tiny"], 512
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device != found:
        raise SystemExit(
            f"--device {args.device}: torchtitan uses the accelerator of the machine, {found}: give --device {found}"
        )
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0")
    torch_versions.install()
    cpu.install()
    logger.setLevel(logging.ERROR)
    results = []
    for shape in models:
        for dtype in dtypes:
            for kind in args.kinds:
                result = compare_shape(
                    shape,
                    kind,
                    dtype="float32",
                    seq_len=seq_len,
                    compute_dtype=dtype,
                    context=args.context,
                    tensor=args.tensor,
                    compiled=args.compile,
                )
                results.append(result)
                if os.environ["RANK"] == "0":
                    print(table([result]), flush=True)
    if args.json and os.environ["RANK"] == "0":
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
