"""EXACT as a torchtitan loss: the cross-entropy of each target, weighted by the bucket of its effective context.

1. :class:`ExactLoss` finds the bucket and the weight of each target of a window, from ``positions``.
2. torchtitan's chunked loss splits hidden states, labels, buckets and weights along the sequence.
3. :class:`BucketCrossEntropy` computes the weighted sum of each chunk.
4. :class:`BucketSums` adds up the plain cross-entropy per bucket for the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig

from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.exposure import (
    Buckets,
    ExposureCounter,
    Rule,
    check_allocation,
    default_threshold,
    effective_context,
    prior_counts,
    rule_weights,
)
from exact_titan.exposure.allocation import ALPHA, EPS, GAMMA, MIN_COUNT
from exact_titan.sampling.mixture import Mixture


def weighted_cross_entropy(
    logits_BLV: torch.Tensor, labels_BL: torch.Tensor, weights_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``sum_i w_i CE_i`` over the supervised targets, and the plain cross-entropy of each target.

    With weights of 1 the sum and its gradient equal ``F.cross_entropy(reduction="sum")`` bit for bit, because the same
    kernel does the reduction: the weighted terms are the input of an ``nll_loss`` with one class.

    Args:
        logits_BLV: any float dtype, converted to float32 as in torchtitan.
        labels_BL: int64, ``IGNORE_INDEX`` at inputs without a target.
        weights_BL: float32.

    Returns:
        The scalar sum, and the detached cross-entropies, float32 ``[B, L]``, 0 at inputs without a target.
    """
    labels_T = labels_BL.flatten()
    ce_T = F.cross_entropy(logits_BLV.flatten(0, 1).float(), labels_T, reduction="none", ignore_index=IGNORE_INDEX)
    class_T = torch.where(labels_T == IGNORE_INDEX, IGNORE_INDEX, 0)
    weighted_T1 = (ce_T * weights_BL.flatten()).unsqueeze(1)
    loss = F.nll_loss(-weighted_T1, class_T, reduction="sum", ignore_index=IGNORE_INDEX)
    return loss, ce_T.detach().view_as(labels_BL)


class BucketSums:
    """Sums of plain cross-entropy and numbers of targets per bucket. The sums stay on the device until they are read.

    Args:
        n: number of buckets.
        device: device of the buffers.
    """

    def __init__(self, n: int, device: torch.device | str) -> None:
        # Rows: sum of the cross-entropies, number of targets. float64 holds the counts exactly.
        self.sums_2n = torch.zeros(2, n, dtype=torch.float64, device=device)

    def add(self, ce_BL: torch.Tensor, index_BL: torch.Tensor, valid_BL: torch.Tensor) -> None:
        """Add one batch. ``index_BL`` is the bucket of each target.

        The sum is a matrix product, because its order is fixed on CUDA too.
        """
        n = self.sums_2n.shape[1]
        one_hot_Tn = (index_BL.flatten()[:, None] == torch.arange(n, device=index_BL.device)).to(torch.float64)
        valid_T = valid_BL.flatten().to(torch.float64)
        self.sums_2n += torch.stack([ce_BL.flatten() * valid_T, valid_T]) @ one_hot_Tn

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


class ExactLoss(ChunkedLossWrapper):
    """``sum_i m_i w_b(i) CE_i / sum_i m_i`` over the optimizer step, in chunks of the sequence (EXACT, equation 6).

    The divisor is torchtitan's ``global_valid_tokens``: the supervised targets of the step, over all ranks and
    accumulation steps. The weights come from the bucket counts of the packed dataset. For a mixture they come from the
    expected counts of the mixture.

    With ``refresh_steps`` the targets of the training are counted as well. Every ``refresh_steps`` steps the weights
    are recomputed from all targets counted so far, added to the counts of the dataset (:func:`prior_counts`). The sum
    over the ranks starts at the end of one step. Every rank applies the new weights before the next step.

    torchtitan's own validator calls the loss without ``positions``, in no-grad mode. The loss is then the plain
    cross-entropy. A call without ``positions`` in training is refused.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        loss_fn: BaseLoss.Config = field(default_factory=BucketCrossEntropy.Config)

        dataset_path: str = ""
        """Packed dataset whose training split gives the bucket counts for the weights. Or several datasets, mixed as in
        the dataloader. Empty: the datasets of the dataloader."""

        rule: Rule = "exact"
        """Weighting rule of the targets: standard (all 1) or exact."""

        alpha: float = ALPHA
        """Mean extra weight of the tail's targets (the paper's value)."""

        gamma: float = GAMMA
        """Exponent of the inverse bucket frequency (the paper's value). 0: all targets of the tail have one weight."""

        threshold: int | None = None
        """First effective context of the tail, in tokens. None: a quarter of the window, as in the paper."""

        eps: float = EPS
        """Number added to the share of a bucket before the inversion (the paper does not state the value)."""

        min_count: int = MIN_COUNT
        """A tail bucket with fewer targets than this gets the tail's mean weight, 1 + alpha."""

        refresh_steps: int = 0
        """Number of steps after which the weights are recomputed from the targets counted in training. 0: never."""

        # torchtitan leaves names with an underscore out when it writes a config down.
        _mixture: Annotated[Mixture | None, tyro.conf.Suppress] = field(default=None, repr=False, compare=False)
        """The datasets of dataset_path, if they are open already (:func:`open_counts`)."""

        _changed: Annotated[bool, tyro.conf.Suppress] = field(default=False, repr=False, compare=False)
        """The checkpoint of a resume was trained with other options of the loss. Set by preflight."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        super().__init__(config, compile_config=compile_config)
        mixture = open_counts(config)
        self.threshold = check_config(config, window=mixture.window)
        self.config = config
        self.fingerprint = mixture.fingerprint
        self.buckets: Buckets = mixture.buckets
        # On the device of the counts. Otherwise a refresh would copy the bounds to the device and wait for the copy.
        self.lower_bounds_n = self.buckets.lower_bounds
        self.counter = ExposureCounter(self.buckets)
        self.sums = BucketSums(len(self.buckets), "cpu")
        self.counts_n = torch.from_numpy(mixture.counts)
        self.weights_n = self._weights(self.counts_n)
        self.prior_n = prior_counts(self.counts_n, window=mixture.window)
        self._refresh_due = False

    def to(self, device: torch.device) -> None:
        """Move the buffers before the first count. torchtitan builds a loss without its device."""
        if self.weights_n.device != device:
            self.weights_n = self.weights_n.to(device)
            self.lower_bounds_n = self.lower_bounds_n.to(device)
            self.prior_n = self.prior_n.to(device)
            self.sums.sums_2n = self.sums.sums_2n.to(device)
            self.counter = ExposureCounter(self.buckets, device)

    def _weights(self, counts_n: torch.Tensor) -> torch.Tensor:
        config = self.config
        return rule_weights(
            config.rule,
            counts_n,
            self.lower_bounds_n,
            threshold=self.threshold,
            alpha=config.alpha,
            gamma=config.gamma,
            eps=config.eps,
            min_count=config.min_count,
        )

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
            InputError: if a training step gives no positions, or if its windows have another length than the windows of
                ``dataset_path``.
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
        if labels.shape[1] != self.buckets.window:
            raise InputError(
                f"loss.dataset_path is {self.config.dataset_path}, packed in windows of {self.buckets.window} tokens, "
                f"but the loss gets {labels.shape[1]} tokens of a window: set training.seq_len to the window of the "
                f"dataset, and leave parallelism.context_parallel_degree at 1"
            )
        self.to(labels.device)
        bucket_BL = self.buckets.index(effective_context(positions))
        if self.config.refresh_steps:
            self.counter.add_index(bucket_BL, labels != IGNORE_INDEX)
        return super().__call__(
            pred,
            labels,
            global_valid_tokens,
            weights=self.weights_n[bucket_BL],
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

    def start_step(self) -> None:
        """Apply the weights of the refresh that the last :meth:`end_step` started. Call this before each step."""
        if self._refresh_due:
            self.counter.finish_reduce()
            self.weights_n.copy_(self._weights(self.prior_n + self.counter.reduced))
            self._refresh_due = False

    def end_step(self, step: int) -> None:
        """Start a refresh if a refresh is due after optimizer step ``step``, counted from 1."""
        if self.config.refresh_steps and step % self.config.refresh_steps == 0:
            self.counter.start_reduce()
            self._refresh_due = True

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the counts, the sums since the last log step, and the fingerprint of their dataset.

        A collective: every rank calls it, and every rank gets the sums over all ranks.
        """
        self.counter.reduce()
        return {
            "fingerprint": self.fingerprint,
            "weights": self.weights_n.tolist(),
            "refresh_due": self._refresh_due,
            "counts": self.counter.state_dict()["counts"].tolist(),
            "sums": self.sums.total().tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`, on any number of ranks.

        A loss over another dataset starts with the weights of that dataset and with empty counters. Without refreshes
        the weights follow from the config.
        """
        if state["fingerprint"] != self.fingerprint:
            return
        device = self.weights_n.device
        self.counter.load_state_dict({"counts": torch.tensor(state["counts"], device=device)})
        # One rank takes the sum over all ranks, and the others start from 0.
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.sums.sums_2n.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        if not self.config.refresh_steps:
            return
        if self.config._changed:  # the weights of the checkpoint follow from other options
            self.weights_n.copy_(self._weights(self.prior_n + torch.tensor(state["counts"], device=device)))
        else:
            self.weights_n.copy_(torch.tensor(state["weights"]))
            self._refresh_due = state["refresh_due"]


def open_counts(config: ExactLoss.Config, *, manifests: Mapping[Path, Manifest] | None = None) -> Mixture:
    """Open the datasets that give the bucket counts for the weights, if the config does not carry these datasets.

    The training splits are counted.

    Args:
        config: config of the loss.
        manifests: manifests that the caller has read already, by folder.

    Raises:
        InputError: if ``dataset_path`` is empty, or if a dataset is missing or incomplete.
    """
    if not config.dataset_path:
        raise InputError("loss.dataset_path is empty: name the packed dataset whose bucket counts give the weights")
    mixture = config._mixture
    if mixture is None or (mixture.dataset_path, mixture.split) != (config.dataset_path, "train"):
        mixture = Mixture(config.dataset_path, manifests=manifests)
    return mixture


def check_config(config: ExactLoss.Config, *, window: int) -> int:
    """Refuse option values outside the definition of the method. Return the threshold of the run, in tokens.

    Raises:
        InputError: naming the option.
    """
    threshold = default_threshold(window) if config.threshold is None else config.threshold
    if not 0 < threshold <= Buckets(window).lower_bounds[-1]:
        raise InputError(
            f"loss.threshold is {threshold}: with a window of {window} tokens the tail must start between 1 and "
            f"{Buckets(window).lower_bounds[-1]}, the last bucket's lower bound"
        )
    if config.refresh_steps < 0:
        raise InputError(f"loss.refresh_steps is {config.refresh_steps}: give a number of steps, or 0 for never")
    try:
        check_allocation(
            alpha=config.alpha, gamma=config.gamma, eps=config.eps, threshold=threshold, min_count=config.min_count
        )
    except ValueError as error:
        raise InputError(f"loss.{error}") from None
    return threshold
