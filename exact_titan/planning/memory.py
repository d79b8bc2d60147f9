"""Peak memory of a GPU, from a trace of one optimizer step without data.

1. Build the real model on the meta device, and apply activation checkpointing and FSDP2 as in the run.
2. Run one step, which creates the optimizer state.
3. Run a second step and record every allocation: forward pass, loss, backward pass, optimizer.
4. Add up the allocations by kind and by phase.
"""

import copy
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Shard
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims, parallel_dims
from torchtitan.distributed import utils as dist_utils
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.tools.utils import set_default_dtype
from torchtitan.trainer import Trainer

from exact_titan.exposure import Buckets, effective_context
from exact_titan.planning import kernels
from exact_titan.planning.trace import AllocationTrace, Kind, Peak, Phase
from exact_titan.titan.cross_entropy import BucketSums
from exact_titan.titan.layout import sequence_shard
from exact_titan.titan.model.attention import varlen_metadata
from exact_titan.titan.model.flops import matmul_flops_per_token
from exact_titan.titan.model.rope import share_tables
from exact_titan.titan.run_config import RunConfig


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one GPU in bytes, and the work of the traced step.

    ``parameters``, ``gradients``, ``optimizer`` and ``buffers`` are the shard of this GPU. ``after_forward`` is the
    memory at the end of the forward pass, with the activations that the chosen checkpointing saves.
    """

    num_parameters: int
    """Parameters of the complete model. A tied embedding counts once."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    after_forward: dict[Kind, int]
    most: dict[Kind, int]
    """Largest number of bytes of each kind at any one time."""

    peaks: list[Peak]
    """The peak of every phase, in the order of the step."""

    flops_per_token: int
    """FLOPs outside attention, as MFU counts FLOPs: :func:`exact_titan.titan.model.flops.matmul_flops_per_token`."""

    matmul_flops: int
    """FLOPs of the matrix products of a microbatch on one GPU: forward, backward and recomputation."""

    attention_forwards: int
    """Forward calls of CUDA's attention in a microbatch: one call a layer, and more with recomputation."""

    @property
    def peak(self) -> Peak:
        """The highest peak of all phases."""
        return max(self.peaks, key=lambda peak: peak.bytes)


def plan_memory(
    spec: ModelSpec,
    config: Trainer.Config,
    *,
    nproc: int,
    microbatches: int,
    documents: list[int],
    device: kernels.Device = "cuda",
) -> MemoryPlan:
    """Trace the second step of rank 0.

    The steps are the steps of :class:`~torchtitan.trainer.Trainer`. The model is built on the meta device. The model's
    own parallelize function applies activation checkpointing and sharding. The model runs under ``FakeTensorMode`` over
    torch's ``fake`` process group.

    Args:
        spec: the model. The function does not change ``spec``.
        config: the config of the run, without compilation and offloading.
        nproc: number of GPUs.
        microbatches: forward and backward passes of an optimizer step. With several microbatches the trace covers the
            last microbatch, because the gradients of the earlier microbatches already exist then.
        documents: lengths of all documents in the windows of a microbatch.
        device: the device whose kernels are traced.

    Raises:
        RuntimeError: if the process already has a process group.
    """
    if dist.is_initialized():
        raise RuntimeError("the planner needs its own process group, but there is one already: plan in a new process")
    with _quiet(), _fake_processes(nproc), _spmd_backend(config.parallelism.spmd_backend):
        # Meshes need real tensors, and CPU meshes also on a machine with a GPU.
        with mock.patch.object(parallel_dims, "device_type", "cpu"):
            dims = ParallelDims.from_config(config.parallelism, nproc)
            dims.build_mesh()
        with set_default_dtype(TORCH_DTYPE_MAP[config.training.dtype]):
            return _Step(spec, config, dims, device).trace(documents, accumulating=microbatches > 1)


class _Step:
    def __init__(self, spec: ModelSpec, config: Trainer.Config, dims: ParallelDims, device: kernels.Device) -> None:
        self.config = config
        self.device = device
        self.shard = sequence_shard(dims)
        model_config = copy.deepcopy(spec.model)
        model_config.update_from_config(config=config)
        kernels.use_attention_kernel(model_config, device)
        self.fake = FakeTensorMode()
        with self.fake, torch.device("meta"):
            model: Any = model_config.build()
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.flops_per_token = matmul_flops_per_token(model_config, model)
        # Outside of the fake mode: FSDP reads the ranks of a mesh of two dimensions, and a fake tensor holds no ranks.
        self.model = spec.parallelize_fn(
            model,
            parallel_dims=dims,
            training=config.training,
            parallelism=config.parallelism,
            compile_config=config.compile,
            ac_config=config.activation_checkpoint,
            dump_folder="",
        )
        # Gathered by FSDP. Under tensor parallelism a rank has a part of most weights.
        self.gathered_shapes = {_gathered_shape(one, dims.tp) for one in self.model.parameters() if one.dim() > 1}
        self.vocab_size = -(-model_config.vocab_size // dims.tp)
        self.model._skip_lm_head = True
        loss: Any = config.loss
        self.loss_fn = ChunkedLossWrapper.Config(num_chunks=loss.num_chunks, loss_fn=loss.loss_fn).build()
        self.loss_fn.set_lm_head(self.model.lm_head)

    def trace(self, documents: list[int], *, accumulating: bool) -> MemoryPlan:
        with self.fake:
            return self._trace(documents, accumulating=accumulating)

    def _trace(self, documents: list[int], *, accumulating: bool) -> MemoryPlan:
        self.model.to_empty(device="cpu")
        if self.model.enable_weight_tying:  # as the initialisation does
            self.model.tok_embeddings.weight = self.model.lm_head.weight
        share_tables(self.model)
        self.model.train()
        self.optimizers: Any = self.config.optimizer.build(model_parts=[self.model])
        trace = AllocationTrace(
            block=kernels.allocation_block(self.device), label=self._label, workspace=kernels.workspace
        )
        with kernels.norm_kernel(self.device), _no_garbage_collection():
            # The first step differs from all later steps. The optimizer creates its state. The chunked loss changes a
            # setting of FSDP. DTensor computes the shapes of its operators on unsharded tensors and caches the shapes.
            self._step(documents, lambda phase: None)
            if not accumulating:
                self.optimizers.zero_grad()
            for parameter in self.model.parameters():
                trace.hold(parameter, "parameters")
                if parameter.grad is not None:
                    trace.hold(parameter.grad, "gradients")
            for buffer in self.model.buffers():
                trace.hold(buffer, "buffers")
            for state in _states(self.optimizers):
                trace.hold(state, "optimizer")
            averages = [torch.empty_like(one, dtype=torch.float32) for one in self._averaged()]
            for average in averages:
                trace.hold(average, "average")
            with trace:
                self._step(documents, trace.start)
            for parameter in self.model.parameters():
                trace.hold(parameter.grad, "gradients")
        return MemoryPlan(
            num_parameters=self.num_parameters,
            parameters=trace.held("parameters"),
            gradients=trace.held("gradients"),
            optimizer=trace.held("optimizer"),
            buffers=trace.held("buffers"),
            after_forward=trace.before("loss"),
            most=trace.most(),
            peaks=trace.peaks(),
            flops_per_token=self.flops_per_token,
            matmul_flops=trace.matmul_flops,
            attention_forwards=trace.calls[torch.ops.torch_attn._varlen_attn.default],
        )

    def _averaged(self) -> list[torch.Tensor]:
        """Return the parameters that have a moving average (:mod:`exact_titan.titan.ema`)."""
        on = isinstance(self.config, RunConfig) and self.config.ema.decay
        return list(self.model.parameters()) if on else []

    def _step(self, documents: list[int], start: Callable[[Phase], None]) -> None:
        """Run a microbatch and an optimizer step as the trainer does. ``start`` is called with every phase."""
        start("forward")
        inputs = self._inputs(documents)
        hidden = self.model(inputs["tokens"], positions=inputs["positions"], attention_masks=inputs["masks"])
        start("loss")
        loss = self._loss(hidden, inputs)
        del hidden
        start("backward")
        loss.backward()
        del loss
        start("optimizer")
        dist_utils.clip_grad_norm_(list(self.model.parameters()), self.config.training.max_norm, foreach=True)
        self.optimizers.step()

    def _inputs(self, documents: list[int]) -> dict[str, Any]:
        shape = (self.config.training.local_batch_size, self.config.training.seq_len)
        offsets = (0, *accumulate(documents))
        borders = torch.empty(len(offsets), dtype=torch.int32)
        whole = {name: torch.empty(shape, dtype=torch.int64) for name in ("tokens", "labels", "positions")}
        # The trainer keeps the whole windows until the end of the microbatch.
        return {
            **{name: self.shard.of(x_BL) for name, x_BL in whole.items()},
            "windows": whole,
            "masks": varlen_metadata(borders, max(documents)),
        }

    def _loss(self, hidden: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Compute the loss as :class:`ExactLoss` does. :class:`ExactLoss` itself needs a packed dataset."""
        buckets = Buckets(self.config.training.seq_len)
        bucket = buckets.index(effective_context(inputs["positions"]))
        weights = torch.empty(len(buckets))[bucket]
        sums = BucketSums(len(buckets), "cpu")
        targets = torch.empty((), dtype=torch.int64)
        return self.loss_fn(hidden, inputs["labels"], targets, weights=weights, bucket=bucket, sums=sums)[0]

    def _label(self, func: Any, tensor: torch.Tensor, phase: Phase) -> Kind:
        if phase == "loss" and tensor.dim() > 1 and tensor.shape[-1] == self.vocab_size:
            return "logits"
        if phase != "forward" and tensor.shape in self.gathered_shapes:
            return "gradients in flight"
        return "working"


def _gathered_shape(parameter: torch.nn.Parameter, tensor_ranks: int) -> torch.Size:
    """Return the shape of a weight that FSDP has gathered."""
    shape = list(parameter.shape)
    if tensor_ranks > 1 and isinstance(parameter, DTensor) and isinstance(parameter.placements[-1], Shard):
        dim = parameter.placements[-1].dim
        shape[dim] = -(-shape[dim] // tensor_ranks)
    return torch.Size(shape)


def _states(optimizers: Any) -> Iterator[torch.Tensor]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector, as torchtitan's trainer does. Tensors in reference cycles then stay alive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _fake_processes(nproc: int) -> Iterator[None]:
    dist_utils.init_fake_mode(nproc)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _spmd_backend(name: Any) -> Iterator[None]:
    before = dist_utils.get_spmd_backend()
    dist_utils.set_spmd_backend(name)
    try:
        yield
    finally:
        dist_utils.set_spmd_backend(before)
