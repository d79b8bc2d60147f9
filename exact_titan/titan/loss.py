"""EXACT as a torchtitan loss: the cross-entropy of each target, weighted by a rule (:mod:`exact_titan.exposure.rules`).

1. :class:`ExactLoss` finds the bucket and the weight of each target of a window, from ``positions``.
2. torchtitan's chunked loss splits hidden states, labels, buckets and weights along the sequence.
3. :class:`BucketCrossEntropy` computes the weighted sum of each chunk.
4. :class:`BucketSums` adds up the plain cross-entropy per bucket for the log. :class:`ExactLoss` adds up the weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import tyro
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig

from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError, did_you_mean
from exact_titan.exposure import (
    RULES,
    Buckets,
    ExposureCounter,
    Rule,
    RuleName,
    TargetCounts,
    Targets,
    check_allocation,
    default_threshold,
    effective_context,
    find_rule,
    prior_counts,
)
from exact_titan.exposure.allocation import ALPHA, EPS, GAMMA, MIN_COUNT
from exact_titan.sampling.mixture import Mixture
from exact_titan.titan.cross_entropy import BucketCrossEntropy, BucketSums, sums_by_bucket
from exact_titan.titan.layout import shards_to_check
from exact_titan.titan.model.context_parallel import SequenceShard

_RULE_HELP = f"Weighting rule of the targets: {', '.join(f'{rule.name} ({rule.summary})' for rule in RULES.values())}."


class ExactLoss(ChunkedLossWrapper):
    """``sum_i m_i w_i CE_i / sum_i m_i`` over the optimizer step, in chunks of the sequence (EXACT, equation 6).

    The rule gives each target a slot and each slot a weight: ``w_i = weights_n[rule.slot(…)]``. The weights come from
    the bucket counts of the packed dataset. For a mixture they come from the expected counts of the mixture.

    The divisor is torchtitan's ``global_valid_tokens``: the supervised targets of the step, over all ranks and
    accumulation steps. A rule with a weighted divisor divides by ``sum_i m_i w_i`` of the same targets. The trainer
    sums :meth:`weight_sum` over the ranks before the first microbatch, and sets :attr:`divisor`.

    With ``refresh_steps`` the targets of the training are counted as well. Every ``refresh_steps`` steps the weights
    are recomputed from all targets counted so far, added to the counts of the dataset (:func:`prior_counts`). The sum
    over the ranks starts at the end of one step. Every rank applies the new weights before the next step. The joint
    counts of contexts and packed positions stay those of the dataset.

    torchtitan's own validator calls the loss without ``positions``, in no-grad mode. The loss is then the plain
    cross-entropy. A call without ``positions`` in training is refused.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        loss_fn: BaseLoss.Config = field(default_factory=BucketCrossEntropy.Config)

        dataset_path: str = ""
        """Packed dataset whose training split gives the bucket counts for the weights. Or several datasets, mixed as in
        the dataloader. Empty: the datasets of the dataloader."""

        rule: Annotated[RuleName, tyro.conf.arg(help=_RULE_HELP)] = "exact"

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

        _seed: Annotated[int, tyro.conf.Suppress] = field(default=0, repr=False, compare=False)
        """Seed of the order of the windows, for a rule with draws. Set by preflight."""

    places_B: torch.Tensor | None = None
    """Place in the run of each window of the next microbatch, int64 ``[B]``. Set by the trainer."""

    shard: SequenceShard = SequenceShard()
    """The part of the sequence of every window that this rank computes. Set by the trainer."""

    divisor: torch.Tensor | None = None
    """Sum of the weights of the optimizer step's targets over all ranks, float32 scalar. Set by the trainer."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        super().__init__(config, compile_config=compile_config)
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
        joint_nn = torch.from_numpy(mixture.joint_counts) if self.rule.needs_joint else None
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

    def _weigh(
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
            _, weights_BL = self._weigh(inputs["positions"].to(device), inputs["places"].to(device))
            total += torch.where(labels.to(device) != IGNORE_INDEX, weights_BL, 0.0).sum(dtype=torch.float64)
        return total

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
        bucket_BL, weights_BL = self._weigh(positions, self.places_B, first=self.shard.index * length)
        if self.sums.counting:
            self._count(bucket_BL, weights_BL, labels != IGNORE_INDEX)
        return super().__call__(
            pred,
            labels,
            self.divisor if rule.weighted_divisor else global_valid_tokens,
            weights=weights_BL,
            bucket=bucket_BL,
            sums=self.sums,
            **loss_inputs,
        )

    def _count(self, bucket_BL: torch.Tensor, weights_BL: torch.Tensor, valid_BL: torch.Tensor) -> None:
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


NEEDS_OWN_TRAINER = (
    "this rule needs exact_titan's own trainer (python -m exact_titan.train): choose another rule, such as exact"
)


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
        mixture = Mixture(config.dataset_path, manifests=manifests, checked=shards_to_check())
    return mixture


def checked_rule(name: str) -> Rule:
    """Return the rule of a name.

    Raises:
        InputError: if there is no such rule. The message names all rules.
    """
    try:
        return find_rule(name)
    except ValueError as error:
        raise InputError(f"loss.{error}{did_you_mean(name, RULES)}") from None


def check_config(config: ExactLoss.Config, *, window: int) -> int:
    """Refuse option values outside the definition of the method. Return the threshold of the run, in tokens.

    Raises:
        InputError: naming the option.
    """
    checked_rule(config.rule)
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
