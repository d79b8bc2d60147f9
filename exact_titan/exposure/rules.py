"""The rules for the weights of targets (EXACT, Table 3), by name: :data:`RULES`.

A rule has two parts:

1. :meth:`Rule.slot` gives every target a slot. There are as many slots as buckets. The slot of ``exact`` is the bucket
   of the effective context.
2. :meth:`Rule.weights` gives every slot a weight. The weight of a target is ``weights[slot]``.

The loss, the option ``loss.rule``, its help, and ``exact-titan inspect`` take the rules from :data:`RULES`. A new rule
is a class in this module, and a row in the table of docs/method.md.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from exact_titan.exposure.allocation import bucket_weights
from exact_titan.exposure.context import Buckets
from exact_titan.exposure.draws import uniform


@dataclass(frozen=True)
class TargetCounts:
    """The distribution of the supervised targets of a dataset.

    Attributes:
        context_n: targets per bucket of effective context, int64 or float64 ``[n]``.
        joint_nn: targets per bucket of effective context (rows) and bucket of the packed position (columns), int64 or
            float64 ``[n, n]``. The packed position of a target is its effective context if the window were one
            document: the index in the window plus 1. None if no rule needs the packed positions.
    """

    context_n: torch.Tensor
    joint_nn: torch.Tensor | None = None

    def to(self, device: torch.device) -> "TargetCounts":
        """Return the counts on a device."""
        joint_nn = None if self.joint_nn is None else self.joint_nn.to(device)
        return TargetCounts(self.context_n.to(device), joint_nn)


@dataclass(frozen=True)
class Targets:
    """The targets of a microbatch of B windows: L inputs of every window.

    Attributes:
        context_BL: bucket of the effective context of every target, int64 ``[B, L]``.
        buckets: the buckets of the window.
        counts: the distribution that the weights in force follow, on the device of ``context_BL``.
        places_B: place in the run of every window, int64 ``[B]``. None if the trainer does not know the places.
        seed: seed of the order of the windows.
        first: index in the window of the first input. Context parallelism divides the windows.
    """

    context_BL: torch.Tensor
    buckets: Buckets
    counts: TargetCounts
    places_B: torch.Tensor | None = None
    seed: int = 0
    first: int = 0


class Rule(ABC):
    """A rule for the weights of targets."""

    name: ClassVar[str]

    summary: ClassVar[str]
    """The weight of a target in a few words, for the help and the tables."""

    is_weighted: ClassVar[bool] = True
    """Whether any weight differs from 1."""

    slot_name: ClassVar[str] = ""
    """The meaning of a slot in a few words. Empty: the bucket of the effective context."""

    fixed: ClassVar[dict[str, float]] = {}
    """Options of :func:`bucket_weights` that the rule sets."""

    needs_places: ClassVar[bool] = False
    """Whether the slot depends on the place of the window in the run."""

    needs_joint: ClassVar[bool] = False
    """Whether the rule needs the packed positions of the dataset (``TargetCounts.joint_nn``)."""

    weighted_divisor: ClassVar[bool] = False
    """Whether the divisor of the loss is the sum of the weights of the optimizer step's targets, not their number."""

    def slot(self, targets: Targets) -> torch.Tensor:
        """Return the slot of every target, int64 ``[B, L]`` on the device of the targets. The host does not wait."""
        return targets.context_BL

    @abstractmethod
    def weights(
        self, counts: TargetCounts, lower_bounds: torch.Tensor, *, threshold: int, **options: float | int
    ) -> torch.Tensor:
        """Return the weight of every slot, float32 ``[n]`` on the device of the counts. The host does not wait.

        Args:
            counts: the distribution of the targets.
            lower_bounds, threshold, options: as in :func:`bucket_weights`.

        Raises:
            ValueError: in the cases of :func:`bucket_weights`.
        """

    def slot_shares(self, counts: TargetCounts) -> torch.Tensor:
        """Return the share of every slot (columns) among the targets of each bucket of effective context (rows).

        float64 ``[n, n]``. The sum of a row is 1, or 0 for a bucket without targets whose slots are not known.
        """
        return torch.eye(len(counts.context_n), dtype=torch.float64, device=counts.context_n.device)

    def mean_weights(self, counts: TargetCounts, weights_n: torch.Tensor) -> torch.Tensor:
        """Return the expected weight of a target in each bucket of effective context, float64 ``[n]``.

        Args:
            counts: the distribution of the targets.
            weights_n: the weight of every slot (:meth:`weights`).
        """
        return self.slot_shares(counts) @ weights_n.to(torch.float64)


class Standard(Rule):
    """The plain loss: all weights are 1."""

    name = "standard"
    summary = "all weights are 1"
    is_weighted = False

    def weights(
        self, counts: TargetCounts, lower_bounds: torch.Tensor, *, threshold: int, **options: float | int
    ) -> torch.Tensor:
        return torch.ones_like(counts.context_n, dtype=torch.float32)


class Exact(Rule):
    """The rule of the paper: inverse bucket frequency in the tail, with the mean extra weight ``alpha``."""

    name = "exact"
    summary = "extra weight in the tail by inverse bucket frequency"

    def weights(
        self, counts: TargetCounts, lower_bounds: torch.Tensor, *, threshold: int, **options: float | int
    ) -> torch.Tensor:
        return bucket_weights(counts.context_n, lower_bounds, threshold=threshold, **{**options, **self.fixed})  # type: ignore[arg-type]


class NormalizedExact(Exact):
    """``exact`` with another divisor: the sum of the weights of all targets of the optimizer step."""

    name = "normalized_exact"
    summary = "exact, divided by the sum of the weights"
    weighted_divisor = True


class Uniform(Exact):
    """The same weight for all targets of the tail: ``exact`` with ``gamma`` 0."""

    name = "uniform"
    summary = "1 + alpha in the tail"
    fixed: ClassVar[dict[str, float]] = {"gamma": 0.0}


class PackedPosition(Exact):
    """``exact`` with the packed position in the place of the effective context.

    The buckets, their counts, the shares ``q_b`` and the tail are those of the packed positions. The extra weight is
    scaled by (the tail's share of the effective contexts) / (the tail's share of the packed positions). The mean extra
    weight of all targets is therefore the mean of ``exact``.
    """

    name = "packed_position"
    summary = "exact with the index in the window instead of the context"
    slot_name = "the index in the window"
    needs_joint = True

    def slot(self, targets: Targets) -> torch.Tensor:
        length = targets.context_BL.shape[-1]
        position_L = torch.arange(1, length + 1, device=targets.context_BL.device) + targets.first
        return targets.buckets.index(position_L).expand_as(targets.context_BL)

    def weights(
        self, counts: TargetCounts, lower_bounds: torch.Tensor, *, threshold: int, **options: float | int
    ) -> torch.Tensor:
        position_n = self._joint(counts).sum(0)
        weights_n = bucket_weights(position_n, lower_bounds, threshold=threshold, **options)  # type: ignore[arg-type]
        tail_n = lower_bounds.to(position_n.device) >= threshold
        context_share, position_share = (
            torch.where(tail_n, count_n, 0).sum() / count_n.sum().clamp(min=1)
            for count_n in (counts.context_n.to(torch.float64), position_n.to(torch.float64))
        )
        # Without targets in the tail of the packed positions there is no mass to scale.
        scale = torch.where(position_share > 0, context_share / position_share, 1.0)
        return (1 + scale * (weights_n.to(torch.float64) - 1)).to(torch.float32)

    def slot_shares(self, counts: TargetCounts) -> torch.Tensor:
        joint_nn = self._joint(counts).to(torch.float64)
        total_n1 = joint_nn.sum(1, keepdim=True)
        return joint_nn / torch.where(total_n1 > 0, total_n1, 1.0)

    @staticmethod
    def _joint(counts: TargetCounts) -> torch.Tensor:
        if counts.joint_nn is None:
            raise ValueError("rule packed_position needs the counts of the packed positions")
        return counts.joint_nn


class Random(Exact):
    """``exact`` with a drawn bucket for each target: the same mass without the signal.

    The bucket comes from the distribution of the effective contexts, by a key of (seed, place of the window in the run,
    index in the window). The draw is therefore the same on any number of ranks and after a resume.
    """

    name = "random"
    summary = "exact with a bucket drawn from the distribution of the contexts"
    slot_name = "a drawn bucket"
    needs_places = True

    def slot(self, targets: Targets) -> torch.Tensor:
        if targets.places_B is None:
            raise ValueError("rule random needs the places of the windows in the run")
        drawn_BL = uniform(targets.seed, targets.places_B, targets.context_BL.shape[-1], first=targets.first)
        cumulative_n = targets.counts.context_n.to(torch.float64).cumsum(0)
        # The last bound is 1. A bucket without targets has two equal bounds, and no number is between them.
        return torch.bucketize(drawn_BL, cumulative_n[:-1] / cumulative_n[-1], right=True)

    def slot_shares(self, counts: TargetCounts) -> torch.Tensor:
        count_n = counts.context_n.to(torch.float64)
        return (count_n / count_n.sum().clamp(min=1)).expand(len(count_n), len(count_n))


RULES: dict[str, Rule] = {
    rule.name: rule for rule in (Standard(), Exact(), NormalizedExact(), Uniform(), PackedPosition(), Random())
}
"""Every rule by its name, in the order of the tables."""

if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[tuple(RULES)]
"""The names of the rules as a type. An option of this type takes only these names."""


def find_rule(name: str) -> Rule:
    """Return the rule of a name.

    Raises:
        ValueError: if there is no such rule. The message names all rules.
    """
    if name not in RULES:
        raise ValueError(f"rule is {name!r}: choose one of {', '.join(RULES)}")
    return RULES[name]
