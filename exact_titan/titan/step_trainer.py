"""The optimizer step of a run: torchtitan's step with document borders from the host, and with the EXACT loss.

1. The loader's batch has the document borders on the host. The attention of the batch is counted for the FLOPs.
2. Context parallelism splits the sequence. Each rank computes its part.
3. The loss gets the places of the windows and, under a rule with a weighted divisor, the divisor of the step.
4. The clock times the parts of the step. The detector reads the loss of every microbatch and the gradient norm.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch.distributed.tensor import DTensor
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.distributed import utils as dist_utils
from torchtitan.trainer import Trainer

from exact_titan.titan import layout
from exact_titan.titan.attention_work import share_work
from exact_titan.titan.compiled_graphs import CompiledGraphs
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.loss import ExactLoss
from exact_titan.titan.metrics import ExposureMetrics
from exact_titan.titan.model.attention import varlen_metadata
from exact_titan.titan.model.flops import attention_pairs
from exact_titan.titan.nonfinite import NonFiniteDetector
from exact_titan.titan.run_config import RunConfig
from exact_titan.titan.step_clock import StepClock

_Batches = Iterator[tuple[dict[str, Any], torch.Tensor]]


class StepTrainer(Trainer):
    """torchtitan's trainer with the optimizer steps of :class:`ExactLoss` on packed windows."""

    config: RunConfig
    dataloader: PackedDataLoader
    loss_fn: ExactLoss
    metrics_processor: ExposureMetrics

    clock: StepClock
    """Times the parts of the steps."""

    windows_per_step: int
    """Windows of an optimizer step over all ranks."""

    nonfinite: NonFiniteDetector
    """Finds losses and gradients that are NaN or infinite."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.dataloader.rounds_per_step = self.gradient_accumulation_steps
        if self.dataloader.dp_world_size > 1:
            share_work(self.dataloader.mixture.datasets)
        self._shard = layout.sequence_shard(self.parallel_dims)
        self._counts_windows = layout.counts_windows(self.parallel_dims)
        self.loss_fn.to(self.device)
        self.loss_fn.shard = self._shard
        self.loss_fn.sums.counting = layout.counts_targets(self.parallel_dims)
        self.metrics_processor.exact_loss = self.loss_fn
        self.metrics_processor.sequence_shards = self._shard.count
        self.metrics_processor.count_flops(self.model_config, self.model_parts[0])
        self.clock = StepClock(self.device)
        self.windows_per_step = (
            self.gradient_accumulation_steps * self.dataloader.dp_world_size * self.dataloader.local_batch_size
        )
        self.nonfinite = NonFiniteDetector(self.device, self.gradient_accumulation_steps)
        self._graphs = CompiledGraphs()

    def batch_generator(
        self, data_iterable: Iterable[tuple[dict[str, Any], torch.Tensor]]
    ) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """Yield torchtitan's batches, and count their attention while the document borders are still on the host."""
        batches = super().batch_generator(data_iterable)
        while True:
            with self.clock.host("data"):
                input_dict, labels = next(batches)
            if self._counts_windows:
                self.metrics_processor.attention_pairs += attention_pairs(input_dict["cu_seqlens"].diff().tolist())
            else:  # torchtitan has counted the tokens
                self.metrics_processor.ntokens_since_last_log -= labels.numel()
            self.nonfinite.add_batch(self.dataloader.last_places)
            yield input_dict, labels

    def post_dataloading_process(
        self, input_dict: dict[str, Any], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Prepare a batch as torchtitan does, with the loader's document borders. The device does not search them."""
        inputs, positions = input_dict["input"], input_dict["positions"]
        masks = varlen_metadata(input_dict["cu_seqlens"], input_dict["max_seqlen"])
        if self._shard.index == 0:  # torchtitan sums over data and context parallelism, not over tensor parallelism
            self.ntokens_seen += labels.numel()
        inputs, labels, positions = map(self._shard.of, (inputs, labels, positions))
        return inputs, labels, {"positions": positions, "attention_masks": masks}

    def forward_backward_step(self, **batch: Any) -> torch.Tensor:
        """Run one microbatch as torchtitan does: its places go to the loss, and its loss goes to the detector.

        The time after the last microbatch of a step belongs to the optimizer.

        Returns:
            The loss of this rank for the log. torchtitan adds up these losses over all ranks. Under context parallelism
            the loss is the mean over the ranks with the same windows, so that the maximum compares whole windows.
        """
        self.clock.begin("forward_backward")
        self.loss_fn.places_B = batch["input_dict"]["places"]
        loss = super().forward_backward_step(**batch)
        if isinstance(loss, DTensor):  # under tensor parallelism, with the same value on all ranks of a group
            loss = loss.full_tensor()
        self.nonfinite.add_loss(loss)
        if self._shard.count > 1 and self.metrics_processor.should_log(self.step):
            loss = funcol.all_reduce(loss.detach(), "sum", self.parallel_dims.get_mesh("cp")) / self._shard.count
        self.clock.begin("optimizer")
        return loss

    def train_step(self, data_iterator) -> None:
        """Run one optimizer step. A started weight refresh ends before it. A due weight refresh starts after it."""
        self._graphs.report(f"the validation after step {self.step - 1}")
        self.clock.steps += 1
        self.loss_fn.start_step()
        try:
            with self.nonfinite.step(self.step):
                super().train_step(self._with_divisor(data_iterator))
        except DataloaderExhaustedError:
            self.step -= 1  # torchtitan has counted the cancelled step
            raise
        except RuntimeError as error:
            # At a log step torchtitan checks the loss of all ranks.
            if str(error).startswith("Loss is not finite"):
                self.nonfinite.check()
            raise
        self.loss_fn.end_step(self.step)
        self._graphs.report(f"step {self.step}")

    def _with_divisor(self, batches: _Batches) -> _Batches:
        """Return the batches of the step. Give a rule with a weighted divisor its divisor, before the first microbatch.

        A collective under such a rule. The ranks are the ranks of torchtitan's ``global_valid_tokens``.
        """
        if not self.loss_fn.rule.weighted_divisor:
            return batches
        step = [next(batches) for _ in range(self.gradient_accumulation_steps)]
        total = self.loss_fn.weight_sum(step)
        if self.parallel_dims.dp_enabled:
            total = dist_utils.dist_sum_tensor(total, self.parallel_dims.get_mesh("batch"))
        self.loss_fn.divisor = total.to(torch.float32)
        return iter(step)
