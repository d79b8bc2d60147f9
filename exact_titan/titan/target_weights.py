"""The weights of the targets of a run: counted, refreshed and saved.

1. :class:`TargetWeights` computes the weight of every slot of the rule from the bucket counts of the packed datasets.
2. :meth:`TargetWeights.weigh` returns the bucket and the weight of every target of a microbatch.
3. :meth:`TargetWeights.count_targets` adds up the weights per bucket for the log, and counts the targets for the
   refresh.
4. A checkpoint of the run contains :meth:`TargetWeights.state_dict`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.components.loss import IGNORE_INDEX

from exact_titan.errors import InputError
from exact_titan.exposure import RULES, Buckets, ExposureCounter, TargetCounts, Targets, effective_context, prior_counts
from exact_titan.titan.cross_entropy import BucketSums, sums_by_bucket
from exact_titan.titan.loss_options import LossOptions, check_config, open_counts
from exact_titan.titan.shared_reading import joint_counts


class TargetWeights:
    """The weights of the targets under the rule of the loss, and the counts of the targets of this rank.

    The rule gives each target a slot and each slot a weight: ``w_i = weights_n[rule.slot(…)]``. The weights come from
    the bucket counts of the packed dataset. For a mixture they come from the expected counts of the mixture.

    With ``refresh_steps`` the targets of the training are counted as well. Every ``refresh_steps`` steps the weights
    are recomputed from all targets counted so far, added to the counts of the dataset (:func:`prior_counts`). The sum
    over the ranks starts at the end of one step. Every rank applies the new weights before the next step. The joint
    counts of contexts and packed positions stay those of the dataset.

    Args:
        config: options of the loss.

    Raises:
        InputError: if an option is outside the definition of the method, if a dataset of ``dataset_path`` is missing
            or incomplete, or if the weights are not finite.
    """

    def __init__(self, config: LossOptions) -> None:
        mixture = open_counts(config)
        self.threshold = check_config(config, window=mixture.window)
        self.config = config
        self.rule = RULES[config.rule]
        self.fingerprint = mixture.fingerprint
        self.buckets: Buckets = mixture.buckets
        # On the device of the counts. Otherwise a refresh would copy the bounds to the device and wait for the copy.
        self.lower_bounds_n = self.buckets.lower_bounds
        self.counter = ExposureCounter(self.buckets)
        self.sums = BucketSums(len(self.buckets), "cpu")
        self.counts_n = torch.from_numpy(mixture.counts)
        joint_nn = joint_counts(mixture) if self.rule.needs_joint else None
        self.counts = TargetCounts(self.counts_n.to(torch.float64), joint_nn)
        """The distribution that the weights in force follow."""

        self.weights_n = self._weights(self.counts)
        if not self.weights_n.isfinite().all():
            raise InputError(
                f"loss.alpha is {config.alpha} and loss.gamma is {config.gamma}: the weights of {config.dataset_path} "
                f"are not finite: lower these values"
            )
        self.weight_sums_n = torch.zeros(len(self.buckets), dtype=torch.float64)
        """Sum of the weights of this rank's targets per bucket of effective context since the last log step."""

        self.prior_n = prior_counts(self.counts_n, window=mixture.window)
        self._refresh_due = False

    def to(self, device: torch.device) -> None:
        """Move the buffers before the first count. torchtitan builds a loss without its device."""
        if self.weights_n.device != device:
            self.weights_n = self.weights_n.to(device)
            self.lower_bounds_n = self.lower_bounds_n.to(device)
            self.counts = self.counts.to(device)
            self.prior_n = self.prior_n.to(device)
            self.sums.sums_2n = self.sums.sums_2n.to(device)
            self.weight_sums_n = self.weight_sums_n.to(device)
            self.counter = ExposureCounter(self.buckets, device)

    def _weights(self, counts: TargetCounts) -> torch.Tensor:
        config = self.config
        return self.rule.weights(
            counts,
            self.lower_bounds_n,
            threshold=self.threshold,
            alpha=config.alpha,
            gamma=config.gamma,
            eps=config.eps,
            min_count=config.min_count,
        )

    def _allocate(self, context_n: torch.Tensor) -> None:
        """Take another distribution of the effective contexts, and the weights that follow from the distribution."""
        self.counts = replace(self.counts, context_n=context_n)
        self.weights_n.copy_(self._weights(self.counts))

    def weigh(
        self, positions: torch.Tensor, places_B: torch.Tensor | None, *, first: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bucket of the effective context of every target, int64 ``[B, L]``, and its weight, float32.

        ``first`` is the index in the window of the first input.
        """
        bucket_BL = self.buckets.index(effective_context(positions))
        targets = Targets(bucket_BL, self.buckets, self.counts, places_B, self.config._seed, first)
        return bucket_BL, self.weights_n[self.rule.slot(targets)]

    def weight_sum(self, batches: Iterable[tuple[dict[str, Any], torch.Tensor]]) -> torch.Tensor:
        """Return the sum of the weights of the supervised targets of some microbatches, float64 scalar on the device.

        Args:
            batches: batches of the dataloader, on any device.
        """
        device = self.weights_n.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for inputs, labels in batches:
            _, weights_BL = self.weigh(inputs["positions"].to(device), inputs["places"].to(device))
            total += torch.where(labels.to(device) != IGNORE_INDEX, weights_BL, 0.0).sum(dtype=torch.float64)
        return total

    def count_targets(self, bucket_BL: torch.Tensor, weights_BL: torch.Tensor, valid_BL: torch.Tensor) -> None:
        """Count the targets of a microbatch for the refresh, and add their weights for the log."""
        if self.config.refresh_steps:
            self.counter.add_index(bucket_BL, valid_BL)
        supervised_T = torch.where(valid_BL, weights_BL, 0.0).flatten().to(torch.float64)
        self.weight_sums_n += sums_by_bucket(supervised_T, bucket_BL, len(self.buckets))

    def take_weight_sums(self) -> torch.Tensor:
        """Return the sums of the weights of this rank's targets per bucket since the last call, and restart from 0.

        float64 ``[n]`` on the device of the loss.
        """
        taken_n = self.weight_sums_n.clone()
        self.weight_sums_n.zero_()
        return taken_n

    def mean_weights(self, count_n: torch.Tensor, weight_sum_n: torch.Tensor) -> torch.Tensor:
        """Return the mean weight of the targets of each bucket of effective context, float64 ``[n]`` on the host.

        A bucket without targets has the expected weight of its targets under the weights in force.

        Args:
            count_n: targets per bucket on the host.
            weight_sum_n: sum of their weights, float64 on the host.
        """
        expected_n = self.rule.mean_weights(self.counts, self.weights_n).cpu()
        return torch.where(count_n > 0, weight_sum_n / count_n.clamp(min=1), expected_n)

    def start_step(self) -> None:
        """Apply the weights of the refresh that the last :meth:`end_step` started. Call this before each step."""
        if self._refresh_due:
            self.counter.finish_reduce()
            self._allocate(self.prior_n + self.counter.reduced)
            self._refresh_due = False

    def end_step(self, step: int) -> None:
        """Start a refresh if a refresh is due after optimizer step ``step``, counted from 1."""
        if self.config.refresh_steps and step % self.config.refresh_steps == 0:
            self.counter.start_reduce()
            self._refresh_due = True

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the counts, the sums since the last log step, and the fingerprint of their dataset.

        A collective: every rank calls it, and every rank gets the sums over all ranks. ``weights`` has two rows: the
        weight of every slot, and the counts of the contexts that the weights follow. ``sums`` has three rows: sum of
        the cross-entropies, number of targets, sum of the weights. Older checkpoints have only the weights and the
        first two sums. The names stay, because a checkpoint without a name of the state cannot be loaded.
        """
        self.counter.reduce()
        weight_sums_n = self.weight_sums_n.clone()
        if dist.is_initialized():
            dist.all_reduce(weight_sums_n)
        return {
            "fingerprint": self.fingerprint,
            "weights": [self.weights_n.tolist(), self.counts.context_n.tolist()],
            "refresh_due": self._refresh_due,
            "counts": self.counter.state_dict()["counts"].tolist(),
            "sums": [*self.sums.total().tolist(), weight_sums_n.tolist()],
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
        old = not isinstance(state["weights"][0], list)
        weights, followed = (state["weights"], None) if old else state["weights"]
        weights_n = torch.tensor(weights, device=device)
        ce_n, count_n, *rest = torch.tensor(state["sums"], dtype=torch.float64, device=device)
        # One rank takes the sum over all ranks, and the others start from 0.
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.sums.sums_2n.copy_(torch.stack([ce_n, count_n]))
            self.weight_sums_n.copy_(count_n * weights_n if old else rest[0])
        if not self.config.refresh_steps:
            return
        if self.config._changed:  # the weights of the checkpoint follow from other options
            self._allocate(self.prior_n + torch.tensor(state["counts"], device=device))
        else:
            if followed is not None:
                self._allocate(torch.tensor(followed, dtype=torch.float64, device=device))
            self.weights_n.copy_(weights_n)
            self._refresh_due = state["refresh_due"]
