"""Compiled steps against eager steps on the same device: the same losses, and no new graph for other documents.

One trainer runs the same 20 windows three times from the same weights: compiled, eager, and eager again. The windows
have 1 to 500 documents. The distance of the two eager runs is the noise of the device, because the gradients of
FlashAttention are not bit-equal from run to run.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu_checks import Outcome, attempt
from benchmarks.step import Side, build_sides, local, random_trainer, run_step
from exact_titan.titan.compiled_graphs import graphs as graphs_made
from exact_titan.titan.trainer import ExactTrainer

STEPS = 20
TOLERANCE = {"cpu": 1e-5, "cuda": 0.01}
"""Largest relative difference of a loss. Activations are float32 on the CPU and bfloat16 on CUDA."""


def compiled_checks(
    shape: str, *, seq_len: int, checkpointing: str, dtype: str, compute_dtype: str
) -> Iterator[Outcome]:
    """Check compiled steps of a model of ``SHAPES[shape]`` with a kind of activation checkpointing."""
    options = {"seq_len": seq_len, "windows": 1, "checkpointing": checkpointing, "dtype": dtype}
    with random_trainer(shape, **options, compute_dtype=compute_dtype, compiled=True) as trainer:
        name = f"20 compiled steps on windows of 1 to 500 documents train as eager steps, {checkpointing} checkpointing"
        yield attempt(name, lambda: check_losses(trainer))


def check_losses(trainer: ExactTrainer) -> tuple[bool, str]:
    """Compare the losses of compiled and eager steps from the same weights, and count the graphs of the later steps."""
    compiled = {side.name: side for side in build_sides(trainer)}["exact"]
    eager = dataclasses.replace(compiled, eager=True)
    vocab_size = trainer.model_config.vocab_size
    batches = [window(documents, trainer.config.training.seq_len, vocab_size) for documents in documents_of_steps()]
    _draw_weights(trainer)
    start = _state(trainer)
    losses, graphs = {}, []
    for name, side in (("compiled", compiled), ("eager", eager), ("eager again", eager)):
        _restore(trainer, start)
        before = graphs_made()
        losses[name] = []
        for batch in batches:
            losses[name].append(_loss(trainer, side, batch))
            graphs.append(graphs_made() - before)
    difference = _difference(losses["compiled"], losses["eager"])
    noise = _difference(losses["eager again"], losses["eager"])
    first, last = graphs[0], graphs[-1 - 2 * STEPS]
    detail = (
        f"largest relative difference {difference:.2g}, of eager to eager {noise:.2g}; losses {losses['eager'][0]:.4f} "
        f"to {losses['eager'][-1]:.4f}; {first} graphs after step 1, {last} after step {STEPS}"
    )
    passed = difference <= TOLERANCE[trainer.device.type] and first == last and max(graphs[STEPS:]) == 0
    return passed, detail


def documents_of_steps() -> list[int]:
    """Return the number of documents of every step's window: from 1 to 500, not in order."""
    counts = [round(math.exp(i / (STEPS - 1) * math.log(500))) for i in range(STEPS)]
    return counts[::2] + counts[1::2][::-1]


def window(documents: int, seq_len: int, vocab_size: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Return a batch of the loader's form: one window of random documents, always with the same tokens."""
    documents = min(documents, seq_len)
    generator = torch.Generator().manual_seed(documents)
    inner = torch.randperm(seq_len - 1, generator=generator)[: documents - 1].sort().values + 1
    borders = torch.cat([torch.tensor([0]), inner, torch.tensor([seq_len])])
    lengths = borders.diff()
    tokens = torch.randint(vocab_size, (1, seq_len + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(seq_len) - borders[:-1].repeat_interleave(lengths)
    inputs = {
        "input": tokens[:, :-1].contiguous(),
        "positions": positions[None],
        "cu_seqlens": borders.to(torch.int32),
        "max_seqlen": int(lengths.max()),
        "places": torch.zeros(1, dtype=torch.int64),
    }
    return inputs, tokens[:, 1:].contiguous()


def _loss(trainer: ExactTrainer, side: Side, batch: tuple[dict[str, Any], torch.Tensor]) -> float:
    """Run one step, and return the plain cross-entropy of its window."""
    side.loss.sums.take()
    run_step(trainer, side, batch)
    ce, count = side.loss.sums.take().sum(dim=1).tolist()
    return ce / count


def _difference(losses: list[float], reference: list[float]) -> float:
    return max(abs(one - other) / other for one, other in zip(losses, reference, strict=True))


@torch.no_grad()
def _draw_weights(trainer: ExactTrainer) -> None:
    """Draw the matrices again. The initialisation of torch 2.11 in bfloat16 has outliers (benchmarks.old_torch)."""
    torch.manual_seed(0)
    for parameter in trainer.model_parts[0].parameters():
        if parameter.dim() > 1:
            local(parameter).normal_(std=0.02)


def _state(trainer: ExactTrainer) -> tuple[list[torch.Tensor], dict[str, Any], list[float]]:
    parameters = [local(parameter).detach().clone() for parameter in trainer.model_parts[0].parameters()]
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return parameters, trainer.lr_schedulers.state_dict(), rates


@torch.no_grad()
def _restore(trainer: ExactTrainer, state: tuple[list[torch.Tensor], dict[str, Any], list[float]]) -> None:
    parameters, schedule, rates = state
    for parameter, value in zip(trainer.model_parts[0].parameters(), parameters, strict=True):
        local(parameter).copy_(value)
    trainer.lr_schedulers.load_state_dict(schedule)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    for optimizer in trainer.optimizers:
        for moments in optimizer.state.values():
            for value in moments.values():
                local(value).zero_()
