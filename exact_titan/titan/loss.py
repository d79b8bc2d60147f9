"""EXACT as a torchtitan loss: the cross-entropy of each target, weighted by a rule (:mod:`exact_titan.exposure.rules`).

1. :class:`TargetWeights` finds the bucket and the weight of each target of a window, from ``positions``.
2. torchtitan's chunked loss splits hidden states, labels, buckets and weights along the sequence.
3. :class:`BucketCrossEntropy` computes the weighted sum of each chunk.
4. :class:`BucketSums` adds up the plain cross-entropy per bucket for the log. :class:`TargetWeights` adds up the
   weights.
"""

from typing import Any

import torch
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper
from torchtitan.config import CompileConfig

from exact_titan.errors import InputError
from exact_titan.titan.cross_entropy import BucketSums
from exact_titan.titan.loss_options import NEEDS_OWN_TRAINER, LossOptions
from exact_titan.titan.model.context_parallel import SequenceShard
from exact_titan.titan.target_weights import TargetWeights


class ExactLoss(TargetWeights, ChunkedLossWrapper):
    """``sum_i m_i w_i CE_i / sum_i m_i`` over the optimizer step, in chunks of the sequence (EXACT, equation 6).

    The weights ``w_i`` are those of :class:`TargetWeights`.

    The divisor is torchtitan's ``global_valid_tokens``: the supervised targets of the step, over all ranks and
    accumulation steps. A rule with a weighted divisor divides by ``sum_i m_i w_i`` of the same targets. The trainer
    sums :meth:`weight_sum` over the ranks before the first microbatch, and sets :attr:`divisor`.

    torchtitan's own validator calls the loss without ``positions``, in no-grad mode. The loss is then the plain
    cross-entropy. A call without ``positions`` in training is refused.
    """

    Config = LossOptions

    places_B: torch.Tensor | None = None
    """Place in the run of each window of the next microbatch, int64 ``[B]``. Set by the trainer."""

    shard: SequenceShard = SequenceShard()
    """The part of the sequence of every window that this rank computes. Set by the trainer."""

    divisor: torch.Tensor | None = None
    """Sum of the weights of the optimizer step's targets over all ranks, float32 scalar. Set by the trainer."""

    def __init__(self, config: LossOptions, *, compile_config: CompileConfig | None = None) -> None:
        ChunkedLossWrapper.__init__(self, config, compile_config=compile_config)
        TargetWeights.__init__(self, config)

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        *,
        positions: torch.Tensor | None = None,
        **loss_inputs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of one microbatch.

        Args:
            pred: hidden states ``[B, L, D]``, see :class:`ChunkedLossWrapper`.
            labels: int64 ``[B, L]``, ``IGNORE_INDEX`` at inputs without a target.
            global_valid_tokens: supervised targets of the optimizer step, over all ranks and accumulation steps.
            positions: int64 ``[B, L]``, index of each input in its visible document segment. None in torchtitan's
                validation: plain cross-entropy.

        Raises:
            InputError: if a training step gives no positions, if its windows have another length than the windows of
                ``dataset_path``, or if the trainer does not set ``places_B`` or ``divisor`` and the rule needs them.
        """
        if positions is None:
            # A loss without gradients trains nothing. Without this check a training without positions would silently
            # be a training with the plain loss.
            if torch.is_grad_enabled():
                raise InputError(
                    "the EXACT loss gets no positions in a training step, so it knows no context and no weights: "
                    "torchtitan passes no positions with pipeline parallelism: set "
                    "parallelism.pipeline_parallel_degree to 1, and shard with FSDP (or use a dataloader that yields "
                    "positions)"
                )
            return super().__call__(pred, labels, global_valid_tokens, **loss_inputs)
        length = labels.shape[1]
        if length * self.shard.count != self.buckets.window:
            raise InputError(
                f"loss.dataset_path is {self.config.dataset_path}, packed in windows of {self.buckets.window} tokens, "
                f"but the loss gets {length * self.shard.count} tokens of a window: set training.seq_len to the window "
                f"of the dataset, and leave parallelism.context_parallel_degree at 1 in torchtitan's own trainer"
            )
        rule = self.rule
        if (rule.needs_places and self.places_B is None) or (rule.weighted_divisor and self.divisor is None):
            raise InputError(f"loss.rule is {rule.name}: {NEEDS_OWN_TRAINER}")
        self.to(labels.device)
        bucket_BL, weights_BL = self.weigh(positions, self.places_B, first=self.shard.index * length)
        if self.sums.counting:
            self.count_targets(bucket_BL, weights_BL, labels != IGNORE_INDEX)
        return super().__call__(
            pred,
            labels,
            self.divisor if rule.weighted_divisor else global_valid_tokens,
            weights=weights_BL,
            bucket=bucket_BL,
            sums=self.sums,
            **loss_inputs,
        )

    def measure(
        self, pred: torch.Tensor, labels: torch.Tensor, index_BL: torch.Tensor, sums: BucketSums
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the plain cross-entropy of a validation batch, and add it to ``sums`` at ``index_BL``.

        No weights apply, and no target is counted.
        """
        return super().__call__(pred, labels, bucket=index_BL, sums=sums)
