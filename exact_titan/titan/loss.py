"""EXACT as a torchtitan loss: plain cross-entropy per target, weighted by the bucket of its effective context."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig

from exact_titan.errors import InputError
from exact_titan.exposure import (
    Buckets,
    ExposureCounter,
    Rule,
    check_allocation,
    default_threshold,
    effective_context,
    rule_weights,
)
from exact_titan.exposure.allocation import ALPHA, EPS, GAMMA, MIN_COUNT
from exact_titan.sampling.mixture import Mixture


def weighted_cross_entropy(
    logits_BLV: torch.Tensor, labels_BL: torch.Tensor, weights_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum_i w_i CE_i`` over the supervised targets, and every target's own plain cross-entropy.

    With weights of 1 the sum and its gradient are bit for bit those of ``F.cross_entropy(reduction="sum")``: the
    weighted terms go through the very kernel that reduces there, as a one-class ``nll_loss``.

    Args:
        logits_BLV: any float dtype, made float32 as in torchtitan.
        labels_BL: int64, ``IGNORE_INDEX`` where there is no target.
        weights_BL: float32.

    Returns:
        The scalar sum, and the detached cross-entropies float32 ``[B, L]`` (0 where there is no target).
    """
    labels_T = labels_BL.flatten()
    ce_T = F.cross_entropy(logits_BLV.flatten(0, 1).float(), labels_T, reduction="none", ignore_index=IGNORE_INDEX)
    class_T = torch.where(labels_T == IGNORE_INDEX, IGNORE_INDEX, 0)
    weighted_T1 = (ce_T * weights_BL.flatten()).unsqueeze(1)
    loss = F.nll_loss(-weighted_T1, class_T, reduction="sum", ignore_index=IGNORE_INDEX)
    return loss, ce_T.detach().view_as(labels_BL)


class BucketSums:
    """Plain cross-entropy and number of targets per bucket, summed on the device until they are read.

    Args:
        n: number of buckets.
        device: device of the buffers.
    """

    def __init__(self, n: int, device: torch.device | str) -> None:
        # Rows: sum of the cross-entropies, number of targets. float64 holds the counts exactly.
        self.sums_2n = torch.zeros(2, n, dtype=torch.float64, device=device)

    def add(self, ce_BL: torch.Tensor, index_BL: torch.Tensor, valid_BL: torch.Tensor) -> None:
        """Add one batch; ``index_BL`` is each target's bucket. A matrix product: its order is fixed on CUDA too."""
        n = self.sums_2n.shape[1]
        one_hot_Tn = (index_BL.flatten()[:, None] == torch.arange(n, device=index_BL.device)).to(torch.float64)
        valid_T = valid_BL.flatten().to(torch.float64)
        self.sums_2n += torch.stack([ce_BL.flatten() * valid_T, valid_T]) @ one_hot_Tn

    def total(self, group: dist.ProcessGroup | None = None) -> torch.Tensor:
        """All ranks' sums since the last :meth:`take`, float64 ``[2, n]``, which goes on summing: a collective."""
        total = self.sums_2n.clone()
        if dist.is_initialized():
            dist.all_reduce(total, group=group)
        return total

    def take(self, group: dist.ProcessGroup | None = None, *, beside_m: torch.Tensor | None = None) -> torch.Tensor:
        """All ranks' sums since the last call, float64 ``[2, n]``, and start again from 0: a collective.

        Args:
            beside_m: float64 on the same device, replaced by its sum over the ranks in the same collective.
        """
        if beside_m is None:
            beside_m = self.sums_2n.new_empty(0)
        total = torch.cat([self.sums_2n.flatten(), beside_m])
        self.sums_2n.zero_()
        if dist.is_initialized():
            dist.all_reduce(total, group=group)
        sums, beside = total.split([self.sums_2n.numel(), beside_m.numel()])
        beside_m.copy_(beside)
        return sums.view_as(self.sums_2n)


class BucketCrossEntropy(BaseLoss):
    """The loss of one chunk of logits: weighted when the weights are handed over, plain cross-entropy otherwise."""

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
        """``sum w CE / global_valid_tokens``; ``bucket`` and ``sums`` say where to add the plain cross-entropies."""
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

    The divisor is torchtitan's ``global_valid_tokens``: the step's supervised targets, over ranks and accumulation. The
    weights come from the packed dataset's bucket counts, for a mixture from those to expect of it. With
    ``refresh_steps`` the targets seen in training are counted as well, and every ``refresh_steps`` steps the weights
    are made anew from all that was counted so far: the sum over the ranks starts after one step and is taken up before
    the next, by every rank alike.

    Without ``positions`` (validation in torchtitan's own trainer) it is the plain cross-entropy.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        loss_fn: BaseLoss.Config = field(default_factory=BucketCrossEntropy.Config)

        dataset_path: str = ""
        """Packed dataset whose training split is counted for the weights, or several, mixed as in the dataloader;
        empty: the dataloader's."""

        rule: Rule = "exact"
        """How targets are weighted: standard (all 1) or exact."""

        alpha: float = ALPHA
        """Mean extra weight of the tail's targets (the paper's value)."""

        gamma: float = GAMMA
        """Exponent of the inverse bucket frequency; 0 weights the whole tail alike (the paper's value)."""

        threshold: int | None = None
        """First effective context of the tail, in tokens; None: a quarter of the window, as in the paper."""

        eps: float = EPS
        """Added to a bucket's share before it is inverted (the paper does not state it)."""

        min_count: int = MIN_COUNT
        """A tail bucket with fewer targets than this gets the tail's mean weight, 1 + alpha."""

        refresh_steps: int = 0
        """Make the weights anew from the targets counted while training, every so many steps; 0: never."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        super().__init__(config, compile_config=compile_config)
        if not config.dataset_path:
            raise InputError("loss.dataset_path is empty: name the packed dataset whose bucket counts give the weights")
        mixture = Mixture(config.dataset_path)
        self.threshold = check_config(config, window=mixture.window)
        self.config = config
        self.fingerprint = mixture.fingerprint
        self.buckets: Buckets = mixture.buckets
        # Beside the counts, or every refresh would copy it to the device and wait.
        self.lower_bounds_n = self.buckets.lower_bounds
        self.counter = ExposureCounter(self.buckets)
        self.sums = BucketSums(len(self.buckets), "cpu")
        self.weights_n = self._weights(torch.from_numpy(mixture.counts))
        self._refresh_due = False

    def to(self, device: torch.device) -> None:
        """Move the buffers, before anything is counted: torchtitan builds a loss without telling it the device."""
        if self.weights_n.device != device:
            self.weights_n = self.weights_n.to(device)
            self.lower_bounds_n = self.lower_bounds_n.to(device)
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
        """Loss of one microbatch; ``pred`` are hidden states ``[B, L, D]``, see :class:`ChunkedLossWrapper`.

        Args:
            positions: int64 ``[B, L]``, index of each input in its visible document segment; None: plain cross-entropy.
        """
        if positions is None:
            return super().__call__(pred, labels, global_valid_tokens, **loss_inputs)
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
        self, pred: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, sums: BucketSums
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Plain cross-entropy of a validation batch, added to ``sums`` per bucket; nothing is weighted or counted."""
        bucket_BL = self.buckets.index(effective_context(positions))
        return super().__call__(pred, labels, bucket=bucket_BL, sums=sums)

    def start_step(self) -> None:
        """Before an optimizer step: take up the sum that the last step's :meth:`end_step` started."""
        if self._refresh_due:
            self.counter.finish_reduce()
            self.weights_n.copy_(self._weights(self.counter.reduced))
            self._refresh_due = False

    def end_step(self, step: int) -> None:
        """After optimizer step ``step`` (counted from 1): start a refresh where one is due."""
        if self.config.refresh_steps and step % self.config.refresh_steps == 0:
            self.counter.start_reduce()
            self._refresh_due = True

    def state_dict(self) -> dict[str, Any]:
        """Weights, counts, what was summed up since the last log step, and what it belongs to.

        A collective: every rank saves, and all get the sums over all ranks.
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
        """Go on where :meth:`state_dict` was taken, on any number of ranks.

        A loss over another dataset begins with that dataset's weights and counts nothing yet. Without refreshes the
        weights are those of the config.
        """
        if state["fingerprint"] != self.fingerprint:
            return
        device = self.weights_n.device
        self.counter.load_state_dict({"counts": torch.tensor(state["counts"], device=device)})
        # One rank goes on with the sum of all.
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.sums.sums_2n.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        if self.config.refresh_steps:
            self.weights_n.copy_(torch.tensor(state["weights"]))
            self._refresh_due = state["refresh_due"]


def check_config(config: ExactLoss.Config, *, window: int) -> int:
    """Refuse option values that the method is not defined for; the threshold in force, in tokens.

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
