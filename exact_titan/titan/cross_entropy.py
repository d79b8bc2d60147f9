"""The weighted cross-entropy of a chunk of logits, and its plain cross-entropy per bucket for the log."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Shard
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, _LossParallelCrossEntropy
from torchtitan.config import CompileConfig


def weighted_cross_entropy(
    logits_BLV: torch.Tensor, labels_BL: torch.Tensor, weights_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``sum_i w_i CE_i`` over the supervised targets, and the plain cross-entropy of each target.

    With weights of 1 the sum and its gradient equal ``F.cross_entropy(reduction="sum")`` bit for bit, because the same
    kernel does the reduction: the weighted terms are the input of an ``nll_loss`` with one class.

    Args:
        logits_BLV: any float dtype, converted to float32 as in torchtitan. A DTensor with a divided vocabulary under
            tensor parallelism.
        labels_BL: int64, ``IGNORE_INDEX`` at inputs without a target.
        weights_BL: float32.

    Returns:
        The scalar sum, and the detached cross-entropies, float32 ``[B, L]``, 0 at inputs without a target.
    """
    labels_T = labels_BL.flatten()
    ce_T = _cross_entropies(logits_BLV, labels_T)
    class_T = torch.where(labels_T == IGNORE_INDEX, IGNORE_INDEX, 0)
    weighted_T1 = (ce_T * weights_BL.flatten()).unsqueeze(1)
    loss = F.nll_loss(-weighted_T1, class_T, reduction="sum", ignore_index=IGNORE_INDEX)
    return loss, ce_T.detach().view_as(labels_BL)


def _cross_entropies(logits_BLV: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each target, float32 ``[T]``, 0 at inputs without a target."""
    if isinstance(logits_BLV, DTensor):
        # Tensor parallelism: each rank has the logits of a part of the vocabulary.
        assert logits_BLV.placements == (Shard(2),), logits_BLV.placements
        local_TV = logits_BLV.to_local().flatten(0, 1).float()
        group = logits_BLV.device_mesh.get_group()
        return _LossParallelCrossEntropy.apply(local_TV, labels_T, group, logits_BLV.shape[-1], "none")
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), labels_T, reduction="none", ignore_index=IGNORE_INDEX)


def sums_by_bucket(values_T: torch.Tensor, index_BL: torch.Tensor, n: int) -> torch.Tensor:
    """Return the sums of values per bucket, float64 ``[n]``, or ``[r, n]`` from ``[r, T]``.

    The sum is a matrix product, because its order is fixed on CUDA too.

    Args:
        values_T: values of the targets, float64 ``[T]`` or ``[r, T]``.
        index_BL: bucket of each target, int64, T elements.
        n: number of buckets.
    """
    one_hot_Tn = (index_BL.flatten()[:, None] == torch.arange(n, device=index_BL.device)).to(torch.float64)
    return values_T @ one_hot_Tn


class BucketSums:
    """Sums of plain cross-entropy and numbers of targets per bucket. The sums stay on the device until they are read.

    Args:
        n: number of buckets.
        device: device of the buffers.
        counting: False: :meth:`add` adds nothing, because another rank adds the same targets.
    """

    def __init__(self, n: int, device: torch.device | str, *, counting: bool = True) -> None:
        self.counting = counting
        # Rows: sum of the cross-entropies, number of targets. float64 holds the counts exactly.
        self.sums_2n = torch.zeros(2, n, dtype=torch.float64, device=device)

    def add(self, ce_BL: torch.Tensor, index_BL: torch.Tensor, valid_BL: torch.Tensor) -> None:
        """Add one batch. ``index_BL`` is the bucket of each target."""
        if not self.counting:
            return
        valid_T = valid_BL.flatten().to(torch.float64)
        values_2T = torch.stack([ce_BL.flatten() * valid_T, valid_T])
        self.sums_2n += sums_by_bucket(values_2T, index_BL, self.sums_2n.shape[1])

    def total(self, group: dist.ProcessGroup | None = None) -> torch.Tensor:
        """Return the sums of all ranks since the last :meth:`take`, float64 ``[2, n]``. Keep the sums. A collective."""
        total = self.sums_2n.clone()
        if dist.is_initialized():
            dist.all_reduce(total, group=group)
        return total

    def take(self, group: dist.ProcessGroup | None = None) -> torch.Tensor:
        """Return the sums of all ranks since the last call, float64 ``[2, n]``, and restart from 0. A collective."""
        return self.take_with(self.sums_2n.new_empty(0), group)[0]

    def take_with(
        self, extra_m: torch.Tensor, group: dist.ProcessGroup | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the same as :meth:`take`, and sum further numbers over the ranks in the same collective.

        Args:
            extra_m: numbers of this rank, float64 ``[m]``, on the device of the sums.
            group: the ranks; None: all.

        Returns:
            The sums, float64 ``[2, n]``, and the sum of ``extra_m`` over the ranks, float64 ``[m]``.
        """
        total = torch.cat([self.sums_2n.flatten(), extra_m])
        self.sums_2n.zero_()
        if dist.is_initialized():
            dist.all_reduce(total, group=group)
        sums, summed_m = total.split([self.sums_2n.numel(), extra_m.numel()])
        return sums.view_as(self.sums_2n), summed_m


class BucketCrossEntropy(BaseLoss):
    """The loss of one chunk of logits. The loss is plain cross-entropy if the caller gives no weights."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.fn = weighted_cross_entropy
        self._maybe_compile(compile_config)

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        *,
        weights: torch.Tensor | None = None,
        bucket: torch.Tensor | None = None,
        sums: BucketSums | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return ``sum w CE / global_valid_tokens``. The plain cross-entropies are added to ``sums`` by ``bucket``."""
        if weights is None:
            weights = torch.ones_like(labels, dtype=torch.float32)
        loss, ce = self.fn(pred, labels, weights)
        if sums is not None and bucket is not None:
            sums.add(ce, bucket, labels != IGNORE_INDEX)
        if global_valid_tokens is not None:
            loss = loss / global_valid_tokens
        return loss, {}
