"""The cost of EXACT: training steps with EXACT against steps with torchtitan's own chunked cross-entropy.

All sides share one process, one trainer (FSDP on one rank, :class:`ExactTrainer` as ``python -m exact_titan.train``
builds the trainer), one model and one optimizer. Only ``trainer.loss_fn`` changes between steps. A round is one step of
every side on the same window. The order of the sides changes every round, so a drift of the machine affects all sides.
The ratio of a side is its time over the time of the cross-entropy step of the same round. The sides are:

* ``cross-entropy``: torchtitan's ``ChunkedLossWrapper(CrossEntropyLoss)`` in torchtitan's own ``Trainer.train_step``;
* ``cross-entropy again``: a second measurement of ``cross-entropy``. Its distance from 1 is the noise;
* the rules of ``--rules``: :class:`ExactLoss` under these rules, with weights from the packed dataset's counts;
* ``exact, refresh_steps=1``: ``exact`` with weights recomputed from the running counts after every step;
* with ``--compile`` all sides above are compiled. ``cross-entropy, eager`` and ``exact, eager`` come after them: the
  same steps of the same model, without the compiled code.

The time of a step covers the copy of the window to the device, forward, backward, gradient clipping and the optimizer,
until the device has finished. The time does not cover the read of the window, validation, checkpoints, and the metrics
of a log step. Every side gets its attention borders from the loader, so the figures show the loss alone. torchtitan's
own trainer would also search for the borders on the device.

The peak memory of a step is ``torch.cuda.max_memory_allocated`` on CUDA. On the CPU, the benchmark computes the same
figure from the allocations and frees in torch's profiler, and adds the parameters, buffers and optimizer state.
Separate, untimed steps measure the peak memory. The windows hold random documents of 64 tokens to four
windows (log-uniform), or to ``--longest`` windows.

With ``--compile`` the benchmark also counts the graphs of torch.compile: in the warm-up, and in all later steps. The
warm-up has windows with different numbers of documents, so the later steps must compile nothing.

The MFU is the FLOPs of :mod:`exact_titan.titan.model.flops` over the total time of the timed steps and over the GPU's
dense bfloat16 peak in torchtitan's table. The CPU has no MFU.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from benchmarks.synthetic import mixed_lengths, write_dataset
from exact_titan.config_registry import from_scratch
from exact_titan.exposure import RULES
from exact_titan.titan import cpu, torch_versions
from exact_titan.titan.compiled_graphs import graphs as graphs_made
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.model.decoder import LlamaSizes
from exact_titan.titan.model.flops import attention_flops, attention_pairs, attention_shape, matmul_flops_per_token
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.trainer import ExactTrainer
from exact_titan.titan.validate import ExposureValidator

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128, "vocab_size": 1000},
    "small": {"dim": 256, "n_layers": 4, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 768, "vocab_size": 32_768},
    "narrow": {"dim": 192, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 576, "vocab_size": 2048},
    "smollm2-135m": {"dim": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "ffn_dim": 1536, "vocab_size": 49_152},
    "llama3.2-1b": {
        "dim": 2048,
        "n_layers": 16,
        "n_heads": 32,
        "n_kv_heads": 8,
        "ffn_dim": 8192,
        "vocab_size": 128_256,
    },
}
"""Shapes of the models. All models have tied embeddings and random weights."""

LONGEST = 4.0
CHECKPOINTING = ("none", "selective", "full")
STOCK = "cross-entropy"
RULES_SHOWN = ("standard", "exact")
WARMUP_ROUNDS = 2


@dataclasses.dataclass
class Side:
    """One kind of training step: its loss, its step function, and its measurements.

    With ``eager`` the model runs without its compiled code.
    """

    name: str
    loss: Any
    train_step: Callable[[Any], None]
    eager: bool = True
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0


def random_config(
    shape: str,
    *,
    seq_len: int,
    windows: int,
    dtype: str,
    compute_dtype: str,
    folder: Path,
    checkpointing: str = "selective",
    compiled: bool = False,
    longest: float = LONGEST,
) -> RunConfig:
    """Return a run on random documents, without features that a step does not need.

    Args:
        shape: shape of the model, see ``SHAPES``.
        seq_len: window length.
        windows: smallest number of different windows of random ids.
        dtype: dtype of parameters, gradients and optimizer state.
        compute_dtype: dtype of activations and matrix products.
        folder: folder for the dataset and the run's output.
        checkpointing: kind of activation checkpointing, one of ``CHECKPOINTING``.
        compiled: compile the model and the loss.
        longest: length of the longest document, in windows.
    """
    recipe = from_scratch()
    dataset = write_dataset(
        folder / "packed",
        window=seq_len,
        windows=windows,
        lengths=mixed_lengths(seq_len, longest=longest),
        vocab_size=SHAPES[shape]["vocab_size"],
    )
    return dataclasses.replace(
        recipe,
        activation_checkpoint={"none": None, "selective": recipe.activation_checkpoint, "full": FullAC.Config()}[
            checkpointing
        ],
        # The toy model checks the benchmark's own code. A compiler of the CPU would take minutes.
        compile=CompileConfig(enable=compiled, backend="aot_eager" if shape == "tiny" else "inductor"),
        architecture=LlamaSizes(**SHAPES[shape]),
        dataloader=PackedDataLoader.Config(dataset_path=str(dataset)),
        training=TrainingConfig(
            local_batch_size=1,
            seq_len=seq_len,
            dtype=dtype,
            mixed_precision_param=compute_dtype,
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(spmd_backend=torch_versions.SPMD_BACKEND),
        checkpoint=CheckpointManager.Config(enable=False),
        metrics=ExposureMetrics.Config(log_freq=10**9),
        validator=ExposureValidator.Config(enable=False),
        dump_folder=str(folder),
    )


@contextlib.contextmanager
def random_trainer(shape: str, **options: Any) -> Iterator[ExactTrainer]:
    """Yield a trainer on one process, without features that a step does not need, and close the trainer at the end.

    Args:
        shape: shape of the model; the model starts from random weights.
        options: the other arguments of :func:`random_config`, without ``folder``.
    """
    free_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = random_config(shape, folder=Path(folder), **options)
        try:
            trainer = config.build()
            trainer.step = 1  # the trainer logs the first step
            yield trainer
            trainer.close()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def build_sides(trainer: ExactTrainer, rules: Sequence[str] = RULES_SHOWN) -> list[Side]:
    """Return the sides of the comparison, all on the trainer's model."""
    config = trainer.loss_fn.config
    compiled = trainer.config.compile.enable

    def ready(loss_config: Any) -> Any:
        loss = loss_config.build(compile_config=trainer.config.compile)
        loss.set_lm_head(trainer.model_parts[0].lm_head)
        return loss

    def stock_step(batches: Any) -> None:
        Trainer.train_step(trainer, batches)

    stock = ready(ChunkedLossWrapper.Config(num_chunks=config.num_chunks))
    sides = [Side(name, stock, stock_step, not compiled) for name in (STOCK, f"{STOCK} again")]
    losses: dict[str, dict[str, Any]] = {name: {"rule": name} for name in rules}
    for name, options in (losses | {"exact, refresh_steps=1": {"rule": "exact", "refresh_steps": 1}}).items():
        loss = ready(dataclasses.replace(config, **options))
        loss.to(trainer.device)
        sides.append(Side(name, loss, trainer.train_step, not compiled))
    if compiled:
        sides += [
            dataclasses.replace(side, name=f"{side.name}, eager", eager=True, seconds=[])
            for side in sides
            if side.name in (STOCK, "exact")
        ]
    return sides


def run_step(trainer: ExactTrainer, side: Side, batch: tuple[dict[str, Any], torch.Tensor]) -> None:
    """Run one optimizer step of a side."""
    inputs, labels = batch
    trainer.loss_fn = side.loss
    trainer.step += 1
    # The trainer replaces the tensors in the dictionary by tensors on the device, so copy the dictionary.
    with torch.compiler.set_stance("force_eager" if side.eager else "default"):
        side.train_step(iter([(dict(inputs), labels)]))


def timed_step(trainer: ExactTrainer, side: Side, batch: tuple[dict[str, Any], torch.Tensor]) -> float:
    """Return the seconds of one optimizer step of a side, until the device has finished."""
    synchronize(trainer.device)
    start = time.perf_counter()
    run_step(trainer, side, batch)
    synchronize(trainer.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(trainer: ExactTrainer, side: Side, batch: tuple[dict[str, Any], torch.Tensor]) -> int:
    """Return the peak bytes of live tensors during a step of this side."""
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
        run_step(trainer, side, batch)
        return torch.cuda.max_memory_allocated(trainer.device)
    model = trainer.model_parts[0]
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    resident = [*model.parameters(), *model.buffers(), *(value for state in states for value in state.values())]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run_step(trainer, side, batch)
    return sum(local(tensor).nbytes for tensor in resident) + peak_of_events(profiled)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def profiled_events(profiled: profile) -> Iterator[Any]:
    """Yield every event of a profile, in no particular order."""
    stack = list(profiled.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        yield event


def peak_of_events(profiled: profile) -> int:
    """Return the highest running sum of the bytes allocated and freed in a profile."""
    sizes: dict[int, int] = {}
    alive = peak = 0
    events = []
    for event in profiled_events(profiled):
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.extra_fields))
    for _, fields in sorted(events, key=lambda entry: entry[0]):
        if fields.alloc_size > 0:
            sizes[fields.ptr] = fields.alloc_size
            alive += fields.alloc_size
            peak = max(peak, alive)
        else:
            # The size is 0 if the block is older than the profile.
            alive -= sizes.pop(fields.ptr, 0)
    return peak


def compare(
    shape: str,
    *,
    seq_len: int,
    rounds: int,
    dtype: str,
    compute_dtype: str,
    rules: Sequence[str] = RULES_SHOWN,
    checkpointing: str = "selective",
    compiled: bool = False,
    longest: float = LONGEST,
) -> dict[str, Any]:
    """Measure all sides with a model of ``SHAPES[shape]``, and return the input of :func:`table` as plain values.

    :func:`random_config` describes the arguments. ``rounds`` is the number of timed steps of every side.
    """
    torch._dynamo.reset()
    options: dict[str, Any] = {
        "dtype": dtype,
        "compute_dtype": compute_dtype,
        "checkpointing": checkpointing,
        "compiled": compiled,
        "longest": longest,
    }
    with random_trainer(shape, seq_len=seq_len, windows=32, **options) as trainer:
        graphs, sides, flops = measure(trainer, rounds, rules)
        peak_flops = trainer.metrics_processor.gpu_peak_flops
        parameters = sum(parameter.numel() for parameter in trainer.model_parts[0].parameters())
    stock = sides[0]
    rows = []
    for side in sides:
        ratios = [own / other for own, other in zip(side.seconds, stock.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            {
                "side": side.name,
                "seconds": side.seconds,
                "median_seconds": statistics.median(side.seconds),
                "tokens_per_second": seq_len / statistics.median(side.seconds),
                "mfu": flops / sum(side.seconds) / peak_flops if math.isfinite(peak_flops) else None,
                "time_ratio": middle,
                "time_ratio_quartiles": [low, high],
                "peak_bytes": side.peak_bytes,
                "memory_ratio": side.peak_bytes / stock.peak_bytes,
            }
        )
    return {
        "model": shape,
        "parameters": parameters,
        "device": device_name(),
        "torch": torch.__version__,
        "seq_len": seq_len,
        **options,
        "graphs": graphs,
        "rounds": rounds,
        "flops": flops,
        "peak_flops": peak_flops if math.isfinite(peak_flops) else None,
        "sides": rows,
    }


def measure(trainer: ExactTrainer, rounds: int, rules: Sequence[str]) -> tuple[dict[str, Any], list[Side], int]:
    """Warm up, time ``rounds`` rounds, measure every side's peak memory, and count the FLOPs of a side's steps.

    Return the graphs of torch.compile, the sides, and the FLOPs.
    """
    sides = build_sides(trainer, rules)
    batches = iter(trainer.dataloader)
    before, begun = graphs_made(), time.perf_counter()
    for _ in range(WARMUP_ROUNDS):
        for side in sides:
            run_step(trainer, side, next(batches))
    synchronize(trainer.device)
    graphs = {"warm_up": graphs_made() - before, "warm_up_seconds": time.perf_counter() - begun}
    before = graphs_made()
    gc.collect()
    flops = 0
    for number in range(rounds):
        batch = next(batches)
        flops += step_flops(trainer, batch)
        for side in random.Random(number).sample(sides, len(sides)):
            side.seconds.append(timed_step(trainer, side, batch))
        gc.collect()
    batch = next(batches)
    for side in sides:
        side.peak_bytes = peak_memory(trainer, side, batch)
    graphs["later"] = graphs_made() - before
    return graphs, sides, flops


def step_flops(trainer: ExactTrainer, batch: tuple[dict[str, Any], torch.Tensor]) -> int:
    """Return the FLOPs of an optimizer step for the MFU, with the attention of the documents alone."""
    inputs, labels = batch
    config = trainer.model_config
    attention = attention_flops(attention_pairs(inputs["cu_seqlens"].diff().tolist()), **attention_shape(config))
    return labels.numel() * matmul_flops_per_token(config, trainer.model_parts[0]) + attention


def table(result: dict[str, Any]) -> str:
    """Return the comparison as text."""
    lines = [
        f"{result['model']} ({result['parameters'] / 1e6:,.1f}M parameters), windows of {result['seq_len']}, "
        f"{result['dtype']} weights, {result['compute_dtype']} compute, {result['checkpointing']} checkpointing",
        f"{result['device']}, torch {result['torch']}, {result['rounds']} rounds, documents of 64 tokens to "
        f"{result['longest']:g} windows",
        f"{'':24}{'step':>10}{'tokens/s':>10}{'MFU':>8}{'time ratio':>12}{'quartiles':>18}{'peak memory':>14}"
        f"{'ratio':>9}",
    ]
    for row in result["sides"]:
        low, high = row["time_ratio_quartiles"]
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        lines.append(
            f"{row['side']:24}{row['median_seconds'] * 1e3:>7.1f} ms{row['tokens_per_second']:>10,.0f}"
            f"{mfu:>8}{row['time_ratio']:>12.4f}{f'{low:.4f} … {high:.4f}':>18}"
            f"{row['peak_bytes'] / 2**20:>10,.1f} MiB{row['memory_ratio']:>9.5f}"
        )
    if result["compiled"]:
        graphs = result["graphs"]
        lines.append(
            f"compiled graphs: {graphs['warm_up']} in the warm-up of {graphs['warm_up_seconds']:.1f} s, "
            f"{graphs['later']} in all later steps"
        )
    return "\n".join(lines)


def free_memory() -> None:
    """Free earlier models. torchtitan's trainer switches the automatic garbage collection off."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def prepare_process(device: str) -> None:
    """Prepare the process like :mod:`exact_titan.train`, for a run of one process without torchrun."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if device != found:
        raise SystemExit(
            f"--device {device}: torchtitan uses the accelerator of the machine, {found}: give --device {found}"
        )
    one_process = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    os.environ.update(one_process)
    torch_versions.install()
    cpu.install()
    logger.setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="default: small on the CPU, the other two on CUDA")
    parser.add_argument("--seq-len", type=int, help="default: 4096 on the CPU, 16384 on CUDA")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES_SHOWN)
    parser.add_argument("--checkpointing", choices=CHECKPOINTING, default="selective")
    parser.add_argument(
        "--longest", type=float, default=LONGEST, help="longest document, in windows (default: %(default)g)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the model and the loss")
    parser.add_argument("--json", type=Path, help="also write all measurements to this file")
    parser.add_argument(
        "--small", action="store_true", help="a toy model; the run takes seconds, and its figures have no meaning"
    )
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    models = args.models or (["small"] if on_cpu else ["smollm2-135m", "llama3.2-1b"])
    seq_len = args.seq_len or (4096 if on_cpu else 16_384)
    rounds = args.rounds
    compute_dtype = "float32" if on_cpu else "bfloat16"
    if args.small:
        models, seq_len, rounds = ["tiny"], 256, 2
    prepare_process(args.device)
    results = []
    for shape in models:
        results.append(
            compare(
                shape,
                seq_len=seq_len,
                rounds=rounds,
                dtype="float32",
                compute_dtype=compute_dtype,
                rules=args.rules,
                checkpointing=args.checkpointing,
                compiled=args.compile,
                longest=args.longest,
            )
        )
        print(table(results[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
